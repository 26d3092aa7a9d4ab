"""How the budgets of a namespace are divided into the quotas of its shards, and how quotas change: pure functions.

A single LRU over all shards evicts all modules that were last used before one point in time. Separate LRUs do the same if the
oldest module of each is equally old. So a shard that evicts young modules needs more quota, and a shard whose oldest module
is older can give some. `rebalance` moves a small part of the quotas in that direction, again and again. This is the
`LruTailAgeStrategy` of CacheLib (Berg et al., "The CacheLib Caching Engine", OSDI 2020), which moves slabs between pools; the
age of the tail stands for the marginal value of a hit. (Rejected: shadow queues for each shard, as in Cidon et al.,
"Cliffhanger", NSDI 2016. They measure the marginal value itself, but cost a write at each miss.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

STEP = 0.1
"""Fraction of its quota that a shard gives at most at a time. It gains at most this fraction of its own or of an equal
quota."""

HYSTERESIS = 0.1
"""Ages that differ by less than this fraction from their mean count as equal; see `_tolerance`."""

FAR = 4
"""An age below the mean by this power of the tolerance is not chance: the load has moved to a shard with a small quota."""

QUOTA_MIN = 1 / 16
"""Fraction of an equal quota that an unused shard keeps, so that it can show that it is used again. If one shard has all the
load, about a sixteenth of the budget is therefore unused."""

FULL = 0.85
"""A shard that uses this fraction of its quota, apart from the headroom, is full: it evicts. A shard without room for
`ROOM_MODULES` more modules of its average size is full too: with large modules it may be half empty and evict."""

ROOM_MODULES = 2


class Amounts(NamedTuple):
    """An amount of each of the four budgets."""

    hot_tokens: int = 0
    hot_bytes: int = 0
    warm_modules: int = 0
    warm_bytes: int = 0

    def fits(self, other: Amounts) -> bool:
        """Return whether none of these amounts exceeds that of `other`."""
        return all(mine <= theirs for mine, theirs in zip(self, other, strict=True))


def lesser(a: Amounts, b: Amounts) -> Amounts:
    return Amounts(*map(min, a, b))


def sum_of(amounts: Sequence[Amounts]) -> Amounts:
    return Amounts(*map(sum, zip(*amounts, strict=True))) if amounts else Amounts()


@dataclass(frozen=True)
class Ledger:
    """The quotas of all shards.

    `next` has the new quotas, by shard, of a change in progress. A shard that loses quota still counts with its old one until
    it has evicted enough, and a shard that gains does not count with its new one yet. `quotas` is empty while the ledger is
    created.
    """

    version: int
    total: Amounts
    quotas: tuple[Amounts, ...] = ()
    next: Mapping[int, Amounts] = field(default_factory=dict)

    def limit(self, shard: int) -> Amounts:
        """Return the limits of a shard in this version of the ledger."""
        quota = self.quotas[shard]
        return lesser(quota, self.next.get(shard, quota))

    @property
    def losing(self) -> list[int]:
        """The shards that must evict before the change can be completed."""
        return [i for i in self.next if self.limit(i) != self.quotas[i]]

    def moved(self) -> tuple[Amounts, ...]:
        """Return the quotas after the change."""
        return tuple(self.next.get(i, quota) for i, quota in enumerate(self.quotas))


def equal(total: Amounts, shards: int) -> tuple[Amounts, ...]:
    """Return equal quotas with the sum `total`. They differ by at most one."""
    return tuple(Amounts(*((n + shards - 1 - i) // shards for n in total)) for i in range(shards))


def scaled(quotas: Sequence[Amounts], total: Amounts) -> tuple[Amounts, ...]:
    """Return quotas in the same proportion with the sum `total`.

    In each budget all quotas grow, or all shrink. So they can be set in any order without exceeding the greater total.
    """
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
    for i, n in enumerate(column):  # distribute the rest from rounding, at most one each
        if left and (total > before or made[i] < n):
            made[i] += 1
            left -= 1
    return made


def enlarged(ledger: Ledger, shard: int, need: Amounts, used: Sequence[Amounts]) -> dict[int, Amounts] | None:
    """Return the changed quotas with which `shard` may hold `need`, or None if the total does not suffice.

    The missing amount is taken first from the undistributed part of the total, then from the unused quota of the other
    shards, then from their used quota, each in proportion.
    """
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
    """Return proportional parts of `spare` with the sum `wanted`, or all of `spare` if that is less."""
    return [s - kept for s, kept in zip(spare, _scaled(spare, max(0, sum(spare) - wanted)), strict=True)]


def _changes(ledger: Ledger, columns: Sequence[Sequence[int]]) -> dict[int, Amounts]:
    rows = [Amounts(*row) for row in zip(*columns, strict=True)]
    return {i: row for i, (row, quota) in enumerate(zip(rows, ledger.quotas, strict=True)) if row != quota}


class ShardHoldings(NamedTuple):
    """The contents of a shard: its amounts, its numbers of hot and warm modules, and the ages of the next modules to evict.

    An age is the time since the last use (hot) or since the module became warm, in milliseconds. None means no module.
    """

    used: Amounts
    hot_count: int
    warm_count: int
    hot_age_ms: int | None
    warm_age_ms: int | None


class Floors(NamedTuple):
    """The greatest ranks that were evicted from hot and warm of a shard until `now_ms`; 0 unless the policy uses them."""

    now_ms: int
    hot: float
    warm: float


FLOORS_MS = 10_000
"""Over at least this time the rise of a floor is measured."""


def valued(
    seen: Sequence[ShardHoldings], before: Sequence[Floors] | None, now: Sequence[Floors]
) -> list[ShardHoldings]:
    """Return the contents of the shards with ages that stand for the marginal value of their quotas under `gdsf`.

    The floor of a tier is a price: a module stays until the floor has risen by its uses for each byte. So a shard whose floor
    rises twice as fast evicts modules of twice the value, and a module there stays for half the time. That time takes the place
    of the age, whose unit does not matter. Where a shard has no floor, or there is no earlier look, the ages stay as they are.
    """
    if before is None or len(before) != len(now):
        return list(seen)
    hot = [_stay(then.now_ms, then.hot, floors.now_ms, floors.hot) for then, floors in zip(before, now, strict=True)]
    warm = [_stay(then.now_ms, then.warm, floors.now_ms, floors.warm) for then, floors in zip(before, now, strict=True)]
    return [
        s._replace(
            hot_age_ms=s.hot_age_ms if None in hot or s.hot_age_ms is None else hot[i],
            warm_age_ms=s.warm_age_ms if None in warm or s.warm_age_ms is None else warm[i],
        )
        for i, s in enumerate(seen)
    ]


def _stay(then_ms: int, was: float, now_ms: int, floor: float) -> int | None:
    """Return how long a module of a fixed value stays, in an arbitrary unit; None where there is no floor."""
    if not floor or now_ms <= then_ms or floor < was:
        return None
    return int(min((now_ms - then_ms) / max(floor - was, 1e-12), 1e15)) or 1


def rebalance(ledger: Ledger, seen: Sequence[ShardHoldings], headroom: float) -> dict[int, Amounts]:
    """Return the changed quotas after one step towards equal ages; empty if none should change.

    Args:
        ledger: The current quotas.
        seen: The contents of each shard.
        headroom: Fraction of hot that the workers keep free.
    """
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
    """Return the fraction by which the age of a shard with `count` modules may differ from the mean.

    By chance alone it differs by about 1/sqrt(count). Following these differences costs hits, because evicted modules are
    read again.
    """
    return float(HYSTERESIS + max(1, count) ** -0.5)


def _enough(used: int, count: int, usable: float) -> int:
    """Return the smallest quota with which a shard with these contents is not full."""
    return int(max(used / FULL, used + ROOM_MODULES * used / max(1, count)) / usable)


def _rebalanced(
    quotas: list[int], enough: Sequence[int], ages: Sequence[int | None], tolerance: Sequence[float], total: int
) -> list[int]:
    """Rebalance one budget. A shard that is not full does not evict: it can give its surplus and needs nothing."""
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

    # If most ages are about equal, all may be within the tolerance of the mean except one shard with almost no quota and a far
    # smaller age. Then all shards with a greater age than the mean give.
    spare = [may_give(i, middle * (1 + tolerance[i])) for i in everyone]
    others_give = pool > 0 or any(spare)
    if any(age < middle / (1 + tolerance[i]) ** FAR for i, age in evicting.items()):
        spare = [may_give(i, middle) for i in everyone]
    wanted = [0 if spare[i] else wants(i) for i in everyone]
    moving = min(sum(wanted), sum(spare) + pool)
    lost, gained = _taken(spare, moving - min(pool, moving)), _taken(wanted, moving)
    return [s - lost[i] + gained[i] for i, s in enumerate(quotas)]


def _mean(ages: Mapping[int, int], quotas: Sequence[int]) -> float:
    """Return the mean age weighted by quota, because the age of a large shard is more significant."""
    weight = sum(quotas[i] for i in ages)
    return sum(age * quotas[i] for i, age in ages.items()) / weight if weight else 0.0
