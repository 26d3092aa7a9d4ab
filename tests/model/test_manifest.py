"""The manifest and the packs keep their invariants in random orders of their steps, and each mutant breaks one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .manifest import Violation
from .walks import FOCUS, walk

WALKS = {"all": 1000, "burials": 500, "packs": 400, "packs and burials": 500, "superseded packs": 400,
         "superseded packs and burials": 300}  # fmt: skip
# mutant: (focus, walks of which one breaks an invariant)
KILLED_BY = {
    "commit_before_segment": ("all", range(50)),
    "delete_by_interval": ("all", range(50)),
    "sweeps_unasked": ("all", range(200)),
    "forgets_member": ("all", range(50)),
    "no_second_list": ("all", range(50)),
    "rescue_without_list": ("all", range(50)),
    "adopts_unlisted": ("all", range(50)),
    "no_second_look": ("burials", range(1000)),
    "late_segment": ("burials", range(9350, 9400)),
    "packs_first": ("packs", range(500)),
    "passes_gone_index": ("packs", range(1000)),
    "packs_young": ("packs", range(7300, 7400)),
    "one_look": ("packs", range(1000)),
    "moves_down": ("packs", range(50)),
    "old_number": ("packs", range(50)),
    "any_other_copy": ("packs", range(50)),
    "reads_once": ("packs", range(50)),
    "index_first": ("all", range(200)),
    "young_orphans": ("all", range(500)),
    "rewrites_unasked": ("all", range(2400, 2450)),
    "no_late_look": ("all", range(7150, 7250)),
    "late_index": ("packs and burials", range(200)),
    "late_rows": ("packs and burials", range(2400, 2500)),
    "buries_early": ("packs and burials", range(500)),
    "copy_without_rows": ("superseded packs", range(500)),
    "supersedes_unlisted": ("superseded packs", range(200)),
    "supersedes_late": ("superseded packs and burials", range(3800, 3850)),
}


@pytest.mark.parametrize("focus", FOCUS)
def test_invariants_hold_in_random_orders(focus: str, report: Callable[[str], None]) -> None:
    worlds = [walk(seed, focus=focus) for seed in range(WALKS[focus])]
    found = {
        "complete reads": sum(w.complete_reads for w in worlds),
        "rescues": sum(w.rescues for w in worlds),
        "listings of a module": sum(w.proofs for w in worlds),
        "reads from packs": sum(w.from_packs for w in worlds),
        "packs": sum(len(w.packed_at) for w in worlds),
        "rewritings": sum(w.rewritten for w in worlds),
        "burials": sum(len(w.buried) for w in worlds),
    }
    report(f"{len(worlds)} walks: {', '.join(f'{n} {what}' for what, n in found.items() if n)}")
    wanted = {
        "all": {"complete reads", "rescues", "listings of a module", "reads from packs", "rewritings"},
        "burials": {"burials"},
        "packs": {"listings of a module", "reads from packs", "rewritings"},
        "packs and burials": {"packs", "rewritings", "burials"},
        "superseded packs": {"packs", "rewritings"},
        "superseded packs and burials": {"packs", "rewritings", "burials"},
    }
    assert all(found[what] for what in wanted[focus])


@pytest.mark.parametrize("mutant", KILLED_BY)
def test_mutant_violates_an_invariant(mutant: str, report: Callable[[str], None]) -> None:
    focus, walks = KILLED_BY[mutant]
    for seed in walks:
        try:
            walk(seed, mutant, focus)
        except Violation as e:
            report(f"{mutant}: {e} (walk {seed})")
            return
    pytest.fail(f"{mutant} survived {len(walks)} walks")
