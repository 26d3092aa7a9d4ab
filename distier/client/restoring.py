"""The call `restore` of both stores, and the check of its arguments."""

from __future__ import annotations

from typing import Protocol, cast

from distier.domain.ids import check_id
from distier.effects import RESTORE_TIERS, Plan, RestoreTier
from distier.errors import Invalid
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.restore import restore as restore_plan

DAYS_MAX = 3650


class _Runner(Protocol):
    space: Namespace

    def run(self, plan: Plan[bool], /, *, deadline_s: float | None) -> bool: ...


class _AsyncRunner(Protocol):
    space: Namespace

    async def run(self, plan: Plan[bool], /, *, deadline_s: float | None) -> bool: ...


class Restoring:
    """The method of `Store` for modules in storage classes that S3 cannot read at once."""

    def restore(
        self, id: str, *, days: int = 7, tier: RestoreTier = "Standard", wait_s: float = 0.0
    ) -> bool:  # fmt: skip
        """Ask the archive for a readable copy of a module, after a read raised `NeedsRestore`.

        Args:
            id: the module id.
            days: days that S3 keeps the copy; 0 for objects in Intelligent-Tiering, which take no days.
            tier: how fast and how expensive S3's work is: `Expedited` (minutes), `Standard` (hours), `Bulk` (up to two days).
            wait_s: seconds to wait until the module can be read. 0 only asks.

        Returns:
            Whether the module can be read now. True if nothing had to be restored.

        Raises:
            NotFound: the module does not exist.
            DeadlineExceeded: `wait_s` passed. S3 continues, and so does another call.
            Invalid: an argument is out of range.
        """
        store = cast(_Runner, self)
        return store.run(_plan(store.space, id, days, tier, wait_s), deadline_s=wait_s or None)


class AsyncRestoring:
    """The same for `AsyncStore`."""

    async def restore(
        self, id: str, *, days: int = 7, tier: RestoreTier = "Standard", wait_s: float = 0.0
    ) -> bool:  # fmt: skip
        """As `Store.restore`."""
        store = cast(_AsyncRunner, self)
        return await store.run(_plan(store.space, id, days, tier, wait_s), deadline_s=wait_s or None)


def _plan(space: Namespace, id: str, days: int, tier: RestoreTier, wait_s: float) -> Plan[bool]:
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= DAYS_MAX:
        raise Invalid(f"days must be a whole number from 0 to {DAYS_MAX}, not {days!r}")
    if tier not in RESTORE_TIERS:
        raise Invalid(f"tier must be one of {', '.join(RESTORE_TIERS)}, not {tier!r}")
    if not 0 <= wait_s < float("inf"):
        raise Invalid(f"wait_s must be a number of seconds from 0, not {wait_s!r}")
    return restore_plan(space, check_id(id), days=days, tier=tier, wait=wait_s > 0)
