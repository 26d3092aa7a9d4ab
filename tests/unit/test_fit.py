"""What `fit` chooses: never over the budget, nearly the most value, in a stable order, and with a reason for each module."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain.fitted import Choice, Fitted
from distier.domain.module import Module
from distier.domain.order import Order
from distier.errors import Invalid
from distier.policy.fit import Candidate, Pick, fit, value_of
from distier.policy.knapsack import knapsack


def most(weights: Sequence[int], values: Sequence[float], capacity: int) -> float:
    """The value of the optimum, by dynamic programming over all weights."""
    best = [0.0] * (capacity + 1)
    for weight, value in zip(weights, values, strict=True):
        for room in range(capacity, weight - 1, -1):
            best[room] = max(best[room], best[room - weight] + value)
    return best[capacity]


ITEMS = st.lists(st.tuples(st.integers(0, 60), st.floats(0.001, 1.0)), max_size=25)


@given(ITEMS, st.integers(0, 200))
def test_knapsack_is_within_a_hundredth_of_the_optimum(items: list[tuple[int, float]], capacity: int) -> None:
    weights, values = [w for w, _ in items], [v for _, v in items]
    chosen = knapsack(weights, values, capacity)
    assert chosen == sorted(set(chosen))
    assert sum(weights[i] for i in chosen) <= capacity
    assert sum(values[i] for i in chosen) >= 0.99 * most(weights, values, capacity)


KINDS = {
    "unrelated": lambda rng, weight: rng.random() + 1e-6,
    "proportional": lambda rng, weight: weight * (1 + rng.random() / 10) + 0.1,
    "weight and a constant": lambda rng, weight: weight + 20.0,
    "subset sum": lambda rng, weight: weight + 0.0001,
    "popularity": lambda rng, weight: 1 / (1 + rng.randint(0, 1000)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_knapsack_is_within_a_hundredth_of_the_optimum_of_larger_cases(kind: str) -> None:
    """The greedy solution alone is up to a half worse where few items fit."""
    for seed in range(60):
        rng = Random(seed)
        capacity = rng.choice([20, 100, 500])
        largest = rng.choice([capacity // 10, capacity // 3, capacity])
        weights = [rng.randint(0, largest) for _ in range(rng.choice([5, 12, 40, 80]))]
        values = [KINDS[kind](rng, weight) for weight in weights]
        chosen = knapsack(weights, values, capacity)
        assert sum(weights[i] for i in chosen) <= capacity
        assert sum(values[i] for i in chosen) >= 0.99 * most(weights, values, capacity), seed


CANDIDATES = st.lists(
    st.builds(
        Candidate, id=st.text(max_size=3), tokens=st.integers(0, 400), uses=st.floats(0, 1e6),
        age_s=st.floats(-10, 1e8), outline_tokens=st.integers(0, 60), probability=st.floats(0, 1),
    ),
    max_size=12,
)  # fmt: skip


@given(CANDIDATES, CANDIDATES, CANDIDATES, st.integers(0, 1500))
def test_fit_never_exceeds_the_budget_and_has_a_reason_for_each_module_that_is_not_whole(
    kept: list[Candidate], required: list[Candidate], others: list[Candidate], budget: int
) -> None:
    try:
        picks = fit([(c, "whole") for c in kept], required, others, budget)
    except Invalid:
        least = sum(c.tokens for c in kept) + sum(min(c.tokens, c.outline_tokens or c.tokens) for c in required)
        assert least > budget
        return
    assert picks == fit([(c, "whole") for c in kept], required, others, budget)
    assert len(picks) == len(kept) + len(required) + len(others)
    assert sum(pick.tokens for pick in picks) <= budget
    assert all(pick.form == "whole" for pick in picks[: len(kept)])
    assert all(pick.form != "none" for pick in picks[len(kept) : len(kept) + len(required)])
    for candidate, pick in zip([*kept, *required, *others], picks, strict=True):
        size = {"whole": candidate.tokens, "outline": candidate.outline_tokens, "none": 0}[pick.form]
        assert pick.tokens == size
        assert (pick.reason is None) == (pick.form == "whole")
        assert 0 < pick.value <= 1


@given(CANDIDATES, st.integers(0, 1500))
def test_value_of_whole_modules_is_within_a_hundredth_of_the_optimum(others: list[Candidate], budget: int) -> None:
    others = [c._replace(outline_tokens=0) for c in others]
    got = sum(pick.value for pick in fit([], [], others, budget) if pick.form == "whole")
    assert got >= 0.99 * most([c.tokens for c in others], [value_of(c) for c in others], budget)


def forms(picks: Sequence[Pick]) -> list[str]:
    return [pick.form for pick in picks]


def test_uses_recency_and_prediction_raise_the_value() -> None:
    plain = Candidate("a", 10, uses=3, age_s=3600)
    assert value_of(plain._replace(uses=4)) > value_of(plain) > value_of(plain._replace(age_s=7200))
    assert value_of(plain._replace(probability=0.5)) > value_of(plain)
    assert value_of(plain._replace(probability=1.0)) == 1.0
    assert 0 < value_of(Candidate("new", 10)) < 0.1


def test_module_that_does_not_fit_whole_is_taken_as_its_outline() -> None:
    book, note = Candidate("book", 900, uses=50, outline_tokens=30), Candidate("note", 60, uses=1)
    picks = fit([], [], [book, note], 100)
    assert forms(picks) == ["outline", "whole"]
    assert [pick.reason for pick in picks] == ["too large", None]


def test_outlines_do_not_displace_whole_modules_that_fit() -> None:
    many = [Candidate(f"m{i}", 100, uses=5, outline_tokens=10) for i in range(20)]
    picks = fit([], [], many, 525)
    assert forms(picks) == ["whole"] * 5 + ["outline"] * 2 + ["none"] * 13
    assert {pick.reason for pick in picks[5:]} == {"outranked"}


def test_required_modules_are_whole_if_they_fit_and_come_before_worthier_ones() -> None:
    dull, star = Candidate("dull", 80, outline_tokens=8), Candidate("star", 80, uses=1000)
    assert forms(fit([], [dull], [star], 100)) == ["whole", "none"]
    assert forms(fit([], [dull], [star], 160)) == ["whole", "whole"]


def test_required_modules_that_do_not_fit_together_become_outlines() -> None:
    a, b = Candidate("a", 80, uses=1, outline_tokens=8), Candidate("b", 80, uses=9, outline_tokens=8)
    assert forms(fit([], [a, b], [], 100)) == ["outline", "whole"]
    with pytest.raises(Invalid, match=r"keep takes 90 tokens and required at least 16.*budget_tokens, 100"):
        fit([(Candidate("kept", 90), "whole")], [a, b], [], 100)


def test_kept_outline_stays_an_outline_although_there_is_room() -> None:
    assert forms(fit([(Candidate("a", 10, outline_tokens=3), "outline")], [], [], 100)) == ["outline"]


# -- the result ----------------------------------------------------------------------------------------------------


def module(id: str, tokens: int, version: int) -> Module:
    order = Order(1, version, "0" * 20)
    return Module(id, b"x", "text/plain", tokens, "given", (), {}, order, "", "hot", 0, 0)


def chosen(tokens: int, budget: int) -> Fitted:
    first = Choice("a", "whole", tokens, tokens, version=Order(1, 1, "0" * 20))
    return Fitted((first, Choice("b", "none", 0, 5, reason="outranked")), tokens, budget)


def test_module_that_grew_since_it_was_chosen_makes_fit_choose_again() -> None:
    assert chosen(10, 20).filled({"a": module("a", 21, 2)}) is None
    assert chosen(10, 20).filled({"a": None}) is None
    found = chosen(10, 20).filled({"a": module("a", 20, 2)}, {"a": ("whole", Order(1, 1, "0" * 20))})
    assert found is not None
    assert (found.tokens, found.ids, found.intact) == (20, ("a",), False)
    assert [choice.id for choice in found.left_out] == ["b"]
