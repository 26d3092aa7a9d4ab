"""Batches: what one item of `put_many` meets does not touch its neighbours; and what a warm read saves is saved safely."""

from __future__ import annotations

from typing import Any, cast

import pytest

from distier.domain.module import Landed, Moved
from distier.effects import Command, Pipeline, Plan, RunScript, T
from distier.errors import Conflict, Corrupt, DistierError
from distier.lua import script, touch
from distier.plans.common import content as content_plans
from distier.plans.common.commands import record_command
from distier.plans.common.namespace import Namespace
from distier.plans.get.many import get_many
from distier.plans.get.one import get, read_below
from distier.plans.get.uses import send_touch
from distier.plans.put.delete import delete
from distier.plans.put.many import SCRIPT_MAX_BYTES, SCRIPT_MAX_MODULES, put_many
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.tier import promote as promote_plans
from distier.plans.tier.demote import demote
from distier.plans.tier.promote import promote_many
from distier.plans.tier.writeback import write_back
from tests.fakes import PlanRunner, World
from tests.plans.audit import audit


def landed(world: World, items: list[Item]) -> list[Any]:
    return world.run(put_many(world.space, items))


def test_each_item_has_its_own_answer() -> None:
    world = World.make()
    world.run(put(world.space, Item("there", "x", tokens=1)))
    results = landed(world, [
        Item("new", "x", tokens=1), Item("there", "y", tokens=1, if_version=0), Item("too-large", "z", tokens=101),
        Item("", "no id"), Item("there-not", "x", tokens=1, if_version="1-1"), Item("newer", "x", tokens=1),
    ])  # fmt: skip
    kinds = [r.tier if isinstance(r, Landed) else type(r).__name__ for r in results]
    assert kinds == ["hot", "Conflict", "warm", "Invalid", "Conflict", "hot"]
    found = world.run(get(world.space, "there"))
    assert found is not None and found.content == b"x"


def test_a_key_of_a_foreign_type_fails_its_own_item_only() -> None:
    world = World.make()
    world.ask([("SET", world.shard.module("foreign"), "not ours")])
    first, foreign, last = landed(world, [Item(id, "x", tokens=1) for id in ("first", "foreign", "last")])
    assert isinstance(first, Landed) and isinstance(last, Landed)
    assert isinstance(foreign, Corrupt)


def test_what_does_not_fit_beside_its_neighbours_makes_room_for_itself() -> None:
    """100 tokens hot: twelve of 10 go in one script, of which two find no room and evict."""
    world = World.make()
    results = landed(world, [Item(f"m{i}", "x", tokens=10) for i in range(12)])
    assert [r.tier for r in results] == ["hot"] * 12
    assert sum(r.evicted for r in results) == 2
    assert world.ask([("HGET", world.shard.usage, "hot_tokens")]) == [b"100"]


def test_what_one_frees_of_a_lowered_budget_is_not_for_its_neighbours() -> None:
    """Each item as if it were put alone: one that makes itself smaller may, and nobody may grow while hot is over its limit."""
    world = World.make()
    world.run(put(world.space, Item("a", "x", tokens=100)))
    world.ask([("HSET", world.shard.limits, "hot_tokens", 10)])
    smaller, other = landed(world, [Item("a", "y", tokens=9), Item("b", "x", tokens=2)])
    assert (smaller.tier, smaller.evicted) == ("hot", 0)
    assert (other.tier, other.evicted) == ("hot", 1)
    assert world.ask([("HGET", world.shard.usage, "hot_tokens")]) == [b"2"]


@pytest.mark.parametrize("size_bytes", [1, 300_000])
def test_a_script_takes_no_more_than_holds_the_server_up_for_a_moment(size_bytes: int) -> None:
    world = World.make(storage_tiers__hot__max_size=10**9, storage_tiers__hot__max_bytes=10**9)
    sent: list[list[Any]] = []

    def note(words: Any) -> None:
        if words[:2] == ("EVALSHA", script("put").sha):
            sent.append(list(words[3 + words[2] :]))

    landed(world, [Item("first", "x", tokens=1)])  # the script is known from here on
    world.redis.before = note
    results = landed(world, [Item(f"m{i}", "x" * size_bytes, tokens=1) for i in range(150)])
    assert all(isinstance(r, Landed) for r in results)
    assert max(sum(len(word) for word in args if isinstance(word, bytes)) for args in sent) <= SCRIPT_MAX_BYTES
    assert max(args[0] for args in sent) <= SCRIPT_MAX_MODULES
    assert len(sent) == (3 if size_bytes == 1 else 50)


# -- warm reads ----------------------------------------------------------------------------------------------------------


def fresh(world: World) -> Namespace:
    """What another process knows of the same namespace."""
    space = Namespace(world.space.config, world.space.counter, world.space.sidecar)
    space.process.epochs.update(world.space.process.epochs)
    return space


def test_uses_of_other_processes_promote_too() -> None:
    """Two processes read in turn: neither counts to three alone."""
    world = World.make(storage_tiers__promotion_threshold=3)
    world.run(put(world.space, Item("a", "x", tokens=1)))
    world.run(demote(world.space, "a"))
    processes = [(fresh(world), world.process(name)) for name in ("p", "q")]
    tiers = []
    for i in range(6):
        space, runner = processes[i % 2]
        module = runner.run(get(space, "a"))
        assert module is not None
        tiers.append(module.tier)
    assert "hot" in tiers[3:], tiers
    assert tiers[:3] == ["warm"] * 3


def test_the_counts_that_a_batch_of_uses_brings_home_promote_at_the_next_read() -> None:
    world = World.make(storage_tiers__promotion_threshold=5)
    run = world.process("reader").run
    run(put(world.space, Item("a", "x", tokens=1)))
    run(demote(world.space, "a"))
    assert run(get(world.space, "a")) is not None  # 1 of 5, and the next three would not ask
    run(send_touch(world.space, [touch(world.shard, [("a", 10)])]))  # hits of a near cache, or of other processes
    assert run(get(world.space, "a")) is not None
    record = run(record_command(world.shard, "a").__iter__())
    assert record is not None and record.tier == "hot"


def test_a_guess_that_is_wrong_costs_nothing_but_a_reply() -> None:
    """What was warm at the last look is hot, deleted, another version by now."""
    world = World.make()
    run = world.process("writer").run  # its tokens go on
    for id in ("hot", "gone", "newer"):
        run(put(world.space, Item(id, "x", tokens=1)))
        run(demote(world.space, id))
    mine, runner = fresh(world), world.process("mine")
    for id in ("hot", "gone", "newer"):
        assert runner.run(get(mine, id)) is not None
        assert id in mine.process.warm
    run(put(world.space, Item("hot", "now hot", tokens=1)))
    run(delete(world.space, "gone"))
    run(put(world.space, Item("newer", "now newer", tokens=1)))
    run(demote(world.space, "newer"))
    found = {id: runner.run(get(mine, id)) for id in ("hot", "gone", "newer")}
    assert found["gone"] is None
    assert {id: (m.tier, m.content) for id, m in found.items() if m} == {
        "hot": ("hot", b"now hot"), "newer": ("warm", b"now newer"),
    }  # fmt: skip
    assert "hot" not in mine.process.warm


def test_a_frame_of_another_version_is_not_taken_for_this_one() -> None:
    """Record and frame are two keys: between their reads another version of the same size may come."""
    world = World.make()
    run = world.process("writer").run  # its tokens go on
    for content in ("one", "two"):
        run(put(world.space, Item("a", content, tokens=1)))
        run(demote(world.space, "a"))
        if content == "one":
            record = run(record_command(world.shard, "a").__iter__())
    frame = world.ask([("GET", world.shard.frame("a"))])[0]
    assert record is not None
    module = run(read_below(world.space, world.shard, record, frame))
    assert module is not None and module.content == b"two"


def test_errors_are_values() -> None:
    world = World.make()
    (result,) = landed(world, [Item("a", "x", if_version="9-9")])
    assert isinstance(result, Conflict) and isinstance(result, DistierError)


def frames_asked_for(plan: Plan[T], asked: list[int]) -> Plan[T]:
    """The plan, and how many frames it asks for in each round trip."""
    effect = next(plan)
    while True:
        if isinstance(effect, Pipeline):
            gets = [call for call in effect.calls if isinstance(call, Command) and call.args[0] == "GET"]
            asked += [len(gets)] if gets else []
        result = yield effect
        try:
            effect = plan.send(result)
        except StopIteration as stop:
            return cast(T, stop.value)


def test_warm_ones_come_in_one_round_trip_and_those_used_enough_become_hot() -> None:
    """Two clean, two dirty, one whose frame has expired, one that is hot, one that is cold, one that is not there."""
    world = World.make(storage_tiers__promotion_threshold=3)
    contents = {id: id.encode() * 30 for id in ("clean/1", "clean/2", "dirty/1", "dirty/2", "expired", "hot", "cold")}
    for id, content in contents.items():
        world.run(put(world.space, Item(id, content, tokens=1)), id)
        if not id.startswith("dirty"):
            world.run(write_back(world.space, world.shard, id))
        if id != "hot":
            world.run(demote(world.space, id, "cold" if id == "cold" else "warm"))
    world.ask([("DEL", world.shard.frame("expired"))])
    ids = ["none", *contents]
    asked: list[int] = []
    tiers, run = [], world.process("reader").run  # which gathers uses
    for _ in range(4):
        found = run(frames_asked_for(get_many(world.space, ids), asked))
        assert found.pop("none") is None
        assert {id: m.content for id, m in found.items() if m} == contents
        tiers.append({id: m.tier for id, m in found.items() if m})
    assert asked[0] == 5
    assert tiers[0] == {
        id: "hot" if id == "hot" else "cold" if id in ("cold", "expired") else "warm" for id in contents
    }
    assert tiers[1]["cold"] == tiers[1]["expired"] == "warm", "a copy was left"
    assert set(tiers[3].values()) == {"hot"}
    audit(world)


def test_frames_are_asked_for_in_parts_that_memory_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_plans, "PART_MAX_BYTES", 1000)
    world = World.make(storage_tiers__warm__max_bytes=10**6, storage_tiers__warm__compression="none")
    sizes = [400, 400, 400, 2000, 1, 1]
    for i, size_bytes in enumerate(sizes):
        world.run(put(world.space, Item(f"m{i}", bytes([i]) * size_bytes, tokens=101)), f"put {i}")
    asked: list[int] = []
    plan = get_many(world.space, [f"m{i}" for i in range(len(sizes))])
    found = world.run(frames_asked_for(plan, asked))
    assert [len(m.content) for m in found.values() if m] == sizes
    assert asked == [2, 1, 1, 2]


# -- promote_many: what cannot fit is refused before anything leaves -------------------------------------------------------


def cold(world: World, id: str, tokens: int, size_bytes: int = 100) -> None:
    world.run(put(world.space, Item(id, f"{id} ".encode() * (size_bytes // (len(id) + 1)), tokens=tokens)), id)
    world.run(write_back(world.space, world.shard, id), id)
    assert world.run(demote(world.space, id, "cold")).tier == "cold"


def promoted(world: World, *ids: str) -> dict[str, str]:
    """The tier that `promote_many` reports of each, which must be the one that it has."""
    results = dict(zip(ids, world.run(promote_many(world.space, list(ids))), strict=True))
    for id, result in results.items():
        record = world.run(record_command(world.shard, id).__iter__())
        assert record is not None and isinstance(result, Moved) and result.tier == record.tier, (id, result, record)
    return {id: cast(Moved, result).tier for id, result in results.items()}


def hot_ids(world: World) -> set[str]:
    return {id.decode() for id in world.ask([("ZRANGE", world.shard.hot, 0, -1)])[0]}


def others_are_hot(world: World) -> set[str]:
    for i in range(5):
        world.run(put(world.space, Item(f"hot{i}", "x", tokens=20)), f"hot{i}")
    return {f"hot{i}" for i in range(5)}


def test_a_module_that_is_larger_than_hot_evicts_nobody() -> None:
    world = World.make()
    world.run(put(world.space, Item("big", "big", tokens=101)))  # 100 tokens is all of hot
    others = others_are_hot(world)
    assert promoted(world, "big") == {"big": "warm"}
    assert hot_ids(world) == others


def test_a_batch_evicts_none_of_its_own() -> None:
    world = World.make()
    cold(world, "small", 30)
    cold(world, "big", 90)
    others_are_hot(world)
    assert promoted(world, "small", "big") == {"small": "hot", "big": "cold"}
    assert "small" in hot_ids(world) and len(hot_ids(world)) == 4, "one of 20 and a half left, and no more"


def test_members_that_are_hot_already_stay_for_a_batch() -> None:
    world = World.make()
    others = sorted(others_are_hot(world))
    cold(world, "new", 50)
    assert promoted(world, "new", *others[:3]) == {"new": "cold", **dict.fromkeys(others[:3], "hot")}
    assert promoted(world, "new", *others[:2]) == {"new": "hot", **dict.fromkeys(others[:2], "hot")}


def test_a_batch_of_more_than_hot_holds_fills_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In several chunks too: the later ones do not evict the first."""
    monkeypatch.setattr(promote_plans, "PARALLEL_MAX", 3)
    world = World.make(storage_tiers__warm__max_modules=100)
    for i in range(10):
        cold(world, f"m{i}", 15)
    tiers = promoted(world, *[f"m{i}" for i in range(10)])
    assert [tiers[f"m{i}"] for i in range(10)] == ["hot"] * 6 + ["cold"] * 4
    audit(world)


def test_bytes_count_as_tokens_do() -> None:
    world = World.make()
    cold(world, "a", 1, 3000)
    cold(world, "b", 1, 3000)
    assert promoted(world, "a", "b") == {"a": "hot", "b": "cold"}


def test_what_others_evict_meanwhile_is_not_reported_as_hot() -> None:
    world = World.make()
    cold(world, "a", 60)
    others_are_hot(world)

    class Rival(PlanRunner):
        def perform(self, effect: Any) -> Any:
            result = super().perform(effect)
            scripts = [c.script.name for c in getattr(effect, "calls", ()) if isinstance(c, RunScript)]
            if "promote" in scripts:
                assert world.run(demote(world.space, "a", "warm")).moved
            return result

    (result,) = Rival(world.redis, world.archive).run(promote_many(world.space, ["a"]))
    assert isinstance(result, Moved) and (result.tier, result.moved) == ("warm", False)
