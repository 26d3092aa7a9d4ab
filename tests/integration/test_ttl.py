"""Modules with a TTL: hidden from every read once it has ended by the clock of their shard, and deleted after a grace."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from distier import Conflict, Invalid, Item, Module, NotFound
from distier.cli import run as cli
from distier.cli.exits import NOT_FOUND
from distier.plans.fleet.maintain import EXPIRED_GRACE_MS
from tests.integration.test_api import with_shards
from tests.integration.world import Face, Open, World
from tests.servers import TestServer

TTL_S = 3600


def pass_time(world: World, *faces: Face, s: float) -> None:
    """Let the clocks of all shards go on. They never go back, so a later time that they have shown is the time."""
    for shard in faces[0].space.keys.shards:
        now_ms = max(time.time() * 1000, float(world.raw.hget(shard.epoch, "clock") or 0))
        world.raw.hset(shard.epoch, "clock", f"{now_ms + s * 1000:.3f}")
    for face in faces:
        face.space.process.clocks.clear()  # a look is used for a second


def there(module: Module | None) -> Module:
    assert module is not None
    return module


@with_shards
@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
async def test_expired_module_is_a_miss_for_every_read(world: World, tier: str) -> None:
    face = await world.open()
    await face.put("dir/a", "the content", ttl=TTL_S, keywords=["k"])
    await face.put("dir/b", "another", keywords=["k"])
    if tier != "hot":
        await face.demote("dir/a", to=tier)
    record = (await face.describe(["dir/a"]))["dir/a"]
    assert record.expires_ms == (await face.where("dir/a")).expires_ms == record.updated_ms + TTL_S * 1000
    assert there(await face.get("dir/a")).expires_ms == record.expires_ms
    assert there((await face.get_many(["dir/a"]))["dir/a"]).expires_ms == record.expires_ms
    assert there(await face.get("dir/b")).expires_ms is None
    assert await face.list() == ["dir/a", "dir/b"]
    assert len((await face.search("keyword:k")).modules) == 2

    pass_time(world, face, s=TTL_S + 1)
    assert await face.get("dir/a") is None
    assert (await face.get_many(["dir/a", "dir/b"])).keys() == {"dir/a", "dir/b"}
    assert (await face.get_many(["dir/a", "dir/b"]))["dir/a"] is None
    assert not await face.exists("dir/a")
    assert await face.where("dir/a") is None
    assert (await face.where_many(["dir/a", "dir/b"]))["dir/a"] is None
    assert (await face.describe(["dir/a"]))["dir/a"] is None
    assert await face.list() == ["dir/b"]
    assert [module.id for module in (await face.page()).modules] == ["dir/b"]
    assert [module.id for module in (await face.search("keyword:k")).modules] == ["dir/b"]
    assert [choice.id for choice in (await face.fit("dir/", 1000)).choices] == ["dir/b"]
    for name, *more in (("promote",), ("demote",), ("pin", 5), ("rename", "c")):
        with pytest.raises(NotFound):
            await getattr(face, name)("dir/a", *more)
    assert not any(entry.current for entry in await face.history("dir/a"))
    assert not await face.delete("dir/a")
    assert await face.recount() == world.usage()


async def test_suspect_of_the_near_cache_expires_too(world: World) -> None:
    """Its version is unchanged: only the time is not."""
    face, other = await world.open(near__enabled=True), await world.open()
    await face.put("a", "x" * 9000, ttl=TTL_S)
    await face.put("b", "x", ttl=TTL_S)
    assert all((await face.get_many(["a", "b"])).values())
    await other.demote("a")  # the server pushes that, as for any change
    await other.demote("b")
    pass_time(world, face, s=TTL_S + 1)
    face.store.near.cache.doubt_all()
    assert await face.get("a") is None
    assert await face.get_many(["a", "b"]) == {"a": None, "b": None}


async def test_put_over_an_expired_module_is_a_new_one(world: World) -> None:
    face = await world.open()
    await face.put("a", "old", ttl=TTL_S)
    old_ms = there(await face.get("a")).created_ms
    with pytest.raises(Conflict):
        await face.put("a", "new", if_version=0)
    with pytest.raises(Conflict):
        await face.put("a", "new", if_version=0, durability="archived")
    pass_time(world, face, s=TTL_S + 1)
    new = await face.put("a", "new", if_version=0, durability="archived")
    found = there(await face.get("a"))
    assert (found.text, found.version, found.expires_ms) == ("new", new.version, None)
    assert found.created_ms == found.updated_ms > old_ms
    pass_time(world, face, s=TTL_S + 1)
    assert await face.exists("a"), "a put without TTL ends the TTL"


@pytest.mark.parametrize("many", [False, True])
async def test_put_begins_the_time_again(world: World, many: bool) -> None:
    face = await world.open()
    version = (await face.put("a", "1", ttl=TTL_S)).version
    pass_time(world, face, s=TTL_S - 60)
    if many:
        (landed,) = await face.put_many([Item("a", "1", ttl=TTL_S, if_version=version)])
        assert landed.version > version
    else:
        await face.put("a", "1", ttl=TTL_S, if_version=version)
    pass_time(world, face, s=TTL_S - 60)
    assert there(await face.get("a")).text == "1"
    pass_time(world, face, s=120)
    assert await face.get("a") is None


@with_shards
async def test_worker_deletes_expired_modules_after_a_grace(world: World) -> None:
    face = await world.open(storage_tiers__cold__archive_after="0s")
    for i in range(150):
        await face.put(f"m{i}", "x", ttl=TTL_S)
    await face.put("kept", "x")
    await face.put("m0", "x")  # without
    await face.put("m1", "x", ttl=10 * TTL_S)
    assert (await face.maintain())["ttl_ended"] == 0
    pass_time(world, face, s=TTL_S + EXPIRED_GRACE_MS / 2000)
    assert (await face.maintain())["ttl_ended"] == 0
    assert world.usage()["hot_count"] == 151, "they still count, until they are deleted"
    for shard in face.space.keys.shards:  # the list is in order of time, and the worker asks the server for the time
        for id, at_ms in world.raw.zrange(shard.expiring, 0, -1, withscores=True):
            world.raw.zadd(shard.expiring, {id: at_ms - 10 * TTL_S * 1000})
    pass_time(world, face, s=EXPIRED_GRACE_MS / 1000)
    assert (await face.maintain())["ttl_ended"] == 148
    assert sorted(await face.list()) == ["kept", "m0", "m1"]
    assert await face.recount() == world.usage()
    ended = [event for event in await face.events(since="0", wait=False) if event.reason == "ttl"]
    assert {(event.to, event.from_) for event in ended} == {("deleted", "hot")} and len(ended) == 148
    await face.maintain()
    assert sum(".deleted" in key for key in world.objects()) == 148
    left = [id for shard in face.space.keys.shards for id in world.raw.zrange(shard.expiring, 0, -1)]
    assert left == [b"m1"]


@pytest.mark.parametrize("how", ["put", "write-back", "packed"])
async def test_ttl_survives_a_loss_of_redis(world: World, how: str) -> None:
    from distier.plans.fleet.packing import pack_all

    face = await world.open()
    await face.put("a", "1", ttl=TTL_S, durability="archived" if how == "put" else None)
    await face.put("b", "2", durability="archived")
    await face.archive_now()
    if how == "packed":
        await face.run(pack_all(face.space, min_age_ms=-(10**15), everything=True))
    before = there(await face.get("a"))
    world.raw.flushall()
    again = await world.open()
    found = there(await again.get("a"))
    assert found.expires_ms is not None and before.expires_ms is not None
    assert found.expires_ms - found.updated_ms == TTL_S * 1000
    assert abs(found.expires_ms - before.expires_ms) < 60_000
    assert world.raw.zrange(world.shard("a").expiring, 0, -1) == [b"a"]
    pass_time(world, again, s=TTL_S + 1)
    assert await again.get("a") is None
    assert there(await again.get("b")).text == "2"


async def test_renamed_module_keeps_its_end_and_an_older_version_its_ttl(world: World) -> None:
    face = await world.open(storage_tiers__cold__keep_versions=5)
    old = (await face.put("a", "1", ttl=TTL_S)).version
    await face.archive_now()
    pass_time(world, face, s=TTL_S / 2)
    end_ms = there(await face.get("a")).expires_ms
    await face.rename("a", "b")
    assert there(await face.get("b")).expires_ms == end_ms
    await face.rollback("a", old)
    again = there(await face.get("a"))
    assert again.expires_ms == again.updated_ms + TTL_S * 1000


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "5", True, 1e12])
async def test_impossible_ttls_are_refused(world: World, ttl: Any) -> None:
    face = await world.open()
    with pytest.raises(Invalid, match="ttl must be a number of seconds"):
        await face.put("a", "x", ttl=ttl)
    (error,) = await face.put_many([Item("a", "x", ttl=ttl)])
    assert isinstance(error, Invalid)
    assert not await face.exists("a")


def test_no_read_returns_a_module_after_its_end(open_store: Open, server: TestServer) -> None:
    """Whatever the near cache holds, and however the clock is estimated."""
    raw, store = server.client(), open_store(near__enabled=True)

    def server_ms() -> float:
        s, us = raw.time()
        return float(s * 1000 + us / 1000)

    store.put("long", "x", ttl=TTL_S)
    store.put("a", "x", ttl=2.0)
    end_ms = there(store.get("a")).expires_ms
    assert end_ms is not None
    while True:
        begun_ms = server_ms()
        found = store.get("a")
        assert store.get("long") is not None
        if found is None:
            break
        assert begun_ms < end_ms
    assert server_ms() >= end_ms, "and it is not hidden before"
    assert store.get_many(["a", "long"])["a"] is None
    raw.close()


def test_near_cache_serves_modules_with_a_long_ttl(open_store: Open) -> None:
    store = open_store(near__enabled=True)
    store.put("a", "x", ttl=TTL_S)
    for _ in range(10_000):
        store.get("a")
        if store.near.stats().hits:
            break
        time.sleep(0.01)
    assert store.near.stats().hits


def test_command_line_puts_and_shows_ttls(
    open_store: Open,
    tmp_path: Path,
    server: TestServer,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = open_store()
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(store.space.config.storage_tiers.cold.directory))
    at = ["--url", store.space.config.redis.url or "", "--namespace", "t"]
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "one.md").write_text("one")

    def out(*words: str, code: int = 0) -> str:
        assert cli([*words, *at]) == code
        return capfd.readouterr().out

    (tmp_path / "f").write_text("text")
    out("put", "a", str(tmp_path / "f"), "--ttl", "90m")
    version = json.loads(out("--json", "put", str(tree), "--ttl", "1s").splitlines()[0])["version"]
    found = store.where("a")
    assert found and found.expires_ms == found.updated_ms + 90 * 60_000
    assert "expires" in out("where", "a")
    assert json.loads(out("--json", "where", "a"))["expires_ms"] == found.expires_ms
    store.archive_now()
    while store.get("tree/one.md") is not None:
        time.sleep(0.05)
    archive = lambda *words: out("archive", *words).split()  # noqa: E731
    listed = archive("ls")
    assert "a" in listed and "tree/one.md" not in listed
    assert "expires" in archive("history", "tree/one.md") and "current" not in archive("history", "tree/one.md")
    out("archive", "cat", "tree/one.md", code=NOT_FOUND)
    assert out("archive", "cat", "tree/one.md", "--version", version) == "one"
    assert out("put", "a", str(tmp_path / "f"), "--ttl", "soon", code=2) == ""
