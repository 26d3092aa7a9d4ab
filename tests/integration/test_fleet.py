"""A fleet of `distier worker` processes: which worker holds which shard, what happens when one dies or sleeps, and what
their metrics report.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from distier import Store, connect
from distier.observe.metrics import METRICS
from distier.plans.fleet.maintain import recount
from distier.worker import AsyncWorker, Worker
from distier.worker.health import HealthServer
from tests.children import freeze
from tests.conftest import empty
from tests.integration.faulty_s3 import FaultyS3
from tests.servers import TestServer, free_port, poll
from tests.unit.test_deploy import suffixes

SOON_S = 90.0  # nothing here takes long, except on a busy machine
LEASE = {"lease": "1s", "interval": "50ms"}


def settings(server: TestServer, s3: FaultyS3, shards: int, **worker: Any) -> dict[str, Any]:
    return s3.settings(
        redis__url=server.url, namespace="f", shards=shards, counter="estimate", near__enabled=False,
        storage_tiers__cold__archive_after="0s", storage_tiers__cold__timeout="2s", deadline="3s", worker=LEASE | worker,
    )  # fmt: skip


class Process:
    """`distier worker`, configured by environment variables alone."""

    def __init__(self, made: dict[str, Any], at: Path, *args: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")}
        flat = {k: v for k, v in made.items() if k != "worker"} | {f"worker__{k}": v for k, v in made["worker"].items()}
        env |= {f"DISTIER_{name.upper()}": str(value).lower() if isinstance(value, bool) else str(value)
                for name, value in flat.items()}  # fmt: skip
        self.log = at / f"{free_port()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distier", "worker", *args], env=env, cwd=at, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(SOON_S)


@pytest.fixture
def s3() -> Iterator[FaultyS3]:
    with FaultyS3() as found:
        yield found


@pytest.fixture
def fleet(valkey_server: TestServer, s3: FaultyS3, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start workers; those that are left at the end are killed."""
    empty(valkey_server)
    started: list[Process] = []

    def start(shards: int, *args: str, **worker: Any) -> Process:
        started.append(Process(settings(valkey_server, s3, shards, **worker), tmp_path, *args))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@contextmanager
def client(server: TestServer, s3: FaultyS3, shards: int) -> Iterator[Store]:
    with connect({}, **settings(server, s3, shards)) as store:
        yield store


def holders(store: Store, server: TestServer) -> dict[int, int]:
    """The pid of the worker that holds each shard."""
    with server.client() as raw:
        found = {s.index: raw.get(s.worker_lease) for s in store.space.keys.shards}
    return {i: pid_of(lease.decode()) for i, lease in found.items() if lease}


def pid_of(name: str) -> int:
    return int(name.rsplit("-", 2)[1])


def spread(store: Store, server: TestServer, *workers: Process) -> bool:
    """Whether these workers together hold all shards, divided evenly."""
    found = holders(store, server)
    counts = [list(found.values()).count(w.pid) for w in workers]
    shards = store.space.config.shards
    return sum(counts) == shards and max(counts) <= -(-shards // len(workers))


def is_clean(store: Store) -> bool:
    return store.stats().dirty_count == 0


def put(store: Store, n: int, round: int) -> dict[str, bytes]:
    made = {f"m{i}": f"module {i} of round {round}; ".encode() * 9 for i in range(n)}
    for id, content in made.items():
        store.put(id, content)
    return made


def is_whole(store: Store, expected: dict[str, bytes], s3: FaultyS3) -> None:
    for id, content in expected.items():
        module = store.get(id)
        assert module is not None and module.content == content
        placed = store.where(id)
        assert placed is not None and placed.clean and placed.archived_key
        assert f"p/{placed.archived_key}" in s3.objects
    for shard in store.space.keys.shards:
        counted = store.run(recount(store.space, shard))
        with_zeros = store.run(iter_usage(shard))
        assert counted == {name: n for name, n in with_zeros.items() if n}


def iter_usage(shard: Any) -> Any:
    from distier.effects import Command

    return (yield from Command(shard, ("HGETALL", shard.usage), lambda r: {k.decode(): int(v) for k, v in r.items()}))


def archived_twice(s3: FaultyS3) -> dict[str, int]:
    return {key: n for key, n in s3.puts.items() if "/modules/" in key and n > 1}


def test_fleet_shares_shards_and_takes_over_from_dead_or_sleeping_workers(
    fleet: Callable[..., Process], valkey_server: TestServer, s3: FaultyS3
) -> None:
    workers = [fleet(4) for _ in range(3)]
    with client(valkey_server, s3, 4) as store:
        poll(lambda: spread(store, valkey_server, *workers), timeout_s=SOON_S, what="each has its part")
        expected = put(store, 60, 0)
        poll(lambda: is_clean(store), timeout_s=SOON_S, what="all are archived")
        assert archived_twice(s3) == {}

        dead = next(w for w in workers if w.pid in holders(store, valkey_server).values())
        dead.signal(signal.SIGKILL)
        workers.remove(dead)
        expected |= put(store, 60, 1)
        poll(lambda: spread(store, valkey_server, *workers), timeout_s=SOON_S, what="two take over from the dead one")
        poll(lambda: is_clean(store), timeout_s=SOON_S, what="what it would have archived is archived")

        asleep, awake = workers
        freeze(asleep.pid)
        poll(lambda: spread(store, valkey_server, awake), timeout_s=SOON_S, what="one has all")
        expected |= put(store, 60, 2)
        poll(lambda: is_clean(store), timeout_s=SOON_S, what="one archives all")
        asleep.signal(signal.SIGCONT)
        expected |= put(store, 30, 3)
        poll(lambda: spread(store, valkey_server, *workers), timeout_s=SOON_S, what="it comes back")
        poll(lambda: is_clean(store), timeout_s=SOON_S, what="all are archived again")
        is_whole(store, expected, s3)

        assert [w.end() for w in workers] == [0, 0], [w.log.read_text() for w in workers]
        with valkey_server.client() as raw:
            assert holders(store, valkey_server) == {} and raw.zcard(store.space.keys.shards[0].workers) == 0


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return 0, ""


def metrics(port: int) -> dict[str, float]:
    lines = [line for line in ask(port, "/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_health_and_metrics_during_outages_of_archive_and_redis(
    fleet: Callable[..., Process], valkey_server: TestServer, s3: FaultyS3
) -> None:
    one, two = free_port(), free_port()
    patient = {"lease": "3s"}  # a busy machine must not make the shard change hands too often
    workers = [fleet(1, "--health", f"127.0.0.1:{one}", **patient)]
    poll(lambda: ask(one, "/healthz")[0] == 200, timeout_s=SOON_S, what="the first is healthy")
    workers.append(fleet(1, health=f"127.0.0.1:{two}", **patient))
    poll(lambda: ask(two, "/readyz")[0] == 200, timeout_s=SOON_S, what="the second stands by, or the first does")
    ports = {worker.pid: port for worker, port in zip(workers, (one, two), strict=True)}

    def metric_total(name: str) -> float:
        """The sum over both workers, because the worker that holds the shard changes while the second one joins and on
        a busy machine. -1: neither worker reports it.
        """
        found = [metrics(port).get(f"distier_{name}") for port in ports.values()]
        return sum(n for n in found if n is not None) if any(n is not None for n in found) else -1.0

    with client(valkey_server, s3, 1) as store:
        store.put("a", b"content " * 100)
        poll(lambda: is_clean(store), timeout_s=SOON_S, what="archived")
        for name, least in (
            ('modules{namespace="f",shard="0",tier="hot"}', 1),
            ('worker_done_total{namespace="f",what="archived"}', 1),
            ('worker_archive_requests_total{namespace="f",verb="put"}', 1),
        ):
            poll(lambda name=name, least=least: metric_total(name) >= least, timeout_s=SOON_S, what=name)  # type: ignore[misc]
        poll(
            lambda: metric_total('dirty_modules{namespace="f",shard="0"}') == 0,
            timeout_s=SOON_S,
            what="clean in a sample too",
        )
        every = {m.name + suffix for m in METRICS for suffix in suffixes(m)}
        ids = map(str, count())

        def are_all_reported() -> bool:
            store.put(next(ids), b"moves from now on are counted")
            return {re.split(r"[{ ]", name)[0] for port in ports.values() for name in metrics(port)} == every

        poll(are_all_reported, timeout_s=SOON_S, what="each metric is reported")

        with s3.refusing():
            poll(lambda: [ask(p, "/healthz")[0] for p in ports.values()] == [503, 503], timeout_s=SOON_S,
                 what="both say that the archive is away")  # fmt: skip
            bodies = [ask(p, "/healthz")[1] for p in ports.values()]
            assert any(reason.startswith("archive: ") for body in bodies for reason in json.loads(body)["reasons"])
            assert [ask(p, "/readyz")[0] for p in ports.values()] == [200, 200]
            store.put("b", b"waits")
            poll(lambda: metric_total('write_back_lag_seconds{namespace="f",shard="0"}') > 0.3, timeout_s=SOON_S,
                 what="the lag grows")  # fmt: skip
        poll(lambda: all(ask(p, "/healthz")[0] == 200 for p in ports.values()), timeout_s=60, what="healthy again")

        poll(lambda: holders(store, valkey_server), timeout_s=SOON_S, what="one has it")
        active = holders(store, valkey_server)[0]
        os.kill(active, signal.SIGKILL)
        left = next(pid for pid in ports if pid != active)
        poll(lambda: holders(store, valkey_server).get(0) == left, timeout_s=SOON_S, what="the standby takes over")
        assert ask(ports[left], "/nothing")[0] == 404


def puts_modules(s3: FaultyS3) -> bool:
    return any("/modules/" in key for key in list(s3.puts))


def test_second_signal_ends_a_worker_at_once(
    fleet: Callable[..., Process], valkey_server: TestServer, s3: FaultyS3
) -> None:
    worker = fleet(1)
    with client(valkey_server, s3, 1) as store, s3.fault("stall", "PUT", match="/modules/"):
        poll(lambda: 0 in holders(store, valkey_server), timeout_s=SOON_S, what="its lease")
        store.put("a", b"x")
        poll(lambda: puts_modules(s3), timeout_s=SOON_S, what="a PUT that hangs")
        worker.signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(0.5)
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(SOON_S) == -signal.SIGTERM


def test_slow_worker_keeps_to_its_rate_and_ends_at_once(
    fleet: Callable[..., Process], valkey_server: TestServer, s3: FaultyS3
) -> None:
    worker = fleet(1, archive_requests_per_second=0.5, cpu_share=0.5)
    with client(valkey_server, s3, 1) as store:
        poll(lambda: 0 in holders(store, valkey_server), timeout_s=SOON_S, what="its lease")
        put(store, 20, 0)
        poll(lambda: puts_modules(s3), timeout_s=SOON_S, what="a first one")
        assert worker.end() == 0, worker.log.read_text()
        assert store.stats().dirty_count >= 10
        assert holders(store, valkey_server) == {}


def test_used_address_is_reported(fleet: Callable[..., Process], s3: FaultyS3) -> None:
    port = int(s3.url.rsplit(":", 1)[1])
    worker = fleet(1, "--health", f"127.0.0.1:{port}")
    assert worker.process.wait(SOON_S) == 9
    log = worker.log.read_text()
    assert "cannot listen at" in log and "its own port" in log and "Errno" not in log


def test_head_probe_works_and_discloses_no_version(valkey_server: TestServer, s3: FaultyS3) -> None:
    empty(valkey_server)
    with client(valkey_server, s3, 1) as store, Worker(store) as worker:
        server = HealthServer("127.0.0.1:0", worker)
        assert server.address == f"127.0.0.1:{server.port}"
        for path, status in (("/healthz", (200, 503)), ("/metrics", (200,)), ("/nothing", (404,))):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON_S)
            connection.request("HEAD", path)
            response = connection.getresponse()
            assert response.status in status and response.read() == b"" and int(response.headers["Content-Length"]) > 0
            assert response.headers["Server"] == "distier"
            connection.close()
        server.close()


def test_one_round_takes_only_shards_that_no_worker_holds(valkey_server: TestServer, s3: FaultyS3) -> None:
    empty(valkey_server)
    with client(valkey_server, s3, 2) as store, Worker(store) as worker:
        poll(lambda: len(worker.held) == 2, what="both leases")
        with client(valkey_server, s3, 2) as other:
            alone = Worker(other)
            assert alone.run_once() and alone.report.did == {} and len(worker.held) == 2
        worker.stop()
        assert alone.store is not store
        with client(valkey_server, s3, 2) as other:
            again = Worker(other)
            assert again.run_once() and again.report.did["archived"] == 0 and not again.held
    steps = next(metric.what for metric in METRICS if metric.name == "distier_worker_done_total")
    assert set(again.report.did) <= set(re.findall(r"[a-z_]+", steps))


async def test_async_worker_joins_the_fleet(valkey_server: TestServer, s3: FaultyS3) -> None:
    import asyncio

    from distier import connect_async

    empty(valkey_server)
    store = await connect_async({}, **settings(valkey_server, s3, 4))
    other = await connect_async({}, **settings(valkey_server, s3, 4))
    async with AsyncWorker(store) as worker, AsyncWorker(other) as second:
        for _ in range(1000):
            if len(worker.held) == len(second.held) == 2:
                break
            await asyncio.sleep(0.02)
        assert {s.index for s in worker.held} | {s.index for s in second.held} == {0, 1, 2, 3}
        await second.stop()
        for _ in range(1000):
            if len(worker.held) == 4:
                break
            await asyncio.sleep(0.02)
        assert len(worker.held) == 4
    await store.close()
    await other.close()
