"""Every call works on a cluster as on one server, all keys of a script are in one slot, and calls ask all masters at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from typer.testing import CliRunner

from distier import Item, connect
from distier.cli.app import app
from distier.config import load_config
from distier.domain.keys import Keyspace, Shard
from distier.drive.process import UseBuffer
from distier.errors import ConfigError, Conflict, Invalid, NotFound, Unavailable
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.rescue import rescue
from distier.stores.redis import Batch
from distier.stores.redis.aio_connection import AsyncConnection
from distier.stores.redis.cluster import ClusterExchange
from distier.stores.redis.connection import Connection
from distier.worker import Worker
from tests.cluster.conftest import SHARDS, Stores
from tests.clusters import TestCluster
from tests.integration.world import until
from tests.servers import TestServer, poll

ACL_FILE = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
KINDS_OF_STORE = ("sync", "async")


class Spy:
    """Wraps an exchange and notes its commands. Each `exchange` and each `exchange_many` is a round trip."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self.trips = 0
        self.sent: list[tuple[Shard, Sequence[Any]]] = []

    def exchange(self, shard: Shard, commands: Any, timeout_s: float) -> Any:
        self.trips += 1
        self.sent += [(shard, command) for command in commands]
        return self._exchange.exchange(shard, commands, timeout_s)

    def exchange_many(self, batches: Any, timeout_s: float) -> Any:
        self.trips += 1
        self.sent += [(shard, command) for shard, commands in batches for command in commands]
        return self._exchange.exchange_many(batches, timeout_s)

    def drop(self) -> None:
        self._exchange.drop()

    def close(self) -> Any:
        return self._exchange.close()


def keys_of(command: Sequence[Any]) -> list[str]:
    if command[0] in ("EVALSHA", "EVALSHA_RO"):
        return [str(key) for key in command[3 : 3 + command[2]]]
    return [str(word) for word in command if str(word).startswith("distier:{") and not str(word).endswith("*")]


@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_every_call_works_and_every_script_stays_in_one_slot(stores: Stores, kind: str):
    face = await stores.open(kind)
    spy = face.store._driver.redis = Spy(face.store._driver.redis)
    ids = stores.ids(60)
    for i, id in enumerate(ids[:20]):
        assert (await face.put(id, f"text {i}", keywords=["k"], meta={"i": i})).tier == "hot"
    landed = await face.put_many([Item(id, f"text {i}") for i, id in enumerate(ids) if i >= 20])
    assert [r.tier for r in landed] == ["hot"] * 40
    assert {stores.keys.shard(id).index for id in ids} == set(range(SHARDS))

    async def right() -> bool:
        found = await face.get_many(ids)
        return list(found) == ids and all(found[id].text == f"text {i}" for i, id in enumerate(ids))

    assert await right()
    assert {m.tier for m in await face.demote_many(ids[:20], to="warm")} == {"warm"}
    assert {m.tier for m in await face.demote_many(ids[20:40], to="cold")} == {"cold"}
    assert {t: n for _, t in await face.scan() for n in [1]} == {"hot": 1, "warm": 1, "cold": 1}
    assert sorted(await face.list()) == sorted(ids)
    assert await right()
    stats = await face.stats()
    assert (stats.count, len(stats.epochs)) == (60, SHARDS)
    assert all(m.tier == "hot" for m in await face.promote_many(ids))
    assert {(await face.where(id)).tier for id in ids} == {"hot"}
    first = await face.get(ids[0])
    with pytest.raises(Conflict):
        await face.put(ids[0], "x", if_version=0)
    await face.put(ids[0], "y", if_version=first.version, durability="archived")
    await face.put(ids[1], "y", durability="replicated")
    assert await face.pin(ids[2], 60) and (await face.where(ids[2])).pinned_until_ms
    await face.unpin(ids[2])
    assert await face.delete(ids[3]) and not await face.delete(ids[3]) and not await face.exists(ids[3])
    assert await face.delete(ids[4], durability="archived")
    with pytest.raises(NotFound):
        await face.promote(ids[3])
    assert await face.get_many(["no", ids[3]]) == {"no": None, ids[3]: None}
    assert [type(r).__name__ for r in await face.promote_many(["no", ids[5]])] == ["NotFound", "Moved"]
    events = await face.events(since="0", wait=False)
    assert {e.id for e in events if e.to == "hot"} >= set(ids)
    assert await face.archive_now() > 0
    await face.maintain()
    usage = await face.recount()
    assert usage["hot_count"] == 58 and usage.get("dirty_count", 0) == 0
    found = await face.run(fsck(face.space), deadline_s=60)
    assert found.records >= 58 and not found.found
    await face.run(rescue(face.space), deadline_s=60)
    assert (await face.get(ids[0])).text == "y"

    assert len(spy.sent) > 500
    for shard, command in spy.sent:
        assert {key_slot(key.encode()) for key in keys_of(command)} <= {shard.slot}, (shard.index, command)
    assert {shard.slot for shard, _ in spy.sent} == {key_slot(s.epoch.encode()) for s in stores.keys.shards}


class Counted:
    """Counts the messages that connections send; there is at most one for each master in a round trip."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages = 0
        for kind, name in ((Connection, "send"), (AsyncConnection, "ask")):
            monkeypatch.setattr(kind, name, self._counting(getattr(kind, name)))

    def _counting(self, method: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.messages += 1
            return method(*args)

        return counted


@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_batch_over_many_shards_takes_one_round_trip_to_all_masters(
    stores: Stores, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(UseBuffer, "AGE_S", 1e9)  # so that a slow machine sends no uses meanwhile
    face = await stores.open(kind)
    ids = stores.ids(64)
    await face.put_many([Item(id, "x") for id in ids])
    await face.get_many(["no", *ids])
    await face.demote_many(ids, to="warm")  # loads all scripts on all masters
    await face.get_many(ids)
    await face.promote_many(ids)
    spy = face.store._driver.redis = Spy(face.store._driver.redis)
    counted = Counted(monkeypatch)

    async def trips(call: Any) -> tuple[int, int]:
        spy.trips = counted.messages = 0
        await call
        return spy.trips, counted.messages

    assert await trips(face.get_many(ids)) == (1, 3)  # with one for each shard it was 16
    assert await trips(face.stats()) == (1, 3)
    assert await trips(face.put_many([Item(id, "y") for id in ids])) == (1, 3)
    assert await trips(face.get_many(["no", *ids])) == (2, 4), "one more round trip proves the misses"
    await face.demote_many(ids, to="warm")
    warm = (await trips(face.get_many(ids)))[0]
    assert warm <= 3, "records, frames, uses"
    moved, _ = await trips(face.promote_many(ids))
    assert moved <= 2 + 2 * SHARDS, "records, frames; of each shard: room, and the promotions"


@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_batch_asks_all_masters_before_any_replied(stores: Stores, kind: str):
    """The reply of one master waits for a command to another one in the same call. One after the other, it would never come."""
    face = await stores.open(kind)
    exchange: Any = face.store._driver.redis
    nodes = stores.cluster.masters()[:2]
    key = {node.port: f"{stores.on(node)[0].epoch}:asked" for node in nodes}

    def push_when_asked(waits: TestServer, asked: TestServer) -> None:
        with waits.client() as to, asked.client() as at:
            poll(lambda: at.exists(key[asked.port]) or to.exists(key[waits.port]), what="a command at the other master")
            to.rpush(key[waits.port], "continue")

    for waits, asked in (nodes, nodes[::-1]):
        batches: list[Batch] = [
            (stores.on(waits)[0], [("BLPOP", key[waits.port], 5)]),
            (stores.on(asked)[0], [("SET", key[asked.port], "")]),
        ]
        pushed = asyncio.create_task(asyncio.to_thread(push_when_asked, waits, asked))
        if kind == "sync":
            replies = await asyncio.to_thread(exchange.exchange_many, batches, 10.0)
        else:
            replies = await exchange.exchange_many(batches, 10.0)
        assert replies[0][0] is not None, "the second master got its command too late"
        await pushed
        with asked.client() as at:
            at.delete(key[asked.port])


@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_batch_over_many_shards_of_one_server_takes_one_round_trip(
    valkey_server: TestServer, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    one = Stores(TestCluster([]), tmp_path / "cold")
    try:
        face = await one.open(kind, redis__url=valkey_server.url)
        ids = one.ids(64)
        await face.put_many([Item(id, "x") for id in ids])
        await face.get_many(ids)
        counted = Counted(monkeypatch)
        found = await face.get_many(ids)
        assert counted.messages == 1 and all(found.values())
    finally:
        await one.close()


async def test_replicas_are_never_read(stores: Stores):
    face = await stores.open("async")
    ids = stores.ids(40)
    await face.put_many([Item(id, "x") for id in ids])
    for node in stores.cluster.nodes:
        with node.client() as client:
            client.config_resetstat()
    for _ in range(5):
        assert all((await face.get_many(ids)).values())
    reads = {}
    for node in stores.cluster.nodes:
        with node.client() as client:
            stats: Any = client.info("commandstats")
            reads[node.port] = sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hmget", "hgetall"))
    masters = {node.port for node in stores.cluster.masters()}
    assert sum(reads.values()) == 200
    assert {port for port, n in reads.items() if n} == masters


@pytest.mark.parametrize(("created", "configured"), [(1, 16), (16, 1), (16, 8), (8, 16), (2, 3), (1, 2)])
async def test_other_number_of_shards_is_refused(stores: Stores, created: int, configured: int):
    stores.store(shards=created).put("a", "x")
    for kind in KINDS_OF_STORE:
        with pytest.raises(Invalid, match=rf"shards={created};.*shards={configured}\."):
            await stores.open(kind, shards=configured)


async def test_url_of_the_wrong_scheme_is_a_clear_error(stores: Stores, valkey_server: TestServer):
    node = stores.cluster.nodes[0]
    with pytest.raises(ConfigError, match="cluster://"):
        stores.store(redis__url=f"redis://127.0.0.1:{node.port}/0", deadline="2s")
    with pytest.raises(ConfigError, match="redis://"):
        stores.store(redis__url=valkey_server.url.replace("redis://", "cluster://").removesuffix("/0"), deadline="2s")
    for kind in KINDS_OF_STORE:
        with pytest.raises(Unavailable, match="no node of the cluster replies"):
            await stores.open(kind, redis__url="cluster://127.0.0.1:1,127.0.0.1:2", deadline="1s")


async def test_one_live_node_of_the_url_is_enough(stores: Stores):
    replica = stores.cluster.replicas()[0]
    store = stores.store(redis__url=f"cluster://127.0.0.1:1,127.0.0.1:{replica.port}")
    store.put("a", "x")
    assert store.get("a").text == "x"


async def test_username_and_password_are_used_for_every_node(stores: Stores):
    for node in stores.cluster.nodes:
        stores.cluster.ask(node, "ACL", "SETUSER", "ann", "on", ">p@ss/w", "~*", "&*", "+@all")
    url = stores.cluster.url.replace("://", "://ann:p%40ss%2Fw@")
    assert all(r.tier == "hot" for r in stores.store(redis__url=url).put_many([Item(id, "x") for id in stores.ids(40)]))
    with pytest.raises(ConfigError, match="password"):
        stores.store(redis__url=url.replace("w@", "wrong@"))


async def test_roles_of_the_acl_file_are_sufficient_on_a_cluster(stores: Stores):
    roles = [line.split()[1:] for line in ACL_FILE.read_text().splitlines()]
    for node in stores.cluster.nodes:
        for name, *rules in roles:
            if name in ("agent", "worker"):
                stores.cluster.ask(node, "ACL", "SETUSER", name, "reset", *[r for r in rules if r[0] != "#"], ">secret")
    as_role = {name: {"redis__username": name, "redis__password": "secret"} for name in ("agent", "worker")}
    agent, shard = await stores.open("async", near__enabled=True, **as_role["agent"]), stores.keys.shards[2]
    id, ids = stores.id_in(shard), stores.ids(40)
    assert all(r.tier == "hot" for r in await agent.put_many([Item(i, "x") for i in (id, *ids)]))
    assert all((await agent.get_many([id, *ids])).values())
    await until(lambda: agent.store.near.status == "on", what="the near cache of an agent")
    assert Worker(stores.store(**as_role["worker"])).run_once()
    home = stores.cluster.owner(shard.slot)
    target = next(m for m in stores.cluster.masters() if m is not home)
    stores.cluster.begin_move(shard.slot, target)
    stores.cluster.move_keys(home, target, [shard.module(id).encode()])
    agent.store.near.cache.doubt_all()
    assert (await agent.get(id)).text == "x", "ASKING is allowed"
    stores.cluster.move(shard.slot, target)
    assert (await agent.get(id)).text == "x" and (await agent.put(id, "y")).tier == "hot"


def test_worker_and_command_line_work_on_a_cluster(stores: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    store = stores.store()
    store.put_many([Item(id, "x" * 50) for id in stores.ids(40)])
    worker = Worker(connect({}, **stores.settings(storage_tiers__cold__archive_after="0s")))
    assert worker.run_once(), worker.report.last_failure
    worker.store.close()
    assert store.stats().dirty_count == 0

    monkeypatch.setenv("DISTIER_SHARDS", str(SHARDS))
    monkeypatch.setenv("DISTIER_COUNTER", "estimate")
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(stores.archive))
    (tmp_path / "new.txt").write_text("new")

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["--url", stores.cluster.url, "--namespace", stores.namespace, *words])
        assert done.exit_code == 0, (words, done.output)
        return done.output

    run("put", "new", str(tmp_path / "new.txt"))
    assert run("get", "new") == "new"
    assert "m/7" in run("ls")
    assert json.loads(run("--json", "stats"))["hot"]["count"] == 41
    for words in (["where", "m/1"], ["demote", "m/1"], ["promote", "m/1"], ["flush"], ["fsck"], ["rescue"], ["doctor"]):
        run(*words)


def test_threads_share_the_routes_that_one_of_them_learned(stores: Stores):
    config = load_config({}, **stores.settings())
    exchange = ClusterExchange(config, stores.cluster.url)
    shards = Keyspace(stores.namespace, SHARDS).shards
    for shard in shards:
        assert exchange.exchange(shard, [("SET", shard.root + "x", "1"), ("GET", shard.root + "x")], 5)[1] == b"1"
    assert exchange.routes.looks == 1
    replies = exchange.exchange_many([(s, [("GET", s.root + "x"), ("GET", s.root + "y")]) for s in shards], 5)
    assert replies == [[b"1", None]] * SHARDS
    assert isinstance(exchange.exchange(shards[0], [("HGET", shards[0].root + "x", "f")], 5)[0], redis.ResponseError)
    exchange.close()


def test_doctor_checks_every_master(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(stores.archive))
    monkeypatch.setenv("DISTIER_COUNTER", "estimate")
    last = stores.cluster.masters()[-1]

    def found(shards: int) -> dict[tuple[str, str], str]:
        monkeypatch.setenv("DISTIER_SHARDS", str(shards))
        words = ["--json", "--url", stores.cluster.url, "--namespace", stores.namespace, "doctor"]
        done = CliRunner().invoke(app, words)
        checks = [json.loads(line) for line in done.output.splitlines()]
        assert done.exit_code == (1 if any(c["status"] == "fail" for c in checks) else 0)
        return {(c["check"], c["status"]): c["found"] + " | " + str(c["advice"]) for c in checks}

    healthy = found(SHARDS)
    assert {status for _, status in healthy} == {"ok"}, healthy
    assert "3 masters, 3 replicas; state ok" in healthy["cluster", "ok"]
    assert "16 shard(s), by master: " in healthy["shards", "ok"]
    assert healthy["eviction", "ok"].startswith("all masters: ")
    assert "shards: 48" in found(1)["shards", "warn"]
    try:
        with last.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
            client.config_set("cluster-require-full-coverage", "yes")
        ill = found(SHARDS)
        for check in (("eviction", "fail"), ("persistence", "warn"), ("coverage", "warn")):
            assert f"127.0.0.1:{last.port}: " in ill[check]
        assert ("eviction", "ok") in ill
    finally:
        with last.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")
            client.config_set("cluster-require-full-coverage", "no")
