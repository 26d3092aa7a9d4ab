"""The division of budgets among shards: every function keeps the sums, and the balance approximates one LRU for all shards."""

from __future__ import annotations

import bisect
import gzip
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import mean
from typing import NamedTuple
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.plans.common.process_state import ProcessState
from distier.policy.quotas import (
    HYSTERESIS,
    STEP,
    Amounts,
    Floors,
    Ledger,
    ShardHoldings,
    enlarged,
    equal,
    rebalance,
    scaled,
    sum_of,
    valued,
)

numbers = st.integers(0, 2**50)
amounts = st.builds(Amounts, numbers, numbers, numbers, numbers)


@given(amounts, st.integers(1, 40))
def test_equal_quotas_sum_to_the_total(total: Amounts, shards: int) -> None:
    quotas = equal(total, shards)
    assert sum_of(quotas) == total
    for column in zip(*quotas, strict=True):
        assert max(column) - min(column) <= 1


@given(st.lists(amounts, min_size=1, max_size=20), amounts)
def test_scaled_quotas_sum_to_the_total_and_change_one_way(quotas: list[Amounts], total: Amounts) -> None:
    made = scaled(quotas, total)
    before = sum_of(quotas)
    assert sum_of(made) == total
    for b in range(4):
        for old, new in zip(quotas, made, strict=True):
            assert new[b] >= old[b] if total[b] >= before[b] else new[b] <= old[b]


@given(st.lists(amounts, min_size=2, max_size=16), st.data())
def test_enlarged_quota_is_taken_from_the_others(quotas: list[Amounts], data: st.DataObject) -> None:
    spare = data.draw(amounts)
    total = Amounts(*map(sum, zip(sum_of(quotas), spare, strict=True)))
    ledger = Ledger(1, total, tuple(quotas))
    used = [Amounts(*(data.draw(st.integers(0, n)) for n in quota)) for quota in quotas]
    need = data.draw(amounts)
    changes = enlarged(ledger, 1, need, used)
    assert (changes is None) == (not need.fits(total))
    if changes is None:
        return
    after = [changes.get(i, quota) for i, quota in enumerate(quotas)]
    assert need.fits(after[1]) and sum_of(after).fits(total) and all(Amounts().fits(quota) for quota in after)
    for b in range(4):
        free = spare[b] + sum(s[b] - u[b] for i, (s, u) in enumerate(zip(quotas, used, strict=True)) if i != 1)
        for i, quota in enumerate(quotas):
            if i != 1 and max(0, need[b] - quotas[1][b]) <= free:
                assert after[i][b] >= min(used[i][b], quota[b]), "it took used room although there was enough free room"


def seen(used: int, age_ms: int | None) -> ShardHoldings:
    """A shard with modules of size 1, which can be filled completely."""
    return ShardHoldings(Amounts(used, 0, 0, 0), used, 0, age_ms, None)


def ledger_of(*tokens: int, total: int = 0) -> Ledger:
    return Ledger(1, Amounts(total or sum(tokens), 0, 0, 0), tuple(Amounts(n, 0, 0, 0) for n in tokens))


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 120), st.none() | st.integers(0, 10**7)), min_size=2),
       st.floats(0, 0.9))  # fmt: skip
def test_balance_keeps_the_total_and_moves_small_steps(
    shards: list[tuple[int, int, int | None]], headroom: float
) -> None:
    ledger = ledger_of(*(quota for quota, _, _ in shards))
    changes = rebalance(ledger, [seen(quota * part // 100, age) for quota, part, age in shards], headroom)
    after = [changes.get(i, quota)[0] for i, quota in enumerate(ledger.quotas)]
    equal_share = ledger.total[0] / len(shards)
    assert sum(after) <= ledger.total[0] and min(after) >= 0
    for old, new in zip(ledger.quotas, after, strict=True):
        assert 0 <= old[0] - new <= max(1, STEP * old[0]) or 0 <= new - old[0] <= max(
            1, STEP * max(old[0], equal_share)
        )


def test_balance_moves_quota_to_the_shard_with_younger_evictions() -> None:
    changes = rebalance(ledger_of(1000, 1000), [seen(1000, 5_000), seen(1000, 60_000)], 0.0)
    assert changes[0][0] > 1000 > changes[1][0]
    assert sum(c[0] for c in changes.values()) == 2000


def test_shard_that_is_not_full_gives_only_unused_quota() -> None:
    changes = rebalance(ledger_of(1000, 1000), [seen(1000, 60_000), seen(100, 5)], 0.0)
    assert changes[0][0] > 1000 and changes[1][0] == 900
    assert rebalance(ledger_of(1000, 1000), [seen(1000, 60_000), seen(849, 5)], 0.0)[1][0] >= 998


def test_similar_ages_move_no_quota() -> None:
    large = ShardHoldings(Amounts(600), 2, 0, 5, None)  # two modules of 300: a third would fit, a fourth would not
    assert rebalance(ledger_of(1000, 1000), [seen(100, 60_000), large], 0.0)[1][0] > 1000
    near = int(60_000 * (1 + HYSTERESIS / 2))
    assert rebalance(ledger_of(1000, 1000), [seen(1000, 60_000), seen(1000, near)], 0.0) == {}
    assert rebalance(ledger_of(1000, 1000), [seen(100, 60_000), seen(100, 5)], 0.0) == {}


def test_shard_with_tiny_quota_gets_from_many_equally_old_shards() -> None:
    """Their age is the median, so none of them is much older than that."""
    old = [seen(1000, 60_000 + n) for n in range(15)]
    changes = rebalance(ledger_of(*[1000] * 15, 62), [*old, seen(62, 900)], 0.0)
    assert changes[15][0] > 62 and len(changes) > 1


def test_unused_shard_keeps_a_small_quota() -> None:
    ledger = ledger_of(*[1000] * 4)
    for _ in range(200):
        changes = rebalance(ledger, [seen(ledger.quotas[0][0], 10), *[seen(0, None)] * 3], 0.1)
        ledger = Ledger(1, ledger.total, tuple(changes.get(i, s) for i, s in enumerate(ledger.quotas)))
    assert sum(s[0] for s in ledger.quotas) == 4000
    assert all(62 <= s[0] <= 70 for s in ledger.quotas[1:])


# -- as a simulation -------------------------------------------------------------------------------------------------

HEADROOM = 0.1
"""The default of `worker.headroom`."""

SEEDS = range(1, 21 if os.environ.get("CHAOS") == "long" else 7)
POINT = 0.01

Reads = Sequence[tuple[int, int]]
"""Pairs of a shard and a module."""


class Hot:
    """The hot tier of a namespace: shards that evict the least recently used modules, and a worker."""

    def __init__(self, shards: int, total: int, sizes: Mapping[int, int]) -> None:
        self.ledger = Ledger(1, Amounts(total), equal(Amounts(total), shards))
        self.sizes = sizes
        self.last: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(shards)]
        self.used = [0] * shards

    def read(self, shard: int, module: int, now: int) -> bool:
        """Read a module, and return whether it was hot. It is hot afterwards, unless a fixed quota has no room for it."""
        last, size = self.last[shard], self.sizes[module]
        hit = module in last
        if not hit:
            self.evict(shard, self.ledger.quotas[shard][0] - size)
            self.used[shard] += size
        last[module] = now
        last.move_to_end(module)
        return hit

    def evict(self, shard: int, limit: int) -> None:
        while self.used[shard] > max(0, limit):
            module, _ = self.last[shard].popitem(last=False)
            self.used[shard] -= self.sizes[module]

    def ask(self, shard: int, module: int) -> None:
        """Request room as a put does that is larger than the quota."""
        need = Amounts(int(self.sizes[module] / (1 - HEADROOM)) + 1)
        if self.sizes[module] > self.ledger.quotas[shard][0]:
            self.move(enlarged(self.ledger, shard, need, [Amounts(n) for n in self.used]) or {})

    def work(self, now: int, *, moving: bool) -> None:
        """A round of the worker: first the headroom, then the quotas."""
        for i, quota in enumerate(self.ledger.quotas):
            self.evict(i, quota[0] - int(quota[0] * HEADROOM))
        if moving:
            self.move(rebalance(self.ledger, [self.seen(i, now) for i in range(len(self.last))], HEADROOM))

    def seen(self, shard: int, now: int) -> ShardHoldings:
        last = self.last[shard]
        age = now - next(iter(last.values())) if last else None
        return ShardHoldings(Amounts(self.used[shard]), len(last), 0, age, None)

    def move(self, changes: Mapping[int, Amounts]) -> None:
        quotas = tuple(changes.get(i, quota) for i, quota in enumerate(self.ledger.quotas))
        self.ledger = Ledger(1, self.ledger.total, quotas)
        for i in changes:
            self.evict(i, quotas[i][0])


def hit_ratio(reads: Reads, sizes: Mapping[int, int], shards: int, total: int, every: int, *, moving: bool) -> float:
    """Return the hit ratio of the second half of the reads. The worker has a round after every `every` reads."""
    hot, found = Hot(shards, total, sizes), 0
    for now, (shard, module) in enumerate(reads):
        if moving:
            hot.ask(shard, module)
        found += hot.read(shard, module, now) and now >= len(reads) // 2
        if now % every == 0:
            hot.work(now, moving=moving)
    return found / (len(reads) - len(reads) // 2)


class Loss(NamedTuple):
    """The hit ratio with one shard, and how much lower it is with 16."""

    one: float
    fixed: float
    moving: float


def loss(reads: Reads, sizes: Mapping[int, int], total: int, every: int) -> Loss:
    one = hit_ratio([(0, module) for _, module in reads], sizes, 1, total, every, moving=False)
    fixed, moving = (hit_ratio(reads, sizes, 16, total, every, moving=moving) for moving in (False, True))
    return Loss(one, one - fixed, one - moving)


def shard_of(load: str, chance: Random) -> int:
    """Return a random shard of 16, by the distribution of this load."""
    match load:
        case "even":
            return chance.randrange(16)
        case "skewed" | "moves on":  # the shards have from 18 % down to 0.02 % of the modules
            return min(chance.randrange(16) for _ in range(3))
        case "steep":  # nearly half of the modules are in one shard
            return min(chance.randrange(16) for _ in range(10))
    return 0


def zipf(load: str, n: int, modules: int, seed: int) -> Reads:
    """Return reads of modules: of some often, of most seldom."""
    chance = Random(seed)
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.9 for rank in range(modules)))
    shards = [shard_of(load, chance) for _ in weights]
    drawn = (bisect.bisect(weights, chance.random() * weights[-1]) for _ in range(n))
    reads = [(shards[module], module) for module in drawn]
    if load == "moves on":  # in the middle of the reads, to unread modules in shards that had few reads
        reads[n // 2 :] = [((shard + 8) % 16, modules + module) for shard, module in reads[n // 2 :]]
    return reads


TYPICAL = 200
"""The tokens of a typical module; the smallest has a quarter of that, the largest seven quarters."""


def losses(load: str, *, per_shard: int, every: int, n: int = 12_000) -> list[Loss]:
    """Return the loss for each seed; hot holds 16 % of the modules."""
    found = []
    for seed in SEEDS:
        reads = zipf(load, n, per_shard * 100, seed)
        sizes = {module: Random(module + seed).randrange(TYPICAL // 4, TYPICAL * 7 // 4) for _, module in reads}
        found.append(loss(reads, sizes, per_shard * 16 * TYPICAL, every))
    return found


def summary(what: str, found: Sequence[Loss]) -> str:
    """Return a line with the hits in percent, and the mean and spread of the loss over the seeds, in percentage points."""
    one, fixed, moving = ([part / POINT for part in column] for column in zip(*found, strict=True))
    spread = f"{mean(moving):.2f} ({min(moving):.2f} to {max(moving):.2f}, {len(found)} seeds)"
    return f"{what}: one shard {mean(one):.1f} %; points lost with moving quotas {spread}, with fixed ones {mean(fixed):.2f}"


@pytest.mark.parametrize("every", [16, 64, 256, 1024])
def test_moving_quotas_lose_few_hits_and_fixed_ones_many(every: int, report: Callable[[str], None]) -> None:
    """There are thirty typical modules per shard, and at least 25 rounds of the worker before the reads count."""
    found = losses("skewed", per_shard=30, every=every, n=max(12_000, 50 * every))
    report(summary(f"30 modules a shard, {every} reads a round", found))
    assert max(lost.moving for lost in found) <= 2 * POINT, found
    assert min(lost.fixed for lost in found) > 4 * POINT, found


@pytest.mark.parametrize("load", ["even", "steep", "all in one", "moves on"])
def test_moving_quotas_lose_few_hits_in_other_loads(load: str, report: Callable[[str], None]) -> None:
    found = losses(load, per_shard=30, every=64)
    report(summary(f"{load}, 30 modules a shard, 64 reads a round", found))
    assert max(lost.moving for lost in found) <= 2 * POINT, found


@pytest.mark.parametrize(("per_shard", "mean_max", "worst_max"), [(10, 2.1, 2.5), (20, 1.2, 1.7)])
def test_shards_of_few_modules_lose_more(
    per_shard: int, mean_max: float, worst_max: float, report: Callable[[str], None]
) -> None:
    """This is the limit that OPERATIONS states: the oldest of few modules says little, and no shard holds part of a module."""
    found = losses("skewed", per_shard=per_shard, every=64)
    report(summary(f"{per_shard} modules a shard, 64 reads a round", found))
    assert mean([lost.moving for lost in found]) <= mean_max * POINT, found
    assert max(lost.moving for lost in found) <= worst_max * POINT, found


@pytest.mark.parametrize("name", ["mooncake_conv", "nasa_day", "git_caffeine", "c2k_web12", "c2k_orm_busy"])
def test_moving_quotas_lose_no_more_in_real_traces(name: str, report: Callable[[str], None]) -> None:
    """In these traces hashing spreads the load well, so fixed quotas lose little. Moving quotas must not lose more."""
    path = Path(__file__).resolve().parents[3] / "shared" / "traces" / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"no trace at {path}")
    with gzip.open(path, "rt") as lines:
        next(lines)
        read = [int(line.split(",")[1]) for line in itertools.islice(lines, 15_000)]
    reads = [(crc32(f"k{key}".encode()) % 16, key) for key in read]
    total = max(64, len(set(read)) // 8)
    found = loss(reads, dict.fromkeys(read, TYPICAL), total * TYPICAL, 64)
    report(summary(f"{name}, {len(read)} reads, hot holds {total} of {len(set(read))}", [found]))
    assert found.moving <= 2 * POINT


# -- gdsf: the floors are prices ---------------------------------------------------------------------------------------


def held(age_ms: int = 1000) -> ShardHoldings:
    return ShardHoldings(Amounts(100, 400, 5, 300), 10, 5, age_ms, age_ms)


def test_shard_whose_floor_rises_faster_counts_as_evicting_younger_modules() -> None:
    before = [Floors(0, 1.0, 1.0), Floors(0, 5.0, 5.0)]
    now = [Floors(10_000, 3.0, 2.0), Floors(10_000, 6.0, 7.0)]
    slow_hot = valued([held(), held()], before, now)
    assert slow_hot[0].hot_age_ms == slow_hot[1].hot_age_ms / 2  # type: ignore[operator]
    assert slow_hot[0].warm_age_ms == 2 * slow_hot[1].warm_age_ms  # type: ignore[operator]


def test_quota_moves_to_the_shard_whose_floor_rises_faster() -> None:
    full = ShardHoldings(Amounts(1000, 1000, 50, 1000), 500, 500, 10, 10)
    ledger = Ledger(1, Amounts(2000, 2000, 100, 2000), (Amounts(1000, 1000, 50, 1000),) * 2)
    before, now = [Floors(0, 1.0, 1.0)] * 2, [Floors(10_000, 9.0, 9.0), Floors(10_000, 2.0, 2.0)]
    assert rebalance(ledger, [full, full], 0.0) == {}, "equally old"
    changed = rebalance(ledger, valued([full, full], before, now), 0.0)
    assert changed[0].hot_tokens > 1000 > changed[1].hot_tokens


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, [Floors(10_000, 2.0, 2.0)] * 2),
        ([Floors(0, 0.0, 0.0)] * 2, [Floors(10_000, 0.0, 0.0)] * 2),
        ([Floors(0, 1.0, 1.0)] * 2, [Floors(10_000, 2.0, 2.0), Floors(10_000, 0.0, 0.0)]),
        ([Floors(0, 5.0, 5.0)] * 2, [Floors(10_000, 2.0, 2.0)] * 2),
    ],
    ids=["first look", "lru", "one shard without a floor", "the floor was lost"],
)
def test_ages_stay_where_floors_say_nothing(before: list[Floors] | None, now: list[Floors]) -> None:
    assert valued([held(), held()], before, now) == [held(), held()]


def test_process_compares_floors_with_those_of_ten_seconds_ago() -> None:
    state = ProcessState()
    looks = [[Floors(at_ms, 1.0 + at_ms, 1.0)] for at_ms in (0, 2_000, 12_000, 13_000, 30_000)]
    assert [state.note_floors(look) for look in looks] == [None, looks[0], looks[0], looks[0], looks[2]]
