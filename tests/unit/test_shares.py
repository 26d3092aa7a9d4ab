"""The division of budgets among shards: sums are kept by every function, and the balance goes where LRU would go."""

from __future__ import annotations

import bisect
import gzip
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.policy.shares import HYSTERESIS, STEP, Amounts, Ledger, Seen, enlarged, equal, rebalance, scaled, sum_of

numbers = st.integers(0, 2**50)
amounts = st.builds(Amounts, numbers, numbers, numbers, numbers)


@given(amounts, st.integers(1, 40))
def test_equal_shares_are_the_total(total: Amounts, shards: int) -> None:
    shares = equal(total, shards)
    assert sum_of(shares) == total
    for column in zip(*shares, strict=True):
        assert max(column) - min(column) <= 1


@given(st.lists(amounts, min_size=1, max_size=20), amounts)
def test_scaled_shares_are_the_total_and_go_one_way(shares: list[Amounts], total: Amounts) -> None:
    made = scaled(shares, total)
    before = sum_of(shares)
    assert sum_of(made) == total
    for b in range(4):
        for old, new in zip(shares, made, strict=True):
            assert new[b] >= old[b] if total[b] >= before[b] else new[b] <= old[b]


@given(st.lists(amounts, min_size=2, max_size=16), st.data())
def test_an_enlarged_share_is_taken_from_the_others(shares: list[Amounts], data: st.DataObject) -> None:
    spare = data.draw(amounts)
    total = Amounts(*map(sum, zip(sum_of(shares), spare, strict=True)))
    ledger = Ledger(1, total, tuple(shares))
    used = [Amounts(*(data.draw(st.integers(0, n)) for n in share)) for share in shares]
    need = data.draw(amounts)
    changes = enlarged(ledger, 1, need, used)
    assert (changes is None) == (not need.fits(total))
    if changes is None:
        return
    after = [changes.get(i, share) for i, share in enumerate(shares)]
    assert need.fits(after[1]) and sum_of(after).fits(total) and all(Amounts().fits(share) for share in after)
    for b in range(4):
        free = spare[b] + sum(s[b] - u[b] for i, (s, u) in enumerate(zip(shares, used, strict=True)) if i != 1)
        for i, share in enumerate(shares):
            if i != 1 and max(0, need[b] - shares[1][b]) <= free:
                assert after[i][b] >= min(used[i][b], share[b]), "taken from what is used though there was enough"


def seen(used: int, age_ms: int | None) -> Seen:
    """One that holds modules of size 1, and so may be filled to the brim."""
    return Seen(Amounts(used, 0, 0, 0), used, 0, age_ms, None)


def ledger_of(*tokens: int, total: int = 0) -> Ledger:
    return Ledger(1, Amounts(total or sum(tokens), 0, 0, 0), tuple(Amounts(n, 0, 0, 0) for n in tokens))


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 120), st.none() | st.integers(0, 10**7)), min_size=2),
       st.floats(0, 0.9))  # fmt: skip
def test_a_balance_never_exceeds_the_total_and_moves_small_steps(
    shards: list[tuple[int, int, int | None]], headroom: float
) -> None:
    ledger = ledger_of(*(share for share, _, _ in shards))
    changes = rebalance(ledger, [seen(share * part // 100, age) for share, part, age in shards], headroom)
    after = [changes.get(i, share)[0] for i, share in enumerate(ledger.shares)]
    equal_share = ledger.total[0] / len(shards)
    assert sum(after) <= ledger.total[0] and min(after) >= 0
    for old, new in zip(ledger.shares, after, strict=True):
        assert 0 <= old[0] - new <= max(1, STEP * old[0]) or 0 <= new - old[0] <= max(
            1, STEP * max(old[0], equal_share)
        )


def test_the_shard_that_evicts_young_modules_gets_from_the_one_that_evicts_old_ones() -> None:
    changes = rebalance(ledger_of(1000, 1000), [seen(1000, 5_000), seen(1000, 60_000)], 0.0)
    assert changes[0][0] > 1000 > changes[1][0]
    assert sum(c[0] for c in changes.values()) == 2000


def test_a_shard_that_is_not_full_gives_what_it_does_not_use_and_no_more() -> None:
    changes = rebalance(ledger_of(1000, 1000), [seen(1000, 60_000), seen(100, 5)], 0.0)
    assert changes[0][0] > 1000 and changes[1][0] == 900
    assert rebalance(ledger_of(1000, 1000), [seen(1000, 60_000), seen(849, 5)], 0.0)[1][0] >= 998


def test_ages_that_are_about_equal_stay_as_they_are() -> None:
    large = Seen(Amounts(600), 2, 0, 5, None)  # two modules of 300: a third would fit, a fourth would not
    assert rebalance(ledger_of(1000, 1000), [seen(100, 60_000), large], 0.0)[1][0] > 1000
    near = int(60_000 * (1 + HYSTERESIS / 2))
    assert rebalance(ledger_of(1000, 1000), [seen(1000, 60_000), seen(1000, near)], 0.0) == {}
    assert rebalance(ledger_of(1000, 1000), [seen(100, 60_000), seen(100, 5)], 0.0) == {}


def test_a_shard_without_any_use_keeps_a_little() -> None:
    ledger = ledger_of(*[1000] * 4)
    for _ in range(200):
        changes = rebalance(ledger, [seen(ledger.shares[0][0], 10), *[seen(0, None)] * 3], 0.1)
        ledger = Ledger(1, ledger.total, tuple(changes.get(i, s) for i, s in enumerate(ledger.shares)))
    assert sum(s[0] for s in ledger.shares) == 4000
    assert all(124 <= s[0] <= 140 for s in ledger.shares[1:])


# -- as a simulation -------------------------------------------------------------------------------------------------


class Lru:
    """One shard: modules of size 1 by the time of their last use."""

    def __init__(self) -> None:
        self.last: OrderedDict[int, int] = OrderedDict()

    def get(self, key: int, now: int, share: int) -> bool:
        hit = key in self.last
        self.last[key] = now
        self.last.move_to_end(key)
        while len(self.last) > share:
            self.last.popitem(last=False)
        return hit

    def seen(self, now: int) -> Seen:
        return seen(len(self.last), now - next(iter(self.last.values())) if self.last else None)


def hits(keys: Sequence[tuple[int, int]], shards: int, total: int, *, moving: bool, every: int = 50) -> float:
    """The hit ratio of the second half of `keys`, (shard, key) each."""
    caches = [Lru() for _ in range(shards)]
    ledger = Ledger(1, Amounts(total), equal(Amounts(total), shards))
    found = 0
    for now, (shard, key) in enumerate(keys):
        found += caches[shard % shards].get(key, now, ledger.shares[shard % shards][0]) and now >= len(keys) // 2
        if moving and now % every == 0:
            changes = rebalance(ledger, [c.seen(now) for c in caches], 0.0)
            ledger = Ledger(1, ledger.total, tuple(changes.get(i, s) for i, s in enumerate(ledger.shares)))
            for cache, share in zip(caches, ledger.shares, strict=True):
                while len(cache.last) > share[0]:
                    cache.last.popitem(last=False)
    return found / (len(keys) - len(keys) // 2)


def skewed(n: int, seed: int) -> list[tuple[int, int]]:
    """Zipf keys, of which most belong to a few of 16 shards."""
    chance = Random(seed)
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.9 for rank in range(4000)))
    shard_of = [min(chance.randrange(16), chance.randrange(16), chance.randrange(16)) for _ in weights]
    drawn = (bisect.bisect(weights, chance.random() * weights[-1]) for _ in range(n))
    return [(shard_of[key], key) for key in drawn]


def test_sixteen_moving_shards_are_nearly_as_good_as_one_and_fixed_ones_are_not() -> None:
    keys = skewed(40_000, 7)
    one = hits([(0, key) for _, key in keys], 1, 600, moving=False)
    fixed, moving = (hits(keys, 16, 600, moving=moving) for moving in (False, True))
    assert one - moving <= 0.02, (one, fixed, moving)
    assert one - fixed > 0.04, (one, fixed, moving)


@pytest.mark.parametrize("name", ["mooncake_conv", "nasa_day", "git_caffeine", "c2k_web12", "c2k_orm_busy"])
def test_real_traces(name: str) -> None:
    """Here hashing spreads the load well, so fixed shares lose little; moving ones must not lose more."""
    path = Path(__file__).resolve().parents[3] / "shared" / "traces" / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"no trace at {path}")
    with gzip.open(path, "rt") as lines:
        next(lines)
        read = [int(line.split(",")[1]) for line in itertools.islice(lines, 15_000)]
    keys = [(crc32(f"k{key}".encode()) % 16, key) for key in read]
    hot = max(64, len(set(read)) // 8)
    one = hits([(0, key) for key in read], 1, hot, moving=False)
    fixed, moving = (hits(keys, 16, hot, moving=moving) for moving in (False, True))
    print(f"{name}, hot {hot}: 1 shard {one:.4f}, 16 fixed {fixed:.4f}, 16 moving {moving:.4f}")
    assert one - moving <= 0.02
