"""Prediction: what is learned, how it is measured, and that neither memory nor a workload without structure costs much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from distier.policy.predict import Context, Prediction, Predictor, Walk
from distier.policy.predict.counts import CHANGES_MAX, HALF_LIFE, USES_MAX, Counts
from distier.policy.predict.predictor import ISSUED_MAX, THRESHOLD_MAX
from distier.policy.predict.scores import HOPE, Guess, Scores
from distier.policy.predict.simulate import Access, replay
from distier.policy.predict.sources import DAY_S, HOUR_S

PATH = ("plan", "read", "write", "check", "send")


def nowhere(_: str) -> bool:
    return False


def walk(predictor: Predictor, ids: Sequence[str], keywords: Sequence[str] = (), now_s: float = 0.0) -> list[set[str]]:
    """Walk through a new session. Returns what was predicted after each access."""
    session = Walk(keywords)
    predictor.begin(session)
    found = []
    for id in ids:
        predictor.observe(session, id, now_s)
        found.append({p.id for p in predictor.next_of(session, now_s, nowhere)})
    return found


def ids_of(found: Sequence[Prediction]) -> list[str]:
    return [p.id for p in found]


def test_sequence_seen_once_is_predicted_within_the_window() -> None:
    predictor = Predictor()
    assert walk(predictor, PATH) == [set()] * len(PATH)
    assert walk(predictor, PATH)[:2] == [{"read", "write", "check"}, {"write", "check", "send"}]


def test_modules_of_another_session_in_between_do_not_follow() -> None:
    predictor = Predictor()
    mine, other = Walk(), Walk()
    for id in PATH:
        predictor.observe(mine, id, 0.0)
        predictor.observe(other, f"other-{id}", 0.0)
    followers = predictor.sequence.counts.get("plan")
    assert followers is not None
    assert set(followers.followers) == {"read", "write", "check"}


def test_predict_access_names_sources_and_changes_nothing() -> None:
    predictor = Predictor()
    for _ in range(3):
        walk(predictor, PATH, ("mail",))
    context = Context(("read",), ("mail",), 0.0)
    first = predictor.predict_access(context)
    assert first == predictor.predict_access(context)
    assert first[0].probability >= first[-1].probability >= predictor.target
    assert {p.id: p.why for p in first}["plan"] == "context"
    assert "sequence" in {p.id: p.why for p in first}["write"]
    assert "read" not in ids_of(first)


def test_probability_of_two_sources_is_their_noisy_or() -> None:
    predictor = Predictor()
    for _ in range(2):
        walk(predictor, ("a", "b"), ("k",))
    (both,) = (p for p in predictor.predict_access(Context(("a",), ("k",), 0.0)) if p.id == "b")
    (one,) = (p for p in predictor.predict_access(Context(("a",), (), 0.0)) if p.id == "b")
    (other,) = (p for p in predictor.predict_access(Context((), ("k",), 0.0)) if p.id == "b")
    assert abs((1 - both.probability) - (1 - one.probability) * (1 - other.probability)) < 1e-9


def test_keywords_of_a_session_predict_its_first_modules() -> None:
    predictor = Predictor()
    for n in range(4):
        walk(predictor, ("pdf", "forms", f"scratch-{n}"), ("invoices",))
    session = Walk(("invoices",))
    predictor.begin(session)
    assert ids_of(predictor.next_of(session, 0.0, nowhere)) == ["forms", "pdf"]
    assert predictor.next_of(Walk(("other",)), 0.0, nowhere) == []


def test_hour_needs_a_habit() -> None:
    predictor = Predictor()
    for day in range(4):
        assert "report" not in set().union(*walk(predictor, ("mail",), now_s=day * DAY_S)) or day >= 2
        walk(predictor, ("report",), now_s=day * DAY_S + 60)
    assert "report" in ids_of(predictor.predict_access(Context((), (), 4 * DAY_S)))
    assert predictor.predict_access(Context((), (), 4 * DAY_S + 5 * HOUR_S)) == []


def test_guess_that_proves_wrong_falls_silent_and_recovers() -> None:
    scores, guess = Scores(horizon=4), Guess("x", 0.7, 3.0)
    assert scores.probability(guess) == HOPE
    for n in range(20):
        scores.note(guess._replace(id=f"wrong-{n}"))
    assert scores.probability(guess) < 0.2
    for n in range(200):  # nobody acted on them, and they are scored all the same
        scores.note(guess._replace(id=f"right-{n}"))
        scores.used(f"right-{n}")
    assert scores.probability(guess) > 0.9


def test_two_silent_sources_do_not_add_up_to_a_prediction() -> None:
    predictor = Predictor(target=0.5)
    for n in range(4):
        walk(predictor, ("a", "b", f"other-{n}"), ("k",))
    context = Context(("a",), ("k",), 0.0)
    (guess,) = (g for g in predictor.sequence.guesses(("a",)) if g.id == "b")
    (other,) = (g for g in predictor.context.guesses(("k",)) if g.id == "b")
    for source, its in ((predictor.sequence, guess), (predictor.context, other)):
        for n in range(3000):  # two of five come true
            source.scores.note(its._replace(id=f"id-{n}"))
            if n % 5 < 2:
                source.scores.used(f"id-{n}")
        assert 0.3 < source.scores.probability(its) < 0.5
    assert "b" not in ids_of(predictor.predict_access(context))


def test_single_observations_count_for_nothing_after_few_wrong_ones() -> None:
    scores = Scores(horizon=1)
    for n in range(3):
        scores.note(Guess(f"id-{n}", 0.5, 1.0))
    assert scores.probability(Guess("x", 0.5, 1.0)) == 0.0


def test_threshold_follows_precision_and_relaxes() -> None:
    predictor = Predictor(target=0.5)
    for n in range(200):
        predictor.issue(Prediction(f"id-{n}", 0.9, "sequence"))
        predictor.wasted(f"id-{n}")
    assert predictor.threshold == THRESHOLD_MAX
    assert predictor.outcomes["sequence"].precision == 0.0
    for n in range(200):
        predictor.issue(Prediction(f"id-{n}", 0.9, "sequence"))
        assert predictor.used(f"id-{n}")
    assert predictor.threshold == predictor.target
    assert predictor.outcomes["sequence"].precision == 0.5
    predictor.threshold, session = THRESHOLD_MAX, Walk()
    for n in range(5000):
        predictor.observe(session, f"id-{n}", 0.0)
    assert predictor.threshold == predictor.target


def test_mark_ends_with_the_first_use() -> None:
    predictor = Predictor()
    predictor.issue(Prediction("a", 0.9, "context+hour"))
    predictor.issue(Prediction("a", 0.9, "context"))
    assert predictor.is_marked("a")
    assert predictor.observe(Walk(), "a", 0.0)
    assert not predictor.observe(Walk(), "a", 0.0)
    outcomes = predictor.outcomes["context"]
    assert (outcomes.issued, outcomes.used, outcomes.wasted) == (1, 1, 0)
    for n in range(ISSUED_MAX + 3):
        predictor.issue(Prediction(f"id-{n}", 0.9, "hour"))
    assert predictor.outcomes["hour"].wasted == 3


# -- counts ------------------------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=200)


@given(steps)
def test_counts_stay_bounded(pairs: list[tuple[int, int]]) -> None:
    counts = Counts(keys_max=3, followers_max=2)
    for key, follower in pairs:
        counts.use(f"k{key}")
        counts.follow(f"k{key}", f"f{follower}")
        entry = counts.get(f"k{key}")
        assert entry is not None
        assert f"f{follower}" in entry.followers, "a new follower makes the weakest leave, not itself"
        assert len(counts) <= 3
        assert len(entry.followers) <= 2
        assert entry.uses <= USES_MAX


def test_changes_are_bounded_and_taken_once() -> None:
    counts = Counts(keys_max=10, followers_max=2)
    for n in range(CHANGES_MAX + 10):
        counts.use(f"k{n}")
        counts.follow(f"k{n}", "f")
    assert counts.changed == CHANGES_MAX
    first = counts.take_changes(64)
    assert [c.key for c in first] == [f"k{n}" for n in range(64)]
    assert first[0] == ("k0", 1.0, {"f": 1.0})
    assert len(counts.take_changes(10_000)) == CHANGES_MAX - 64
    assert counts.take_changes(1) == []


def test_merge_takes_the_fleets_counts_and_adds_what_was_not_sent() -> None:
    counts = Counts(keys_max=10, followers_max=2)
    counts.use("k")
    counts.follow("k", "mine")
    counts.merge("k", 5.0, {"theirs": 3.0, "mine": 1.0, "rare": 0.5})
    entry = counts.get("k")
    assert entry is not None
    assert (entry.uses, entry.followers) == (6.0, {"theirs": 3.0, "mine": 2.0})
    counts.take_changes(1)
    counts.merge("k", 6.0, {"theirs": 3.0, "mine": 2.0})
    assert (entry.uses, entry.followers) == (6.0, {"theirs": 3.0, "mine": 2.0}), "what was sent is not added again"


def test_half_life_is_counted_in_uses() -> None:
    counts = Counts(keys_max=1000, followers_max=2)
    counts.merge("old", 8.0, {"f": 4.0})
    for n in range(HALF_LIFE * 100 + 1):
        counts.use(f"k{n % 50}")
    entry = counts.get("old")
    assert entry is not None
    assert (entry.uses, entry.followers["f"]) == (4.0, 2.0)


# -- replays -----------------------------------------------------------------------------------------------------------------


def paths(chance: Random, *, sessions: int) -> Iterator[Access]:
    """Sessions that follow one of 50 paths of six modules, in turn with each other."""
    for session in range(sessions):
        path = chance.randrange(50)
        for step in range(6):
            yield Access(session, f"{path}-{step}", 1, session)


def test_replay_of_paths_hits_more_and_wastes_little() -> None:
    trace = list(paths(Random(1), sessions=1500))
    without, with_it = replay(trace, 30), replay(trace, 30, Predictor())
    assert with_it.hit_ratio > without.hit_ratio + 0.5
    assert with_it.precision > 0.9
    assert with_it.reads < without.reads * 1.1


def test_replay_without_structure_costs_nothing() -> None:
    chance = Random(2)
    trace = [Access(n, f"m{int(chance.paretovariate(0.4)) % 5000}") for n in range(60_000)]
    without, with_it = replay(trace, 100), replay(trace, 100, Predictor())
    assert with_it.hit_ratio > without.hit_ratio - 0.001
    assert with_it.reads < without.reads * 1.01


def test_replay_is_deterministic() -> None:
    trace = list(paths(Random(3), sessions=200))
    assert replay(trace, 30, Predictor()) == replay(trace, 30, Predictor())


def test_replay_without_predictor_is_lru() -> None:
    found = replay([Access(0, key) for key in "abacab"], 2)
    assert (found.hits, found.reads, found.issued) == (2, 4, 0)
