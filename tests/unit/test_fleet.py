"""The division of shards among workers, and the pace of a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.effects import ArchiveGet, ArchivePut, Command, Effect, Offload, Parallel, Plan, Sleep
from distier.errors import ArchiveUnavailable
from distier.plans.fleet.pacing import Stopping, paced
from distier.policy.fleet import assign
from distier.worker.pace import BURST_S, Pacer

names = st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=20)


@given(names, st.integers(1, 64))
def test_every_shard_has_one_worker_and_the_spread_is_fair(workers: list[str], shards: int) -> None:
    found = assign(workers, shards)
    assert sorted(shard for mine in found.values() for shard in mine) == list(range(shards))
    assert max(map(len, found.values())) <= -(-shards // len(workers))
    assert assign(list(reversed(workers)), shards) == found


def test_lost_worker_moves_few_shards_of_other_workers() -> None:
    workers = [f"host-{i}" for i in range(8)]
    before = assign(workers, 64)
    after = assign(workers[1:], 64)
    moved = {s for w in workers[1:] for s in after[w]} - {s for w in workers[1:] for s in before[w]}
    stayed = sum(len(set(before[w]) & set(after[w])) for w in workers[1:])
    assert set(before[workers[0]]) <= moved and stayed >= 40


# -- pace -------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def perform(plan: Plan[Any], clock: Clock, archive: Callable[[Effect[Any]], Any] = lambda e: None) -> Any:
    """Run a plan with a driver in which only waiting takes time; plans of a `Parallel` run one after the other."""
    try:
        effect = next(plan)
        while True:
            try:
                match effect:
                    case Sleep(seconds):
                        clock.now_s += seconds
                        result: Any = None
                    case Parallel(plans):
                        result = [perform(p, clock, archive) for p in plans]
                    case Offload(_, function):
                        result = function()
                    case _:
                        result = archive(effect)
            except ArchiveUnavailable as e:
                effect = plan.throw(e)
            else:
                effect = plan.send(result)
    except StopIteration as stop:
        return stop.value


def puts(n: int) -> Plan[int]:
    def one(i: int) -> Plan[None]:
        yield from ArchivePut(f"k{i}", b"", "", {})

    yield Parallel([one(i) for i in range(n)])
    return n


def test_requests_of_parallel_plans_keep_the_rate() -> None:
    clock = Clock()
    pacer = Pacer(10, None, clock, clock)
    assert perform(paced(puts(51), pacer), clock) == 51
    assert 5.0 - BURST_S - 0.01 <= clock.now_s - 100 <= 5.01
    assert pacer.requests["put"] == 51 and pacer.throttled_s["archive"] == pytest.approx(clock.now_s - 100)


def test_without_limits_nothing_waits() -> None:
    clock = Clock()
    assert perform(paced(puts(1000), Pacer(None, None, clock, clock)), clock) == 1000
    assert clock.now_s == 100


@pytest.mark.parametrize("fraction", [0.1, 0.5, 2.0])
def test_computing_takes_its_fraction_of_the_time(fraction: float) -> None:
    clock = Clock()
    cpu_s = 0.0

    def compute() -> None:
        nonlocal cpu_s
        cpu_s += 0.1

    def plan() -> Plan[None]:
        for _ in range(50):
            clock.now_s += 0.1 / max(1.0, fraction)  # on more than one core at once
            yield from Offload(1, compute)

    perform(paced(plan(), Pacer(None, fraction, clock, lambda: cpu_s)), clock)
    assert 5.0 / (clock.now_s - 100) <= fraction * 1.1 + 0.05


def test_pace_passes_and_counts_values_and_errors() -> None:
    clock = Clock()

    def plan() -> Plan[str]:
        try:
            yield from ArchiveGet("k", 1)
        except ArchiveUnavailable:
            return "caught"
        return "not caught"

    def fails(effect: Effect[Any]) -> Any:
        raise ArchiveUnavailable("away")

    pacer = Pacer(None, None, clock)
    assert perform(paced(plan(), pacer), clock, fails) == "caught"
    assert pacer.failures == 1 and pacer.last_failure == "away"
    assert perform(paced(plan(), pacer), clock) == "not caught"
    assert not pacer.last_failure and pacer.requests["get"] == 2


def test_at_the_deadline_no_further_effect_begins() -> None:
    clock = Clock()
    pacer = Pacer(1, None, clock)
    pacer.ending = True
    with pytest.raises(Stopping):
        perform(paced(puts(5), pacer), clock)
    assert pacer.requests["put"] == 1 and clock.now_s == 100
    fast = Pacer(None, None, clock)
    fast.over = True
    with pytest.raises(Stopping):
        perform(paced(puts(1), fast), clock)
    assert not fast.requests


def test_other_effects_are_passed_on() -> None:
    command: Command[Any] = Command(None, ("PING",), lambda r: r)  # type: ignore[arg-type]

    def plan() -> Plan[Any]:
        return (yield from command)

    made = paced(plan(), Pacer(1, 0.1))
    assert next(made) is command
    with pytest.raises(StopIteration) as stop:
        made.send("PONG")
    assert stop.value.value == "PONG"
