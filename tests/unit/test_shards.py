"""Sampled miss ratios against exact LRU: the same while all modules are sampled, near them when they are not."""

from __future__ import annotations

import gzip
import os
from collections import OrderedDict
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.policy.eviction.replay import replay
from distier.policy.eviction.table import POLICIES
from distier.policy.shards import Misses, Shards
from distier.policy.traces import parse_trace

TRACES = Path(os.environ.get("BENCH_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
SIZES = {"a": (1, 7), "b": (2, 0), "c": (3, 5), "d": (5, 1), "e": (8, 2), "f": (13, 3)}
ACCESSES = st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=60)


def exact(keys: list[str], budget: int, unit: int) -> Misses:
    """The misses by stack distance: the sizes of what was used since, and of the module itself, are more than the budget."""
    stack: OrderedDict[str, None] = OrderedDict()
    misses = [0.0, 0.0, 0.0]
    for key in keys:
        since = None
        if key in stack:
            newer = list(stack)[list(stack).index(key) :]
            since = sum(SIZES[other][unit] for other in newer)
        if since is None or max(since, 1) > budget:
            for i, amount in enumerate((1, *SIZES[key])):
                misses[i] += amount
        stack[key] = None
        stack.move_to_end(key)
    return Misses(*misses)


@given(ACCESSES, st.integers(1, 40), st.booleans())
def test_all_modules_sampled_gives_exact_misses(keys: list[str], budget: int, in_tokens: bool) -> None:
    shards = Shards(6)  # as many slots as make it renumber them often
    for key in keys:
        shards.access(key, *SIZES[key])
    assert shards.rate == 1
    assert shards.misses(budget, in_tokens=in_tokens) == pytest.approx(exact(keys, budget, int(in_tokens)))


def test_curve_stays_exact_over_many_accesses() -> None:
    """Every few accesses the sampled modules get other slots."""
    keys = Random(3).choices(sorted(SIZES), k=500)
    shards = Shards(6)
    for key in keys:
        shards.access(key, *SIZES[key])
    for budget in range(1, 40):
        assert shards.misses(budget) == pytest.approx(exact(keys, budget, 0))


def skewed(n: int, modules: int, seed: int = 1) -> list[str]:
    rng = Random(seed)
    return [f"m{min(int(rng.paretovariate(0.4)), modules)}" for _ in range(n)]


def test_sample_is_bounded_and_the_curve_is_near_the_exact_one() -> None:
    keys = skewed(60_000, 20_000)
    whole, sampled = Shards(100_000), Shards(1024)
    for key in keys:
        whole.access(key, 10)
        sampled.access(key, 10)
    assert whole.rate == 1
    assert sampled.sampled <= 1024
    assert 0.05 < sampled.rate < 0.5
    errors = []
    for budget in (1000, 2500, 5000, 20_000, 50_000):
        errors.append(abs(whole.misses(budget).objects - sampled.misses(budget).objects) / len(keys))
    assert sum(errors) / len(errors) <= 0.01


def test_sample_does_not_depend_on_the_process_or_the_order_of_keys() -> None:
    keys = skewed(20_000, 5000)
    one, other = Shards(256), Shards(256)
    for key in keys:
        one.access(key, 1)
    for key in reversed(keys):
        other.access(key, 1)
    assert one.rate == other.rate
    assert one.sampled == other.sampled


def test_misses_never_grow_with_the_budget_and_stay_within_all_accesses() -> None:
    shards = Shards(64)
    for key in skewed(5000, 2000):
        shards.access(key, 3, 2)
    for in_tokens in (False, True):
        curve = [shards.misses(2.0**i, in_tokens=in_tokens).objects for i in range(20)]
        assert curve == sorted(curve, reverse=True)
        assert 0 <= curve[-1] <= curve[0] <= shards.accesses


@pytest.mark.parametrize("name", ["nasa_day", "git_caffeine", "mooncake_conv", "c2k_web12", "c2k_orm_busy"])
def test_mean_error_on_recorded_traces_is_at_most_a_hundredth(name: str) -> None:
    path = TRACES / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(
            f"there is no {path}: recorded traces are not part of the project (BENCH_TRACES names their folder)"
        )
    with gzip.open(path, "rt") as lines:
        trace = parse_trace(lines)
    shards = Shards()
    for i in trace.accesses:
        shards.access(trace.names[i], trace.sizes[i])
    errors = []
    for percent in (1, 10, 40):
        capacity = trace.footprint * percent // 100
        missed = replay(trace, POLICIES["lru"], capacity)
        errors.append(abs(shards.misses(capacity).objects - missed.objects) / shards.accesses)
    assert sum(errors) / len(errors) <= 0.01
