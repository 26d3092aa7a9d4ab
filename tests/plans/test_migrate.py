"""A shard goes from layout 1 to layout 2, and to a made-up layout 3, in which every record has a field `rank`. It may stop at
any effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from distier.domain.keys import Shard
from distier.effects import Command, Effect, Pipeline, Plan, collect
from distier.errors import Invalid
from distier.plans.get.one import get
from distier.plans.put.delete import delete
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.recovery.migrate import Migration, migrate
from distier.plans.tier.demote import demote
from tests.fakes import World

IDS = [f"m/{i}" for i in range(30)]


def add_rank(shard: Shard, ids: Sequence[str]) -> Plan[None]:
    for reply in (yield from Pipeline([Command(shard, ("HSETNX", shard.module(id), "rank", "0"), int) for id in ids])):
        collect(reply)


TO_3 = {2: Migration(3, add_rank)}


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
    assert world.run(migrate(world.shard, TO_3, 3)) >= len(IDS)
    assert (ranks(world), layout(world)) == ({b"0"}, [b"3", None])
    assert world.run(migrate(world.shard, TO_3, 3)) == 0


def test_a_stop_after_any_effect_leaves_a_migration_that_continues(world: World) -> None:
    stops = 0
    while True:
        world.ask([("HSET", world.shard.epoch, "layout", 2)])
        world.ask([("HDEL", world.shard.epoch, "migrating")])
        for id in IDS:
            world.ask([("HDEL", world.shard.module(id), "rank")])
        plan = migrate(world.shard, TO_3, 3)
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
        world.run(migrate(world.shard, TO_3, 3), "next")
        assert (ranks(world), layout(world)) == ({b"0"}, [b"3", None]), f"stopped after {stops} effects"
        if finished:
            break
        stops += 1
    assert stops >= 4


def test_a_client_of_the_old_layout_is_refused_from_the_first_step_on(world: World) -> None:
    plan = migrate(world.shard, TO_3, 3)

    def first_write() -> Plan[None]:
        effect: Any = next(plan)
        effect = plan.send((yield effect))
        assert effect.args[0] == "HSET"
        yield effect

    world.run(first_write())
    with pytest.raises(Invalid, match="key layout 3, but this distier knows layout 2"):
        world.run(put(world.space, Item("m/0", "too late", tokens=1)))
    with pytest.raises(Invalid, match="key layout 3"):
        world.run(get(world.space, "none"))


def test_a_layout_without_a_migration_is_refused_and_left_alone(world: World) -> None:
    with pytest.raises(Invalid, match="has key layout 2, and this distier cannot bring it to layout 3"):
        world.run(migrate(world.shard, {}, 3))
    world.ask([("HSET", world.shard.epoch, "layout", 4)])
    with pytest.raises(Invalid, match="has key layout 4"):
        world.run(migrate(world.shard, TO_3, 3))
    assert layout(world) == [b"4", None]


# -- layout 1 ----------------------------------------------------------------------------------------------------------


def make_layout_1(world: World) -> None:
    """Take the shard back to layout 1: no index of ids, no `moved`, and a frame that names no version."""
    world.run(demote(world.space, "m/0", "warm"))
    content = b"text of m/0"
    world.ask([("SET", world.shard.frame("m/0"), content)])
    world.ask([("HSET", world.shard.module("m/0"), "codec", "raw", "frame_bytes", len(content))])
    firsts = [first.decode() for first in world.ask([("ZRANGE", world.shard.ids, 0, -1)])[0]]
    world.ask([("DEL", world.shard.ids, world.shard.chunk(""), *(world.shard.chunk(first) for first in firsts))])
    world.ask([("HDEL", world.shard.module(id), "moved") for id in IDS])
    world.ask([("HSET", world.shard.epoch, "layout", 1)])


def index(world: World) -> list[str]:
    return [id.decode() for id in world.ask([("ZRANGE", world.shard.chunk(""), 0, -1)])[0]]


def test_layout_1_gets_its_index_while_others_write(world: World) -> None:
    make_layout_1(world)
    with pytest.raises(
        Invalid, match=r"has key layout 1, but this distier knows layout 2: end all .* `distier migrate`"
    ):
        world.run(put(world.space, Item("new", "too early", tokens=1)))
    plan, seen = migrate(world.shard), 0

    def with_others() -> Plan[int]:
        nonlocal seen
        try:
            effect: Any = next(plan)
            while True:
                result = yield effect
                if seen == 1:  # from here on the shard has layout 2
                    world.run(put(world.space, Item("new", "a new one", tokens=1)), "writer")
                    world.run(delete(world.space, "m/1"), "writer")
                seen += 1
                effect = plan.send(result)
        except StopIteration as stop:
            return int(stop.value)

    assert world.run(with_others()) >= len(IDS) - 1
    assert seen > 3
    assert index(world) == sorted({*IDS, "new"} - {"m/1"})
    assert layout(world) == [b"2", None]
    module = world.run(get(world.space, "m/0"))
    assert module is not None
    assert module.content == b"text of m/0"


def test_stopped_migration_of_layout_1_continues(world: World) -> None:
    make_layout_1(world)
    plan = migrate(world.shard)

    def begin_only() -> Plan[None]:
        effect: Any = next(plan)
        for _ in range(2):
            effect = plan.send((yield effect))

    world.run(begin_only())
    assert layout(world) == [b"2", b"1"]
    world.run(migrate(world.shard), "next")
    assert (index(world), layout(world)) == (sorted(IDS), [b"2", None])
