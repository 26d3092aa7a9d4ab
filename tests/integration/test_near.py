"""The near cache on real servers: any change of a record drops it from every near cache. Whatever the network does, no
hit is older than the staleness bound, and none is older than the process's own writes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import Store, connect, connect_async
from distier.client import archive_of, make_space, resolve
from distier.domain.tokens import token_counter
from distier.errors import Conflict, Invalid, Unavailable
from distier.near import Near, tracker
from distier.plans.put.prepare import Item
from distier.stores.redis import RedisExchange
from tests.children import freeze
from tests.deadlines import short_deadline
from tests.servers import TestServer, poll, running_server

STALENESS_S = 0.5


def settings(url: str, tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    base = {"redis__url": url, "namespace": "t", "near__staleness": f"{STALENESS_S * 1000:g}ms",
            "storage_tiers__cold__directory": tmp_path / "cold", "counter": token_counter("estimate")}  # fmt: skip
    return base | overrides


@pytest.fixture
def near(redis_url: str, tmp_path: Path) -> Iterator[Store]:
    with connect({}, **settings(redis_url, tmp_path)) as store:
        yield store


@pytest.fixture
def plain(redis_url: str, tmp_path: Path) -> Iterator[Store]:
    """Another process, as far as Redis can tell: the same namespace without a near cache."""
    with connect({}, **settings(redis_url, tmp_path, near__enabled=False)) as store:
        yield store


@pytest.fixture
def own_server(server: TestServer) -> Iterator[TestServer]:
    """A server that the test may kill and stop."""
    with running_server(server.kind, tcp=True) as own:
        yield own


def is_near(store: Any, *ids: str) -> bool:
    return all(id in store.near.cache for id in ids)


def bring_near(store: Store, *ids: str) -> None:
    def done() -> bool:
        assert all(store.get(id) is not None for id in ids)
        return is_near(store, *ids)

    poll(done, what=f"near {store.near.status}")


def text(store: Store, id: str) -> str | None:
    found = store.get(id)
    return None if found is None else found.text


def trackers(raw: redis.Redis) -> set[str]:
    return {str(c["id"]) for c in raw.client_list() if c["name"] == "distier-near"}


# -- hits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["listener", "iterator", "async listener", "async iterator"])
async def test_who_is_told_of_a_change_reads_it_even_if_the_push_is_late(
    redis_url: str, tmp_path: Path, plain: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change arrives twice: as an event, and as a push. Here the pushes are lost."""
    plain.put("a", "old")
    own = settings(redis_url, tmp_path, near__staleness="10s")
    found: list[Any] = []

    def lose_pushes_and_change() -> None:
        monkeypatch.setattr(tracker.Tracker, "_take_push", lambda self, push: None)
        plain.put("a", "new")

    if way.startswith("async"):
        async with await connect_async({}, **own) as face:
            while not is_near(face, "a"):
                await face.get("a")
                await asyncio.sleep(0.01)
            since = [event.stream_id async for event in face.events(since="0", wait=False)][-1]
            if way == "async listener":
                await face.on("event", lambda event: found.append(asyncio.ensure_future(face.get(event.id))))
                await asyncio.to_thread(lose_pushes_and_change)
                end = time.monotonic() + 30
                while not found and time.monotonic() < end:
                    await asyncio.sleep(0.01)
                module = await found[0]
            else:
                lose_pushes_and_change()
                _ = [event async for event in face.events(since=since, wait=False)]
                module = await face.get("a")
    else:
        with connect({}, **own) as store:
            bring_near(store, "a")
            since = [event.stream_id for event in store.events(since="0", wait=False)][-1]
            if way == "listener":
                store.on("event", lambda event: found.append(store.get(event.id)))
                lose_pushes_and_change()
                poll(lambda: found, what="an event")
                module = found[0]
            else:
                lose_pushes_and_change()
                _ = list(store.events(since=since, wait=False))
                module = store.get("a")
    assert module is not None and module.text == "new"


def test_hit_sends_no_command_and_counts_as_a_use(near: Store, server: TestServer) -> None:
    near.put("a", "x" * 100, meta={"k": [1]}, keywords=["w"])
    first = near.get("a")
    bring_near(near, "a")
    assert near.near.status == "on"
    before = near.stats()
    with server.client() as raw:
        calls = raw.info("commandstats")["cmdstat_hgetall"]["calls"]
        hits = [near.get("a") for _ in range(500)]  # counts are halved after a thousand
        assert raw.info("commandstats")["cmdstat_hgetall"]["calls"] <= calls + 2, "only stats() read"
    assert set(map(id, hits)) == {id(hits[0])} and hits[0] == first
    after = near.stats()
    assert (after.near.hits - before.near.hits, after.hits["near"]) == (500, after.near.hits)
    assert (after.near.count, after.near.tokens, after.near.status) == (1, first.tokens if first else 0, "on")
    total = sum(after.hits.values())
    poll(lambda: (found := near.where("a")) is not None and found.uses == total, what="the uses in Redis")


def test_get_many_uses_the_near_cache_and_a_scan_evicts_nothing(near: Store) -> None:
    near.put_many([Item(f"m{i}", f"text {i}") for i in range(300)])
    bring_near(near, "m1", "m2")
    found = near.get_many(["m3", "m2", "none", "m1", "m3"])
    assert list(found) == ["m3", "m2", "none", "m1"] and found["none"] is None
    assert [m and m.text for m in found.values()] == ["text 3", "text 2", None, "text 1"]
    assert near.stats().hits["near"] >= 2
    poll(lambda: near.get_many(["m3"]) and is_near(near, "m3"), what="near through get_many")
    assert len(near.get_many([f"m{i}" for i in range(300)])) == 300
    assert near.stats().near.count == 3


def test_warm_modules_are_cached_and_their_hits_promote_them(near: Store, plain: Store) -> None:
    near.put("w", "warm text " * 50)
    near.archive_now()
    near.demote("w", to="warm")
    bring_near(near, "w")
    found = near.get("w")
    assert found and found.tier == "warm" and plain.where("w").tier == "warm"  # type: ignore[union-attr]
    poll(lambda: near.get("w") and near.where("w").tier == "hot", what="promotion by near hits")  # type: ignore[union-attr]
    assert text(near, "w") == "warm text " * 50


async def test_async_store_has_the_same_near_cache(redis_url: str, tmp_path: Path, plain: Store) -> None:
    store = await connect_async({}, **settings(redis_url, tmp_path))
    await store.put("a", "1")
    for n in range(2, 30):
        for _ in range(200):
            found = await store.get("a")
            if is_near(store, "a"):
                break
            await asyncio.sleep(0.005)
        assert is_near(store, "a") and found
        hits = (await store.stats()).near.hits
        got = await asyncio.gather(*(store.get("a") for _ in range(50)))
        assert all(m is found or m == found for m in got)
        if n % 2:
            await store.put("a", str(n))
            assert (found := await store.get("a")) and found.text == str(n)
        else:
            plain.put("a", str(n))
            acked_s = asked_s = time.monotonic()
            while (await store.get("a")).text != str(n):  # type: ignore[union-attr]
                assert asked_s < acked_s + STALENESS_S
                asked_s = time.monotonic()
                await asyncio.sleep(0.001)
    assert hits > 0
    assert (await store.get_many(["a", "b"]))["b"] is None
    await store.close()
    assert store.near.status == "off: closed"


# -- invalidation ------------------------------------------------------------------------------------------------------


def expire(raw: redis.Redis, key: bytes) -> None:
    raw.pexpire(key, 30)


def evict(raw: redis.Redis, key: bytes) -> None:
    raw.config_set("maxmemory-policy", "allkeys-random")
    raw.config_set("maxmemory", "1")
    with suppress(redis.ResponseError):
        raw.set("x", "y")
    raw.config_set("maxmemory", "0")


OPERATORS: dict[str, Callable[[redis.Redis, bytes], object]] = {
    "DEL": lambda raw, key: raw.delete(key),
    "UNLINK": lambda raw, key: raw.unlink(key),
    "HSET": lambda raw, key: raw.hset(key, "content", "typed!"),
    "HDEL": lambda raw, key: raw.hdel(key, "tier", "content"),
    "RENAME": lambda raw, key: raw.rename(key, "elsewhere"),
    "FLUSHALL": lambda raw, key: raw.flushall(),
    "FLUSHDB ASYNC": lambda raw, key: raw.flushdb(asynchronous=True),
    "an expiry": expire,
    "an eviction": evict,
}


@pytest.mark.parametrize("what", OPERATORS)
def test_change_by_an_operator_makes_the_module_a_suspect(near: Store, server: TestServer, what: str) -> None:
    near.put("a/ü b", "plain!")
    bring_near(near, "a/ü b")
    key = near.space.shard("a/ü b").module("a/ü b").encode()
    with server.client() as raw:
        OPERATORS[what](raw, key)
        # Not `in`, which also asks for freshness: on a machine under load the module may become stale without a push.
        poll(lambda: near.near.cache.suspects == 1, what=f"the invalidation by {what}")
        poll(lambda: near.near.status == "on", what="freshness")
        if what == "HSET":
            assert text(near, "a/ü b") == "typed!"
        elif what in ("DEL", "FLUSHALL"):
            assert near.get("a/ü b") is None


def test_change_by_another_process_arrives_before_the_bound(redis_url: str, tmp_path: Path, plain: Store) -> None:
    """The bound is so long that only an invalidation can explain a new value within the test."""
    waits = []
    with connect({}, **settings(redis_url, tmp_path, near__staleness="60s")) as near:
        for n in range(50):
            plain.put("a", str(n))
            bring_near(near, "a")
            plain.put("a", f"{n} again")
            acked_s = time.perf_counter()
            while text(near, "a") != f"{n} again":
                assert time.perf_counter() - acked_s < 25
            waits.append(time.perf_counter() - acked_s)
        waits.sort()
        print(
            f"\ninvalidation after the acknowledgement: median {waits[25] * 1e3:.2f} ms, max {waits[-1] * 1e3:.2f} ms"
        )
        plain.delete("a")
        poll(lambda: near.get("a") is None, what="the deletion")


def test_own_writes_are_read_at_once(near: Store) -> None:
    bring_writes = 0
    for n in range(400):
        near.put("a", str(n))
        assert text(near, "a") == str(n)
        bring_writes += is_near(near, "a")
        assert text(near, "a") == str(n)
    near.put_many([Item("a", "x"), Item("b", "y")])
    assert text(near, "a") == "x"
    bring_near(near, "a", "b")
    assert near.delete("a") and near.get("a") is None and not near.delete("a")
    with pytest.raises(Conflict):
        near.put("b", "z", if_version=0)
    assert text(near, "b") == "y" and bring_writes


# -- broken connections ------------------------------------------------------------------------------------------------


def test_near_cache_recovers_from_kill_9_and_restart(own_server: TestServer, tmp_path: Path) -> None:
    with connect({}, **settings(own_server.url, tmp_path)) as store:
        store.put("a", "1")
        bring_near(store, "a")
        own_server.kill9()
        poll(lambda: not is_near(store, "a"), timeout_s=STALENESS_S)
        with short_deadline(store, 0.3), pytest.raises(Unavailable):
            store.get("a")
        assert store.near.status.startswith("connecting: ConnectionError")
        own_server.start()
        poll(lambda: store.near.status == "on", what="the tracker's return")
        assert store.near.cache.suspects == len(store.near.cache) == 1
        bring_near(store, "a")
        assert text(store, "a") == "1"


def test_killed_tracker_connection_makes_everything_a_suspect_and_reconnects(near: Store, server: TestServer) -> None:
    near.put("a", "1")
    bring_near(near, "a")
    with server.client() as raw:
        poll(lambda: len(trackers(raw)) == 1)
        (before,) = trackers(raw)
        raw.client_kill_filter(_id=before)
        poll(lambda: (now := trackers(raw)) and now != {before} and near.near.status == "on", what="another tracker")
    assert near.near.cache.suspects == 1, "what it held had been unwatched"
    bring_near(near, "a")


def test_hits_end_within_the_bound_when_the_server_is_stopped(own_server: TestServer, tmp_path: Path) -> None:
    with connect({}, **settings(own_server.url, tmp_path)) as store:
        store.put("a", "1")
        bring_near(store, "a")
        freeze(own_server.pid)
        stopped_s = time.monotonic()
        try:
            asked_s = time.monotonic()
            while store.near.get("a"):
                assert asked_s - stopped_s < STALENESS_S
                asked_s = time.monotonic()
            assert store.near.status.startswith(("bypassed", "connecting"))
            with short_deadline(store, 0.3), pytest.raises(Unavailable):
                store.get("a")
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        bring_near(store, "a")
        assert store.near.status == "on"


class Proxy:
    """TCP in the middle. It forwards, delays, swallows (and may forward later, as TCP does), cuts or refuses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.delay_s = 0.0
        self.open = threading.Event()
        self.open.set()
        self.refusing = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                for one, other in ((client, server), (server, client)):
                    self._start(self._pump, one, other)

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self.open.wait()
                time.sleep(self.delay_s)
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for s in self._sockets:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self.open.set()
        self.cut()
        for thread in self._threads:
            thread.join(60)
        for s in self._sockets:
            s.close()


@contextmanager
def through_proxy(url: str, proxy: Proxy, tmp_path: Path) -> Iterator[Store]:
    """A store with only the tracker's connection going through the proxy."""
    config = resolve({}, **{name: value for name, value in settings(url, tmp_path).items() if name != "counter"})
    archive = archive_of(config)
    with Store(
        make_space(config, archive, token_counter("estimate")), RedisExchange(config, url), archive, url=proxy.url
    ).open() as store:
        yield store


def test_no_network_fault_makes_a_hit_older_than_the_bound(
    server: TestServer, near: Store, plain: Store, tmp_path: Path
) -> None:
    """A writer writes versions all the time, and a reader notes what it reads and when it asked. A read of version n
    that was requested more than the bound after the acknowledgement of n+1 is too old.
    """
    proxy = Proxy(server.port)
    acked: dict[int, float] = {}
    ending = threading.Event()

    def write() -> None:
        n = 0
        while not ending.is_set():
            n += 1
            plain.put("a", str(n))
            acked[n] = time.monotonic()
            ending.wait(0.002 if n % 50 else 0.7)  # also pauses, in which a wrongly kept version would grow old

    plain.put("a", "0")
    writer = threading.Thread(target=write)
    reads: list[tuple[float, int]] = []
    hits: dict[str, int] = {}

    def phase(name: str, seconds: float) -> None:
        before = store.stats().near.hits
        end_s, own = time.monotonic() + seconds, 0
        while (now_s := time.monotonic()) < end_s:
            for _ in range(20):
                reads.append((time.monotonic(), int(text(store, "a") or 0)))
            if int(now_s * 200) % 4 == 0:
                own += 1
                store.put("own", str(own))
            assert own == 0 or text(store, "own") == str(own), f"older than its own write, {name}"
        hits[name] = store.stats().near.hits - before

    with through_proxy(near.space.config.redis.url or "", proxy, tmp_path) as store:
        writer.start()
        try:
            bring_near(store, "a")
            phase("passing", 1)
            proxy.delay_s = 0.1
            phase("delayed", 1.5)
            proxy.delay_s = STALENESS_S
            phase("delayed more than the bound", 1.5)
            proxy.delay_s = 0
            poll(lambda: store.near.status == "on", what="freshness")
            phase("passing once more", 0.3)
            proxy.open.clear()
            phase("black hole", STALENESS_S + 0.7)
            proxy.open.set()  # everything that was swallowed arrives at once
            phase("flood", 0.5)
            for _ in range(5):
                proxy.cut()
                phase("cut", 0.2)
            proxy.open.clear()
            phase("black hole until it gives up", 1.5)
            proxy.refusing = True
            proxy.cut()
            proxy.open.set()
            phase("refused", 0.3)
            proxy.refusing = False
            poll(lambda: store.near.status == "on", what="the tracker's return")
            phase("passing again", 1)
        finally:
            ending.set()
            writer.join()
            proxy.close()
    worst_s = max((asked_s - acked[n + 1] for asked_s, n in reads if n + 1 in acked), default=0)
    print(f"\nworst age {worst_s * 1e3:.0f} ms of {STALENESS_S * 1e3:.0f}; near hits {hits}, reads {len(reads)}")
    assert worst_s < STALENESS_S
    assert hits["passing"] and hits["passing again"], hits
    # A phase without hits is possible: the last push before it may have come just then.
    assert hits["black hole"] or hits["black hole until it gives up"], hits
    assert worst_s > 0.05, "the delays were not felt: the proxy is not in the way"


# -- concurrency -------------------------------------------------------------------------------------------------------

PROCESSES = 8
MODULES = 40  # of each process
WRITES = 120  # of each process
READS_A_WRITE = 200  # on average
HAMMER_STALENESS_S = 0.4


def hammer(me: int, config: dict[str, Any], begin: Any, out: Path) -> None:
    """Write own modules now and then, read the modules of all processes all the time, and note when each write was
    acknowledged and each version was read.
    """
    rng = random.Random(me)
    acked: dict[str, list[float]] = {f"{me}/{i}": [] for i in range(MODULES)}
    last_asked: dict[str, float] = {}
    wrong: list[str] = []
    with connect({}, **config) as store:
        for id in acked:
            store.put(id, "0")
        begin.wait(100)  # or one of them has failed: then none continues
        for _ in range(WRITES):
            id = f"{me}/{rng.randrange(MODULES)}"
            store.put(id, str(len(acked[id]) + 1))
            acked[id].append(time.monotonic())
            for _ in range(round(rng.expovariate(1 / READS_A_WRITE))):
                id = f"{rng.randrange(PROCESSES)}/{rng.randrange(MODULES)}"
                asked_s = time.monotonic()
                n = int(text(store, id) or -1)
                last_asked[f"{id} {n}"] = asked_s
                if id in acked and n != len(acked[id]):
                    wrong.append(f"{id}: read {n}, had written {len(acked[id])}")
        stats = store.stats()
        out.write_text(json.dumps([acked, last_asked, wrong, dict(stats.hits), stats.misses, stats.near.status]))


def test_eight_processes_read_nothing_older_than_the_bound(redis_url: str, tmp_path: Path) -> None:
    config = settings(redis_url, tmp_path, near__staleness=f"{HAMMER_STALENESS_S * 1000:g}ms", deadline="20s")
    config["storage_tiers__hot__max_size"] = 100_000
    spawn = multiprocessing.get_context("spawn")
    begin = spawn.Barrier(PROCESSES)
    outs = [tmp_path / f"{me}.json" for me in range(PROCESSES)]
    crowd = [spawn.Process(target=hammer, args=(me, config, begin, out), daemon=True) for me, out in enumerate(outs)]
    for process in crowd:
        process.start()
    try:
        for process in crowd:
            process.join(110)
        assert [process.exitcode for process in crowd] == [0] * PROCESSES
    finally:
        for process in crowd:
            process.kill()
    results = [json.loads(out.read_text()) for out in outs]
    acked: dict[str, list[float]] = {}
    for result in results:
        acked |= result[0]
        assert not result[2] and result[4] == 0
    ages = []
    for result in results:
        for key, asked_s in result[1].items():
            id, n = key.split()
            replaced = acked[id][int(n) : int(n) + 1]
            ages += [asked_s - replaced[0]] if replaced else []
    hits = {tier: sum(r[3].get(tier, 0) for r in results) for tier in ("near", "hot")}
    worst_s = max(ages)
    print(f"\n{hits}, {sum(map(len, acked.values()))} writes; worst age {worst_s * 1e3:.0f} ms")
    assert worst_s < HAMMER_STALENESS_S
    assert hits["near"] > hits["hot"], [r[5] for r in results]


def test_threads_of_one_store_read_their_own_writes(near: Store, plain: Store) -> None:
    """No thread reads anything older than a write that this store had acknowledged before. Every get is counted once."""
    acked, gets = dict.fromkeys("abc", 0), [0] * 6
    for id in acked:
        near.put(id, "0")
    bring_near(near, *acked)
    before = near.stats()
    writers, ended = "ab", list[str]()

    def read(me: int) -> None:
        rng = random.Random(me)
        while len(ended) < len(writers):
            id = rng.choice("abc")
            least = acked[id]
            n = int(text(near, id) or -1)
            assert n >= least, f"{id}: read {n} after {least} was acknowledged"
            gets[me] += 1

    def write(id: str) -> None:
        try:
            for _ in range(150):
                near.put(id, str(acked[id] + 1))
                acked[id] += 1
                time.sleep(0.001)  # let others run
        finally:
            ended.append(id)

    failed: list[BaseException] = []

    def guarded(function: Callable[[Any], None], arg: Any) -> None:
        try:
            function(arg)
        except BaseException as e:
            failed.append(e)

    jobs: list[tuple[Callable[[Any], None], Any]] = [(read, me) for me in range(6)]
    jobs += [(write, id) for id in writers]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    after = near.stats()
    assert sum(after.hits.values()) - sum(before.hits.values()) == sum(gets) and not after.misses
    assert after.near.hits > before.near.hits


def test_forked_child_gets_its_own_tracker_and_keeps_the_parents(near: Store, plain: Store, server: TestServer) -> None:
    near.put("a", "1")
    bring_near(near, "a")
    with server.client() as raw:
        poll(lambda: len(trackers(raw)) == 1)
        (mine,) = trackers(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            assert len(near.near.cache) == 0 and near.near.status == "off: not used yet"
            bring_near(near, "a")
            plain.put("a", "2")
            poll(lambda: text(near, "a") == "2", timeout_s=STALENESS_S)
            bring_near(near, "a")
            near.near.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    poll(lambda: text(near, "a") == "2", timeout_s=STALENESS_S)
    bring_near(near, "a")
    with server.client() as raw:
        poll(lambda: trackers(raw) == {mine}, what="the parent's tracker, and only that")


def near_threads() -> int:
    return sum(t.name == "distier-near" for t in threading.enumerate())


def test_close_or_garbage_collection_ends_the_thread(redis_url: str, tmp_path: Path, server: TestServer) -> None:
    before = near_threads()
    store = connect({}, **settings(redis_url, tmp_path))
    assert near_threads() == before, "nothing was read yet"
    store.put("a", "1")
    bring_near(store, "a")
    assert near_threads() == before + 1
    started_s = time.monotonic()
    store.close()
    assert near_threads() == before and time.monotonic() - started_s < 20
    assert store.near.get("a") is None and store.near.status == "off: closed"
    with pytest.raises(Invalid, match="closed"):
        store.get("a")
    with server.client() as raw:
        poll(lambda: not trackers(raw))
        forgotten = connect({}, **settings(redis_url, tmp_path))
        bring_near(forgotten, "a")
        forgotten._driver.redis.close()
        del forgotten
        gc.collect()
        poll(lambda: near_threads() == before and not trackers(raw), what="the end of a forgotten store's thread")


def test_user_without_permission_to_track_reads_without_near_cache(
    near: Store, server: TestServer, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(tracker, "REFUSED_S", 0.05)
    near.put("a", "1")
    config = settings(redis_url, tmp_path, redis__username="nt", redis__password="secret")
    with server.client() as raw, caplog.at_level(logging.WARNING, "distier"):
        raw.acl_setuser("nt", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"],
                        commands=["+@all", "-client|tracking"])  # fmt: skip
        try:
            with connect({}, **config) as store:
                poll(lambda: store.get("a") and store.near.status.startswith("off: CLIENT TRACKING is refused: NOPERM"))
                time.sleep(0.2)  # it tries again, and logs nothing more
                assert text(store, "a") == "1" and store.stats().near.count == 0
                assert [r.message.count("NOPERM") for r in caplog.records] == [1]
                assert "secret" not in caplog.text
                raw.execute_command("ACL", "SETUSER", "nt", "+client|tracking")
                bring_near(store, "a")
        finally:
            raw.acl_deluser("nt")


def test_unreachable_tracker_address_only_changes_the_status(near: Store, plain: Store) -> None:
    lost = Near(near.space, "redis://127.0.0.1:1/0", near._driver.counters, near._driver.uses)
    with lost.reading(["a"]):
        pass
    poll(lambda: lost.status.startswith("connecting: ConnectionError"))
    lost.close()
    assert lost.status == "off: closed"
