"""One replay: a server of its own, an archive, and client processes that read a trace.

Memory is what the server uses more than when it was empty, without the buffers of connections and the text of cached scripts
(`used_memory`, `mem_clients_normal` and `used_memory_scripts_eval` of INFO): neither grows with the modules. It is read ten
times a second while a replay is measured, and the mean counts, because one large module changes it much.

The by-hand caches have it as `maxmemory`, which includes the buffers: `buffers_for` finds out how much they take. distier's
budgets count contents and frames: `fit` finds out what else a module takes, and chooses budgets with which records, sets, hot
and warm together take the same memory.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.churn.caches import LZ4, OURS_FAR, Cache, Delay, Distier, open_cache, open_store
from benchmarks.churn.client import Figures, Job, wrong_bytes
from benchmarks.churn.traces import Trace, content, digest
from distier import Item
from distier.plans.recovery.rescue import rescue
from tests.servers import TestServer, poll, running_server

ROOT = Path(__file__).parents[2]
LEAN = ("--appendonly", "no", "--latency-tracking", "no")
"""A histogram of each command that was ever sent takes 24 kB, which says nothing about modules."""
OURS_ALL: dict[str, Any] = {
    "namespace": "bench", "counter": "estimate", "deadline": "60s", "events__max_length": 100,
    "storage_tiers__hot__max_size": 10**9, "storage_tiers__warm__max_modules": 100_000,
}  # fmt: skip
ROOMY = {"storage_tiers__hot__max_bytes": 2**40, "storage_tiers__warm__max_bytes": 2**40}
SAMPLE_S = 0.1
HOT_PART = 0.1
LEAST_PART = 0.1
"""Where records leave no room for contents, hot and warm get this part of the memory in addition."""


@dataclass(frozen=True)
class Work:
    """A trace with its archive."""

    trace: Trace
    warmup: int
    archive: Path
    file: Path
    objects: Mapping[str, str]
    digests: Mapping[str, str]

    @property
    def measured(self) -> int:
        return len(self.trace.ids) - self.warmup


@dataclass(frozen=True)
class Cell:
    """The conditions of a replay. `buffers_bytes` are added to `maxmemory`."""

    memory_bytes: int
    buffers_bytes: int = 0
    delay_s: float = 0.0
    clients: int = 1
    measured: int = 0
    puts: int = 0


@dataclass(frozen=True)
class Result:
    accesses: int
    us: list[float]
    archive_reads: int
    client_cpu_s: float
    server_cpu_s: float
    memory_bytes: int
    lost_bytes: int


@contextmanager
def prepared(trace: Trace, warmup: int) -> Iterator[Work]:
    """Write the archive of a trace, as distier archives it."""
    with tempfile.TemporaryDirectory() as tmp, running_server("valkey", args=LEAN) as server:
        root = Path(tmp) / "archive"
        digests, objects = {}, {}
        with open_store(server.socket_url, root, {**OURS_ALL, **ROOMY}, Delay()) as store:
            for id, size in trace.sizes.items():
                data = content(id, size)
                digests[id] = digest(data)
                store.put_many([Item(id, data, content_type="text/plain")])
            store.archive_now()
            for id in trace.sizes:
                placed = store.where(id)
                assert placed is not None
                objects[id] = str(placed.archived_key)
        work = {"ids": trace.ids, "sizes": trace.sizes, "digests": digests, "objects": objects}
        file = Path(tmp) / "work.json"
        file.write_text(json.dumps(work))
        yield Work(trace, warmup, root, file, objects, digests)


def memory_of(server: TestServer) -> int:
    """Return the bytes that the modules take, and what the empty server does. Waits until the clients have left."""
    with server.client() as client:
        poll(lambda: client.info("clients")["connected_clients"] == 1, what="the end of the clients' connections")
        return _memory(client)


def _memory(client: redis.Redis) -> int:
    found: Mapping[str, Any] = client.info("memory")
    return int(found["used_memory"] - found["mem_clients_normal"] - found["used_memory_scripts_eval"])


@contextmanager
def memory_watched(server: TestServer) -> Iterator[list[int]]:
    """Yield a list that grows by the server's memory ten times a second, the last time at the end."""
    samples: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        with server.client() as client:
            while not ended.wait(SAMPLE_S):
                samples.append(_memory(client))
            samples.append(_memory(client))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def server_cpu_s(server: TestServer) -> float:
    with server.client() as client:
        found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


@contextmanager
def served(work: Work) -> Iterator[tuple[TestServer, Path, int]]:
    """Yield an empty server, a copy of the archive, and the memory of the empty server."""
    with tempfile.TemporaryDirectory() as tmp, running_server("valkey", args=LEAN) as server:
        archive = Path(tmp) / "archive"
        shutil.copytree(work.archive, archive, copy_function=os.link)
        yield server, archive, memory_of(server)


def fill_records(server: TestServer, archive: Path, settings: Mapping[str, Any]) -> None:
    """Make the records of all modules, cold, from the archive."""
    with open_store(server.socket_url, archive, settings, Delay()) as store:
        store.run(rescue(store.space), deadline_s=600)


def settings_of(budgets: tuple[int, int]) -> dict[str, Any]:
    hot, warm = budgets
    return {**OURS_ALL, "storage_tiers__hot__max_bytes": hot, "storage_tiers__warm__max_bytes": warm}


def budgets_of(room_bytes: float) -> tuple[int, int]:
    """The budgets of hot and warm that share the room."""
    return max(1, int(room_bytes * HOT_PART)), max(1, int(room_bytes * (1 - HOT_PART)))


def fit(work: Work, memory_bytes: int) -> tuple[tuple[int, int], int]:
    """Return the budgets in bytes of hot and warm with which all of distier takes `memory_bytes`, and the bytes of records.

    The trace is replayed once. What the server then uses beyond the records, divided by the bytes that the budgets count, is
    what a counted byte costs.
    """
    with served(work) as (server, archive, empty):
        fill_records(server, archive, settings_of((1, 1)))
        records = memory_of(server) - empty
        room = max(memory_bytes - records, memory_bytes * LEAST_PART)
        settings = settings_of(budgets_of(room))
        cache = Distier(server.socket_url, archive, {**settings, "near__enabled": False})
        for id in work.trace.ids:
            cache.get(id)
        stats = cache.store.stats()
        cache.close()
        counted = stats.hot.size_bytes + stats.warm.stored_bytes
        factor = (memory_of(server) - empty - records) / counted if counted else 1.0
    return budgets_of(room / min(2.0, max(1.0, factor))), records


def buffers_for(work: Work, memory_bytes: int, clients: int) -> int:
    """Return what `maxmemory` must have in addition, so that the modules of the by-hand cache with lz4 take `memory_bytes`."""
    cell = Cell(memory_bytes, clients=clients)
    return max(0, memory_bytes - replay(work, LZ4, cell, (1, 1)).memory_bytes)


def replay(work: Work, kind: str, cell: Cell, budgets: tuple[int, int]) -> Result:
    """Replay the trace with one contender. `budgets` are distier's."""
    ours, settings = kind.startswith("distier"), settings_of(budgets)
    with served(work) as (server, archive, empty), ExitStack() as stack:
        if ours:
            fill_records(server, archive, settings)
        else:
            with server.client() as client:
                limit = int(client.info("memory")["used_memory"]) + cell.memory_bytes + cell.buffers_bytes
                client.config_set("maxmemory", limit)
                client.config_set("maxmemory-policy", "allkeys-lru")
        measured = cell.measured or work.measured
        clients = []
        for n in range(cell.clients):
            job = Job(
                kind, server.socket_url, str(archive), str(work.file), settings, cell.memory_bytes, work.warmup, measured,
                n, cell.clients, cell.delay_s, cell.puts,
            )  # fmt: skip
            clients.append(stack.enter_context(_client(job, archive.parent / f"job{n}.json")))
        for one in clients:
            assert _line(one) == "ready\n"
        before_s = server_cpu_s(server)
        with memory_watched(server) as samples:
            for one in clients:
                _say(one, "go")
            figures = [Figures(**json.loads(_line(one))) for one in clients]
        spent_s = server_cpu_s(server) - before_s
        for one in clients:
            _say(one, "end")
            assert one.wait(60) == 0
        memory = round(statistics.mean(samples)) - empty
        digests = dict(work.digests)
        for found in figures:
            for id, version in found.written.items():
                digests[id] = digest(content(id, work.trace.sizes[id], version))
        cache: Cache = open_cache(
            OURS_FAR if ours else kind, server.socket_url, archive, work.objects, settings, cell.memory_bytes
        )
        lost = wrong_bytes(cache.get, work.trace.sizes, digests) + sum(found.wrong_bytes for found in figures)
        cache.close()
    us = [one for found in figures for one in found.us]
    return Result(
        len(us), us, sum(f.archive_reads for f in figures), sum(f.cpu_s for f in figures), spent_s, memory, lost
    )


@contextmanager
def _client(job: Job, path: Path) -> Iterator[subprocess.Popen[str]]:
    path.write_text(json.dumps(asdict(job)))
    argv = [sys.executable, "-m", "benchmarks.churn.client", str(path)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"a client ended with {process.wait()}"
    return line


def _say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
