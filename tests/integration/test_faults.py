"""The API while a part fails: a fault raises the right kind of error in time and is never a miss.

Servers are stopped, frozen, filled up and emptied of scripts. Connections are cut, with and without the reply to
commands that were applied.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from distier import Item, connect
from distier.errors import ArchiveUnavailable, ConfigError, Full, RedisUnavailable
from distier.plans.fleet.sweep import sweep
from distier.stores.archive import Archive
from tests.children import freeze
from tests.integration.world import Face, World
from tests.servers import TestServer, running_server

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 0.25  # of calls that cannot succeed (`fails_in_time`); others may take as long as a busy machine needs
PATIENT: dict[str, Any] = {"deadline": "30s"}
SLACK_S = 10.0  # for a busy machine; still far from any other limit that a call might wait for


async def fails_in_time(face: Face, call: Awaitable[Any], error: type[Exception]) -> None:
    driver = face.store._driver
    patience_s, driver.deadline_s = driver.deadline_s, DEADLINE_S
    begin = time.monotonic()
    try:
        with pytest.raises(error):
            await call
    finally:
        driver.deadline_s = patience_s
    assert time.monotonic() - begin < DEADLINE_S + SLACK_S


def every_call(face: Face) -> list[Awaitable[Any]]:
    return [
        face.get("a"), face.get("none"), face.get_many(["a", "none"]), face.put("a", "y"), face.delete("a"),
        face.exists("a"), face.where("a"), face.list(), face.promote("a"), face.demote("a"), face.pin("a", 5),
        face.unpin("a"), face.stats(), face.archive_now(deadline_s=DEADLINE_S), face.events(since="0", wait=False),
    ]  # fmt: skip


@contextmanager
def frozen(server: TestServer) -> Iterator[None]:
    freeze(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


# -- Redis ---------------------------------------------------------------------------------------------------------


async def test_every_call_fails_while_redis_is_down_and_works_afterwards(world: World):
    with running_server(world.server.kind, tcp=True) as server:
        face = await world.open(redis__url=server.url, **PATIENT)
        await face.put("a", "x")
        server.kill9()
        for call in every_call(face):
            await fails_in_time(face, call, RedisUnavailable)
        many = (face.promote_many(["a", "b"]), face.demote_many(["a", "b"]), face.put_many([Item("a", "y")]))
        face.store._driver.deadline_s = DEADLINE_S
        for results in many:
            with suppress(RedisUnavailable):  # as a whole, or for each item
                assert [type(r) for r in await results if not isinstance(r, RedisUnavailable)] == []
        face.store._driver.deadline_s = 30.0
        server.start()
        assert (await face.get("a")).text == "x"


async def test_calls_to_a_stalled_redis_fail_in_time_and_replies_match(world: World):
    face = await world.open(**PATIENT)
    await face.put_many([Item(f"m/{i}", f"content {i}") for i in range(10)])
    await face.demote("m/1")
    with frozen(world.server):
        await fails_in_time(face, face.get("m/0"), RedisUnavailable)  # on a pooled connection, then on new ones
        await fails_in_time(face, face.put("m/9", "late"), RedisUnavailable)
        await fails_in_time(face, face.get_many(["m/1", "m/2"]), RedisUnavailable)
        await fails_in_time(face, face.delete("m/8"), RedisUnavailable)
    for _ in range(3):
        for i in range(8):
            assert (await face.get(f"m/{i}")).text == f"content {i}"
    assert await face.exists("m/0")
    assert (await face.put("m/0", "new")).version > (await face.where("m/1")).version
    assert (await face.get("m/9")).text in (
        "content 9",
        "late",
    )  # the server may apply the commands that it had received


async def test_wrong_password_fails_at_once_and_is_not_shown(world: World):
    world.raw.execute_command("ACL", "SETUSER", "agent", "on", ">right-one", "~*", "&*", "+@all")
    try:
        face = await world.open(redis__username="agent", redis__password="right-one")
        await face.put("a", "x")
        begin = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            await world.open(redis__username="agent", redis__password="hush-hush", deadline="100s")
        assert time.monotonic() - begin < 50  # it cannot succeed later, so there are no retries
        chain: BaseException | None = caught.value
        seen = ""
        while chain is not None:
            seen += f"{chain!r} {chain}"
            chain = chain.__cause__ or chain.__context__
        assert "hush-hush" not in seen
        assert "password" in str(caught.value)
        world.raw.execute_command("ACL", "SETUSER", "agent", "-evalsha", "-eval")
        with pytest.raises(ConfigError, match="ACL"):
            await face.put("a", "y")
    finally:
        world.raw.execute_command("ACL", "DELUSER", "agent")


@pytest.mark.parametrize("fate", ["flush scripts", "kill connections"])
async def test_script_flush_and_killed_connections_are_invisible(world: World, fate: str):
    face = await world.open()
    await face.put_many([Item(f"m/{i}", f"content {i}") for i in range(6)])
    await face.demote_many(["m/0", "m/1"], to="cold")

    def strike() -> None:
        if fate == "flush scripts":
            world.raw.script_flush()
        else:
            world.raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    for i in range(6):
        strike()
        assert (await face.get(f"m/{i}")).text == f"content {i}"
    before = int(world.raw.hget(world.shard("a").epoch, "ver"))
    version: Any = 0
    for i in range(5):
        strike()
        landed = await face.put("a", f"{i}", if_version=version)
        version = landed.version
        assert landed.version.ver == before + i + 1  # each was applied once
    strike()
    assert len(await face.get_many([f"m/{i}" for i in range(6)])) == 6
    strike()
    assert (await face.demote("a", to="cold")).moved
    strike()
    assert (await face.promote("a")).moved
    strike()
    assert all(r.tier == "cold" for r in await face.demote_many([f"m/{i}" for i in range(6)], to="cold"))
    strike()
    assert await face.delete("a")
    assert await face.get("a") is None


class LossyProxy:
    """Forwards to a server. After `lose()`, the next reply to a command that contains `needle` is swallowed and the
    connection is cut: the server has applied the command, and the client does not know.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._needle = b""
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, needle: bytes) -> None:
        self._needle = needle

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        cut = threading.Event()
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=self._forward_replies, args=(server, client, cut), daemon=True).start()
            with suppress(OSError):
                while data := client.recv(1 << 20):
                    if self._needle and self._needle in data:
                        self._needle = b""
                        cut.set()
                    server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def _forward_replies(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 20):
                if cut.is_set() and not data.startswith(b"-NOSCRIPT"):
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

    def close(self) -> None:
        self._listener.close()


async def test_lost_reply_applies_nothing_twice(world: World):
    proxy = LossyProxy(world.server.port)
    try:
        face = await world.open(redis__url=proxy.url, storage_tiers__cold__archive_after="0s")
        first = await face.put("a", "1")
        proxy.lose(b"needle-2")
        second = await face.put("a", "2 needle-2", if_version=first.version)
        assert (proxy.lost, second.version.ver, second.replayed) == (1, first.version.ver + 1, True)
        proxy.lose(b"deleteme")
        assert (await face.put("deleteme", "x")).replayed
        proxy.lose(b"deleteme")
        assert await face.delete("deleteme")  # True also for the second try, which finds the module deleted
        assert proxy.lost == 3
        proxy.lose(world.shard("a").write_back_lease("a").encode())
        assert (await face.maintain())["archived"] == 2
        assert proxy.lost == 4
        proxy.lose(b"distier:{t}:module:a")
        assert (await face.get("a")).text == "2 needle-2"
        assert world.usage() == await face.recount()
    finally:
        proxy.close()


async def test_at_maxmemory_puts_are_refused_and_reads_and_removals_work(world: World):
    face = await world.open(storage_tiers__cold__archive_after="0s")
    await face.put_many([Item(id, id * 2000) for id in ("hot", "warm", "cold", "gone", "dirty")])
    await face.demote("warm")
    await face.demote("cold", to="cold")
    world.raw.config_set("maxmemory", 1)
    with pytest.raises(Full, match="maxmemory"):
        await face.put("new", "x")
    assert all(isinstance(r, Full) for r in await face.put_many([Item("new", "x")]))
    for id in ("hot", "warm", "cold", "dirty"):
        assert (await face.get(id)).text == id * 2000, id
    assert len(await face.get_many(["hot", "cold"])) == 2
    assert await face.exists("hot")
    assert (await face.where("cold")).tier == "cold"  # no room to keep a copy
    assert (await face.demote("hot", to="cold")).tier == "cold"
    assert await face.delete("gone")
    assert (await face.maintain())["archived"] >= 2
    assert (await face.stats()).dirty_count == 0
    world.raw.config_set("maxmemory", 0)
    await face.put("new", "x")
    assert (await face.get("hot")).text == "hot" * 2000
    assert world.usage() == await face.recount()


# -- the archive ---------------------------------------------------------------------------------------------------


async def test_archive_down_fails_only_calls_that_need_it(world: World):
    face = await world.open(**PATIENT)
    for id in ("hot", "warm", "cold"):
        await face.put(id, id)
    await face.demote("warm")
    await face.demote("cold", to="cold")
    away = world.archive.with_name("away")
    world.archive.rename(away)
    try:
        await fails_in_time(face, face.get("cold"), ArchiveUnavailable)
        await fails_in_time(face, face.get_many(["hot", "cold"]), ArchiveUnavailable)
        await fails_in_time(face, face.promote("cold"), ArchiveUnavailable)
        await fails_in_time(face, face.demote("warm"), ArchiveUnavailable)  # it is dirty
        await fails_in_time(face, face.archive_now(deadline_s=DEADLINE_S), ArchiveUnavailable)
        for id in ("hot", "warm"):
            assert (await face.get(id)).text == id
        assert (await face.where("cold")).tier == "cold"
        assert (await face.put("new", "x")).tier == "hot"
        face.store._driver.deadline_s = 2.0
        results = await face.promote_many(["warm", "cold"])
        face.store._driver.deadline_s = 30.0
        assert results[0].moved
        assert isinstance(results[1], ArchiveUnavailable)
    finally:
        away.rename(world.archive)
    assert (await face.get("cold")).text == "cold"
    assert await face.archive_now() == 3


async def test_full_cache_with_the_archive_down_refuses_writes_and_loses_nothing(world: World):
    face = await world.open(storage_tiers__hot__max_size=50, storage_tiers__warm__max_modules=2)
    for i in range(7):
        await face.put(f"m/{i}", f"content {i}", tokens=10)
    away = world.archive.with_name("away")
    world.archive.rename(away)
    try:
        with pytest.raises(Full, match="archive"):
            await face.put("one too many", "x", tokens=10)
        for i in range(7):
            assert (await face.get(f"m/{i}")).text == f"content {i}"
    finally:
        away.rename(world.archive)
    assert (await face.put("one too many", "x", tokens=10)).tier == "hot"
    assert (await face.stats()).count == 8


class Stalling:
    """An archive whose reads and writes hang until `go` is set."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._archive, name)
        if name not in ("get", "put", "list", "delete"):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.go.wait(10)
            return found(*args, **kwargs)

        return call


async def test_stalled_archive_blocks_no_call_past_its_deadline(world: World):
    face = await world.open(**PATIENT)
    await face.put("cold", "x")
    await face.demote("cold", to="cold")
    await face.put("hot", "x")
    driver: Any = face.store._driver
    stalling = Stalling(driver.archive)
    driver.archive = stalling
    try:
        await fails_in_time(face, face.get("cold"), ArchiveUnavailable)
        await fails_in_time(face, face.demote("hot", to="cold"), ArchiveUnavailable)
        assert (await face.get("hot")).text == "x"
    finally:
        stalling.go.set()
    assert (await face.get("cold")).text == "x"


async def test_lease_of_a_dead_reader_delays_others_only_briefly(world: World):
    face = await world.open(deadline="6s")  # waits for a lease for half a deadline, at most 2 s
    await face.put("a", "x")
    await face.demote("a", to="cold")
    world.raw.set(world.shard("a").lease("a"), "a process that is dead", px=10_000)
    assert (await face.get("a")).text == "x"


async def test_version_swept_during_its_read_is_read_again(world: World):
    """Between a reader's look at the record and its fetch, a new version is put and archived, and the old object is
    swept.
    """
    face = await world.open()
    await face.put("a", "old")
    await face.demote("a", to="cold")
    driver: Any = face.store._driver
    archive, others = driver.archive, connect({"counter": "estimate"}, **world.settings())

    class Overtaken:
        def __getattr__(self, name: str) -> Any:
            return getattr(archive, name)

        def get(self, key: str, *, max_bytes: int) -> Any:
            driver.archive = archive
            others.put("a", "new")
            others.demote("a", to="cold")
            others.run(sweep(others.space))
            return archive.get(key, max_bytes=max_bytes)

    with others:
        driver.archive = Overtaken()
        assert (await face.get("a")).text == "new"
        await face.demote("a", to="cold")
        driver.archive = Overtaken()
        assert (await face.promote("a")).tier == "hot"


@pytest.mark.parametrize("size", ["same size", "another size"])
async def test_frame_of_a_newer_version_is_not_returned_as_the_old_one(world: World, size: str):
    """Record and frame are read one after the other. A put that lands warm comes between the two reads."""
    face = await world.open(storage_tiers__hot__max_size=5)
    old, new = "old" * 50, "new" * (50 if size == "same size" else 60)
    await face.put("a", old, tokens=10)
    others = connect({"counter": "estimate"}, **world.settings())
    redis: Any = face.store._driver.redis
    exchange = redis.exchange

    def strike(commands: Any) -> None:
        if any(command[:2] == ("GET", world.shard("a").frame("a")) for command in commands):
            redis.exchange = exchange
            others.put("a", new, tokens=10)

    async def later(shard: Any, commands: Any, timeout_s: float) -> Any:
        strike(commands)
        return await exchange(shard, commands, timeout_s)

    def at_once(shard: Any, commands: Any, timeout_s: float) -> Any:
        strike(commands)
        return exchange(shard, commands, timeout_s)

    with others:
        redis.exchange = later if world.kind == "async" else at_once
        module = await face.get("a")
    assert (module.text, module.sha256) == (new, hashlib.sha256(new.encode()).hexdigest())


# -- processes -----------------------------------------------------------------------------------------------------


def test_store_works_in_parent_and_child_after_a_fork(redis_url: str, tmp_path: Path):
    program = """
        import os, sys
        from distier import connect
        store = connect({"counter": "estimate"}, redis__url=sys.argv[1], storage_tiers__cold__directory=sys.argv[2])
        for i in range(20):
            store.put(f"m/{i}", f"content {i}")
        store.demote_many([f"m/{i}" for i in range(10)], to="cold")   # its threads exist now
        child = os.fork()
        mine = "child" if child == 0 else "parent"
        for round in range(30):
            for i in range(20):
                assert store.get(f"m/{i}").text == f"content {i}", i
            landed = store.put(mine, f"{mine} {round}")
            assert store.get(mine).text == f"{mine} {round}"
        found = store.get_many([f"m/{i}" for i in range(20)])
        assert {m.text for m in found.values()} == {f"content {i}" for i in range(20)}
        assert all(r.tier == "cold" for r in store.demote_many([f"m/{i}" for i in range(10)], to="cold"))
        if child == 0:
            store.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        store.close()
        print("both")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program), redis_url, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr
