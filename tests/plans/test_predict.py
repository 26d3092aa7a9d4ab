"""Bringing predicted modules nearer: what is fetched, what is left alone, and what must not leave for it."""

from __future__ import annotations

from typing import Any

import pytest

from distier.domain.schema import WORTH_FIRST
from distier.effects import Plan
from distier.errors import ArchiveUnavailable
from distier.plans.common.leases import lease_command
from distier.plans.fleet.maintain import write_back_due
from distier.plans.get.one import get
from distier.plans.predict.bring import Brought, bring, look_again
from distier.plans.predict.learned import recall, teach
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.tier.demote import demote
from distier.policy.predict import Prediction
from distier.policy.predict.counts import Change
from distier.stores.memory import MemoryArchive
from tests.fakes import World

IDS = ("a", "b", "c")


def cold_world(**overrides: Any) -> World:
    world = World.make(**overrides)
    for id in IDS:
        world.run(put(world.space, Item(id, f"content of {id} " * 10, tokens=10)), id)
    world.run(write_back_due(world.space, world.shard, older_than_ms=0))
    for id in IDS:
        assert world.run(demote(world.space, id, "cold")).moved
    return world


def likely(*ids: str, probability: float = 0.9) -> list[Prediction]:
    return [Prediction(id, probability, "sequence") for id in ids]


def tier(world: World, id: str) -> str:
    return str(world.ask([("HGET", world.shard.module(id), "tier")])[0].decode())


def moved(world: World, id: str) -> str:
    return str(world.ask([("HGET", world.shard.module(id), "moved")])[0].decode()).partition(" ")[2]


def brought(world: World, ids: tuple[str, ...], *, near: bool = True, reads: int = 9) -> Brought:
    return world.run(bring(world.space, likely(*ids), near=near, reads=reads))


def test_cold_modules_become_warm_without_a_use() -> None:
    world = cold_world()
    found = brought(world, IDS, near=False)
    assert found.fetched == set(IDS) and not found.refused
    assert [tier(world, id) for id in IDS] == ["warm"] * 3
    assert moved(world, "a") == "cold warm predict"
    assert world.ask([("ZSCORE", world.shard.uses, "a")]) == [None]
    assert world.ask([("EXISTS", world.shard.lease("a"))]) == [0]


def test_no_more_objects_are_read_than_allowed_the_most_probable_first() -> None:
    world = cold_world()
    found = brought(world, IDS, reads=2)
    assert (found.fetched, found.refused) == ({"a", "b"}, 1)
    assert tier(world, "c") == "cold"
    assert brought(world, IDS, reads=0).refused == 1, "the others are warm, and need no read"


def test_module_that_another_process_fetches_is_left_to_it() -> None:
    world = cold_world()
    take: Plan[Any] = iter(lease_command(world.shard, world.shard.lease("a"), "another", 10_000))
    world.run(take)
    found = brought(world, ("a",))
    assert (found.fetched, found.there, found.modules) == (set(), {"a"}, {})
    assert world.ask([("GET", world.shard.lease("a"))]) == [b"another"]


def test_lease_is_given_back_where_the_archive_fails() -> None:
    world = cold_world()

    class Down(MemoryArchive):
        def get(self, key: str, *, max_bytes: int) -> Any:
            raise ArchiveUnavailable("it is down")

    world.archive = Down(keeps_metadata=True)
    process = world.process()
    found = process.run(bring(world.space, likely("a"), near=True, reads=1))
    assert (found.modules, process.counters["predict.failed"]) == ({}, 1)
    assert world.ask([("EXISTS", world.shard.lease("a"))]) == [0]


def test_module_that_does_not_exist_is_there() -> None:
    assert brought(cold_world(), ("none",)).there == {"none"}


def test_without_a_near_cache_what_is_in_redis_is_not_transferred() -> None:
    world = cold_world()
    brought(world, IDS)
    found = brought(world, IDS, near=False)
    assert (found.there, found.modules) == (set(IDS), {})
    assert brought(world, IDS).modules.keys() == set(IDS)


@pytest.mark.parametrize(("probability", "stays"), [(0.9, True), (0.99, False)])
def test_probability_counts_for_a_use_in_the_admission(probability: float, stays: bool) -> None:
    """Warm has room for one module. The one that is there was used 1.95 times as often as is
    enough to stay, the predicted one once."""
    world = cold_world(storage_tiers__warm__max_modules=1)
    brought(world, ("b",))
    world.ask([("ZADD", world.shard.uses, 1.95 * WORTH_FIRST, "b"), ("ZADD", world.shard.uses, 1, "a")])
    world.run(bring(world.space, likely("a", probability=probability), near=True, reads=1))
    assert (tier(world, "a"), tier(world, "b")) == (("cold", "warm") if stays else ("warm", "cold"))


def test_what_warm_refuses_is_fetched_only_for_the_near_cache() -> None:
    world = cold_world()
    world.space.process.bar(world.shard, "warm").note_refused(5.0, 1)  # a copy of a reader
    found = brought(world, ("a",), near=False)
    assert (found.fetched, found.there, found.refused) == (set(), {"a"}, 0)
    assert brought(world, ("a",), near=True).fetched == {"a"}


def test_refused_prediction_refuses_no_copy_of_a_reader() -> None:
    world = cold_world(storage_tiers__warm__max_modules=1)
    brought(world, ("b",))
    world.ask([("ZADD", world.shard.uses, 9, "b")])
    assert brought(world, ("a",), near=False).fetched == {"a"}
    assert not world.space.process.bar(world.shard, "warm").refuses(0.0, 10**6)


def test_what_was_fetched_is_fresh_again_after_a_look() -> None:
    world = cold_world()
    process = world.process()
    found = process.run(bring(world.space, likely("a"), near=True, reads=1))
    assert found.modules["a"].tier == "cold"
    again = process.run(look_again(world.space, found.modules))
    assert (again["a"].tier, again["a"].content) == ("warm", found.modules["a"].content)
    world.run(put(world.space, Item("a", "other", tokens=1)), "writer")
    assert process.run(look_again(world.space, found.modules)) == {}


def test_learned_counts_are_hints_where_the_key_is_another_type() -> None:
    world = cold_world()
    world.ask([("SET", world.shard.learned, "x")])
    process = world.process()
    assert process.run(recall(world.space, ["a"], ["pdf"])) == ({}, {})
    process.run(teach(world.space, [Change("a", 1, {"b": 1})], []))
    assert process.counters["predict.lost"] == 2
    module = process.run(get(world.space, "a"))
    assert module is not None


def test_lessons_reach_the_shard_of_their_module_and_are_recalled() -> None:
    world = World.make(shards=3)
    changes = [Change(f"m{n}", 2, {f"m{n + 1}": 1}) for n in range(40)]
    world.run(teach(world.space, changes, [Change("pdf", 1, {"m0": 1}), Change("€" * 128, 1, {"m0": 1})]))
    found = world.run(recall(world.space, [f"m{n}" for n in range(41)], ["pdf", "€" * 128]))
    assert found.modules == {f"m{n}": (2.0, {f"m{n + 1}": 1.0}) for n in range(40)}
    assert found.keywords == {"pdf": (1.0, {"m0": 1.0})}, "too long a keyword is not shared"
