"""A shard goes from layout 1 to a made-up layout 2, in which every record has a field `rank`; it may stop at any effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from distier.domain.keys import Shard
from distier.effects import Command, Effect, Pipeline, Plan, collect
from distier.errors import Invalid
from distier.plans.get.one import get
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.recovery.migrate import Migration, migrate
from tests.fakes import World

IDS = [f"m/{i}" for i in range(30)]


def add_rank(shard: Shard, ids: Sequence[str]) -> Plan[None]:
    for reply in (yield from Pipeline([Command(shard, ("HSETNX", shard.module(id), "rank", "0"), int) for id in ids])):
        collect(reply)


TO_2 = {1: Migration(2, add_rank)}


@pytest.fixture
def world() -> World:
    world = World.make()
    for id in IDS:
        world.run(put(world.space, Item(id, f"text of {id}", tokens=1)))
    return world


def ranks(world: World) -> set[bytes | None]:
    return {world.ask([("HGET", world.shard.module(id), "rank")])[0] for id in IDS}


def layout(world: World) -> list[bytes | None]:
    found: list[bytes | None] = world.ask([("HMGET", world.shard.epoch, "layout", "migrating")])[0]
    return found


def test_every_record_is_migrated_once(world: World) -> None:
    assert world.run(migrate(world.shard, TO_2, 2)) >= len(IDS)
    assert (ranks(world), layout(world)) == ({b"0"}, [b"2", None])
    assert world.run(migrate(world.shard, TO_2, 2)) == 0


def test_a_stop_after_any_effect_leaves_a_migration_that_continues(world: World) -> None:
    stops = 0
    while True:
        world.ask([("HSET", world.shard.epoch, "layout", 1)])
        world.ask([("HDEL", world.shard.epoch, "migrating")])
        for id in IDS:
            world.ask([("HDEL", world.shard.module(id), "rank")])
        plan = migrate(world.shard, TO_2, 2)
        runner = world.process("stops")

        def until(stop: int, inner: Any = plan) -> Plan[bool]:
            effect: Effect[Any] = next(inner)
            for _ in range(stop):
                try:
                    effect = inner.send((yield effect))
                except StopIteration:
                    return True
            inner.close()
            return False

        finished = runner.run(until(stops))
        world.run(migrate(world.shard, TO_2, 2), "next")
        assert (ranks(world), layout(world)) == ({b"0"}, [b"2", None]), f"stopped after {stops} effects"
        if finished:
            break
        stops += 1
    assert stops >= 4


def test_a_client_of_the_old_layout_is_refused_from_the_first_step_on(world: World) -> None:
    plan = migrate(world.shard, TO_2, 2)

    def first_write() -> Plan[None]:
        effect: Any = next(plan)
        effect = plan.send((yield effect))
        assert effect.args[0] == "HSET"
        yield effect

    world.run(first_write())
    with pytest.raises(Invalid, match="key layout 2, but this distier knows layout 1"):
        world.run(put(world.space, Item("m/0", "too late", tokens=1)))
    with pytest.raises(Invalid, match="key layout 2"):
        world.run(get(world.space, "none"))


def test_a_layout_without_a_migration_is_refused_and_left_alone(world: World) -> None:
    with pytest.raises(Invalid, match="has key layout 1, and this distier cannot bring it to layout 2"):
        world.run(migrate(world.shard, {}, 2))
    world.ask([("HSET", world.shard.epoch, "layout", 3)])
    with pytest.raises(Invalid, match="has key layout 3"):
        world.run(migrate(world.shard, TO_2, 2))
    assert layout(world) == [b"3", None]
