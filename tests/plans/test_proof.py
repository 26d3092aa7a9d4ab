"""A reader may trust only a mark that it saw before it read the record: a rescue in the middle of a read changes no result.

The rescue runs in the same process, between any two effects of a reader. It adopts the module and marks the shard as
verified. The mark proves nothing about a record, or its absence, that the reader saw before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from distier.effects import Effect, Plan
from distier.errors import Recovering
from distier.plans.common.namespace import Namespace
from distier.plans.get.listing import list_ids
from distier.plans.get.many import get_many
from distier.plans.get.one import get
from distier.plans.get.where import exists, where_in_redis
from distier.plans.put.delete import delete
from distier.plans.put.one import put as put_plan
from distier.plans.put.one import put_prepared
from distier.plans.put.prepare import Item, prepare
from distier.plans.recovery.adopt import need_record
from distier.plans.recovery.epochs import recover, shard_state
from distier.plans.recovery.rescue import rescue
from distier.plans.tier.promote import pin, promote
from distier.plans.tier.writeback import write_back
from tests.fakes import World, dump
from tests.scripted import PlanRunner

CONTENT = {"old": b"old " * 40, "new": b"new " * 40}


@dataclass
class Interrupted(PlanRunner):
    """Something happens once, after the effect with this number was performed and before the plan gets its result.

    At that moment an event loop may run other tasks, and a thread may wait for its turn.
    """

    after: int = 0
    happens: Callable[[], object] = lambda: None

    def _step(self, effect: Effect[Any]) -> Any:
        result = super()._step(effect)
        if len(self.effects) > self.after >= 0:
            self.after = -1
            self.happens()
        return result


def put(world: World, text: str) -> None:
    world.run(put_plan(world.space, Item("a", CONTENT[text], tokens=10, durability="archived")), text)


def emptied(world: World) -> None:
    """Redis forgets everything, and the shard has a new epoch."""
    world.ask([("FLUSHALL",)])
    world.run(recover(world.space, world.shard))


def restored(world: World) -> None:
    """Redis comes back from a snapshot that is older than the last durable put."""
    old = world.dump()
    put(world, "new")
    objects = world.objects()
    snapshot = world.snapshot().__class__(old, objects)
    world.restore(snapshot)
    # Another incarnation of the server. fakeredis has no replication id, so the test removes the shard's epoch.
    world.ask([("HDEL", world.shard.epoch, "epoch", "verified")])
    world.space.process.forget()
    world.run(recover(world.space, world.shard))
    assert dump(world.ask)  # the old record exists


def where_it_is(space: Namespace, id: str) -> Plan[str | None]:
    found = yield from where_in_redis(space, id)
    return None if found is None else str(found.version)


def hot(space: Namespace, id: str) -> Plan[str]:
    return (yield from promote(space, id)).tier


READS: dict[str, Callable[[Namespace], Plan[Any]]] = {
    "get": lambda space: get(space, "a"),
    "get_many": lambda space: _one_of_many(space),
    "exists": lambda space: exists(space, "a"),
    "where": lambda space: where_it_is(space, "a"),
    "promote": lambda space: hot(space, "a"),
    "pin": lambda space: pin(space, "a", 60_000),
    "need_record": lambda space: need_record(space, "a"),
}


def _one_of_many(space: Namespace) -> Plan[Any]:
    return (yield from get_many(space, ["x", "a", "y"]))["a"]


@pytest.mark.parametrize("loss", [emptied, restored], ids=lambda f: f.__name__)
@pytest.mark.parametrize("verb", READS)
def test_rescue_during_a_read_changes_no_result(verb: str, loss: Callable[[World], None]) -> None:
    at, runs = 0, 0
    while True:
        world = World.make()
        put(world, "old")
        loss(world)
        newest = b"new" if loss is restored else b"old"

        def rescued(world: World = world) -> None:
            world.run(rescue(world.space))
            for shard in world.space.keys.shards:  # as a worker that reads does
                world.run(shard_state(world.space, shard))

        reader = Interrupted(world.redis, world.archive, "reader", after=at, happens=rescued)
        found = reader.run(READS[verb](world.space))
        assert found, f"{verb}: a miss, with a rescue after effect {at} of {reader.effects}"
        if hasattr(found, "content"):
            content = found.content if found.content is not None else newest
            assert content.startswith(newest), f"{verb}: an old version, with a rescue after effect {at}"
        if reader.after >= 0:
            break
        at, runs = at + 1, runs + 1
    assert runs >= 2


@pytest.mark.parametrize("verb", READS)
def test_flushall_during_a_verb_is_no_miss(verb: str) -> None:
    """No verb takes an absence for a miss without asking the archive."""
    at = 0
    while True:
        world = World.make()
        put(world, "old")

        def lost(world: World = world) -> None:
            emptied(world)

        reader = Interrupted(world.redis, world.archive, "reader", after=at, happens=lost)
        assert reader.run(READS[verb](world.space)), f"{verb}: a miss, with FLUSHALL after effect {at}"
        if reader.after >= 0:
            break
        at += 1
    assert at >= 1


def test_write_back_commits_only_its_own_position() -> None:
    """A put loses its reply, and its version is written back. Before the commit Redis forgets it, and the put is sent again and
    gets another position. The object of the first position proves nothing about the second."""
    world = World.make()
    item = world.run(prepare(world.space, Item("a", CONTENT["old"], tokens=10)))
    first = world.run(put_prepared(world.space, item))

    def lost() -> None:
        emptied(world)
        again = world.run(put_prepared(world.space, item))
        assert again.version.write_id == first.version.write_id and again.version > first.version

    writer = Interrupted(world.redis, world.archive, "writer", after=0, happens=lost)
    assert writer.run(write_back(world.space.locate("a"))) is None
    assert world.ask([("HGET", world.shard.module("a"), "clean")]) == [b"0"]


def test_listing_after_a_loss_is_complete_or_fails() -> None:
    """After the loss of all records, a listing contains the archived modules, or it fails."""
    world = World.make()
    put(world, "old")
    emptied(world)
    assert world.run(list_ids(world.space, "", "", 9)) == ([("a", "cold")], None)

    emptied(world)
    with pytest.raises(Recovering, match="a listing might lack modules"):
        world.process("reader", archive_down=True).run(list_ids(world.space, "", "", 9))


def test_durable_delete_returns_false_only_if_archived_as_deleted() -> None:
    """`delete(durability="archived")` finds a deletion that is not archived yet, and a failover forgets that one. The call
    returns False only if the module is deleted in the archive; otherwise it deletes the module."""
    at, results = 0, set[bool]()
    while True:
        world = World.make()
        put(world, "old")
        before = world.dump()
        world.run(delete(world.space, "a"))

        def failed_over(world: World = world, before: Any = before) -> None:
            world.restore(world.snapshot().__class__(before, world.objects()))
            world.ask([("HDEL", world.shard.epoch, "epoch", "verified")])
            known = dict(world.space.process.epochs)  # another process begins the epoch, and this one does not know it
            world.run(recover(world.space, world.shard))
            world.space.process.epochs.update(known)

        deleter = Interrupted(world.redis, world.archive, "deleter", after=at, happens=failed_over)
        results.add(deleter.run(delete(world.space, "a", durability="archived")))
        if deleter.after >= 0:
            break
        world.space.process.forget()
        assert world.run(get(world.space, "a")) is None, (
            f"it is back, with a failover after effect {at} of {deleter.effects}"
        )
        at += 1
    assert results == {True, False}
