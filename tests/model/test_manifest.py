"""The manifest and the packs keep their invariants in random orders of their steps, and each mutant breaks one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .manifest import Violation, walk

WALKS = 1500
# mutant: (walks of which one breaks an invariant, whether they are about burials)
KILLED_BY = {
    "commit_before_segment": (range(50), False),
    "delete_by_interval": (range(50), False),
    "flips_blindly": (range(50), False),
    "sweeps_unasked": (range(2500), False),
    "sweeps_current_pack": (range(500), False),
    "forgets_member": (range(500), False),
    "no_run": (range(500), False),
    "no_second_list": (range(500), False),
    "rescue_without_list": (range(1000), False),
    "adopts_unlisted": (range(1000), False),
    "no_second_look": (range(1000), True),
    "late_segment": (range(2300, 2400), True),
}


@pytest.mark.parametrize("burials", [False, True])
def test_invariants_hold_in_random_orders(burials: bool, report: Callable[[str], None]) -> None:
    worlds = [walk(seed, burials=burials) for seed in range(WALKS // (3 if burials else 1))]
    reads, rescues = sum(w.complete_reads for w in worlds), sum(w.rescues for w in worlds)
    buried = sum(bool(w.buried) for w in worlds)
    report(f"{len(worlds)} walks: {reads} complete reads, {rescues} rescues, {buried} with a burial")
    assert buried if burials else reads and rescues


@pytest.mark.parametrize("mutant", KILLED_BY)
def test_mutant_violates_an_invariant(mutant: str, report: Callable[[str], None]) -> None:
    walks, burials = KILLED_BY[mutant]
    for seed in walks:
        try:
            walk(seed, mutant, burials=burials)
        except Violation as e:
            report(f"{mutant}: {e} (walk {seed})")
            return
    pytest.fail(f"{mutant} survived {len(walks)} walks")
