"""A guard against getting slower that no noise can trip: every verb's counts are what `counts.json` says, exactly."""

from __future__ import annotations

import json

import pytest

from tests.guard.measure import PATH, VERBS, Counts, measure, python_version


def test_no_verb_costs_more_or_less_than_it_is_known_to() -> None:
    known = json.loads(PATH.read_text())
    if python_version() not in known:
        pytest.skip(f"no counts for Python {python_version()}: `make guard` there writes them")
    wanted = known[python_version()]
    off = differences(wanted, measure())
    if off:  # chance (a timer, a packet) only adds: what is off by chance is not off by the same twice
        again = differences(wanted, measure())
        off = {verb: counts for verb, counts in off.items() if again.get(verb) == counts}
    assert not off, "\n".join(
        ["if that is as it should be, run `make guard` and look at the diff:", *(f"{v}: {c}" for v, c in off.items())]
    )


def differences(wanted: dict[str, dict[str, Counts]], found: dict[str, dict[str, Counts]]) -> dict[str, str]:
    return {
        f"{kind} {verb}": f"{wanted.get(kind, {}).get(verb)} is now {found[kind].get(verb)}"
        for kind in found
        for verb in sorted(found[kind].keys() | wanted.get(kind, {}).keys())
        if wanted.get(kind, {}).get(verb) != found[kind].get(verb)
    }


def test_what_is_read_hot_costs_one_round_trip_and_no_script() -> None:
    """The figures that the design promises, whatever else changes."""
    (version,) = [v for v in json.loads(PATH.read_text()) if v == python_version()] or [None]
    if version is None:
        pytest.skip(f"no counts for Python {python_version()}")
    known = json.loads(PATH.read_text())[version]
    for kind in ("sync", "async"):
        counts = known[kind]
        assert set(counts) - {"get near"} == {name for name, _, _ in VERBS}
        assert (counts["get hot"]["round_trips"], counts["get hot"]["commands"]) == (1, 1)
        assert counts["get warm again"]["round_trips"] == 1
        assert counts["get cold"]["archive"] == 1
    assert known["sync"]["get near"]["round_trips"] == 0
