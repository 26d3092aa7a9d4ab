"""Ownership of connections, matching of replies, and deadlines.

A connection is used only by the process, event loop and thread that opened it. An unsolicited reply is never taken for
the reply to a command. A call ends at its own deadline whatever other calls use its connection, and does not wait for a
dead connection while new ones work.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from distier import AsyncStore, Item, Store, connect, connect_async
from distier.config import load_config
from distier.domain.keys import Keyspace
from distier.errors import OutOfStep, Unavailable
from distier.stores.redis import AsyncRedisExchange, RedisExchange
from distier.stores.redis.wire import SEND_BYTES
from tests.children import freeze
from tests.conftest import empty
from tests.deadlines import short_deadline
from tests.integration.world import Face, World, until
from tests.proxy import Proxy
from tests.servers import TestServer, running_server

T = TypeVar("T")

NAMES = ("a", "b")
HANG_S = 20.0
"""A call that hangs takes longer than this; any other call ends long before, even on a busy machine."""


def settings(url: str, cold: Path, **overrides: Any) -> dict[str, Any]:
    base = {"redis__url": url, "namespace": "t", "near__enabled": False, "storage_tiers__cold__directory": cold}
    return base | overrides


async def opened(url: str, cold: Path, **overrides: Any) -> AsyncStore:
    """A store in which each module's content is its name."""
    store = await connect_async({"counter": "estimate"}, **settings(url, cold, **overrides))
    for name in NAMES:
        await store.put(name, name)
    return store


async def text(store: AsyncStore, id: str) -> str | None:
    module = await store.get(id)
    return module.text if module else None


async def assert_own_contents(store: AsyncStore) -> None:
    assert [await text(store, name) for name in NAMES] == list(NAMES)


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a forked child, which must exit with 0 in time."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def read_in_child(store: AsyncStore, *, closes: bool = False) -> None:
    async def read() -> None:
        assert await text(store, "b") == "b"
        if closes:
            await store.close()

    in_child(lambda: asyncio.run(read()))


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("closes", [False, True])
async def test_forked_child_does_not_use_its_parents_connection(
    redis_url: str, tmp_path: Path, near: bool, closes: bool
) -> None:
    store = await opened(redis_url, tmp_path, near__enabled=near)
    for _ in range(3):
        read_in_child(store, closes=closes)
        await assert_own_contents(store)
    await store.close()


async def test_child_that_continues_its_parents_coroutine_sends_nothing(redis_url: str, tmp_path: Path) -> None:
    store = await opened(redis_url, tmp_path)
    pid = os.fork()
    if pid == 0:
        try:
            store.get("b").send(None)  # the first step of the coroutine, which would write to the connection
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    await assert_own_contents(store)
    await store.close()


async def test_child_forked_during_calls_takes_none_of_their_replies(redis_url: str, tmp_path: Path) -> None:
    store = await opened(redis_url, tmp_path)
    reads = [asyncio.create_task(text(store, NAMES[i % 2])) for i in range(20)]
    await asyncio.sleep(0)  # they have written, and wait
    read_in_child(store)
    assert await asyncio.gather(*reads) == [NAMES[i % 2] for i in range(20)]
    await store.close()


STORES: dict[str, Any] = {}


def _read_in_worker(id: str) -> str | None:
    return asyncio.run(text(STORES["async"], id))


def _read_in_sync_worker(id: str) -> str | None:
    module = STORES["sync"].get(id)
    return module.text if module else None


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_workers_of_a_process_pool_inherit_a_working_store(redis_url: str, tmp_path: Path, kind: str) -> None:
    store = await opened(redis_url, tmp_path)
    STORES["async"] = store
    STORES["sync"] = connect({"counter": "estimate"}, **settings(redis_url, tmp_path))
    read = _read_in_worker if kind == "async" else _read_in_sync_worker
    assert _read_in_sync_worker("a") == "a"  # its connection is open
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        calls = [loop.run_in_executor(pool, read, NAMES[i % 2]) for i in range(20)]
        for _ in range(20):
            await assert_own_contents(store)
            assert [_read_in_sync_worker(name) for name in NAMES] == list(NAMES)
        assert await asyncio.gather(*calls) == [NAMES[i % 2] for i in range(20)]
    await STORES.pop("async").close()
    STORES.pop("sync").close()


def test_child_forked_in_a_signal_handler_takes_no_reply(redis_url: str, tmp_path: Path) -> None:
    """The child continues in the middle of its parent's call. Everything happens in a child of the test, which exits by
    `os._exit` whatever happens, and so do its own children.
    """
    store = connect({"counter": "estimate"}, **settings(redis_url, tmp_path))
    for name in NAMES:
        store.put(name, name)
    in_child(lambda: _read_while_a_handler_forks(store))
    store.close()


FORKS = 12


def _read_while_a_handler_forks(store: Store) -> None:
    me = os.getpid()
    children: list[int] = []

    def fork(*_: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a child never forks
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)  # ends a child that hangs; timers are not inherited
            return
        children.append(pid)
        if len(children) < FORKS:
            signal.signal(signal.SIGALRM, fork)
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0003 * len(children))  # fires once

    signal.signal(signal.SIGALRM, fork)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    while len(children) < FORKS and os.getpid() == me:
        assert _reads_right(store)
    for _ in range(5):
        assert _reads_right(store)
    if os.getpid() == me:
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * FORKS


def _reads_right(store: Store) -> bool:
    return [module and module.text for module in map(store.get, NAMES)] == list(NAMES)


# -- event loops and threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [False, True])
def test_store_serves_one_event_loop_after_another(redis_url: str, tmp_path: Path, near: bool) -> None:
    store = asyncio.run(opened(redis_url, tmp_path, near__enabled=near))
    for _ in range(3):
        asyncio.run(assert_own_contents(store))
    asyncio.run(store.close())


def test_store_with_listeners_and_local_copies_closes_from_another_loop(redis_url: str, tmp_path: Path) -> None:
    warm = {"storage_tiers__warm__placement": "local", "storage_tiers__warm__directory": tmp_path / "warm"}

    async def begin() -> AsyncStore:
        store = await opened(redis_url, tmp_path / "cold", **warm)
        await store.on("tier_change", lambda event: None)
        return store

    store = asyncio.run(begin())
    asyncio.run(assert_own_contents(store))
    asyncio.run(store.close())


def test_listener_moves_to_the_loop_that_calls_the_store(redis_url: str, tmp_path: Path) -> None:
    heard: list[str] = []
    store = asyncio.run(opened(redis_url, tmp_path))

    async def listen() -> None:
        await store.on("tier_change", lambda event: heard.append(event.id))

    async def listen_and_move(id: str) -> None:
        await listen()
        await store.demote(id)
        await until(lambda: id in heard, what=f"the event of {id}")

    asyncio.run(listen())
    asyncio.run(listen_and_move("a"))
    asyncio.run(listen_and_move("b"))
    asyncio.run(store.close())


async def test_threads_with_their_own_loops_share_a_store(redis_url: str, tmp_path: Path) -> None:
    store = await opened(redis_url, tmp_path)

    async def read(n: int) -> list[str | None]:
        return [await text(store, NAMES[i % 2]) for i in range(n)]

    others = [asyncio.to_thread(asyncio.run, read(100)) for _ in range(4)]
    found = await asyncio.gather(read(100), *others, *(read(20) for _ in range(4)))
    for contents in found:
        assert contents == [NAMES[i % 2] for i in range(len(contents))]
    await asyncio.to_thread(asyncio.run, store.close())


def test_two_loops_take_turns_in_one_thread(redis_url: str, tmp_path: Path) -> None:
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        store = first.run_until_complete(opened(redis_url, tmp_path))
        for loop in (second, first, second, first):
            loop.run_until_complete(assert_own_contents(store))
        second.run_until_complete(store.close())
        for loop in (first, second):
            loop.run_until_complete(asyncio.sleep(0))  # only a loop itself closes its transports
    finally:
        first.close()
        second.close()


# -- unsolicited replies -------------------------------------------------------------------------------------------


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def face_of(kind: str, url: str, cold: Path, **overrides: Any) -> Face:
    source, found = {"counter": "estimate"}, settings(url, cold, **overrides)
    return Face(connect(source, **found) if kind == "sync" else await connect_async(source, **found))


@pytest.mark.parametrize("after_s", [0, 0.1])
async def test_repeated_reply_is_not_taken_for_the_next_one(
    valkey_server: TestServer, tmp_path: Path, kind: str, after_s: float
) -> None:
    empty(valkey_server)
    with Proxy(valkey_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path)
        for name in NAMES:
            await face.put(name, name)
        for _ in range(3):
            await face.get("a")
            proxy.repeat_next_reply(after_s)
            assert (await face.get("a")).text == "a"
            if after_s:
                await asyncio.to_thread(time.sleep, after_s * 4)  # the loop reads meanwhile
            assert (await face.get("b")).text == "b"
            assert (await face.get("a")).text == "a"
        await face.close()


async def test_unsolicited_reply_between_others_is_detected(
    valkey_server: TestServer, tmp_path: Path, kind: str
) -> None:
    """On asyncio several requests are pending, so no reply is left over when the first one is taken for another's. Each
    request returns its own module or reports that the connection is out of step.
    """
    empty(valkey_server)
    ids = [f"m{i}" for i in range(8)]
    with Proxy(valkey_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path, deadline="5s")
        for id in (*ids, "z"):
            await face.put(id, id)
        seen = 0
        for round in range(4):
            assert (await face.get("z")).text == "z"
            proxy.repeat_last_reply_first()
            ask = face.get_many if round % 2 else face.get
            calls = [ask([id] if round % 2 else id) for id in ids]
            results = await asyncio.gather(*calls, return_exceptions=True)
            results = [next(iter(a.values())) if isinstance(a, dict) else a for a in results]
            for id, result in zip(ids, results, strict=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, Unavailable | OutOfStep)
                    seen += isinstance(result, OutOfStep)
                else:
                    assert result.text == id
            for id in ids:
                assert (await face.get(id)).text == id, "the next call has a connection that is in step"
        assert seen or kind == "sync", "the test shows nothing"
        await face.close()


@contextmanager
def two_servers() -> Iterator[tuple[TestServer, TestServer]]:
    """Two servers. Each has its number as `n`."""
    with running_server("valkey", tcp=True) as one, running_server("valkey", tcp=True) as two:
        for n, server in enumerate((one, two), start=1):
            with server.client() as client:
                client.set("n", n)
        yield one, two


def test_connections_to_the_old_server_are_dropped_after_a_switch(tmp_path: Path) -> None:
    """An old primary still runs and does not know that it was replaced. A thread reads what another thread wrote over a
    new connection, although the first one has an old connection.
    """
    shard = Keyspace("t", 1).shards[0]
    with two_servers() as (one, two), Proxy(one.port) as proxy:
        exchange = RedisExchange(load_config(None, **settings(proxy.url, tmp_path)), proxy.url)
        lines = [exchange._take(time.monotonic() + 5) for _ in range(3)]
        exchange._give_back(lines[0])
        proxy.lead_to(two.port)
        lines[1].close()  # and the thread that had it connects again
        fresh = exchange._open(time.monotonic() + 5)
        exchange._give_back(lines[2])
        assert exchange.exchange(shard, [("GET", "n")], 5.0) == [b"2"]
        exchange._give_back(fresh)
        assert exchange.exchange(shard, [("GET", "n")], 5.0) == [b"2"]
        exchange.close()


async def test_async_reads_follow_writes_to_another_server(tmp_path: Path) -> None:
    """The same on asyncio, where reads and writes have a connection each."""
    shard = Keyspace("t", 1).shards[0]
    with two_servers() as (one, two), Proxy(one.port) as proxy:
        exchange = AsyncRedisExchange(load_config(None, **settings(proxy.url, tmp_path)), proxy.url)
        assert await exchange.exchange(shard, [("GET", "n")], 5.0) == [b"1"]
        await exchange.exchange(shard, [("SET", "x", "1")], 5.0)
        proxy.lead_to(two.port)
        writes = exchange._of_this_loop().writes.connection
        assert writes is not None
        writes.fail(RedisConnectionError("cut"))
        await exchange.exchange(shard, [("SET", "x", "2")], 5.0)
        assert await exchange.exchange(shard, [("GET", "n")], 5.0) == [b"2"]
        await exchange.close()


# -- deadlines -----------------------------------------------------------------------------------------------------


async def seconds(call: Awaitable[Any], error: type[Exception]) -> float:
    begin_s = time.monotonic()
    with pytest.raises(error):
        await call
    return time.monotonic() - begin_s


@contextmanager
def frozen(server: TestServer) -> Iterator[None]:
    freeze(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[TestServer]:
    with running_server("valkey", tcp=True) as server:
        yield server


async def _seconds_of_shorter_call(long: Coroutine[Any, Any, Any], short: Coroutine[Any, Any, Any]) -> float:
    first = asyncio.create_task(long)
    await asyncio.sleep(0.05)  # it waits for the server
    try:
        return await seconds(short, Unavailable)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize("connected", [True, False])
async def test_call_ends_at_its_deadline_while_a_longer_call_waits(
    own_server: TestServer, tmp_path: Path, connected: bool
) -> None:
    store = await opened(own_server.url, tmp_path)
    if not connected:
        kill_all(own_server)
        await asyncio.sleep(0.1)
    with frozen(own_server), short_deadline(store, 1.0):
        long_s = HANG_S * 3
        assert await _seconds_of_shorter_call(store.archive_now(deadline_s=long_s), store.get("a")) < HANG_S
        assert await _seconds_of_shorter_call(store.archive_now(deadline_s=long_s), store.put("a", "a")) < HANG_S
        assert await _seconds_of_shorter_call(store.archive_now(deadline_s=long_s), store.get_many(["a", "b"])) < HANG_S
    await assert_own_contents(store)
    await store.close()


async def test_shorter_call_does_not_end_the_longer_one(own_server: TestServer, tmp_path: Path) -> None:
    store = await opened(own_server.url, tmp_path)
    with frozen(own_server), short_deadline(store, 0.3):
        flush = asyncio.create_task(store.archive_now(deadline_s=60))
        await asyncio.sleep(0.05)
        await seconds(store.get("a"), Unavailable)
        await seconds(store.get("b"), Unavailable)
    assert await flush == 2
    await assert_own_contents(store)
    await store.close()


async def test_slowly_trickling_reply_ends_at_the_deadline(own_server: TestServer, tmp_path: Path, kind: str) -> None:
    with Proxy(own_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path)
        await face.put("large", os.urandom(1_500_000), tokens=10)
        proxy.slow_down(25_000)
        with short_deadline(face, 1.0):
            assert await seconds(face.get("large"), Unavailable) < HANG_S  # would take a minute at this pace
        proxy.slow_down(0)
        assert len((await face.get("large")).content) == 1_500_000
        await face.close()


async def test_long_reply_in_pieces_is_read_completely(own_server: TestServer, tmp_path: Path, kind: str) -> None:
    """The reply comes in pieces and takes longer than a connection may be silent."""
    with Proxy(own_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path, deadline="20s")
        await face.put("large", os.urandom(500_000), tokens=10)
        proxy.slow_down(200_000)
        connections = proxy.accepted
        assert len((await face.get("large")).content) == 500_000
        assert proxy.accepted == connections
        await face.close()


async def test_pipeline_sent_in_pieces_is_answered_in_order(own_server: TestServer, tmp_path: Path, kind: str) -> None:
    """Each of the scripts is longer than a piece, and so is the last one alone."""
    face = await face_of(kind, own_server.url, tmp_path)
    contents = {f"m{i}": os.urandom(SEND_BYTES // 2) * (1 + i % 3) for i in range(24)}
    landings = await face.put_many([Item(id, content, tokens=1) for id, content in contents.items()])
    assert [landed.version.ver for landed in landings] == list(range(1, 25))
    assert {id: module.content for id, module in (await face.get_many(contents)).items()} == contents
    await face.close()


async def test_pipeline_to_a_server_that_stops_reading_ends_at_the_deadline(
    own_server: TestServer, tmp_path: Path, kind: str
) -> None:
    with Proxy(own_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path)
        await face.put("a", "a")
        freeze(own_server.pid)
        try:
            items = [Item(f"m{i}", os.urandom(900_000), tokens=1) for i in range(8)]
            begin = time.monotonic()
            with short_deadline(face, 1.0):
                landings = await face.put_many(items)
            assert time.monotonic() - begin < HANG_S
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        assert all(isinstance(landed, Unavailable) for landed in landings)
        await face.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_connecting_ends_at_the_deadline_of_the_call(
    own_server: TestServer, tmp_path: Path, kind: str, connected: bool
) -> None:
    """This also holds if the configured deadline is much longer than the call's."""
    face = await face_of(kind, own_server.url, tmp_path, deadline="60s")
    await face.put("a", "a")
    if not connected:
        kill_all(own_server)
    with frozen(own_server):
        assert await seconds(face.archive_now(deadline_s=0.5), Unavailable) < HANG_S
    await face.close()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_close_ends_an_attempt_to_connect_that_nobody_waits_for(scheme: str, tmp_path: Path) -> None:
    """A server that accepts connections and says nothing: the call ends at its deadline, the attempt goes on."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began.set()
        while await reader.read(4096):
            pass
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    config = load_config({}, **settings(url, tmp_path, deadline="120s"))
    exchange = AsyncRedisExchange(config, url)
    before = asyncio.all_tasks()
    with pytest.raises(redis.TimeoutError):
        await exchange.exchange(Keyspace("t", 1).shards[0], [("PING",)], 0.2)
    await asyncio.wait_for(began.wait(), 60)
    await exchange.close()
    left = {task for task in asyncio.all_tasks() - before if "silent" not in repr(task)}
    if not left:
        await asyncio.wait_for(ended.wait(), 60)
    server.close()
    assert not left


# -- connections that died silently --------------------------------------------------------------------------------


def every_kind_of_call(face: Face) -> list[tuple[str, Callable[[], Awaitable[Any]]]]:
    return [
        ("get", lambda: face.get("a")),
        ("get_many", lambda: face.get_many(["a", "b"])),
        ("put", lambda: face.put("a", "a")),
        ("durable put", lambda: face.put("a", "a", durability="archived")),
        ("events", lambda: face.events(since="0", wait=False)),
        ("delete", lambda: face.delete("none")),
    ]


async def test_silent_connection_costs_a_fraction_of_the_deadline(
    own_server: TestServer, tmp_path: Path, kind: str
) -> None:
    with Proxy(own_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path, deadline="60s")
        for name in NAMES:
            await face.put(name, name)
        for name, call in every_kind_of_call(face):
            proxy.silence()
            begin_s = time.monotonic()
            await call()
            assert time.monotonic() - begin_s < HANG_S, name
        await face.close()


async def test_command_without_retry_is_not_sent_over_a_stale_connection(
    own_server: TestServer, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is probed first, so that only the probe is lost."""
    from distier.effects import Command
    from distier.stores.redis import aio, exchange

    for module in (aio, exchange):
        monkeypatch.setattr(module, "IDLE_S", 0.05)
    with Proxy(own_server.port) as proxy:
        face = await face_of(kind, proxy.url, tmp_path, deadline="60s")
        shard = face.space.keys.shards[0]
        for n in range(3):
            proxy.silence()
            await asyncio.sleep(0.1)

            def push() -> Any:
                return (yield from Command(shard, ("RPUSH", "distier:{t}:test", "x"), int, retry=False))

            assert await face.run(push()) == n + 1
        await face.close()
        with own_server.client() as raw:
            raw.delete("distier:{t}:test")


async def test_slow_server_is_waited_for_on_the_same_connection(
    own_server: TestServer, tmp_path: Path, kind: str
) -> None:
    face = await face_of(kind, own_server.url, tmp_path, deadline="20s")
    await face.put("a", "a")
    with own_server.client() as raw:
        before = int(raw.info("stats")["total_connections_received"])
        with frozen(own_server):
            going_on = threading.Timer(2.5, os.kill, (own_server.pid, signal.SIGCONT))
            going_on.start()
            assert (await face.get("a")).text == "a"
            going_on.join()
        assert int(raw.info("stats")["total_connections_received"]) <= before + 4
    await face.close()


# -- connections that the server closed ----------------------------------------------------------------------------


KILL_ALL = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def kill_all(server: TestServer) -> None:
    with server.client() as raw:
        raw.execute_command(*KILL_ALL)


async def test_listeners_continue_after_their_connection_was_killed(world: World) -> None:
    heard: list[str] = []
    face = await world.open()
    for name in ("a", "b", "c"):
        await face.put(name, name)
    await face.on("tier_change", lambda event: heard.append(event.id))
    for name in ("a", "b", "c"):
        kill_all(world.server)
        await face.demote(name)
        await until(lambda name=name: name in heard, what=f"the event of {name}")  # type: ignore[misc]
        kill_all(world.server)
        await asyncio.sleep(0.7)  # the waiting connection returns to the pool, is killed while idle, and is used again


async def test_blocking_command_does_not_use_a_closed_connection(
    server: TestServer, redis_url: str, tmp_path: Path
) -> None:
    store = await opened(redis_url, tmp_path)
    redis: Any = store._driver.redis
    shard = store.space.keys.shards[0]
    for _ in range(3):
        async with asyncio.timeout(HANG_S):
            assert await redis.exchange(shard, [("WAIT", 0, 1)], HANG_S) is not None
        kill_all(server)
        await asyncio.sleep(0.1)
    await store.close()
