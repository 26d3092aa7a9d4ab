"""policy/eviction/victims.py: the choice is the shortest prefix of the candidates that makes enough room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distier.policy.eviction.victims import Candidate, Need, select_for_eviction, still_missing

candidates = st.lists(
    st.builds(lambda t, b: Candidate("id", "write id", t, b, True), st.integers(0, 50), st.integers(0, 50)), max_size=12
)
needs = st.builds(Need, st.integers(-20, 120), st.integers(-20, 120))


@given(candidates, needs, st.booleans())
def test_choice_is_shortest_sufficient_prefix(all_of_them: list[Candidate], need: Need, by_count: bool) -> None:
    chosen = select_for_eviction(all_of_them, need, by_count=by_count)
    assert chosen == all_of_them[: len(chosen)]
    if not still_missing(chosen, need, by_count=by_count).met:
        assert chosen == all_of_them
    elif chosen:
        assert not still_missing(chosen[:-1], need, by_count=by_count).met


@given(candidates, needs)
def test_choice_covers_count_and_tokens(chosen: list[Candidate], need: Need) -> None:
    size_bytes = need.size_bytes - sum(c.size_bytes for c in chosen)
    assert still_missing(chosen, need) == Need(need.amount - sum(c.tokens for c in chosen), size_bytes)
    assert still_missing(chosen, need, by_count=True) == Need(need.amount - len(chosen), size_bytes)


def test_choice_is_empty_if_there_is_room() -> None:
    assert select_for_eviction([Candidate("a", "t", 1, 1, True)], Need(0, -5)) == []
