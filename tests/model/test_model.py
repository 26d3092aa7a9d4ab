"""The protocol keeps its invariants in every reachable state of small cases, and each mutant breaks one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .model import Model

# (operations, faults): complete searches.
CASES = (
    (("put2", "put0", "archive"), 1),
    (("put2", "put2"), 1),
    (("put2", "del2"), 1),
    (("put2", "del2", "bury"), 1),
    (("put0", "del0", "archive"), 1),
    (("put0", "archive"), 2),
    (("cas2", "put0"), 1),
    (("cas2", "cas2"), 0),
    (("cas2", "put2", "put0"), 0),
    (("cas2", "put2"), 1),
    (("cas2", "cas2"), 1),
    (("put2", "cas0"), 1),
    (("put2", "cas0", "put0"), 0),
    (("put2", "put2", "cas0"), 0),
    (("del2", "cas0"), 1),
    (("cas2", "cas0"), 1),
    (("put2", "exp0"), 1),
    (("put0", "put2", "exp0"), 0),
    (("put0", "exp0", "archive"), 1),
    (("was2", "put0", "archive", "put2"), 1),
    (("was2", "put0", "archive", "cas2"), 1),
    (("was2", "del0", "archive", "not2"), 1),
    (("claim", "claim"), 2),
    (("claim", "claim", "put0"), 1),
    (("claim", "claim", "put2"), 1),
)
# mutant: (operations, faults) in which it breaks an invariant
KILLED_BY = {
    "no_validate": (("put2", "put0"), 1),
    "no_epoch": (("put2", "put0", "archive"), 1),
    "epoch_reuse": (("put2", "put0", "archive"), 2),
    "no_verify": (("put2", "put0", "archive"), 1),
    "no_unique_key": (("put2", "put0", "archive"), 2),
    "ttl_on_dirty": (("put0", "archive"), 0),
    "no_tok_check": (("put0", "put0", "archive"), 0),
    "blind_apply": (("put2", "put2"), 0),
    "gc_any_unreferenced": (("put2", "put0", "archive"), 1),
    "no_tombstone": (("put2", "del2"), 1),
    "early_tomb_gc": (("put2", "del2", "bury"), 1),
    "no_second_list": (("claim", "claim"), 2),
    "takes_back": (("cas2", "put0"), 1),
    "install_after_flush": (("claim", "claim"), 2),
    "not_settled": (("cas2", "put0"), 1),
    "nothing_reserved": (("cas2", "put2"), 1),
    "expires_any": (("put0", "put2", "exp0"), 0),
    "acks_overtaken": (("put2", "cas0"), 0),
    "puts_again": (("put2", "cas0"), 1),
    "checks_elsewhere": (("del2", "cas0"), 2),
    "again_anywhere": (("put2", "put2"), 1),
    "adopts_held": (("put2", "put2"), 1),
    "nothing_unlooked": (("was2", "del0", "archive", "not2"), 1),
    "waits_forever": (("was2", "put0", "archive", "put2"), 1),
}


@pytest.mark.parametrize(("ops", "faults"), CASES, ids=lambda x: "+".join(x) if isinstance(x, tuple) else f"f{x}")
def test_invariants_hold_in_every_state(ops: tuple[str, ...], faults: int, report: Callable[[str], None]) -> None:
    result = Model(ops, faults).run()
    report(f"{'+'.join(ops)}, {faults} faults: {result.states} states, {result.transitions} transitions")
    assert not result.violation, f"{result.violation}\n" + "\n".join(map(str, result.trace))
    assert result.complete


@pytest.mark.parametrize("mutant", KILLED_BY)
def test_mutant_violates_an_invariant(mutant: str, report: Callable[[str], None]) -> None:
    ops, faults = KILLED_BY[mutant]
    result = Model(ops, faults, (mutant,)).run()
    report(f"{mutant}: {result.violation} ({result.states} states, {len(result.trace)} steps)")
    assert result.violation, f"{mutant} survived {result.states} states"


def test_outbidding_a_claim_is_unsafe() -> None:
    """The rejected alternative: a shard whose durable writes are refused, because another incarnation has claimed a greater
    epoch, claims a still greater epoch for its own incarnation. That would help if the other incarnation is dead (a late
    claim). But an old partitioned primary cannot know this and would do the same. Its durable writes would then pass the look
    for a newer epoch, and readers of the real primary would not see them."""
    result = Model(("put2", "put0"), 1, ("outbid",)).run()
    assert result.violation.startswith("J2"), result.violation
    assert result.trace[-1].zombie is not None


def test_new_epoch_on_an_old_primary_hides_durable_writes() -> None:
    """A known case, assumed not to happen. A primary that was promoted (or restarted) is partitioned before it has its epoch,
    and gets its epoch later than the next primary. Its epoch is the greater one, so its durable writes pass the look for newer
    epochs, and readers of the real primary do not see them. Nothing is lost (J1 holds)."""
    result = Model(("put2", "put0"), 2, ("zombie_claims",)).run()
    assert result.violation.startswith("J2"), result.violation
