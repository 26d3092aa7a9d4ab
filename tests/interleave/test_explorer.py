"""Real plans interleaved on real servers: every crash point of each plan, and every order of some pairs.

`test_many_valkey.py` and `test_many_redis.py` have the seeded runs of all scenarios.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import KINDS

from .explorer import CRASHES, Lab, Scenario
from .many import OUTSIDE, running_lab
from .mutants import BY_NAME as MUTANTS
from .scenarios import (
    ARCHIVED,
    BY_NAME,
    CLEAN,
    COLD,
    DURABLE,
    HOT,
    WARM,
    cas,
    delete,
    delete_if,
    demote,
    expire,
    get,
    get_many,
    promote,
    put,
    put_many,
    rescue,
    sweep,
    write_back,
)  # fmt: skip

LONG = os.environ.get("CHAOS") == "long"

# Every plan alone, with every fault at every effect, and every choice of the environment between any two.
ALONE = {
    "put": ((put("a", "a1"),), HOT),
    "put-archived": ((put("a", "a1", ARCHIVED),), CLEAN),
    "put-many": ((put_many("a", "a1"),), HOT),
    "cas": ((cas("a", "a1"),), HOT),
    "cas-archived": ((cas("a", "a1", ARCHIVED),), CLEAN),
    "get-hot": ((get("a"),), HOT),
    "get-warm": ((get("a"),), WARM),
    "get-cold": ((get("a"),), COLD),
    "get-many-hot": ((get_many("a"),), HOT),
    "get-many-warm": ((get_many("a"),), WARM),
    "get-many-cold": ((get_many("a"),), COLD),
    "demote": ((demote("a", "warm"),), HOT),
    "demote-cold": ((demote("a", "cold"),), HOT),
    "demote-cold-clean": ((demote("a", "cold"),), CLEAN),
    "promote": ((promote("a"),), COLD),
    "write-back": ((write_back(),), HOT),
    "delete": ((delete("a"),), HOT),
    "delete-archived": ((delete("a", ARCHIVED),), CLEAN),
    "delete-if-archived": ((delete_if("a", ARCHIVED),), DURABLE),
    "expire": ((expire("a"),), WARM),
    "sweep": ((sweep(),), (*CLEAN, put("a", "a1"), write_back())),
    "rescue": ((rescue(),), DURABLE),
}
# Where a process can die, lose a reply, or meet an outage: one line `plan: effect` for each. The runs hit all of them, and no
# others exist. A difference fails the test; whoever understands it updates the list by hand.
CRASH_POINTS = Path(__file__).with_name("crash_points.txt")
# "touch", and "release" after a fetch, are the second half of a pipeline and appear alone only after a split. If `open` gets no
# reply, a process checks whether the shard is open; these plans have no other reason to check it.
HALVES = ("Sleep", "touch", "get: release", "expire: state", "put: state", "put-archived: state", "write-back: state")


@pytest.fixture(scope="module", params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with running_lab(request.param) as lab:
        yield lab


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lab", KINDS if LONG else KINDS[:1], indirect=True)
def test_every_fault_at_every_effect_of_each_plan(lab: Lab, report: Callable[[str], None]) -> None:
    """Run each plan alone, without a loss and after a restart, with every fault at every one of its effects. The short mode
    uses one kind of server."""
    points, killed, lost, faults = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    runs = 0
    for name, (calls, before) in ALONE.items():
        for scenario in (
            Scenario(f"alone/{name}", (calls,), before, faults_max=1),
            Scenario(f"restarted/{name}", (calls,), before, CRASHES, 1, first="restart"),
            Scenario(f"lost/{name}", (calls,), before, CRASHES, 1, first="loss"),
        ):
            tally, failures, whole = lab.exhaust(scenario, limit=1500)
            assert not failures, f"{failures[0]}"
            assert whole, f"{scenario.name} has more runs than that"
            runs += tally.runs
            points += tally.points
            killed += tally.killed
            lost += tally.lost
            faults += tally.faults
    report(f"{len(points)} crash points in {runs} runs on {lab.kind}, faults: {dict(faults)}")
    for point in sorted(points):
        report(f"  {point:45} killed {killed[point]:5}  reply lost {lost[point]:5}")
    known = CRASH_POINTS.read_text().splitlines()
    assert sorted(points) == known, "a plan has other effects: check them, and update the list"
    missed = [p for p in known if not p.endswith(HALVES) and not (killed[p] and lost[p])]
    assert not missed, missed
    assert all(faults[name] for name in OUTSIDE), faults


PAIRS = {
    "put|put": (((put("a", "a1"),), (put("a", "a2"),)), HOT),
    "put|get": (((put("a", "a1"),), (get("a"),)), WARM),
    "put|write-back": (((put("a", "a1"),), (write_back(),)), HOT),
    "put|demote": (((put("a", "a1"),), (demote("a", "warm"),)), HOT),
    "put|demote-cold": (((put("a", "a1"),), (demote("a", "cold"),)), HOT),
    "delete|write-back": (((delete("a"),), (write_back(),)), HOT),
    "promote|demote": (((promote("a"),), (demote("a", "cold"),)), WARM),
    "cas|cas": (((cas("a", "a1"),), (cas("a", "a2"),)), HOT),
    "put-archived|put": (((put("a", "a1", ARCHIVED),), (put("a", "a2"),)), HOT),
    "expire|get": (((expire("a"),), (get("a"),)), WARM),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PAIRS)
def test_every_order_of_a_pair_keeps_the_invariants(lab: Lab, name: str) -> None:
    """Without faults, try every order of all effects."""
    processes, before = PAIRS[name]
    tally, failures, whole = lab.exhaust(Scenario(name, processes, before, (), 0), limit=100)
    assert not failures, f"{failures[0]}"
    assert tally.runs > 1 and whole


def test_failure_is_replayed_from_its_seed(lab: Lab) -> None:
    broken = Lab(lab.wire, MUTANTS["blind-archived"].patches)
    _, failures = broken.explore(BY_NAME["put/write-back"], range(400))
    assert failures
    first = failures[0]
    again = broken.replay(first)
    assert (again.problem, again.choices, again.trace) == (first.problem, first.choices, first.trace)
    assert "step" in str(again) and str(again.seed) in str(again)
