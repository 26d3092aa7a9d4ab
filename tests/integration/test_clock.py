"""No decision about data rests on two readings of a wall clock, and no mark that guards data has a TTL.

For a shard, a server whose clock goes back by an hour looks like a shard whose stored times are all an hour ahead. So
these tests change the keys of a real server in that way (`set_back`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest

from distier.errors import DistierError, Unavailable
from distier.plans.put.delete import delete
from distier.plans.put.one import put_prepared
from distier.plans.put.prepare import Item, prepare
from distier.plans.tier.writeback import put_object
from distier.worker import Worker
from tests.integration.world import Open, World, until
from tests.patching import replace_in
from tests.servers import TestServer, poll

HOUR_MS = 3_600_000


def set_back(world: World | TestServer, raw: Any, root: str) -> None:
    """Make every time that the shard has stored an hour later, as if its server's clock had been set back by an hour."""
    for name in ("hot", "warm", "dirty", "workers"):
        for member, score in raw.zrange(root + name, 0, -1, withscores=True):
            raw.zadd(root + name, {member: score + HOUR_MS})
    for lease in raw.keys(root.replace("{", "\\{") + "lease:*") or raw.keys("*lease:*"):
        raw.pexpire(lease, raw.pttl(lease) + HOUR_MS)
    clock = float(raw.hget(root + "epoch", "clock") or time.time() * 1000)
    raw.hset(root + "epoch", "clock", f"{clock + HOUR_MS:.3f}")
    last = raw.xrevrange(root + "events", count=1)
    if last:
        ms = int(last[0][0].partition(b"-")[0])
        raw.xadd(
            root + "events", {"id": "", "from": "", "to": "", "reason": "x", "version": ""}, id=f"{ms + HOUR_MS}-0"
        )


ROOT = "distier:{t}:"


async def test_archive_now_archives_dirty_modules_after_a_clock_step(world: World) -> None:
    face = await world.open()
    for i in range(5):
        await face.put(f"m{i}", "x")
    set_back(world, world.raw, ROOT)
    assert await face.archive_now() == 5
    assert (await face.stats()).dirty_count == 0


async def test_worker_archives_modules_that_became_dirty_before_a_clock_step(world: World) -> None:
    face = await world.open()
    await face.put("a", "x")
    set_back(world, world.raw, ROOT)
    await face.put("b", "y")
    assert (await face.maintain())["archived"] == 2


async def test_use_order_survives_a_clock_step(world: World) -> None:
    """Modules that are read in each round stay hot, and others are evicted."""
    face = await world.open(storage_tiers__hot__max_size=100)
    for i in range(10):
        await face.put(f"m{i}", "x", tokens=10)
    set_back(world, world.raw, ROOT)
    for i in range(10, 40):
        for kept in ("m0", "m1"):
            assert (await face.get(kept)).tier == "hot", i
            await face.run(_touched(face, kept))
        await face.put(f"m{i}", "x", tokens=10)
    scores = [score for _, score in world.raw.zrange(ROOT + "hot", 0, -1, withscores=True)]
    assert scores == sorted(set(scores)), "each use has a score of its own"


def _touched(face: Any, id: str) -> Any:
    from distier.lua import touch

    return touch(face.space.shard(id), [(id, 1)]).__iter__()


def test_dead_workers_lease_ends_after_a_clock_step(open_store: Open, server: TestServer) -> None:
    settings = {"worker__lease": "2s", "worker__interval": "50ms", "storage_tiers__cold__archive_after": "0s"}
    store = open_store(**settings)
    dead = Worker(store)
    dead._heartbeat()  # and nothing more, because the process died with the lease
    assert dead.held
    raw = server.client()
    set_back(server, raw, ROOT)
    with Worker(open_store(**settings)) as other:
        poll(lambda: other.held, what="another worker has the lease")
        assert len(other.workers) == 1
    raw.close()


async def test_dead_write_backs_lease_ends_after_a_clock_step(world: World) -> None:
    face = await world.open(deadline="1500ms", storage_tiers__cold__archive_after="0s")
    await face.put("a", "x")
    lease = face.space.shard("a").write_back_lease("a")
    world.raw.set(lease, "dead", px=HOUR_MS)
    assert (await face.maintain())["archived"] == 0
    assert world.raw.pttl(lease) <= 500
    done = 0
    for _ in range(200):
        done += (await face.maintain())["archived"]
        if done:
            break
        time.sleep(0.05)
    assert done == 1


async def test_listeners_get_events_after_a_loss_and_a_clock_step(world: World) -> None:
    face = await world.open()
    heard: list[Any] = []
    await face.put("a", "x")
    set_back(world, world.raw, ROOT)
    await face.on("tier_change", heard.append)
    await asyncio.sleep(0.3)
    world.raw.flushall()
    await face.put("b", "y")
    await until(lambda: [e for e in heard if e.id == "b"], what="the put of b was heard")


# -- marks that guard data -------------------------------------------------------------------------------------------


def evict_all_with_a_ttl(raw: Any) -> int:
    """Delete every key that has a TTL, as `volatile-lru` may do at any moment, and as a clock that jumps ahead does."""
    gone = [key for key in raw.keys("*") if raw.pttl(key) > 0]
    return raw.delete(*gone) if gone else 0


async def test_slow_durable_put_does_not_override_a_durable_delete(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put pauses after its upload, the module is deleted durably, the tombstone is evicted, and the put continues."""
    face, other = await world.open(deadline="20s"), await world.open(deadline="1s")
    await face.put("a", "first", durability="archived")

    def slow(*args: Any) -> Any:
        yield from put_object(*args)
        monkeypatch.undo()
        reserved = world.raw.hget(ROOT + "module:a", "reserved")
        assert reserved, "the put holds its position"
        yield from delete(other.space, "a", durability="archived")
        assert evict_all_with_a_ttl(world.raw)

    replace_in("distier.plans.put", put_object, slow, monkeypatch.setattr)
    try:
        await face.put("a", "second", durability="archived")
    except Unavailable:
        pass
    else:
        pytest.fail("a put that lost its position cannot know that it was applied")
    assert await face.get("a") is None
    assert await other.get("a") is None


@pytest.mark.parametrize("how", ["evicted", "kept"])
async def test_resent_put_is_not_applied_again(world: World, how: str) -> None:
    """Its reply was lost, the module was deleted meanwhile, and keys with a TTL were evicted."""
    face = await world.open()
    shard = face.space.shard("a")
    item = await face.run(prepare(face.space, Item("a", "x", tokens=1)))
    first = await face.run(put_prepared(face.space, item))
    assert await face.delete("a")
    if how == "evicted":
        evict_all_with_a_ttl(world.raw)
    item.sending.lost = True
    again = await face.run(put_prepared(face.space, item))
    assert again.replayed and again.version == first.version
    assert await face.get("a") is None
    assert world.raw.pttl(shard.done) == -1


async def test_put_memory_is_bounded_and_a_forgotten_put_is_reported(world: World) -> None:
    """More writes came in between than are remembered, and a put whose reply was lost may have been one of them."""
    face = await world.open(storage_tiers__hot__max_size=100)
    shard = face.space.shard("a")
    item = await face.run(prepare(face.space, Item("a", "x", tokens=1)))
    await face.put("a", "y", tokens=1)
    world.raw.hincrby(shard.epoch, "ver", 8192)
    item.sending.lost = True
    with pytest.raises(Unavailable, match="not known whether it was applied"):
        await face.run(put_prepared(face.space, item))
    assert (await face.get("a")).content == b"y"

    safe = await face.run(prepare(face.space, Item("b", "x", tokens=1)))
    safe.sending.lost = True
    assert (await face.run(put_prepared(face.space, safe))).tier == "hot", "nothing newer is there: it was not applied"
    for i in range(8):
        await face.put(f"n{i}", "x", tokens=1)
    world.raw.hset(shard.epoch, "ver", 8192 * 3)
    before = world.raw.hlen(shard.done)
    for i in range(8):
        await face.put(f"o{i}", "x", tokens=1)
    assert world.raw.hlen(shard.done) <= before + 16


# -- one poisoned item does not starve the rest ----------------------------------------------------------------------


def block(world: World, id: str) -> None:
    """Put a file where the module's directory should be, so that nothing can be archived there."""
    path = world.archive / "t" / "modules" / id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"in the way")


async def test_modules_that_cannot_be_archived_do_not_delay_others(world: World) -> None:
    face = await world.open(storage_tiers__cold__archive_after="0s", storage_tiers__hot__max_size=100_000)
    for i in range(70):
        block(world, f"bad{i:02}")
    for i in range(70):
        await face.put(f"bad{i:02}", "x", tokens=1)
    for i in range(20):
        await face.put(f"good{i:02}", "x", tokens=1)
    with pytest.raises(DistierError, match="bad"):
        await face.run(write_back_all(face), deadline_s=60.0)
    assert all([(await face.where(f"good{i:02}")).clean for i in range(20)])
    assert (await face.stats()).dirty_count == 70

    await face.put("later", "x", tokens=1)
    with suppress(DistierError):
        await face.run(maintained(face), deadline_s=60.0)
    assert (await face.where("later")).clean, "and a worker passes over what fails, for a while"


def write_back_all(face: Any) -> Any:
    from distier.plans.fleet.maintain import write_back_due

    return write_back_due(face.space, face.space.keys.shards[0], older_than_ms=0)


def maintained(face: Any) -> Any:
    from distier.plans.fleet.maintain import write_back_due

    return write_back_due(face.space, face.space.keys.shards[0])
