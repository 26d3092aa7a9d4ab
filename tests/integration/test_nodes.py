"""Nodes with copies on their own disks: where a read is served from, what it costs, and what the death of another node
causes.

Nodes are stores with their own directories, in this process or in one that can be stopped and killed (`node_child.py`).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from distier import connect, node
from distier.doctor.check import _disk
from distier.doctor.finding import Finding
from distier.errors import ArchiveUnavailable, ConfigError
from distier.plans.fleet import nodes as node_plans
from distier.stores.local import directory, environment
from tests.children import freeze
from tests.conftest import empty
from tests.integration.world import Face, World, until
from tests.servers import TestServer

CHILD = Path(__file__).parent / "node_child.py"
BODY = "What is on the disk of one node, and of no other. " * 40


def body(id: str, version: int = 1) -> bytes:
    return f"{id} v{version}\n{BODY}".encode()


class Spy:
    """Counts what a store sends: round trips to Redis, and objects read from the archive."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.verbs: list[str] = []
        self.trips = self.gets = 0
        self.archive_down = False
        driver: Any = face.store._driver
        exchange, get, put = driver.redis.exchange, driver.archive.get, driver.archive.put

        def note(commands: Any) -> None:
            # The node's own thread uses the same connections.
            words = [str(w) for w in commands[0]]
            if words[0] in ("BLPOP", "TIME", "ZADD") or any(":held:" in w for w in words):
                return
            self.trips += 1
            self.verbs += [str(c[0]) for c in commands]

        def sync_exchange(shard: Any, commands: Any, timeout_s: float) -> Any:
            note(commands)
            return exchange(shard, commands, timeout_s)

        async def async_exchange(shard: Any, commands: Any, timeout_s: float) -> Any:
            note(commands)
            return await exchange(shard, commands, timeout_s)

        def archive_get(key: str, *, max_bytes: int) -> Any:
            self._check()
            self.gets += key.endswith(".xz")
            return get(key, max_bytes=max_bytes)

        def archive_put(*args: Any, **kwargs: Any) -> Any:
            self._check()
            return put(*args, **kwargs)

        driver.redis.exchange = async_exchange if asyncio.iscoroutinefunction(exchange) else sync_exchange
        driver.archive.get, driver.archive.put = archive_get, archive_put

    def _check(self) -> None:
        if self.archive_down:
            raise ArchiveUnavailable("the archive is down")

    def reset(self) -> None:
        self.trips = self.gets = 0
        self.verbs.clear()


class Nodes(World):
    """A world whose stores are nodes, by name."""

    async def node(self, name: str, placement: str = "local", **overrides: Any) -> Face:
        return await self.open(
            storage_tiers__warm__placement=placement, storage_tiers__warm__directory=self.archive.parent / name,
            node=name, **overrides,
        )  # fmt: skip

    @contextmanager
    def child(self, name: str, *words: str, **overrides: Any) -> Iterator[subprocess.Popen[str]]:
        """A node in its own process that has the modules `a0`..`a9` on its disk and is known to hold them."""
        settings = self.settings(
            storage_tiers__warm__placement="local", storage_tiers__warm__directory=str(self.archive.parent / name),
            node=name, **overrides,
        ) | {"storage_tiers__cold__directory": str(self.archive)}  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, CHILD, json.dumps(settings), *words],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()
            child.communicate()

    def peers_of(self, face: Face) -> tuple[str, ...]:
        found: tuple[str, ...] = face.store._driver.peers._nodes
        return found

    async def know(self, face: Face, *names: str) -> None:
        """Wait until this node knows the others."""
        await until(lambda: set(self.peers_of(face)) == set(names), what=f"to know {names}")

    def held(self, name: str, id: str) -> bool:
        shard = self.shard(id)
        return bool(self.raw.sismember(shard.held(name), id))


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes learn of each other at once; `node_child.py` does the same."""
    hasten(monkeypatch.setattr)


def hasten(set_: Callable[[Any, str, float], None]) -> None:
    set_(node, "FIRST_S", 0.0)
    set_(node_plans, "HEARTBEAT_S", 0.2)
    set_(node_plans, "ASK_WAIT_S", 0.05)


@pytest_asyncio.fixture(params=["sync", "async"])
async def world(
    request: pytest.FixtureRequest, valkey_server: TestServer, tmp_path: Path, shards: int
) -> AsyncIterator[Nodes]:
    empty(valkey_server)
    world = Nodes(valkey_server, valkey_server.url, tmp_path / "cold", request.param, shards)
    yield world
    await world.close()


def counted(face: Face) -> Counter[str]:
    return Counter(face.store._driver.counters.snapshot())


async def put_clean(face: Face, *ids: str, version: int = 1) -> None:
    for id in ids:
        await face.put(id, body(id, version))
    await face.archive_now()


# -- one node -------------------------------------------------------------------------------------------------------


async def test_read_from_disk_costs_one_hgetall_and_no_archive_get(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m", "n")
    assert (await a.demote("m")).tier == "warm"
    await a.demote("n")
    shard = world.shard("m")
    assert not world.raw.exists(shard.frame("m")), "no frame in Redis"
    assert world.raw.hget(shard.module("m"), "tier") == b"cold"
    await a.get("m")
    spy = Spy(a)
    module = await a.get("m")
    assert (module.content, module.tier) == (body("m"), "warm")
    assert (spy.trips, spy.verbs, spy.gets) == (1, ["HGETALL"], 0)
    spy.reset()
    many = await a.get_many(["m", "n"])
    assert {id: (m.content, m.tier) for id, m in many.items()} == {id: (body(id), "warm") for id in ("m", "n")}
    assert (spy.trips, spy.gets) == (1, 0)
    assert counted(a)["hits.warm"] == 4


async def test_reads_from_disk_count_as_uses_and_promote(world: Nodes) -> None:
    a = await world.node("a", storage_tiers__promotion_threshold=4)
    await put_clean(a, "m")
    await a.demote("m")
    buffer = a.store._driver.uses
    for n in range(1, 7):
        buffer.AGE_S = 0.0 if n == 5 else 1000.0  # the batch is due at the fifth use
        module = await a.get("m")
        assert module.content == body("m")
        assert module.tier == ("warm" if n <= 5 else "hot"), n
    assert world.raw.zscore(world.shard("m").uses, "m") == 5
    await a.demote("m")
    assert (await a.get("m")).tier == "warm", "counts begin at zero again"


async def test_near_hits_promote_a_module_on_disk(world: Nodes) -> None:
    """Uses of near hits are sent by their own thread. They are not lost for copies on the disk."""
    a = await world.node("a", near__enabled=True, storage_tiers__promotion_threshold=3)
    await put_clean(a, "m")
    await a.demote("m")
    tier = ""
    end = time.monotonic() + 10
    while tier != "hot" and time.monotonic() < end:
        tier = (await a.get("m")).tier
        await asyncio.sleep(0.02)
    assert tier == "hot"


async def test_dirty_versions_stay_in_redis_until_archived(world: Nodes) -> None:
    a = await world.node("a")
    spy = Spy(a)
    spy.archive_down = True
    shard = world.shard("m")
    await a.put("m", body("m"))
    assert (await a.demote("m")).tier == "warm"
    assert world.raw.pttl(shard.frame("m")) == -1, "the only copy, and without a TTL"
    assert counted(a)["local.kept"] == 0
    with pytest.raises(ArchiveUnavailable):
        await a.demote("m", to="cold")
    with pytest.raises(ArchiveUnavailable):
        await a.archive_now()
    assert world.raw.pttl(shard.frame("m")) == -1
    assert (await a.get("m")).content == body("m")
    spy.archive_down = False
    await a.archive_now()
    assert not world.raw.exists(shard.frame("m")), "clean: it went to the disk"
    spy.reset()
    assert (await a.get("m")).tier == "warm"
    assert (spy.trips, spy.gets) == (1, 0)
    assert await a.recount() == world.usage()


async def test_placement_both_also_keeps_a_frame_in_redis(world: Nodes) -> None:
    a = await world.node("a", "both")
    await put_clean(a, "m")
    await a.put("d", body("d"))
    assert (await a.demote("m")).tier == "warm"
    await a.demote("d")
    await a.archive_now()
    for id in ("m", "d"):
        assert world.raw.pttl(world.shard(id).frame(id)) > 0
        assert (await a.where(id)).tier == "warm"
        assert (await a.where(id)).nodes == ("a",)
    spy = Spy(a)
    assert (await a.get("m")).tier == "warm"
    assert spy.trips == 1
    world.raw.delete(world.shard("m").frame("m"))  # as its TTL would
    assert (await a.get("m")).tier == "warm"
    assert spy.gets == 0


async def test_cold_read_leaves_a_copy_on_the_disk(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m")
    await a.demote("m", to="cold")
    assert (await a.where("m")).nodes == ()
    assert (await a.get("m")).tier == "cold"
    assert world.raw.hget(world.shard("m").module("m"), "tier") == b"cold"
    spy = Spy(a)
    assert (await a.get("m")).tier == "warm"
    assert (spy.trips, spy.gets) == (1, 0)
    assert (await a.where("m")).nodes == ("a",)


async def test_demote_to_cold_drops_this_nodes_copy(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m")
    await a.demote("m", to="warm")
    moved = await a.demote("m", to="cold")
    assert (moved.tier, moved.moved) == ("cold", True)
    assert (await a.where("m")).nodes == ()
    assert (await a.demote("m", to="cold")).reason == "already"
    assert (await a.get("m")).content == body("m")


async def test_promote_uses_the_copy_on_the_disk(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m", "n", "o")
    await a.demote_many(["m", "n", "o"])
    spy = Spy(a)
    assert (await a.promote("m")).moved
    assert all(m.moved for m in await a.promote_many(["n", "o"]))
    assert spy.gets == 0
    assert [(await a.get(id)).tier for id in "mno"] == ["hot"] * 3


async def test_new_version_is_read_wherever_it_was_put(world: Nodes) -> None:
    a, other = await world.node("a"), await world.open()
    await put_clean(a, "m")
    await a.demote("m")
    assert (await a.get("m")).content == body("m")
    await other.put("m", body("m", 2))
    assert (await a.get("m")).content == body("m", 2)
    await other.demote("m")
    assert (await a.get("m")).content == body("m", 2)
    await other.archive_now()
    await other.demote("m", to="cold")
    spy = Spy(a)
    assert (await a.get("m")).content == body("m", 2)
    assert spy.gets == 1, "what the disk has is another version"
    assert (await a.get("m")).content == body("m", 2)
    assert spy.gets == 1
    await other.delete("m")
    assert await a.get("m") is None


async def test_after_a_loss_of_redis_only_current_copies_are_served(world: Nodes) -> None:
    a, other = await world.node("a"), await world.open()
    ids = [f"m{i}" for i in range(6)]
    await put_clean(a, *ids)
    await a.demote_many(ids)
    await put_clean(other, *ids[:3], version=2)  # a's disk does not have them
    await other.put(ids[3], body(ids[3], 2))  # lost with Redis
    world.raw.flushall()
    spy = Spy(a)
    for id in ids:
        expected = body(id, 2) if id in ids[:3] else body(id)
        assert (await a.get(id)).content == expected, id
    assert spy.gets == 3, "the current ones came from the disk"
    await until(lambda: world.held("a", ids[5]), what="the node to say again what it holds")


async def test_budgets_hold_under_memory_pressure_with_a_worker(world: Nodes) -> None:
    """All bytes are exact, the budgets hold at each step, and the accounts are right."""
    a = await world.node(
        "a", storage_tiers__hot__max_size=100_000, storage_tiers__hot__max_bytes=20_000,
        storage_tiers__warm__max_modules=8, storage_tiers__warm__max_bytes=40_000,
    )  # fmt: skip
    b = await world.node("b")
    versions: dict[str, int] = {}
    for n in range(120):
        id = f"m{n * 7 % 40}"
        face = (a, b)[n % 2]
        versions[id] = versions.get(id, 0) + 1
        await face.put(id, body(id, versions[id]))
        if n % 9 == 0:
            await a.archive_now()
            await a.maintain()
        usage = world.usage()
        assert usage.get("hot_bytes", 0) <= 20_000
        assert usage.get("warm_count", 0) <= 8
        assert usage.get("warm_frame_bytes", 0) <= 40_000
        for face in (a, b):
            old = f"m{n * 3 % 40}"
            if old in versions:
                assert (await face.get(old)).content == body(old, versions[old])
    await a.archive_now()
    for face in (a, b):
        found = await face.get_many(versions)
        assert {id: m.content for id, m in found.items()} == {id: body(id, v) for id, v in versions.items()}
    assert await a.recount() == world.usage()
    assert counted(a)["local.kept"] > 20
    assert (await a.stats()).nodes["a"].modules <= 8
    world.raw.flushall()
    for face in (a, b):
        for id, version in versions.items():
            assert (await face.get(id)).content == body(id, version)


async def test_concurrent_reads_fetch_a_cold_module_once(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m")
    await a.demote("m", to="cold")
    spy = Spy(a)
    if world.kind == "async":
        found = await asyncio.gather(*(a.get("m") for _ in range(20)))
    else:
        found = await asyncio.gather(*(asyncio.to_thread(a.store.get, "m") for _ in range(20)))
    assert {m.content for m in found} == {body("m")}
    assert spy.gets == 1


async def test_disk_on_a_network_file_system_is_a_config_error(world: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "mounts", lambda: "/dev/vda / ext4 rw 0 0\nserver:/ / nfs4 rw 0 0\n")
    with pytest.raises(ConfigError, match="network file system"):
        await world.node("a")


async def test_full_disk_is_bypassed_until_it_has_room(world: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, boot: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(environment.Environment, "_map", full)
        a = await world.node("a")
        await put_clean(a, "m")
        assert (await a.demote("m")).moved
        for _ in range(3):
            assert (await a.get("m")).content == body("m")
        assert counted(a)["local.errors"] >= 1
        assert disk_finding(a).status == "warn"
    world_disk: Any = a.store._driver.local
    world_disk._shared._retry_s = 0.0  # ten seconds later
    assert (await a.get("m")).tier == "cold"
    assert (await a.get("m")).tier == "warm"
    assert disk_finding(a).status == "ok"


def disk_finding(face: Face) -> Finding:
    found = [f for f in _disk(face.space.config) if f.check == "disk"]
    assert len(found) == 1
    return found[0]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("world", ["sync"], indirect=True)  # an event loop does not survive a fork
async def test_forked_process_belongs_to_the_node(world: Nodes) -> None:
    """The child opens the disk again, and its own thread reports what it holds."""
    a = await world.node("a")
    await put_clean(a, "m", "n")
    await a.demote("m")
    store: Any = a.store
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert store.get("m").tier == "warm"
            assert store.demote("n").tier == "warm"
            assert store.get("n").tier == "warm"
            end = time.monotonic() + 10
            while not world.held("a", "n") and time.monotonic() < end:
                time.sleep(0.02)
            code = 0 if world.held("a", "n") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (await a.get("n")).tier == "warm"
    assert (await a.get("m")).tier == "warm"


# -- several nodes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4], indirect=True)
async def test_copy_of_another_node_is_fetched(world: Nodes) -> None:
    a, b = await world.node("a"), await world.node("b")
    await put_clean(a, "m", "n", "o", "p")
    await a.demote_many(["m", "n", "o", "p"])
    await world.know(b, "a")
    await until(lambda: world.held("a", "p"), what="a to say that it holds p")
    spy = Spy(b)
    module = await b.get("m")
    assert (module.content, module.tier) == (body("m"), "warm")
    assert (await b.where("m")).nodes == ("a", "b")
    moved = await b.promote("n")
    assert (moved.tier, moved.moved) == ("hot", True)
    assert (await b.get("n")).tier == "hot"
    assert all(m.moved for m in await b.promote_many(["o", "p"]))
    assert spy.gets == 0, "nothing came from the archive"
    assert counted(b)["peers.answered"] == 4
    assert counted(a)["moves.promoted"] == 1, "the holder has promoted n by itself"
    await until(lambda: world.held("b", "m"), what="b to say that it holds m")
    stats = await b.stats()
    assert {name: held.modules for name, held in stats.nodes.items()}.keys() == {"a", "b"}
    assert stats.node == "b"
    assert (await b.demote("n")).tier == "warm", "whoever has it not on its disk demotes it as well"
    assert not world.raw.keys("*:answer:*")


async def test_node_without_the_copy_says_so_at_once(world: Nodes) -> None:
    a, b = await world.node("a"), await world.node("b", storage_tiers__warm__peer_timeout="10s", deadline="100s")
    await put_clean(a, "m")
    await a.demote("m")
    await world.know(b, "a")
    await until(lambda: world.held("a", "m"), what="a to say that it holds m")
    disk: Any = a.store._driver.local
    disk.delete("m")
    disk.take_changes()  # as if the deletion were not reported yet
    start = time.monotonic()
    assert (await b.get("m")).content == body("m")
    assert time.monotonic() - start < 9.5, "it did not wait for the timeout"
    assert counted(b)["peers.absent"] == 1
    assert counted(b)["peers.silent"] == 0
    assert not world.held("a", "m")


async def test_damaged_answer_is_rejected_and_the_archive_read(world: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await world.node("a"), await world.node("b")
    await put_clean(a, "m", "n")
    await a.demote_many(["m", "n"])
    await world.know(b, "a")
    await until(lambda: world.held("a", "n"), what="a to say that it holds n")
    spy = Spy(b)
    for id, answer in (("m", b"=raw\0" + body("m", 2)), ("n", b"=lz4\0\xff\xff")):
        monkeypatch.setattr(node_plans, "packed", lambda content, answer=answer: answer)
        assert (await b.get(id)).content == body(id)
    assert spy.gets == 2
    assert counted(b)["peers.damaged"] == 2


async def test_peer_timeout_zero_asks_no_node(world: Nodes) -> None:
    a, b = await world.node("a"), await world.node("b", storage_tiers__warm__peer_timeout="0s")
    await put_clean(a, "m")
    await a.demote("m")
    await world.know(b, "a")
    await until(lambda: world.held("a", "m"), what="a to say that it holds m")
    assert (await b.get("m")).tier == "cold"
    assert counted(b)["peers.asked"] == 0


async def test_invalid_asks_are_counted_and_do_no_harm(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m")
    await a.demote("m")
    first = world.shard("m")
    for entry in (
        "",
        "x",
        "[]",
        '["m","t","copy"]',
        '["","t","copy","k"]',
        '{"a":1}',
        "[" * 5000,
        '["no","t","hot","k"]',
    ):
        world.raw.rpush(first.asks("a"), entry)
    await until(lambda: not world.raw.exists(first.asks("a")), what="the asks to be taken")
    await until(lambda: counted(a)["asks.invalid"] == 7, what="the asks to be counted")
    await until(lambda: world.raw.lrange(first.answer("k"), 0, -1) == [b"-"], what="the one that can be answered")
    assert (await a.get("m")).tier == "warm"


async def test_worker_forgets_what_a_dead_node_held(world: Nodes) -> None:
    a = await world.node("a")
    await put_clean(a, "m")
    await a.demote("m")
    first = world.shard("m")
    await until(lambda: world.held("a", "m"), what="a to say that it holds m")
    world.raw.zadd(first.nodes, {"gone": 1})
    world.raw.sadd(first.held("gone"), "m")
    world.raw.rpush(first.asks("gone"), "x")
    assert (await a.where("m")).nodes == ("a",), "it does not live"
    assert (await a.maintain())["nodes_forgotten"] == 1
    assert world.raw.zrange(first.nodes, 0, -1) == [b"a"]
    assert not world.raw.exists(first.held("gone"), first.asks("gone"))
    assert world.held("a", "m")


# -- node death -------------------------------------------------------------------------------------------------------


async def test_stopped_node_costs_its_timeout_once(world: Nodes) -> None:
    b = await world.node("b", storage_tiers__warm__peer_timeout="300ms")
    ids = iter([f"a{i}" for i in range(9)])
    with world.child("a") as child:
        while True:
            await world.know(b, "a")
            await until(lambda: world.held("a", "a9"), what="a to say what it holds")
            freeze(child.pid)
            spy, id = Spy(b), next(ids)
            start = time.monotonic()
            assert (await b.get(id)).content == body(id)
            took_s = time.monotonic() - start
            if counted(b).get("peers.asked"):
                break
            child.send_signal(signal.SIGCONT)  # its heartbeat was late, so b did not count it as alive
        assert 0.3 <= took_s < 20, "the timeout, and then the archive"
        assert counted(b)["peers.silent"] == 1
        spy.reset()
        for id in (next(ids), next(ids), next(ids)):
            assert (await b.get(id)).content == body(id)
        assert (await b.promote(next(ids))).moved
        assert spy.gets == 4
        assert counted(b)["peers.asked"] == 1, "it was silent: not asked again for a while"


@pytest.mark.parametrize("moment", ["die-before", "die-after"])
async def test_node_killed_during_a_promotion_leaves_correct_state(world: Nodes, moment: str) -> None:
    """Before the script nothing has happened. After it the module is hot, and only the answer is missing."""
    b = await world.node("b", storage_tiers__warm__peer_timeout="1500ms")
    with world.child("a", moment) as child:
        await world.know(b, "a")
        await until(lambda: world.held("a", "a9"), what="a to say what it holds")
        for id in (f"a{i}" for i in range(9)):  # the first one, unless a heartbeat was late and no node is asked
            moved = await b.promote(id)
            with suppress(subprocess.TimeoutExpired):
                assert child.wait(timeout=5) == -signal.SIGKILL
                break
        assert child.returncode == -signal.SIGKILL
        assert moved.tier == "hot"
        assert moved.moved == (moment == "die-before")  # otherwise it was already hot when b looked at it again
        assert (await b.get(id)).content == body(id)
        assert (await b.get("a9")).content == body("a9")
    assert await b.recount() == world.usage()


async def test_dead_node_costs_no_extra_round_trip(world: Nodes) -> None:
    b = await world.node("b")
    await put_clean(b, "x", "y")
    await b.demote_many(["x", "y"], to="cold")
    await b.get("x")  # the scripts are loaded
    spy = Spy(b)
    await b.get("y")
    alone = spy.trips
    with world.child("a") as child:
        await world.know(b, "a")
        await until(lambda: world.held("a", "a9"), what="a to say what it holds")
        child.kill()
        child.wait()
    world.raw.zadd(world.shard("a0").nodes, {"a": 1})  # its heartbeat ended some seconds ago
    await world.know(b)
    spy.reset()
    assert (await b.get("a0")).content == body("a0")
    assert (spy.trips, spy.gets) == (alone, 1), spy.verbs
    assert counted(b)["peers.asked"] == 0
    assert (await b.where("a1")).nodes == ()


async def test_another_process_of_the_node_takes_over(world: Nodes) -> None:
    """Two processes share a disk. The process that answers asks is killed, and the other one continues."""
    with world.child("a") as child, world.child("a", "second"):
        b = await world.node("b", storage_tiers__warm__peer_timeout="2s")
        await world.know(b, "a")
        await until(lambda: world.held("a", "a9"), what="a to say what it holds")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        spy = Spy(b)
        for i in range(10):
            assert (await b.get(f"a{i}")).content == body(f"a{i}")
        assert spy.gets < 10
        assert counted(b)["peers.answered"] > 0


async def test_silent_node_leaves_time_for_the_archive(world: Nodes) -> None:
    b = await world.node("b", storage_tiers__warm__peer_timeout="9s", deadline="3s")
    with world.child("a") as child:
        await world.know(b, "a")
        await until(lambda: world.held("a", "a9"), what="a to say what it holds")

        def stopped() -> bool:
            """Stop the node, but not in the middle of announcing again what it holds."""
            freeze(child.pid)
            if world.held("a", "a0"):
                return True
            child.send_signal(signal.SIGCONT)
            return False

        await until(stopped, what="a node that stops between two announcements")
        assert (await b.get("a0")).content == body("a0")
        assert counted(b)["peers.silent"] == 1, counted(b)


def test_dropped_store_ends_its_thread(redis_url: str, tmp_path: Path) -> None:
    store = connect(
        {}, redis__url=redis_url, storage_tiers__cold__directory=tmp_path / "cold", counter="estimate",
        storage_tiers__warm__placement="local", storage_tiers__warm__directory=tmp_path / "warm",
    )  # fmt: skip
    thread, gone = store._node._thread, weakref.ref(store)  # type: ignore[union-attr]
    del store
    gc.collect()
    assert gone() is None
    thread.join(timeout=60)
    assert not thread.is_alive()
