"""Every plan, stopped after every effect, and with every effect failing or losing its reply.

Each plan runs to its end once, to count its effects; then once per effect and kind of fault, from the same state. After each
fault the state is consistent (`audit`), every acknowledged version can be read, and the plan succeeds when it runs again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from distier.domain.dictionary import Dictionary, Enough, name_of
from distier.domain.module import Module
from distier.effects import Plan
from distier.errors import DistierError, NotFound, Unavailable
from distier.plans.common.namespace import Namespace
from distier.plans.common.process_state import Lately
from distier.plans.fleet.dictionaries import keep_dictionaries, learn_if_due, take_into_use
from distier.plans.fleet.maintain import age_uses, demote_idle, expire_warm, keep_headroom, maintain, write_back_due
from distier.plans.fleet.packing import pack_all
from distier.plans.fleet.statistics import read_stats
from distier.plans.fleet.sweep import sweep
from distier.plans.get.fit import Asked, fit
from distier.plans.get.listing import list_ids
from distier.plans.get.many import get_many
from distier.plans.get.one import get, read_below
from distier.plans.get.where import where_in_redis
from distier.plans.predict.bring import bring
from distier.plans.predict.learned import recall, teach
from distier.plans.put.delete import delete
from distier.plans.put.many import put_many
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.put.rename import rename
from distier.plans.recovery.adopt import need_record
from distier.plans.recovery.epochs import open_space
from distier.plans.tier.demote import demote, demote_many
from distier.plans.tier.promote import pin, promote, promote_many, unpin
from distier.plans.tier.writeback import write_back
from distier.policy.predict import Prediction
from distier.policy.predict.counts import Change
from tests.fakes import Snapshot, World
from tests.plans.audit import audit, audit_contents
from tests.scripted import Fault, FaultKind, PlanRunner, Stopped

Contents = Mapping[str, bytes | None]
STEPS_MAX = 16
"""In longer plans only some effects fail, unless STOPPED_EVERY is set. Plans are stopped after every effect all the same."""
EVERY = bool(os.environ.get("STOPPED_EVERY"))


def content(name: str, size_bytes: int = 200) -> bytes:
    """Compressible content that differs for each name."""
    return (f"module {name}; ".encode() * size_bytes)[:size_bytes]


def item(id: str, *, tokens: int = 10, text: str = "", if_version: Any = None) -> Item:
    return Item(id, content(text or id), tokens=tokens, if_version=if_version)


# -- initial states -------------------------------------------------------------------------------------------------


def mixed() -> World:
    """One module in each state, and free room."""
    world = World.make(storage_tiers__promotion_threshold=3)
    space, shard = world.space, world.shard
    for id in ("hot-dirty", "hot-clean", "warm-dirty", "warm-clean", "cold", "expired", "deleted"):
        world.run(put(space, item(id)), id)
    for id in ("hot-clean", "warm-clean", "cold", "expired"):
        world.run(write_back(space.locate(id)), f"writer of {id}")
    for id, to in [("warm-dirty", "warm"), ("warm-clean", "warm"), ("expired", "warm"), ("cold", "cold")]:
        assert world.run(demote(space, id, to)).moved  # type: ignore[arg-type]
    world.run(delete(space, "deleted"), "deleter")
    world.ask([("DEL", shard.frame("expired"))])
    return world


MIXED = {id: content(id) for id in ("hot-dirty", "hot-clean", "warm-dirty", "warm-clean", "cold", "expired")}


def full() -> World:
    """Hot is full, and warm is full of dirty versions."""
    world = World.make()
    for i in range(6):
        world.run(put(world.space, item(f"w{i}", tokens=10)), f"w{i}")
        assert world.run(demote(world.space, f"w{i}", "warm")).moved
    for i in range(5):
        world.run(put(world.space, item(f"h{i}", tokens=20)), f"h{i}")
    return world


FULL = {f"{tier}{i}": content(f"{tier}{i}") for tier, n in (("w", 6), ("h", 5)) for i in range(n)}


def swept() -> World:
    """Three archived versions of one module, and a deleted module whose tombstone is archived."""
    world = World.make(keeps_metadata=False)
    for text in ("v1", "v2", "v3"):
        world.run(put(world.space, item("a", text=text)), text)
        world.run(write_back(world.space.locate("a")))
    world.run(put(world.space, item("b")), "b")
    world.run(write_back(world.space.locate("b")))
    world.run(delete(world.space, "b"), "deleter")
    world.run(write_back(world.space.locate("b")))
    return world


def empty() -> World:
    return World.make(opened=False)


# -- the plans -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A plan, its initial state, the modules before it, and those that it writes. `check` judges a complete run's result."""

    name: str
    world: Callable[[], World]
    plan: Callable[[Namespace], Plan[Any]]
    there: Contents = field(default_factory=dict)
    writes: Contents = field(default_factory=dict)
    check: Callable[[Any], bool] = lambda _: True
    before: Callable[[World], object] = lambda _: None
    one_token: bool = False  # only the same call may be repeated: with another write id it is another call


def first(shard_plan: Callable[..., Plan[Any]]) -> Callable[[Namespace], Plan[Any]]:
    return lambda space: shard_plan(space, space.keys.shards[0])


def used(id: str) -> Callable[[World], object]:
    return lambda world: [world.run(read_below(world.space.locate(id), need(world, id))) for _ in range(2)]


def need(world: World, id: str) -> Any:
    return world.run(need_record(world.space, id))


def is_moved(result: Any) -> bool:
    return bool(result.moved)


def all_moved(results: Sequence[Any]) -> bool:
    return all(is_moved(r) for r in results)


def is_tier(tier: str) -> Callable[[Any], bool]:
    return lambda result: bool(result.tier == tier)


def pinned_world() -> World:
    world = full()
    for i in range(5):
        world.run(pin(world.space, f"h{i}", 1_000_000))
    return world


def likely(*ids: str) -> list[Prediction]:
    return [Prediction(id, 0.9, "sequence") for id in ids]


def full_and_cold() -> World:
    """As `full`, and one module is cold that was used more often than those in warm."""
    world = full()
    world.run(put(world.space, item("c")), "c")
    world.run(write_back_due(world.space, world.shard, older_than_ms=0))
    assert world.run(demote(world.space, "c", "cold")).moved
    world.ask([("ZADD", world.shard.uses, 9, "c")])
    return world


def taught(world: World) -> None:
    world.run(teach(world.space, [Change("cold", 1, {"a": 1})], [Change("pdf", 1, {"a": 2})]))


def packed_once() -> World:
    """As `mixed`, with what is archived in a pack, and two modules more; of one of those there is a newer version."""
    world = mixed()
    space = world.space
    for id in ("p0", "p1"):
        world.run(put(space, item(id)), id)
        world.run(write_back(space.locate(id)), f"writer of {id}")
    world.run(pack_all(space, min_age_ms=NOW, everything=True))
    world.run(put(space, item("p0", text="newer")), "newer")
    for id in ("p0", "warm-dirty"):
        world.run(write_back(space.locate(id)), f"newer writer of {id}")
    return world


SHARED = " ".join(f"what {n} modules say of {n * n}," for n in range(40)).encode()


def learnable() -> World:
    """Modules that resemble each other, in each state that has a content in Redis."""
    world = World.make(storage_tiers__hot__max_bytes=1 << 20, storage_tiers__warm__max_bytes=1 << 20)
    for id, content in LEARNABLE.items():
        world.run(put(world.space, Item(id, content, tokens=5)), id)
    world.run(write_back_due(world.space, world.shard, older_than_ms=0))
    world.run(put(world.space, Item("l7", LEARNABLE["l7"], tokens=5)), "dirty")
    for id in ("l1", "l2"):
        assert world.run(demote(world.space, id, "warm")).moved
    return world


LEARNABLE = {f"l{n}": b"# module %d\n" % n + SHARED[n * 20 :] for n in range(10)}


def learn_dictionary(space: Namespace) -> Plan[int | None]:
    return learn_if_due(space, Enough(8, 1000))


def with_dictionaries() -> World:
    """Another dictionary was learned since some warm copies were made, and one that nobody needs."""
    world = learnable()
    assert world.run(learn_dictionary(world.space)) == 1
    for id in ("l3", "l4", "l7"):
        assert world.run(demote(world.space, id, "warm")).moved
    for data in (SHARED[::-1], SHARED[::2]):
        world.run(take_into_use(world.space, Dictionary(name_of(data), data)))
    codecs = [world.ask([("HGET", world.shard.module(id), "codec")])[0] for id in ("l3", "l4", "l7")]
    assert [codec[:5] for codec in codecs] == [b"lz4d:", b"lz4d:", b"lz4"]
    return world


def unaware(plan: Callable[[Namespace], Plan[Any]]) -> Callable[[Namespace], Plan[Any]]:
    """A process that knows no dictionary yet."""

    def run(space: Namespace) -> Plan[Any]:
        space.process.dictionaries = Lately(4)
        space.process.dictionary.clear()
        space.process.naming.clear()
        return (yield from plan(space))

    return run


def without_dictionaries(world: World) -> None:
    world.ask([("DEL", world.shard.dictionaries)])
    world.archive.delete([key for key in world.objects() if "/dictionaries/" in key])


NOW = -(10**15)
"""A least age that every version has."""
PACKED = {**MIXED, "p0": content("newer"), "p1": content("p1")}


ROWS = [
    Row("open", empty, open_space),
    Row("open again", mixed, open_space, MIXED),
    Row("read hot", mixed, lambda s: get(s, "hot-dirty"), MIXED, check=is_tier("hot")),
    Row("read warm", mixed, lambda s: get(s, "warm-dirty"), MIXED, check=is_tier("warm")),
    Row("read warm, promoted", mixed, lambda s: get(s, "warm-clean"), MIXED, before=used("warm-clean")),
    Row("read cold", mixed, lambda s: get(s, "cold"), MIXED, check=is_tier("cold")),
    Row("read cold, promoted", mixed, lambda s: get(s, "cold"), MIXED,
        before=lambda w: (used("cold")(w), w.run(demote(w.space, "cold", "cold")))),
    Row("read expired", mixed, lambda s: get(s, "expired"), MIXED, check=is_tier("cold")),
    Row("read a miss", mixed, lambda s: get(s, "missing"), MIXED, check=lambda r: r is None),
    Row("read deleted", mixed, lambda s: get(s, "deleted"), MIXED, check=lambda r: r is None),
    Row("read many", mixed, lambda s: get_many(s, [*MIXED, "missing"]), MIXED, check=lambda r: len(r) == 7),
    Row("fit", mixed, lambda s: fit(s, Asked("", 35, ("cold",))), MIXED, check=lambda r: r.tokens == 30),
    Row("where", mixed, lambda s: where_in_redis(s, "cold"), MIXED, check=is_tier("cold")),
    Row("list", mixed, lambda s: list_ids(s, "", "", 9), MIXED, check=lambda r: len(r.rows) == 6),
    Row("stats", mixed, lambda s: read_stats(s, {}), MIXED),
    Row("put", mixed, lambda s: put(s, item("new")), MIXED, {"new": content("new")}, is_tier("hot")),
    Row("put over hot", mixed, lambda s: put(s, item("hot-clean", text="2")), MIXED, {"hot-clean": content("2")}),
    Row("put over cold", mixed, lambda s: put(s, item("cold", text="2")), MIXED, {"cold": content("2")}),
    Row("put over warm", mixed, lambda s: put(s, item("warm-dirty", text="2")), MIXED, {"warm-dirty": content("2")}),
    Row("put over a tombstone", mixed, lambda s: put(s, item("deleted", text="2")), MIXED, {"deleted": content("2")}),
    Row("put if new", mixed, lambda s: put(s, item("new", if_version=0)), MIXED, {"new": content("new")},
        one_token=True),
    Row("put, evicting", mixed, lambda s: put(s, item("new", tokens=90)), MIXED, {"new": content("new")},
        is_tier("hot")),
    Row("put, too large for hot", mixed, lambda s: put(s, item("new", tokens=101)), MIXED,
        {"new": content("new")}, is_tier("warm")),
    Row("put, all is full", full, lambda s: put(s, item("new", tokens=90)), FULL, {"new": content("new")},
        is_tier("hot")),
    Row("put, hot is pinned", pinned_world, lambda s: put(s, item("new")), FULL, {"new": content("new")},
        is_tier("warm")),
    Row("put many", full, lambda s: put_many(s, [item(f"n{i}", tokens=30) for i in range(4)]), FULL,
        {f"n{i}": content(f"n{i}") for i in range(4)}, lambda r: all(x.tier == "hot" for x in r)),
    Row("rename", mixed, lambda s: renamed(s, "hot-dirty", "new"), MIXED,
        {"hot-dirty": None, "new": MIXED["hot-dirty"]}, lambda m: m.content == MIXED["hot-dirty"]),
    Row("rename a cold one", mixed, lambda s: renamed(s, "cold", "new"), MIXED,
        {"cold": None, "new": MIXED["cold"]}, lambda m: m.content == MIXED["cold"]),
    Row("delete hot", mixed, lambda s: delete(s, "hot-dirty"), MIXED, {"hot-dirty": None}),
    Row("delete cold", mixed, lambda s: delete(s, "cold"), MIXED, {"cold": None}),
    Row("promote warm", mixed, lambda s: promote(s, "warm-dirty"), MIXED, check=is_tier("hot")),
    Row("promote cold", mixed, lambda s: promote(s, "cold"), MIXED, check=is_tier("hot")),
    Row("promote expired", mixed, lambda s: promote(s, "expired"), MIXED, check=is_tier("hot")),
    Row("promote, all is full", full, lambda s: promote(s, "w3"), FULL, check=is_tier("hot")),
    Row("demote hot", mixed, lambda s: demote(s, "hot-dirty"), MIXED, check=is_tier("warm")),
    Row("demote hot to cold, dirty", mixed, lambda s: demote(s, "hot-dirty", "cold"), MIXED, check=is_tier("cold")),
    Row("demote warm to cold, clean", mixed, lambda s: demote(s, "warm-clean"), MIXED, check=is_tier("cold")),
    Row("demote warm to cold, dirty", mixed, lambda s: demote(s, "warm-dirty"), MIXED, check=is_tier("cold")),
    Row("demote, warm is full", full, lambda s: demote(s, "h0"), FULL, check=is_tier("warm")),
    Row("promote many", mixed, lambda s: promote_many(s, ["warm-dirty", "warm-clean", "cold", "expired"]), MIXED,
        check=lambda rs: all(r.tier == "hot" for r in rs)),
    Row("promote many, all is full", full, lambda s: promote_many(s, ["w0", "w1", "w2"]), FULL,
        check=lambda rs: all(r.tier == "hot" for r in rs)),
    Row("demote many", mixed, lambda s: demote_many(s, ["hot-dirty", "hot-clean", "warm-dirty"], "cold"), MIXED,
        check=lambda rs: all(r.tier == "cold" for r in rs)),
    Row("pin", mixed, lambda s: pin(s, "cold", 1_000_000), MIXED),
    Row("unpin", mixed, lambda s: unpin(s, "cold"), MIXED),
    Row("write back", mixed, lambda s: write_back(s.locate("warm-dirty")), MIXED),
    Row("write back a tombstone", mixed, lambda s: write_back(s.locate("deleted")), MIXED),
    Row("write back all", full, lambda s: write_back_due(s, s.keys.shards[0], older_than_ms=0), FULL),
    Row("head-room", full, first(keep_headroom), FULL),
    Row("demote idle", mixed, first(demote_idle), MIXED, before=lambda w: idle(w)),
    Row("expire", mixed, first(expire_warm), MIXED, before=lambda w: overdue(w)),
    Row("age", mixed, first(age_uses), MIXED, before=lambda w: w.ask([("HSET", w.shard.epoch, "created", 1)])),
    Row("maintain", full, lambda s: maintain(s, s.keys.shards[0]), FULL, before=lambda w: idle(w)),
    Row("pack", mixed, lambda s: pack_all(s, min_age_ms=NOW, everything=True), MIXED, check=lambda r: r.members == 4),
    Row("pack, replacing a pack", packed_once, lambda s: pack_all(s, min_age_ms=NOW, everything=True), PACKED,
        check=lambda r: r.replaced == 1),
    Row("sweep, with packs", packed_once, sweep, PACKED),
    Row("read from a pack", packed_once, lambda s: get(s, "p1"), PACKED, check=lambda r: r.content == content("p1"),
        before=lambda w: w.run(demote(w.space, "p1", "cold"))),
    Row("learn a dictionary", learnable, unaware(learn_dictionary), LEARNABLE, check=lambda r: r == 1),
    Row("drop dictionaries", with_dictionaries, unaware(first(keep_dictionaries)), LEARNABLE, check=lambda r: r == 1),
    Row("read with a dictionary", with_dictionaries, unaware(lambda s: get(s, "l3")), LEARNABLE, check=is_tier("warm")),
    Row("read, its dictionary is gone", with_dictionaries, unaware(lambda s: get(s, "l3")), LEARNABLE, check=is_tier("cold"),
        before=without_dictionaries),
    Row("read many, dictionaries are gone", with_dictionaries, unaware(lambda s: get_many(s, list(LEARNABLE))), LEARNABLE,
        before=without_dictionaries),
    Row("demote with a dictionary", with_dictionaries, lambda s: demote(s, "l5"), LEARNABLE, check=is_tier("warm")),
    Row("sweep", swept, sweep, {"a": content("v3"), "b": None}),
    Row("bring ahead, near", mixed, lambda s: bring(s, likely(*MIXED, "deleted", "missing"), near=True, reads=9), MIXED,
        check=lambda r: r.modules.keys() == MIXED.keys() and r.fetched == {"cold", "expired"}),
    Row("bring ahead, not near", mixed, lambda s: bring(s, likely(*MIXED, "deleted", "missing"), near=False, reads=9),
        MIXED, check=lambda r: r.fetched == {"cold"} == r.modules.keys()),
    Row("bring ahead, warm is full", full_and_cold, lambda s: bring(s, likely("c"), near=False, reads=9), FULL,
        check=lambda r: r.fetched == {"c"}),
    Row("teach", mixed, lambda s: teach(s, [Change("cold", 1, {"a": 1})], [Change("pdf", 1, {"a": 2})]), MIXED),
    Row("recall", mixed, lambda s: recall(s, ["cold", "none"], ["pdf"]), MIXED, before=lambda w: taught(w),
        check=lambda r: r.modules["cold"] == (1.0, {"a": 1.0}) and r.keywords["pdf"].followers == {"a": 2.0}),
]  # fmt: skip


def renamed(space: Namespace, old: str, new: str) -> Plan[Module]:
    """Rename a module, or find that an earlier call did."""
    with suppress(NotFound):
        yield from rename(space, old, new)
    there = yield from get(space, new)
    assert there is not None
    return there


def idle(world: World) -> None:
    """All hot modules were last used in 1970."""
    for id in world.ask([("ZRANGE", world.shard.hot, 0, -1)])[0]:
        world.ask([("ZADD", world.shard.hot, 1, id)])


def overdue(world: World) -> None:
    for id in world.ask([("ZRANGE", world.shard.warm, 0, -1)])[0]:
        world.ask([("ZADD", world.shard.warm, 1, id)])


def start(row: Row) -> World:
    world = row.world()
    row.before(world)
    return world


def allowed(row: Row, done: bool) -> dict[str, set[bytes | None]]:
    """The contents that each module may have: the old or the new one, and only the new one once it is acknowledged."""
    expected: dict[str, set[bytes | None]] = {id: {old} for id, old in row.there.items()}
    for id, new in row.writes.items():
        expected[id] = {new} if done else {new, *expected.get(id, {None})}
    return expected


def acknowledged(result: Any) -> bool:
    return not (isinstance(result, list) and any(isinstance(r, DistierError) for r in result))


def run(process: PlanRunner, plan: Plan[Any]) -> tuple[bool, Any]:
    """Return whether the plan acknowledged its work, and its result. An outage may cause only `Unavailable`."""
    try:
        result = process.run(plan)
    except Stopped:
        return False, None
    except Unavailable as e:
        return False, e
    for one in result if isinstance(result, list) else [result]:
        assert not isinstance(one, DistierError) or isinstance(one, Unavailable), repr(one)
    return acknowledged(result), result


def test_every_plan_of_the_table_has_effects() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_plan_runs_to_the_end(row: Row) -> None:
    world = start(row)
    done, result = run(world.process(), row.plan(world.space))
    assert done, result
    assert row.check(result), result
    if row.world is not empty:
        audit(world)
    audit_contents(world, allowed(row, done=True))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_plan_with_a_fault_at_every_effect(row: Row) -> None:
    """Effects that touch neither Redis nor the archive do not change the world, so a fault there makes no difference."""
    world = start(row)
    before = world.snapshot()
    counted = world.process()
    counted.run(row.plan(world.space))
    steps = [at for at, name in enumerate(counted.effects, 1) if name not in WITHIN]
    assert steps
    seen: set[tuple[object, ...]] = set()
    for kind in get_args(FaultKind):
        stride = 1 if kind == "stop" or EVERY else 1 + len(steps) // STEPS_MAX
        for at in steps[::stride]:
            world.restore(before)
            faulty = world.process(fault=Fault(kind, at))
            done, result = run(faulty, row.plan(world.space))
            left = world.snapshot()
            state = (done and acknowledged(result), fingerprint(left))
            if state in seen:
                continue  # an earlier fault left the same state
            seen.add(state)
            try:
                after_a_fault(row, world, left, done)
            except (AssertionError, DistierError) as e:
                raise AssertionError(f"{kind} at effect {at} of {len(counted.effects)} ({faulty.effects}): {e}") from e


WITHIN = {"Count", "NewToken", "Monotonic", "Now", "Offload", "Sleep", "Used"}


def fingerprint(left: Snapshot) -> str:
    """A state without its times. A plan cannot distinguish states with equal fingerprints."""
    keys = {
        key: (
            type, pttl > 0,
            sorted((k, v) for k, v in value.items() if k not in (b"created", b"updated", b"moved")) if type == "hash"
            else [m for m, _ in value] if type == "zset" and not key.endswith(":uses")
            else len(value) if type == "stream" else value,
        )
        for key, (type, value, pttl) in left.keys.items()
    }  # fmt: skip
    return repr((keys, sorted(left.objects)))


def after_a_fault(row: Row, world: World, left: Snapshot, done: bool) -> None:
    """The remaining state is consistent, and the plan succeeds when another process runs it, or the same call is repeated."""
    if world.ask([("EXISTS", world.shard.epoch)])[0]:
        audit(world)
        audit_contents(world, allowed(row, done))
    for name in ["p"] if row.one_token else ["p", "another"]:
        world.restore(left)
        world.end_leases()
        again, result = run(world.process(name), row.plan(world.space))
        assert again, f"run again by {name}: {result}"
        audit(world)
        audit_contents(world, allowed(row, done=True))
