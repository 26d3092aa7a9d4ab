"""Moving quotas between shards: stopped after every effect, failing at every effect, and with other processes in between.

The check after *each* effect is stronger than "the usage is within the total". It sums, over the shards, the greater of the
shard's usage and its quota. So no load could have exceeded the total at that moment.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from distier.domain.outcome import Refusal
from distier.effects import Effect, Plan
from distier.errors import DistierError, Unavailable
from distier.lua import Refused, ledger, limit
from distier.plans.fleet.maintain import recount
from distier.plans.fleet.quotas import balance, open_quotas
from distier.plans.put.one import put as put_plan
from distier.plans.put.prepare import Item
from distier.plans.recovery.epochs import open_space
from distier.plans.tier.demote import demote
from distier.plans.tier.ledger import enlarge_quota, move_quotas, parse_ledger, settled
from distier.plans.tier.promote import pin, promote, promote_many
from distier.policy.quotas import Amounts, sum_of
from tests.fakes import World
from tests.scripted import Fault, FaultKind, PlanRunner, Stopped

LONG = os.environ.get("CHAOS") == "long"
TOTAL = Amounts(400, 40_000, 24, 80_000)
SHARDS = 4


def make() -> World:
    return World.make(
        shards=SHARDS,
        storage_tiers__hot__max_size=TOTAL.hot_tokens,
        storage_tiers__hot__max_bytes=TOTAL.hot_bytes,
        storage_tiers__warm__max_modules=TOTAL.warm_modules,
        storage_tiers__warm__max_bytes=TOTAL.warm_bytes,
    )


def ids_of(world: World, shard: int, n: int) -> list[str]:
    found = (id for id in (f"m{i}" for i in itertools.count()) if world.space.shard(id).index == shard)
    return list(itertools.islice(found, n))


def put(world: World, id: str, tokens: int = 10) -> Any:
    return run(world, put_plan(world.space, Item(id, f"{id} ".encode() * 20, tokens=tokens)))


def skewed() -> World:
    """Shards 0 and 1 are full; 0 evicts young modules and 1 old ones. 2 and 3 are nearly empty. The ledger exists."""
    world = make()
    run(world, settled(world.space))
    for shard in (0, 1):
        for id in ids_of(world, shard, 6):
            put(world, id, tokens=20)
    put(world, ids_of(world, 2, 1)[0])
    old = world.space.keys.shards[1]
    for id in world.ask([("ZRANGE", old.hot, 0, -1)])[0]:
        world.ask([("ZADD", old.hot, 1, id)])
    return world


def amounts(world: World, key: str, names: tuple[str, ...]) -> Amounts:
    return Amounts(*(int(n or 0) for n in world.ask([("HMGET", key, *names)])[0]))


USED = ("hot_tokens", "hot_bytes", "warm_count", "warm_frame_bytes")


def potential(world: World) -> Amounts:
    """What all shards together hold, or may hold after the next put."""
    each = []
    for shard in world.space.keys.shards:
        used, limits = amounts(world, shard.usage, USED), amounts(world, shard.limits, Amounts._fields)
        each.append(Amounts(*map(max, used, limits)))
    return sum_of(each)


def check(world: World) -> None:
    assert potential(world).fits(TOTAL), f"{potential(world)} of {TOTAL}"
    kept = parse_ledger(world.ask([("HGETALL", world.shard.quotas)])[0])
    assert sum_of(kept.quotas).fits(TOTAL) and sum_of(kept.moved()).fits(TOTAL)


@dataclass
class Watched(PlanRunner):
    """Checks after each effect; after effect `at`, another process acts."""

    world: Any = None
    at: int = 0
    intrude: Callable[[], object] = lambda: None
    done: int = 0

    def perform(self, effect: Effect[Any]) -> Any:
        result = super().perform(effect)
        check(self.world)
        self.done += 1
        if self.done == self.at:
            self.intrude()
            check(self.world)
        return result


NUMBER = itertools.count()


def process(world: World, **options: Any) -> Watched:
    """A process whose write ids no other process has."""
    return Watched(world.redis, world.archive, f"p{next(NUMBER)}", world=world, **options)


def run(world: World, plan: Plan[Any]) -> Any:
    return world.run(plan, f"q{next(NUMBER)}")


def finished(world: World) -> None:
    """Any process can finish or undo an unfinished change. Then the limits agree with the ledger, and nothing is lost."""
    process(world).run(balance(world.space))
    kept = run(world, settled(world.space))
    for i, shard in enumerate(world.space.keys.shards):
        limits = amounts(world, shard.limits, Amounts._fields)
        assert limits == kept.quotas[i] and amounts(world, shard.usage, USED).fits(limits)
        assert run(world, recount(world.space, shard)) == {
            k.decode(): int(v) for k, v in world.ask([("HGETALL", shard.usage)])[0].items() if int(v)
        }
    assert sum_of(kept.quotas) == TOTAL


BIG = 300


def big_id(world: World) -> str:
    return ids_of(world, 3, 1)[0]


def put_big(world: World) -> Plan[Any]:
    return put_plan(world.space, Item(big_id(world), b"large " * 500, tokens=BIG))


PLANS: dict[str, Callable[[World], Plan[Any]]] = {
    "balance": lambda w: balance(w.space),
    "balance, no ledger": lambda w: balance(w.space),
    "put larger than a quota": put_big,
    "make the ledger": lambda w: settled(w.space),
}


def start(name: str) -> World:
    world = skewed()
    if name in ("balance, no ledger", "make the ledger"):
        world.ask([("DEL", world.shard.quotas)])
    return world


@pytest.mark.parametrize("name", PLANS)
def test_quota_move_with_a_fault_at_every_effect(name: str) -> None:
    world = start(name)
    before = world.snapshot()
    counted = process(world)
    counted.run(PLANS[name](world))
    assert len(counted.effects) >= 6
    for kind in get_args(FaultKind):
        for at in range(1, len(counted.effects) + 1, 1 if kind == "stop" or LONG else 6):
            world.restore(before)
            with suppress(Stopped, Unavailable):
                process(world, fault=Fault(kind, at)).run(PLANS[name](world))
            check(world)
            finished(world)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("other", ["balance", "put larger than a quota"])
def test_quota_move_continues_after_another_process_ran(name: str, other: str) -> None:
    """One process sleeps after one of its effects, another one runs from beginning to end, and the first one continues."""
    world = start(name)
    before = world.snapshot()
    counted = process(world)
    counted.run(PLANS[name](world))
    for at in range(1, len(counted.effects) + 1, 1 if LONG else 2):
        world.restore(before)
        zombie = process(world, at=at, intrude=lambda: process(world).run(PLANS[other](world)))
        zombie.run(PLANS[name](world))
        finished(world)


def test_quota_move_continues_after_two_other_processes_ran() -> None:
    """The process in between sleeps too, and a third one acts meanwhile."""
    world = start("balance")
    before = world.snapshot()
    counted = process(world)
    counted.run(PLANS["balance"](world))
    steps = range(1, len(counted.effects) + 1)
    stride = 1 if LONG else 1 + len(steps) // 5
    for at in steps[::stride]:
        for inner in steps[::stride]:
            world.restore(before)
            third = lambda: process(world).run(PLANS["balance"](world))  # noqa: E731
            second = lambda at=inner, third=third: _run(process(world, at=at, intrude=third), put_big(world))  # noqa: E731
            _run(process(world, at=at, intrude=second), PLANS["balance"](world))
            finished(world)


def _run(runner: Watched, plan: Plan[Any]) -> None:
    try:
        runner.run(plan)
    except Unavailable as e:  # "the quotas of the shards change too often": no process must win against two others
        assert "too often" in str(e)


# -- results ---------------------------------------------------------------------------------------------------------


def test_balance_enlarges_the_shard_that_needs_more() -> None:
    world = skewed()
    first = run(world, settled(world.space)).quotas
    for _ in range(12):
        run(world, balance(world.space))
    after = run(world, settled(world.space)).quotas
    assert after[0].hot_tokens > first[0].hot_tokens and after[3].hot_tokens < first[3].hot_tokens
    finished(world)


def test_module_over_quota_becomes_hot_by_put_and_promote() -> None:
    world = skewed()
    landed = process(world).run(put_big(world))
    assert landed.tier == "hot" and landed.reason is None
    finished(world)
    id = big_id(world)
    assert run(world, demote(world.space, id)).moved
    for i in range(30):
        for other in (0, 1, 2):
            put(world, ids_of(world, other, 30)[i])
        run(world, balance(world.space))
    assert run(world, settled(world.space)).quotas[3].hot_tokens < BIG
    assert process(world).run(promote(world.space, id)).tier == "hot"
    run(world, demote(world.space, id))
    run(world, put_plan(world.space, Item(big_id(world) + "?", b"", tokens=1)))
    (moved,) = process(world).run(promote_many(world.space, [id]))
    assert not isinstance(moved, DistierError) and moved.tier == "hot"
    finished(world)


def test_module_over_budget_is_too_large_for_hot() -> None:
    world = skewed()
    landed = run(world, put_plan(world.space, Item(big_id(world), b"x", tokens=TOTAL.hot_tokens + 1)))
    assert landed.tier == "warm" and landed.reason == "too large for hot"


def test_quota_move_is_undone_if_all_is_pinned() -> None:
    """All hot modules of the other shards are pinned: the move is undone, and the limits are unchanged."""
    world = make()
    run(world, settled(world.space))
    for shard in (0, 1, 2):
        for id in ids_of(world, shard, 10):
            put(world, id)
            run(world, pin(world.space, id, 1_000_000))
    before = run(world, settled(world.space)).quotas
    landed = process(world).run(put_big(world))
    assert landed.tier == "warm"
    assert run(world, settled(world.space)).quotas == before
    finished(world)


def test_old_ledger_version_neither_commits_nor_sets_limits() -> None:
    world = skewed()
    first = world.shard
    old = run(world, settled(world.space))
    assert run(world, move_quotas(world.space, old, {0: old.quotas[1], 1: old.quotas[0]}))
    late = run(world, iter(ledger(first, old.version, "f" * 32, {"0": "400 0 0 0"})))
    assert late == Refused(Refusal.CHANGED)
    assert isinstance(run(world, iter(limit(first, old.version - 1, (400, 0, 0, 0)))), Refused)


def test_ledger_script_refuses_quotas_over_the_total() -> None:
    world = skewed()
    old = run(world, settled(world.space))
    for field in ("0", "next.0"):
        with pytest.raises(DistierError, match="would exceed its budgets"):
            run(world, iter(ledger(world.shard, old.version, "f" * 32, {field: "400 40000 24 80000"})))
    assert run(world, settled(world.space)) == old


def test_worker_without_lease_moves_no_quota() -> None:
    world = skewed()
    world.ask([("HSET", world.shard.epoch, "fence", 7)])
    old = run(world, settled(world.space))
    assert run(world, balance(world.space, "6")) == 0
    assert run(world, settled(world.space)).quotas == old.quotas
    assert run(world, balance(world.space, "7")) == 1


# -- totals, and losses ------------------------------------------------------------------------------------------------


def reopened(world: World, **overrides: Any) -> World:
    from distier.plans.common.namespace import Namespace

    config = world.space.config.with_overrides(**overrides)
    other = World(Namespace(config, world.space.counter, False), world.redis, world.archive)
    run(other, open_space(other.space))
    run(other, open_quotas(other.space))
    return other


def test_explicit_total_scales_quotas_and_default_changes_nothing() -> None:
    world = skewed()
    for _ in range(8):
        run(world, balance(world.space))
    before = run(world, settled(world.space))
    raised = reopened(world, storage_tiers__hot__max_size=800)
    after = run(raised, settled(raised.space))
    assert after.total.hot_tokens == 800 and after.total[1:] == before.total[1:]
    for old, new in zip(before.quotas, after.quotas, strict=True):
        assert abs(new.hot_tokens - 2 * old.hot_tokens) <= 1 and new[1:] == old[1:]
    bare = World.make(opened=False, shards=SHARDS)
    bare.redis, bare.archive = world.redis, world.archive
    config = bare.space.config
    config._sources.clear()
    run(bare, open_space(bare.space))
    run(bare, open_quotas(bare.space))
    assert run(raised, settled(raised.space)) == after
    lowered = reopened(world, storage_tiers__hot__max_size=200)
    limits = [amounts(world, s.limits, Amounts._fields) for s in world.space.keys.shards]
    assert sum(n.hot_tokens for n in limits) == 200
    assert sum_of(run(lowered, settled(lowered.space)).quotas).hot_tokens == 200


def test_totals_not_divisible_by_or_below_the_number_of_shards() -> None:
    world = World.make(shards=8, storage_tiers__hot__max_size=1003, storage_tiers__warm__max_modules=3)
    limits = [amounts(world, s.limits, Amounts._fields) for s in world.space.keys.shards]
    assert sum(n.hot_tokens for n in limits) == 1003 and sum(n.warm_modules for n in limits) == 3


def test_old_ledger_after_a_failover_is_rebuilt() -> None:
    """The first shard comes back with the ledger from before a move, in a new epoch. The other shards have newer limits."""
    world = skewed()
    first = world.shard
    before = world.ask([("HGETALL", first.quotas)])[0]
    zombie = run(world, settled(world.space))
    for _ in range(5):
        run(world, balance(world.space))
    world.ask([("DEL", first.quotas), ("HSET", first.quotas, *(w for pair in before.items() for w in pair))])
    world.ask([("HINCRBY", first.epoch, "epoch", 1)])
    assert not run(world, move_quotas(world.space, zombie, {0: zombie.quotas[1], 1: zombie.quotas[0]}))
    finished(world)


def test_single_shard_has_no_ledger_and_asks_nothing() -> None:
    world = World.make()
    runner = world.process()
    assert runner.run(balance(world.space)) == 0 and runner.effects == []
    runner.run(open_quotas(world.space))
    assert runner.effects == []
    assert not runner.run(enlarge_quota(world.space, world.shard, 1, 1)) and runner.effects == []
