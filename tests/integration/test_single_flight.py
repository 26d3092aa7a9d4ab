"""However many processes read a cold module at once, the archive is asked once or twice. A lease holder that is killed
or hangs is overtaken within the deadline. The archive is `faulty_s3.py`, which counts requests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distier import Store, connect
from distier.effects import Command, Plan
from distier.plans.common.leases import patience_ms
from tests.children import freeze
from tests.integration.faulty_s3 import FaultyS3
from tests.servers import poll

ROOT = Path(__file__).parent.parent.parent
CONTENT = b"what all want to read at once. " * 500
DEADLINE_S = 45.0  # 8 processes on 2 shared cores; others wait for a lease holder for a third of it, 10 s at most

# Each process opens the store from its argument, prints that it is ready, waits for a line, reads with many threads at
# once, and repeats.
READER = """
import json, sys, threading
from distier import connect
import distier.stores.s3
for line in sys.stdin:
    settings, n = json.loads(line)
    store = connect({"counter": "estimate"}, **settings)
    store.get("warm up")
    barrier = threading.Barrier(n + 1)
    results = []
    def read():
        barrier.wait()
        try:
            results.append(len(store.get("a").content))
        except Exception as e:
            results.append(type(e).__name__)
    threads = [threading.Thread(target=read) for _ in range(n)]
    for t in threads: t.start()
    print("up", flush=True)
    sys.stdin.readline()
    barrier.wait()
    for t in threads: t.join()
    print(json.dumps(results), flush=True)
    store.close()
"""


@pytest.fixture
def s3() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def settings(redis_url: str, s3: FaultyS3) -> dict[str, Any]:
    return s3.settings(
        redis__url=redis_url, namespace="t", deadline=f"{DEADLINE_S:g}s", near__enabled=False,
        storage_tiers__cold__timeout=f"{DEADLINE_S:g}s",
    )  # fmt: skip


@pytest.fixture
def store(settings: dict[str, Any]) -> Iterator[Store]:
    """A store with the cold module `a`."""
    with connect({"counter": "estimate"}, **settings) as store:
        store.put("a", CONTENT)
        assert store.demote("a", to="cold").tier == "cold"
        yield store


def gets(s3: FaultyS3) -> int:
    return sum(n for key, n in s3.gets.items() if "/modules/a/" in key and key.endswith(".xz"))


def start_reader() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


_waiting: list[subprocess.Popen[str]] = []
"""Processes that have finished their reads and can read again."""


@pytest.fixture(autouse=True, scope="module")
def _end_waiting_readers() -> Iterator[None]:
    yield
    while _waiting:
        process = _waiting.pop()
        process.kill()
        process.communicate()


class Readers:
    def __init__(self, settings: dict[str, Any], processes: int, threads: int) -> None:
        self.processes = [_waiting.pop() if _waiting else start_reader() for _ in range(processes)]
        self._have_read = False
        for process in self.processes:
            self._say(process, json.dumps([settings, threads]))
        for process in self.processes:
            assert process.stdout
            assert process.stdout.readline() == "up\n"

    def _say(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    def go(self) -> None:
        for process in self.processes:
            self._say(process, "")

    def results(self) -> list[Any]:
        found = [r for p in self.processes if p.stdout for r in json.loads(p.stdout.readline())]
        self._have_read = True
        return found

    def close(self) -> None:
        if self._have_read:
            _waiting.extend(self.processes)
            return
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def readers(settings: dict[str, Any], processes: int, threads: int) -> Iterator[Readers]:
    made = Readers(settings, processes, threads)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("archive", ["quick", "slow"])
def test_200_readers_in_8_processes_make_at_most_two_requests(
    store: Store, s3: FaultyS3, settings: dict[str, Any], archive: str
):
    with readers(settings, 8, 25) as many:
        if archive == "slow":
            with s3.fault("slow", "GET"):
                many.go()
                results = many.results()
        else:
            many.go()
            results = many.results()
    assert results == [len(CONTENT)] * 200
    print(f"{archive}: {gets(s3)} GETs for 200 readers")
    assert 1 <= gets(s3) <= 2


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_lease_holder_that_dies_or_hangs_is_overtaken(
    store: Store, s3: FaultyS3, settings: dict[str, Any], fate: signal.Signals
):
    """The signal arrives during its GET, so that its lease exists and the holder will not return it."""
    hasty = settings | {"storage_tiers__cold__timeout": "9s"}  # so that 3 s of patience are enough
    with readers(hasty, 1, 1) as holder, readers(hasty, 2, 10) as others:
        with s3.fault("stall", "GET", times=1):
            holder.go()
            poll(lambda: gets(s3) == 1, what="the holder's GET")
            if fate == signal.SIGSTOP:
                freeze(holder.processes[0].pid)
            else:
                os.kill(holder.processes[0].pid, fate)
            others.go()
            assert others.results() == [len(CONTENT)] * 20, "within their deadline"
        assert gets(s3) <= 3
        if fate == signal.SIGSTOP:  # it continues as a zombie and does no harm
            os.kill(holder.processes[0].pid, signal.SIGCONT)
            assert holder.results() in ([len(CONTENT)], ["DeadlineExceeded"], ["ArchiveUnavailable"])
    assert store.get("a").content == CONTENT  # type: ignore[union-attr]


def test_waiting_reader_ends_a_lease_longer_than_its_own_deadline(store: Store, s3: FaultyS3, settings: dict[str, Any]):
    """Another process has a longer deadline, took the lease for longer, and died."""
    shard = store.space.keys.shards[0]
    with connect(
        {"counter": "estimate"}, **(settings | {"deadline": "60s", "storage_tiers__cold__timeout": "6s"})
    ) as hasty:

        def take() -> Plan[Any]:
            return (yield from Command(shard, ("SET", shard.lease("a"), "another", "PX", 100_000), lambda r: r))

        store.run(take())
        begin = time.monotonic()
        assert hasty.get("a").content == CONTENT  # type: ignore[union-attr]
        assert patience_ms(hasty.space) == 2000
        assert 2.0 <= time.monotonic() - begin < 60
    assert gets(s3) == 1


def test_archive_slower_than_the_patience_gets_one_request_per_lease(
    store: Store, s3: FaultyS3, settings: dict[str, Any]
):
    """A GET takes longer than its lease lasts. That costs one more GET for each such time, not one for each reader."""
    s3.slow_s = 2.5
    with readers(settings | {"deadline": "6s"}, 2, 20) as many, s3.fault("slow", "GET", match="/modules/a/"):
        many.go()
        results = many.results()
    assert results == [len(CONTENT)] * 40
    print(f"{gets(s3)} GETs of 2.5 s for 40 readers with a patience of 2 s")
    assert gets(s3) == 2
