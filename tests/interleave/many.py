"""Many seeded runs of all scenarios on one server, and a table of them.

`INTERLEAVINGS` is the number of runs over both kinds of servers: by default 14,000, with `CHAOS=long` 220,000
(`make explore`). A failure prints its scenario and seed, and the whole run step by step. `CHAOS_SEED` is the first seed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.servers import KINDS, Kind, available_kinds, running_server

from .explorer import Lab, Scenario, Tally
from .scenarios import SCENARIOS
from .wire import wire_to

IN_ALL = int(os.environ.get("INTERLEAVINGS") or (220_000 if os.environ.get("CHAOS") == "long" else 14_000))
FIRST_SEED = int(os.environ.get("CHAOS_SEED", "0"))
OUTSIDE = ("expire", "failover", "promote", "loss", "flush", "restart")
QUIET = ("--appendonly", "no", "--save", "", "--latency-tracking", "no", "--slowlog-log-slower-than", "-1")


@contextmanager
def running_lab(kind: Kind) -> Iterator[Lab]:
    """Start a separate server, because worlds use all of its databases. Skip with a reason if this kind is not installed."""
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    with running_server(kind, args=QUIET) as server, wire_to(server.socket) as wire:
        lab = Lab(wire)
        lab.kind = server.kind
        yield lab


def explore_all(lab: Lab, report: Callable[[str], None]) -> None:
    """Divide half of the runs equally among the scenarios, and the rest by how few of the first half were repetitions."""
    runs = IN_ALL / len(KINDS) / len(SCENARIOS)
    first, began, total, rows = max(1, int(runs / 2)), time.monotonic(), Tally(), list[str]()
    tallies: list[tuple[Tally, float]] = []
    for scenario in SCENARIOS:
        start = time.monotonic()
        tally = _explore(lab, scenario, range(FIRST_SEED, FIRST_SEED + first))
        tallies.append((tally, time.monotonic() - start))
    fresh = [len(tally.distinct) / tally.runs for tally, _ in tallies]
    for scenario, (tally, seconds), weight in zip(SCENARIOS, tallies, fresh, strict=True):
        start, seed = time.monotonic(), FIRST_SEED + first
        more = round((runs - first) * len(SCENARIOS) * weight / sum(fresh) + 0.5)
        tally.add(_explore(lab, scenario, range(seed, seed + more)))
        total.add(tally)
        rows.append(_row(scenario, tally, len(tally.distinct), seconds + time.monotonic() - start))
    distinct = sum(len(tally.distinct) for tally, _ in tallies)
    rows.append(_row(Scenario("all", ()), total, distinct, time.monotonic() - began))
    report(f"{lab.kind}\n{HEADER}\n" + "\n".join(rows))
    assert total.runs >= IN_ALL // len(KINDS)
    assert all(total.faults[name] for name in ("kill", "lost", "gone", "down", "late", *OUTSIDE)), total.faults


def _explore(lab: Lab, scenario: Scenario, seeds: range) -> Tally:
    tally, failures = lab.explore(scenario, seeds)
    assert not failures, f"{failures[0]}"
    return tally


HEADER = (
    f"{'scenario':32} {'runs':>7} {'distinct':>8} {'steps':>8} {'reads':>7} {'audits':>8} {'kills':>6} {'lost':>6} "
    f"{'late':>5} {'down':>5} {'fail-':>6} {'losses':>6} {'runs/s':>6}\n{'':90} {'':6} {'':5} {'':5} {'overs':>6}"
)


def _row(scenario: Scenario, t: Tally, distinct: int, seconds: float) -> str:
    f = t.faults
    return (
        f"{scenario.name:32} {t.runs:7} {distinct:8} {t.steps:8} {t.reads:7} {t.audits:8} "
        f"{f['kill']:6} {f['lost'] + f['gone']:6} {f['late']:5} {f['down']:5} {f['failover'] + f['promote']:6} "
        f"{f['loss'] + f['flush'] + f['restart']:6} {t.runs / max(seconds, 0.001):6.0f}"
    )
