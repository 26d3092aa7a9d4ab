"""Leases of shards: one holder at a time, growing fences, hand-overs, and the state after a fault."""

from __future__ import annotations

from contextlib import suppress

import pytest

from distier.errors import Unavailable
from distier.lua import claim
from distier.plans.fleet.leases import Fleet, HeldLeases, leave, sweep_in_turn
from distier.plans.fleet.leases import join as join_plan
from tests.fakes import World
from tests.scripted import Fault, Stopped

TTL_MS = 60_000


def make(shards: int = 6) -> World:
    return World.make(shards=shards)


def join(world: World, worker: str, held: HeldLeases) -> Fleet:
    return world.run(join_plan(world.space, worker, held, TTL_MS), worker)


def holders(world: World) -> list[str]:
    found = world.ask([("GET", shard.worker_lease) for shard in world.space.keys.shards])
    return [value.decode().split(":", 1)[1] if value else "" for value in found]


def die(world: World, worker: str) -> None:
    """Let the leases and the name of a silent worker expire."""
    world.ask([("ZREM", world.shard.workers, worker)])
    for shard, holder in zip(world.space.keys.shards, holders(world), strict=True):
        if holder == worker:
            world.ask([("DEL", shard.worker_lease)])


def test_every_shard_has_one_worker_while_workers_come_and_go() -> None:
    world = make()
    a = join(world, "a", {})
    assert a.workers == ["a"] and len(a.held) == 6
    b = join(world, "b", {})
    assert b.workers == ["a", "b"] and not b.held, "no worker takes the lease of another one"
    a = join(world, "a", a.held)
    b = join(world, "b", b.held)
    assert len(a.held) == len(b.held) == 3 and not set(a.held) & set(b.held)
    die(world, "a")
    b = join(world, "b", b.held)
    assert len(b.held) == 6 and holders(world) == ["b"] * 6
    world.run(leave(world.space, "b", b.held))
    assert holders(world) == [""] * 6 and not world.ask([("EXISTS", world.shard.workers)])[0]


def test_new_holder_gets_greater_fence_and_renewal_keeps_it() -> None:
    world = make(1)
    first = join(world, "a", {}).held[world.shard]
    assert join(world, "a", {world.shard: first}).held == {world.shard: first}
    die(world, "a")
    second = join(world, "b", {}).held[world.shard]
    die(world, "b")
    assert first < second < join(world, "a", {world.shard: first}).held[world.shard]


def test_worker_that_slept_leaves_leases_of_others_alone() -> None:
    world = make(1)
    held = join(world, "a", {}).held
    die(world, "a")
    assert world.run(iter(claim(world.shard, "b", TTL_MS)))
    assert world.run(iter(claim(world.shard, "a", TTL_MS))) is None
    world.run(leave(world.space, "a", held))
    assert holders(world) == ["b"]


def test_workers_beyond_the_shards_stand_by() -> None:
    world = make(2)
    names = [f"w{i}" for i in range(5)]
    held: dict[str, HeldLeases] = {name: {} for name in names}
    for _ in range(3):
        held = {name: join(world, name, held[name]).held for name in names}
    assert sorted(len(mine) for mine in held.values()) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["stop", "fail", "lost"])
def test_heartbeat_failing_at_any_effect_blocks_no_other_worker(kind: str) -> None:
    world = make(3)
    counted = world.process("a")
    counted.run(join_plan(world.space, "a", {}, TTL_MS))
    before = len(counted.effects)
    for at in range(1, before + 1):
        die(world, "a")
        with suppress(Stopped, Unavailable):
            world.process("a", fault=Fault(kind, at)).run(join_plan(world.space, "a", {}, TTL_MS))  # type: ignore[arg-type]
        for shard in world.space.keys.shards:
            assert world.ask([("PTTL", shard.worker_lease)])[0] != -1, "a lease without an end"
        assert len(join(world, "a", {}).held) == 3


def test_sweep_is_due_once_per_interval_for_all_workers() -> None:
    world = make(2)
    assert world.run(sweep_in_turn(world.space), "a") == 0
    assert world.run(sweep_in_turn(world.space), "b") is None
    world.ask([("DEL", world.shard.sweep_lease)])
    away = world.process("c", archive_down=True)
    with pytest.raises(Unavailable):
        away.run(sweep_in_turn(world.space))
    assert world.run(sweep_in_turn(world.space), "d") == 0, "a failed sweep is tried again"
