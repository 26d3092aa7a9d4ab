"""Replays of traces: what is parsed, and that no policy is better than the bounds."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distier.errors import Invalid
from distier.policy.eviction.replay import (
    Missed,
    accessed,
    belady,
    bound,
    compulsory,
    next_uses,
    pfoo_l,
    replay,
    replay_predicted,
)
from distier.policy.eviction.table import POLICIES
from distier.policy.traces import Trace, parse_trace


def trace(*accesses: tuple[str, int]) -> Trace:
    return parse_trace(f"{at},{key},{size}" for at, (key, size) in enumerate(accesses))


# -- parsing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["1,a,3", "2,b,4", "3,a,5"],
        ["time,key,size", "1,a,3", "", "2,b,4", "3,a,5"],
        ["1,a,3,s1\n", "2,b,4,s1\n", "3,a,5,s2\n"],
        ["Key,Session,Size", "a,s,3", "b,s,4", "a,s,5"],
    ],
)
def test_trace_with_and_without_a_header(lines: list[str]) -> None:
    found = parse_trace(lines)
    assert (found.names, list(found.accesses), found.sizes, found.tokens) == (["a", "b"], [0, 1, 0], [5, 4], None)
    assert found.footprint == 9
    assert accessed(found) == Missed(3, 14, None)


def test_tokens_come_from_their_column_or_from_bytes() -> None:
    assert parse_trace(["key,size,tokens", "a,10,3", "a,10,4"]).tokens == [4]
    assert parse_trace(["1,a,10"], tokens_per_byte=0.25).tokens == [2.5]
    assert parse_trace(["key,tokens", "a,3"], tokens_per_byte=0.25).tokens == [3]


def test_trace_without_sizes_has_modules_of_one_byte() -> None:
    assert parse_trace(["key", "a", "b"]).sizes == [1, 1]
    assert parse_trace(["5,a,0"]).sizes == [1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1,a,3", "2,b"], "line 2 of the trace has no column `size`"),
        (["1,a,3", "2,b,x"], "line 2 of the trace: size must be a whole number"),
        (["1,a,-3"], "line 1 of the trace: size must be a whole number"),
        (["time,size", "1,2"], "a header needs a column `key`"),
        (["time,key,size"], "no accesses"),
        ([], "no accesses"),
        (["1,a,3", "2," + "b" * 200_000 + ",3"], "line 2 of the trace is no CSV"),
    ],
)
def test_impossible_trace_says_which_line(lines: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse_trace(lines)


# -- bounds --------------------------------------------------------------------------------------------------------

UNIT = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=25).map(lambda keys: trace(*((k, 1) for k in keys)))
SIZED = st.lists(st.sampled_from([("a", 1), ("b", 2), ("c", 3), ("d", 5), ("e", 8)]), min_size=1, max_size=14).map(
    lambda accesses: trace(*accesses)
)


def optimum(of: Trace, capacity: int) -> int:
    """The misses of the best of all policies: all sets of modules are tried after each access."""

    @cache
    def best(at: int, held: frozenset[int]) -> int:
        if at == len(of.accesses):
            return 0
        i = of.accesses[at]
        there = [*(held | {i})]
        subsets = (frozenset(s) for n in range(len(there) + 1) for s in combinations(there, n))
        kept = (s for s in subsets if sum(of.sizes[j] for j in s) <= capacity)
        return (i not in held) + min(best(at + 1, s) for s in kept)

    return best(0, frozenset())


@settings(deadline=None)
@given(UNIT, st.integers(0, 5))
def test_min_is_the_optimum_of_modules_of_one_size(of: Trace, capacity: int) -> None:
    assert bound(of, capacity) == ("MIN", belady(of, capacity))
    assert belady(of, capacity).objects == optimum(of, capacity)


@settings(deadline=None)
@given(SIZED, st.integers(1, 12))
def test_pfoo_l_is_at_most_the_optimum_of_modules_with_sizes(of: Trace, capacity: int) -> None:
    assert pfoo_l(of, capacity).objects <= optimum(of, capacity) + 1e-9
    assert compulsory(of).objects <= optimum(of, capacity)


@pytest.mark.parametrize("name", POLICIES)
@given(of=UNIT | SIZED, capacity=st.integers(1, 12))
def test_no_policy_is_better_than_the_bounds(name: str, of: Trace, capacity: int) -> None:
    missed = replay(of, POLICIES[name], capacity)
    for least in (bound(of, capacity)[1], compulsory(of)):
        assert missed.objects >= least.objects - 1e-9
        if len(set(of.sizes)) > 1 or least == compulsory(of):
            assert missed.size_bytes >= least.size_bytes - 1e-9
    assert missed.objects <= accessed(of).objects


def test_lru_misses_what_was_used_least_recently() -> None:
    of = trace(("a", 2), ("b", 2), ("a", 2), ("c", 2), ("b", 2), ("a", 2))
    assert list(next_uses(of)) == [2, 4, 5, 6, 6, 6]
    assert replay(of, POLICIES["lru"], 4) == Missed(5, 10)
    assert belady(of, 2) == Missed(3, 6)
    assert compulsory(of) == Missed(3, 6)


def test_tokens_are_summed_by_their_own_sizes() -> None:
    of = parse_trace(["key,size,tokens", "a,1,10", "b,1,1", "a,1,10", "b,1,1"])
    assert replay(of, POLICIES["lru"], 1) == Missed(4, 4, 22)
    assert replay(of, POLICIES["lru"], 2) == Missed(2, 2, 11)
    sized = parse_trace(["key,size,tokens", "a,1,10", "b,2,1", "a,1,10", "b,2,1"])
    assert pfoo_l(sized, 3) == Missed(2, 3, 11)


# -- with prediction -----------------------------------------------------------------------------------------------


def walks(rounds: int, *, sessions: bool = True) -> Trace:
    """Two agents that walk the same ten modules in turns, in opposite phases; the budget below holds six modules."""
    lines = []
    for n in range(rounds):
        for step in range(10):
            lines += [f"{n * 10 + step},m{step},100,a", f"{n * 10 + step},m{(step + 5) % 10},100,b"]
    return parse_trace(lines if sessions else [line.rpartition(",")[0] for line in lines])


def test_prediction_finds_what_follows_in_a_session() -> None:
    of = walks(40)
    plain = replay(of, POLICIES["lru"], 600)
    predicted, ahead = replay_predicted(of, 600)
    assert plain.objects == len(of.accesses), "every module has left when its turn comes again"
    assert predicted.objects < 0.3 * plain.objects
    assert predicted.size_bytes == 100 * predicted.objects
    assert ahead.accesses - ahead.hits == predicted.objects
    assert ahead.used == ahead.hits, "whatever was there had come ahead"


def test_trace_without_sessions_is_one_session() -> None:
    assert set(walks(1, sessions=False).sessions) == {0}
    assert set(walks(1).sessions) == {0, 1}


def test_time_that_is_no_number_is_not_known() -> None:
    assert list(parse_trace(["time,key", "12.5,a", "noon,b"]).times_s) == [12.5, 0.0]
