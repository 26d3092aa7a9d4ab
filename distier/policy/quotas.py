"""How the budgets of a namespace are divided among its shards, and how that changes: pure functions over values.

One LRU over everything evicts, everywhere, what was last used before one point in time. Many LRUs do the same where the
oldest module of each is equally old. So a shard that evicts young modules needs more, and one whose oldest module is older
than that can give: `rebalance` moves a small part of the shares in that direction, again and again. This is the
`LruTailAgeStrategy` of CacheLib (Berg et al., "The CacheLib Caching Engine", OSDI 2020), by which it moves slabs between
pools; the age of the tail stands for the marginal value of a hit. (The road not taken: shadow queues behind each shard, as
in Cidon et al., "Cliffhanger", NSDI 2016, measure the marginal value itself, and cost a write at each miss.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

STEP = 0.1
"""A shard gives at most this part of its share at a time; it gets at most this part of its own, or of an equal one, more."""

HYSTERESIS = 0.1
"""Ages that differ by less than this part from their middle are equal; see `_tolerance`."""

FAR = 4
"""An age below the middle by this power of the tolerance is no chance: the load has moved to a shard that has little."""

QUOTA_MIN = 1 / 16
"""Of an equal share: what a shard without any use keeps, so that it can show that it is used again. Where one
shard has all the load, about a sixteenth of the budget lies idle by it."""

FULL = 0.85
"""A shard that holds this part of what it may hold, apart from the head-room, is full: it evicts. So is one that has no room
for `ROOM_MODULES` more of the modules that it holds: where they are large, it may be half empty and evict."""

ROOM_MODULES = 2


class Amounts(NamedTuple):
    """An amount of each of the four budgets."""

    hot_tokens: int = 0
    hot_bytes: int = 0
    warm_modules: int = 0
    warm_bytes: int = 0

    def fits(self, other: Amounts) -> bool:
        """Whether none of these amounts is greater than that of `other`."""
        return all(mine <= theirs for mine, theirs in zip(self, other, strict=True))


def lesser(a: Amounts, b: Amounts) -> Amounts:
    return Amounts(*map(min, a, b))


def sum_of(amounts: Sequence[Amounts]) -> Amounts:
    return Amounts(*map(sum, zip(*amounts, strict=True))) if amounts else Amounts()


@dataclass(frozen=True)
class Ledger:
    """Who has which share. `next` has the shares, by shard, of a change that is under way: what a shard loses by it counts
    for it until it has been evicted there, what a shard gains does not count for it yet. `quotas` is empty while the ledger
    is being made."""

    version: int
    total: Amounts
    quotas: tuple[Amounts, ...] = ()
    next: Mapping[int, Amounts] = field(default_factory=dict)

    def limit(self, shard: int) -> Amounts:
        """What the shard may hold by this version of the ledger."""
        quota = self.quotas[shard]
        return lesser(quota, self.next.get(shard, quota))

    @property
    def losing(self) -> list[int]:
        """The shards that must hold less before the change can come true."""
        return [i for i in self.next if self.limit(i) != self.quotas[i]]

    def moved(self) -> tuple[Amounts, ...]:
        """The shares after the change."""
        return tuple(self.next.get(i, quota) for i, quota in enumerate(self.quotas))


def equal(total: Amounts, shards: int) -> tuple[Amounts, ...]:
    """Equal shares: they differ by one where they must, and their sum is the total."""
    return tuple(Amounts(*((n + shards - 1 - i) // shards for n in total)) for i in range(shards))


def scaled(quotas: Sequence[Amounts], total: Amounts) -> tuple[Amounts, ...]:
    """Shares in the same proportion whose sum is `total`. In each budget all grow, or all shrink: shares that change in one
    direction only may be set in any order without exceeding the greater of both totals."""
    columns = [_scaled([s[b] for s in quotas], total[b]) for b in range(len(Amounts._fields))]
    return tuple(Amounts(*row) for row in zip(*columns, strict=True))


def _scaled(column: Sequence[int], total: int) -> list[int]:
    before = sum(column)
    if before == total:
        return list(column)
    if not before:
        return [quota[0] for quota in equal(Amounts(total), len(column))]
    made = [n * total // before for n in column]
    left = total - sum(made)
    for i, n in enumerate(column):  # what rounding left: at most one each
        if left and (total > before or made[i] < n):
            made[i] += 1
            left -= 1
    return made


def enlarged(ledger: Ledger, shard: int, need: Amounts, used: Sequence[Amounts]) -> dict[int, Amounts] | None:
    """The shares after which `shard` may hold `need`: what is missing is taken from what nobody has, then from what the
    others do not use, then from what they use, each in proportion. None where the total does not suffice."""
    if not need.fits(ledger.total):
        return None
    columns: list[list[int]] = []
    for b, total in enumerate(ledger.total):
        quotas = [s[b] for s in ledger.quotas]
        missing = max(0, need[b] - quotas[shard])
        quotas[shard] += missing
        missing -= min(missing, total - (sum(quotas) - missing))
        for kept in ([u[b] for u in used], [0] * len(used)):
            spare = [0 if i == shard else max(0, s - k) for i, (s, k) in enumerate(zip(quotas, kept, strict=True))]
            given = _taken(spare, missing)
            quotas = [s - g for s, g in zip(quotas, given, strict=True)]
            missing -= sum(given)
        columns.append(quotas)
    return _changes(ledger, columns)


def _taken(spare: Sequence[int], wanted: int) -> list[int]:
    """Parts of `spare`, in proportion, that are `wanted` together, or all of it."""
    return [s - kept for s, kept in zip(spare, _scaled(spare, max(0, sum(spare) - wanted)), strict=True)]


def _changes(ledger: Ledger, columns: Sequence[Sequence[int]]) -> dict[int, Amounts]:
    rows = [Amounts(*row) for row in zip(*columns, strict=True)]
    return {i: row for i, (row, quota) in enumerate(zip(rows, ledger.quotas, strict=True)) if row != quota}


class ShardHoldings(NamedTuple):
    """What a shard holds, in how many modules hot and warm, and how long ago those that are next to leave were last used or
    put there (ms; None: there are none)."""

    used: Amounts
    hot_count: int
    warm_count: int
    hot_age_ms: int | None
    warm_age_ms: int | None


def rebalance(ledger: Ledger, seen: Sequence[ShardHoldings], headroom: float) -> dict[int, Amounts]:
    """The shares that are a step closer to equal ages; empty where they are as they should be. `headroom` is the part of
    hot that the worker keeps free."""
    columns = []
    for b in range(len(Amounts._fields)):
        quotas, used = [s[b] for s in ledger.quotas], [s.used[b] for s in seen]
        ages = [s.hot_age_ms if b < 2 else s.warm_age_ms for s in seen]
        counts = [s.hot_count if b < 2 else s.warm_count for s in seen]
        usable = 1 - headroom if b < 2 else 1.0
        enough = [_enough(u, n, usable) for u, n in zip(used, counts, strict=True)]
        columns.append(_rebalanced(quotas, enough, ages, [_tolerance(n) for n in counts], ledger.total[b]))
    return _changes(ledger, columns)


def _tolerance(count: int) -> float:
    """By which part the age of a shard's oldest of so many modules may differ from the middle: by chance alone it differs by
    about one part in the square root of their number. (To follow that costs hits: what leaves the one shard is read again.)"""
    return float(HYSTERESIS + max(1, count) ** -0.5)


def _enough(used: int, count: int, usable: float) -> int:
    """The share with which a shard that holds this much is not full."""
    return int(max(used / FULL, used + ROOM_MODULES * used / max(1, count)) / usable)


def _rebalanced(
    quotas: list[int], enough: Sequence[int], ages: Sequence[int | None], tolerance: Sequence[float], total: int
) -> list[int]:
    """One budget. A shard that is not full does not evict: it can give what is more than enough, and needs nothing."""
    everyone = range(len(quotas))
    evicting = {i: max(1, ages[i] or 0) for i in everyone if quotas[i] <= enough[i] and ages[i] is not None}
    if not evicting:
        return quotas
    middle = _mean(evicting, quotas)
    free = {i: max(0, quotas[i] - enough[i]) for i in everyone if i not in evicting}
    pool = max(0, total - sum(quotas))
    least = total * QUOTA_MIN / len(quotas)
    equal_step = int(total / len(quotas) * STEP)

    def may_give(i: int, age_min: float) -> int:
        step = max(1, int(quotas[i] * STEP))
        if i in evicting:
            step = step if evicting[i] > age_min else 0
        else:
            step = min(step, free[i])
        return min(step, max(0, int(quotas[i] - least)))

    def wants(i: int) -> int:
        if i not in evicting or evicting[i] > middle / (1 if others_give else 1 + tolerance[i]):
            return 0
        return max(1, equal_step, int(quotas[i] * STEP))

    # The middle is near the many that are about equal, and all may be within the tolerance of it but for one that has next to
    # nothing and is far too young: then all that are older than the middle give.
    spare = [may_give(i, middle * (1 + tolerance[i])) for i in everyone]
    others_give = pool > 0 or any(spare)
    if any(age < middle / (1 + tolerance[i]) ** FAR for i, age in evicting.items()):
        spare = [may_give(i, middle) for i in everyone]
    wanted = [0 if spare[i] else wants(i) for i in everyone]
    moving = min(sum(wanted), sum(spare) + pool)
    lost, gained = _taken(spare, moving - min(pool, moving)), _taken(wanted, moving)
    return [s - lost[i] + gained[i] for i, s in enumerate(quotas)]


def _mean(ages: Mapping[int, int], quotas: Sequence[int]) -> float:
    """By share: a large shard's age says more."""
    weight = sum(quotas[i] for i in ages)
    return sum(age * quotas[i] for i, age in ages.items()) / weight if weight else 0.0
