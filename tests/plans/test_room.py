"""Making room: which modules are evicted, what happens if none can be, and races between naming and moving victims."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from distier.domain.module import Landed
from distier.errors import Full
from distier.plans.fleet.maintain import BATCH, demote_idle, expire_warm, keep_headroom
from distier.plans.put.one import put as put_plan
from distier.plans.put.prepare import Item
from distier.plans.recovery.adopt import need_record
from distier.plans.tier import room
from distier.plans.tier.demote import demote
from distier.plans.tier.promote import pin, promote
from distier.plans.tier.writeback import write_back
from tests.fakes import World
from tests.plans.audit import audit, audit_contents
from tests.plans.test_stopped import FULL, content, fingerprint, full, idle, item


def noise(name: str, size_bytes: int) -> bytes:
    """Bytes that no codec makes smaller."""
    return b"".join(hashlib.sha256(f"{name}/{i}".encode()).digest() for i in range(size_bytes // 32 + 1))[:size_bytes]


def put(world: World, what: Item) -> Landed:
    return world.run(put_plan(world.space, what), f"put {what.id}")


def tier(world: World, id: str) -> str:
    record = world.run(need_record(world.space, id))
    return record.tier


def usage(world: World) -> dict[str, int]:
    return {k.decode(): int(v) for k, v in world.ask([("HGETALL", world.shard.usage)])[0].items()}


def test_put_over_budget_evicts_least_recent_and_no_more() -> None:
    world = World.make()
    for i in range(10):
        put(world, item(f"m{i}", tokens=10))
    world.ask([("ZADD", world.shard.hot, i, f"m{i}") for i in range(10)])
    world.ask([("ZADD", world.shard.hot, 9e15, "m0")])
    landed = put(world, item("new", tokens=15))
    assert (landed.tier, landed.evicted) == ("hot", 2)
    assert [i for i in range(10) if tier(world, f"m{i}") == "warm"] == [1, 2]
    audit(world)


def test_put_with_all_pinned_lands_warm_with_a_reason() -> None:
    world = World.make()
    for i in range(5):
        put(world, item(f"m{i}", tokens=20))
        world.run(pin(world.space, f"m{i}", 1_000_000))
    landed = put(world, item("new", tokens=20))
    assert (landed.tier, landed.reason, landed.evicted) == ("warm", "no room in hot", 0)
    assert all(tier(world, f"m{i}") == "hot" for i in range(5))
    assert put(world, item("large", tokens=101)).reason == "too large for hot"
    audit(world)


def test_put_without_enough_unpinned_evicts_nothing() -> None:
    """Two modules could be evicted, but that would not be enough, so they stay."""
    world = World.make()
    for i in range(5):
        put(world, item(f"m{i}", tokens=20))
    for i in range(3):
        world.run(pin(world.space, f"m{i}", 1_000_000))
    assert put(world, item("new", tokens=50)).tier == "warm"
    assert all(tier(world, f"m{i}") == "hot" for i in range(5))
    assert put(world, item("small", tokens=40)).tier == "hot"


@pytest.mark.parametrize("count", [30, 63, 64, 65, 300])
def test_large_put_evicts_many_small_modules(count: int) -> None:
    """There are more victims than one script names, and all are smaller than the average, because the last two are large."""
    world = World.make(storage_tiers__hot__max_size=1000, storage_tiers__hot__max_bytes=10**6,
                       storage_tiers__warm__max_modules=1000, storage_tiers__warm__max_bytes=10**6)  # fmt: skip
    for i in range(count):
        put(world, item(f"s{i}", tokens=1))
    idle(world)
    for name in ("b1", "b2"):
        put(world, item(name, tokens=(1000 - count) // 2))
    landed = put(world, item("new", tokens=count))
    assert landed.tier == "hot"
    assert tier(world, "b2") == "hot"
    audit(world)


@pytest.mark.parametrize("count", [40, 130])
def test_large_frame_evicts_many_tiny_frames(count: int) -> None:
    world = World.make(storage_tiers__warm__max_modules=1000, storage_tiers__warm__max_bytes=4000)
    size = 4000 // count
    for i in range(count):
        put(world, Item(f"t{i}", noise(f"t{i}", size), tokens=1))
        world.run(write_back(world.space.locate(f"t{i}")))
        assert world.run(demote(world.space, f"t{i}", "warm")).moved
    large = put(world, Item("large", noise("large", 3500), tokens=101))
    assert (large.tier, large.reason) == ("warm", "too large for hot")
    audit(world)
    audit_contents(world, {f"t{i}": {noise(f"t{i}", size)} for i in range(count)})


@pytest.mark.parametrize("count", [40, 130])
def test_demotion_of_large_module_evicts_many_tiny_frames(count: int) -> None:
    world = World.make(storage_tiers__warm__max_modules=1000, storage_tiers__warm__max_bytes=4000)
    size = 4000 // count
    for i in range(count):
        put(world, Item(f"t{i}", noise(f"t{i}", size), tokens=1))
        world.run(write_back(world.space.locate(f"t{i}")))
        assert world.run(demote(world.space, f"t{i}", "warm")).moved
    put(world, Item("large", noise("large", 3500), tokens=1))
    assert world.run(demote(world.space, "large")).tier == "warm"
    audit(world)


def test_full_dirty_warm_is_archived_to_make_room() -> None:
    world = full()
    landed = put(world, item("new", tokens=90))
    assert landed.tier == "hot"
    assert usage(world)["archived_count"] > 0
    audit(world)
    audit_contents(world, {id: {c} for id, c in FULL.items()})


def test_victims_without_room_in_warm_go_to_the_archive() -> None:
    """Five dirty modules must be evicted from hot, and warm has room for two."""
    world = World.make(storage_tiers__warm__max_modules=2)
    for i in range(5):
        put(world, item(f"m{i}", tokens=20))
    landed = put(world, item("new", tokens=100))
    assert (landed.tier, landed.evicted) == ("hot", 5)
    assert sorted(tier(world, f"m{i}") for i in range(5)) == ["cold"] * 3 + ["warm"] * 2
    audit(world)
    audit_contents(world, {f"m{i}": {content(f"m{i}")} for i in range(5)})


def test_full_cache_without_archive_refuses_and_changes_nothing() -> None:
    world = full()
    before = fingerprint(world.snapshot())
    process = world.process(archive_down=True)
    with pytest.raises(Full, match="archive does not answer; nothing was changed"):
        process.run(put_plan(world.space, item("new", tokens=90)))
    assert fingerprint(world.snapshot()) == before
    audit(world)


def test_put_with_room_succeeds_without_archive() -> None:
    world = World.make()
    process = world.process(archive_down=True)
    for i in range(10):
        assert process.run(put_plan(world.space, item(f"m{i}", tokens=20))).tier == "hot"
    audit(world)


def test_victim_overwritten_before_its_move_is_skipped() -> None:
    """The script skips it and names others; its new content stays."""
    world = World.make()
    for i in range(5):
        put(world, item(f"m{i}", tokens=20))
    seen: list[str] = []

    def overwrite(command: Any) -> None:
        """Another client writes just before the put is sent again with its moves."""
        if command[0] == "EVALSHA" and "lz4" in command and not seen:
            seen.append("m0")
            world.run(put_plan(world.space, item("m0", tokens=20, text="newer")), "rival")

    world.redis.before = overwrite
    landed = put(world, item("new", tokens=20))
    world.redis.before = None
    assert seen
    assert (landed.tier, landed.evicted) == ("hot", 1)
    audit(world)
    audit_contents(world, {"m0": {content("newer")}, **{f"m{i}": {content(f"m{i}")} for i in range(1, 5)}})


def test_put_whose_victims_change_in_every_round_lands_warm() -> None:
    world = World.make()
    put(world, item("m", tokens=100))
    rounds: list[int] = []

    def overwrite(command: Any) -> None:
        if command[0] == "EVALSHA" and "lz4" in command and "new" in command:
            rounds.append(1)
            world.process(f"other {len(rounds)}").run(put_plan(world.space, item("m", tokens=100)))

    world.redis.before = overwrite
    landed = put(world, item("new", tokens=100))
    world.redis.before = None
    assert 3 < len(rounds) < 40
    assert landed.tier == "warm"
    audit(world)


@pytest.mark.parametrize("taken", ["with its moves", "while it looks"])
def test_put_is_not_refused_because_others_take_its_room(taken: str) -> None:
    """Thirty times another client takes the room that was made in warm, or the victims have been evicted already."""
    world = World.make(storage_tiers__warm__max_modules=2)
    for id in ("a", "b"):
        put(world, item(id, tokens=101))
    rivals: list[str] = []

    def take_the_room(command: Any) -> None:
        comes = command[0] == "EVALSHA" and "cold" in command and "new" in command
        looks = command[0] == "HMGET"
        if (comes if taken == "with its moves" else looks) and len(rivals) < 30:
            rivals.append(f"r{len(rivals)}")
            put(world, item(rivals[-1], tokens=101))

    world.redis.before = take_the_room
    landed = put(world, item("new", tokens=101))
    world.redis.before = None
    assert len(rivals) == 30
    assert landed.tier == "warm"
    audit(world)


def test_put_with_pinned_changing_warm_is_refused_at_second_look() -> None:
    """The modules in warm are pinned and change all the time, so nothing makes room."""
    world = World.make(storage_tiers__warm__max_modules=2)
    for id in ("a", "b"):
        put(world, item(id, tokens=101))
        world.run(pin(world.space, id, 1_000_000))
    puts: list[int] = []

    def overwrite(command: Any) -> None:
        if command[0] == "EVALSHA" and "new" in command:
            puts.append(1)
            world.process(f"other {len(puts)}").run(put_plan(world.space, item("a", tokens=101, text=f"{len(puts)}")))

    world.redis.before = overwrite
    with pytest.raises(Full, match="nothing was changed"):
        put(world, item("new", tokens=101))
    world.redis.before = None
    assert len(puts) <= 3
    audit(world)


def test_put_that_cannot_fit_evicts_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of warm is pinned, and the rest are many small modules: the put is refused after a bounded number of them."""
    monkeypatch.setattr(room, "ROUNDS_MAX", 2)
    world = World.make(storage_tiers__warm__max_modules=2000, storage_tiers__warm__max_bytes=100_000,
                       storage_tiers__warm__compression="none", storage_tiers__hot__max_size=10)  # fmt: skip
    put(world, Item("pinned", noise("p", 60_000), tokens=101))
    world.run(pin(world.space, "pinned", 1_000_000))
    for i in range(300):
        world.process(f"put {i}").run(put_plan(world.space, Item(f"m{i}", noise(f"{i}", 32), tokens=101)))
    with pytest.raises(Full):
        put(world, Item("new", noise("n", 50_000), tokens=101))
    assert usage(world)["warm_count"] > 100
    audit(world)


def test_victim_promoted_before_its_demotion_is_counted_once() -> None:
    """Warm is full of modules that are not archived yet, so the client evicts them. While its victim is named, another client
    makes that hot. The budget holds, and the demotion ends."""
    world = World.make(storage_tiers__warm__max_modules=2)
    for id in ("a", "b"):
        put(world, item(id))
        world.run(demote(world.space, id, "warm"))
    put(world, item("c", tokens=20))
    put(world, item("d", tokens=20))
    seen: list[str] = []

    def promote_it(command: Any) -> None:
        if command[0] == "EVALSHA" and "cold" in command and not seen:
            seen.append("a")
            world.run(promote(world.space, "a"), "rival")
            world.run(demote(world.space, "d", "warm"), "rival")

    world.redis.before = promote_it
    moved = world.run(demote(world.space, "c", "warm"))
    world.redis.before = None
    assert seen
    assert moved.tier == "warm"
    audit(world)


def test_headroom_skips_pinned_modules() -> None:
    """Pinned modules stay; modules whose pin has ended are evicted like all others."""
    world = World.make(worker__headroom=0.5)
    for i in range(5):
        put(world, item(f"m{i}", tokens=20))
        world.run(pin(world.space, f"m{i}", 1_000_000))
    assert world.run(keep_headroom(world.space, world.shard)) == 0
    world.ask([("ZADD", world.shard.pins, 1, f"m{i}") for i in range(4)])  # their pins ended in 1970
    assert world.run(keep_headroom(world.space, world.shard)) == 3
    assert usage(world)["hot_tokens"] == 40
    assert tier(world, "m4") == "hot"
    audit(world)


def test_headroom_keeps_a_single_module() -> None:
    world = World.make(worker__headroom=0.5)
    put(world, item("large", tokens=90))
    assert world.run(keep_headroom(world.space, world.shard)) == 0
    put(world, item("small", tokens=10))
    assert world.run(keep_headroom(world.space, world.shard)) == 1
    assert (tier(world, "large"), tier(world, "small")) == ("warm", "hot")


def test_idle_modules_behind_a_pinned_batch_are_demoted() -> None:
    world = World.make(storage_tiers__hot__max_size=1000, storage_tiers__hot__max_bytes=10**6,
                       storage_tiers__warm__max_modules=1000, storage_tiers__warm__max_bytes=10**6)  # fmt: skip
    for i in range(BATCH + 10):
        put(world, item(f"m{i:03d}", tokens=1))
    idle(world)
    for i in range(BATCH):
        world.run(pin(world.space, f"m{i:03d}", 1_000_000))
    assert world.run(demote_idle(world.space, world.shard)) == 10
    audit(world)


def test_expiry_ends_with_a_batch_of_lost_dirty_modules() -> None:
    """As many dirty modules as a batch has have lost their copies: they are skipped, not checked for ever."""
    world = World.make(storage_tiers__warm__max_modules=1000, storage_tiers__warm__max_bytes=10**6)
    ids = [f"m{i}" for i in range(BATCH)]
    for id in ids:
        put(world, item(id, tokens=1))
        world.run(demote(world.space, id, "warm"))
        world.ask([("DEL", world.shard.frame(id)), ("ZADD", world.shard.warm, 1, id)])
    assert world.run(expire_warm(world.space, world.shard)) == 0
    assert usage(world)["dirty_count"] == len(ids)
