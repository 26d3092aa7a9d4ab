"""Loading ahead, without a server: the pace of the background, the ids of a session, and timed plans."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from distier.client.ahead import READS_MAX, Pace, Reads, timed
from distier.effects import Cancelled, Count, Plan
from distier.errors import RedisUnavailable


def busy(pace: Pace, *, seconds: float, round_s: float, used: int = 0) -> float:
    """Run rounds as often as the pace allows. Returns the time that they took."""
    now_s = took_s = 0.0
    while now_s < seconds:
        wait_s = pace.wait_s(now_s)
        if wait_s:
            now_s += max(wait_s, 0.002)
            continue
        pace.spend(round_s, used)
        took_s += round_s
        now_s += round_s
    return took_s


def test_background_takes_a_hundredth_of_the_time() -> None:
    assert busy(Pace(0.0), seconds=10.0, round_s=0.002) == pytest.approx(Pace.BURST_S + 10 * Pace.SHARE, rel=0.1)


def test_used_predictions_pay_for_more_rounds() -> None:
    assert busy(Pace(0.0), seconds=10.0, round_s=0.002, used=1) > 0.15
    assert busy(Pace(0.0), seconds=10.0, round_s=0.002, used=2) > 9.0


def test_clock_that_stands_still_allows_only_the_burst() -> None:
    pace = Pace(5.0)
    pace.spend(Pace.BURST_S + 0.001, 0)
    assert pace.wait_s(5.0) == pytest.approx(0.001 / Pace.SHARE)
    assert pace.wait_s(4.0) == pytest.approx(0.001 / Pace.SHARE)


def test_ids_are_taken_in_order_and_bounded() -> None:
    reads = Reads(["pdf"])
    for n in range(10):
        reads.note(f"m{n}")
    assert reads.take(4) == ["m0", "m1", "m2", "m3"]
    reads.walk.recent.extend(["m2", "m3"])
    assert reads.take(100) == [f"m{n}" for n in range(4, 10)]
    assert list(reads.walk.recent) == ["m2", "m3"]


def test_nothing_is_learned_across_a_gap() -> None:
    reads = Reads(())
    reads.walk.recent.extend(["before"])
    for n in range(READS_MAX + 50):
        reads.note(f"m{n}")
    assert reads.take(3) == [f"m{READS_MAX + 50 - 3 + n}" for n in range(3)], "the newest ones"
    assert not reads.walk.recent
    assert not reads.ids


def plan(seen: list[Any]) -> Plan[str]:
    try:
        seen.append((yield Count("one")))
        seen.append((yield Count("two")))
    except RedisUnavailable as e:
        seen.append(e)
        yield Count("after an error")
    except Cancelled:
        yield Count("last")
        raise
    return "done"


def test_timed_plan_has_the_effects_and_the_result_of_the_plan() -> None:
    ticks, seen, spent = count(), list[Any](), [0.0]
    timed_plan = timed(plan(seen), lambda: float(next(ticks)), 100.0, spent)
    assert next(timed_plan) == Count("one")
    assert timed_plan.send("first") == Count("two")
    with pytest.raises(StopIteration) as stop:
        timed_plan.send("second")
    assert (stop.value.value, seen, spent) == ("done", ["first", "second"], [303.0])


def test_timed_plan_passes_errors_and_cancellation_on() -> None:
    seen: list[Any] = []
    failing = timed(plan(seen), lambda: 0.0, 0.0, [0.0])
    next(failing)
    assert failing.throw(RedisUnavailable("down")) == Count("after an error")
    assert len(seen) == 1
    cancelled = timed(plan([]), lambda: 0.0, 0.0, [0.0])
    next(cancelled)
    assert cancelled.throw(Cancelled()) == Count("last"), "a plan that holds a lease gives it back"
