"""Batches: a failure of one item of `put_many` does not affect the others. Warm reads: the saved round trips are safe."""

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
from distier.plans.common.touches import send_touch
from distier.plans.get.many import get_many
from distier.plans.get.one import get, read_below
from distier.plans.put.delete import delete
from distier.plans.put.many import SCRIPT_MAX_BYTES, SCRIPT_MAX_MODULES, put_many
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.tier import promote as promote_plans
from distier.plans.tier.demote import demote
from distier.plans.tier.promote import promote_many
from distier.plans.tier.writeback import write_back
from tests.fakes import World
from tests.plans.audit import audit
from tests.scripted import PlanRunner


def landed(world: World, items: list[Item]) -> list[Any]:
    return world.run(put_many(world.space, items))


def test_put_many_returns_a_result_for_each_item() -> None:
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


def test_key_of_foreign_type_fails_only_its_own_item() -> None:
    world = World.make()
    world.ask([("SET", world.shard.module("foreign"), "not ours")])
    first, foreign, last = landed(world, [Item(id, "x", tokens=1) for id in ("first", "foreign", "last")])
    assert isinstance(first, Landed) and isinstance(last, Landed)
    assert isinstance(foreign, Corrupt)


def test_item_without_room_in_its_batch_evicts_others() -> None:
    """Hot has 100 tokens. Of twelve modules of 10 tokens in one script two find no room, and evict others."""
    world = World.make()
    results = landed(world, [Item(f"m{i}", "x", tokens=10) for i in range(12)])
    assert [r.tier for r in results] == ["hot"] * 12
    assert sum(r.evicted for r in results) == 2
    assert world.ask([("HGET", world.shard.usage, "hot_tokens")]) == [b"100"]


def test_room_freed_under_a_lowered_budget_stays_free() -> None:
    """Each item is treated as a single put: a module may become smaller, and none may grow while hot exceeds its limit."""
    world = World.make()
    world.run(put(world.space, Item("a", "x", tokens=100)))
    world.ask([("HSET", world.shard.limits, "hot_tokens", 10)])
    smaller, other = landed(world, [Item("a", "y", tokens=9), Item("b", "x", tokens=2)])
    assert (smaller.tier, smaller.evicted) == ("hot", 0)
    assert (other.tier, other.evicted) == ("hot", 1)
    assert world.ask([("HGET", world.shard.usage, "hot_tokens")]) == [b"2"]


@pytest.mark.parametrize("size_bytes", [1, 300_000])
def test_large_batch_is_sent_in_scripts_of_bounded_size(size_bytes: int) -> None:
    world = World.make(storage_tiers__hot__max_size=10**9, storage_tiers__hot__max_bytes=10**9)
    sent: list[list[Any]] = []

    def note(command: Any) -> None:
        if command[:2] == ("EVALSHA", script("put").sha):
            sent.append(list(command[3 + command[2] :]))

    landed(world, [Item("first", "x", tokens=1)])  # loads the script
    world.redis.before = note
    results = landed(world, [Item(f"m{i}", "x" * size_bytes, tokens=1) for i in range(150)])
    assert all(isinstance(r, Landed) for r in results)
    assert max(sum(len(word) for word in args if isinstance(word, bytes)) for args in sent) <= SCRIPT_MAX_BYTES
    assert max(args[0] for args in sent) <= SCRIPT_MAX_MODULES
    assert len(sent) == (3 if size_bytes == 1 else 50)


# -- warm reads ----------------------------------------------------------------------------------------------------------


def fresh(world: World) -> Namespace:
    """The namespace as another process knows it."""
    space = Namespace(world.space.config, world.space.counter, world.space.sidecar)
    space.process.epochs.update(world.space.process.epochs)
    return space


def test_uses_of_several_processes_promote_together() -> None:
    """Two processes read in turn, and neither alone counts three uses."""
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


def test_counts_from_a_batch_of_uses_promote_at_next_read() -> None:
    world = World.make(storage_tiers__promotion_threshold=5)
    run = world.process("reader").run
    run(put(world.space, Item("a", "x", tokens=1)))
    run(demote(world.space, "a"))
    assert run(get(world.space, "a")) is not None  # use 1 of 5; the next three would not ask the server
    run(send_touch(world.space, [touch(world.shard, [("a", 10)])]))  # hits of a near cache, or of other processes
    assert run(get(world.space, "a")) is not None
    record = run(record_command(world.shard, "a").__iter__())
    assert record is not None and record.tier == "hot"


def test_wrong_guess_of_tier_still_reads_correctly() -> None:
    """A module that was warm at the last read is now hot, deleted, or at another version."""
    world = World.make()
    run = world.process("writer").run  # continues its random write ids
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


def test_frame_of_another_version_is_not_served() -> None:
    """Record and frame are two keys: between their reads another version of the same size may be written."""
    world = World.make()
    run = world.process("writer").run  # continues its random write ids
    for content in ("one", "two"):
        run(put(world.space, Item("a", content, tokens=1)))
        run(demote(world.space, "a"))
        if content == "one":
            record = run(record_command(world.shard, "a").__iter__())
    frame = world.ask([("GET", world.shard.frame("a"))])[0]
    assert record is not None
    module = run(read_below(world.space.locate("a"), record, frame))
    assert module is not None and module.content == b"two"


def test_errors_in_a_batch_are_values() -> None:
    world = World.make()
    (result,) = landed(world, [Item("a", "x", if_version="9-9")])
    assert isinstance(result, Conflict) and isinstance(result, DistierError)


def frames_asked_for(plan: Plan[T], asked: list[int]) -> Plan[T]:
    """Run a plan, and note how many frames it requests in each round trip."""
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


def test_get_many_reads_warm_in_one_round_trip_and_promotes_used() -> None:
    """Two clean modules, two dirty ones, one with an expired frame, a hot one, a cold one, and a missing one."""
    world = World.make(storage_tiers__promotion_threshold=3)
    contents = {id: id.encode() * 30 for id in ("clean/1", "clean/2", "dirty/1", "dirty/2", "expired", "hot", "cold")}
    for id, content in contents.items():
        world.run(put(world.space, Item(id, content, tokens=1)), id)
        if not id.startswith("dirty"):
            world.run(write_back(world.space.locate(id)))
        if id != "hot":
            world.run(demote(world.space, id, "cold" if id == "cold" else "warm"))
    world.ask([("DEL", world.shard.frame("expired"))])
    ids = ["none", *contents]
    asked: list[int] = []
    tiers, run = [], world.process("reader").run  # the process gathers uses
    for _ in range(4):
        found = run(frames_asked_for(get_many(world.space, ids), asked))
        assert found.pop("none") is None
        assert {id: m.content for id, m in found.items() if m} == contents
        tiers.append({id: m.tier for id, m in found.items() if m})
    assert asked[0] == 5
    assert tiers[0] == {
        id: "hot" if id == "hot" else "cold" if id in ("cold", "expired") else "warm" for id in contents
    }
    assert tiers[1]["cold"] == tiers[1]["expired"] == "warm", "the read left a copy"
    assert set(tiers[3].values()) == {"hot"}
    audit(world)


def test_get_many_requests_frames_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
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


# -- promote_many: a module that cannot fit is refused before any eviction --------------------------------------------------


def cold(world: World, id: str, tokens: int, size_bytes: int = 100) -> None:
    world.run(put(world.space, Item(id, f"{id} ".encode() * (size_bytes // (len(id) + 1)), tokens=tokens)), id)
    world.run(write_back(world.space.locate(id)), id)
    assert world.run(demote(world.space, id, "cold")).tier == "cold"


def promoted(world: World, *ids: str) -> dict[str, str]:
    """Promote modules and return the reported tier of each, which must be the tier in its record."""
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


def test_promote_larger_than_hot_evicts_nothing() -> None:
    world = World.make()
    world.run(put(world.space, Item("big", "big", tokens=101)))  # 100 tokens is all of hot
    others = others_are_hot(world)
    assert promoted(world, "big") == {"big": "warm"}
    assert hot_ids(world) == others


def test_promote_many_evicts_none_of_its_own() -> None:
    world = World.make()
    cold(world, "small", 30)
    cold(world, "big", 90)
    others_are_hot(world)
    assert promoted(world, "small", "big") == {"small": "hot", "big": "cold"}
    assert "small" in hot_ids(world) and len(hot_ids(world)) == 4, "no more than necessary was evicted"


def test_promote_many_keeps_members_that_are_hot() -> None:
    world = World.make()
    others = sorted(others_are_hot(world))
    cold(world, "new", 50)
    assert promoted(world, "new", *others[:3]) == {"new": "cold", **dict.fromkeys(others[:3], "hot")}
    assert promoted(world, "new", *others[:2]) == {"new": "hot", **dict.fromkeys(others[:2], "hot")}


def test_promote_many_over_budget_fills_hot_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in several chunks: the later ones do not evict the first."""
    monkeypatch.setattr(promote_plans, "PARALLEL_MAX", 3)
    world = World.make(storage_tiers__warm__max_modules=100)
    for i in range(10):
        cold(world, f"m{i}", 15)
    tiers = promoted(world, *[f"m{i}" for i in range(10)])
    assert [tiers[f"m{i}"] for i in range(10)] == ["hot"] * 6 + ["cold"] * 4
    audit(world)


def test_promote_many_respects_the_bytes_budget() -> None:
    world = World.make()
    cold(world, "a", 1, 3000)
    cold(world, "b", 1, 3000)
    assert promoted(world, "a", "b") == {"a": "hot", "b": "cold"}


def test_module_evicted_by_others_is_not_reported_hot() -> None:
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
