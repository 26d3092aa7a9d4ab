"""Restoring modules from storage classes that S3 cannot read at once (Glacier)."""

from __future__ import annotations

from distier.domain import archived as names
from distier.domain.ids import check_id
from distier.effects import ArchiveRestore, Plan, RestoreTier, Sleep
from distier.errors import NotFound
from distier.plans.common.namespace import Located, Namespace
from distier.plans.recovery.adopt import newest_record

POLL_S = 1.0
POLL_MAX_S = 60.0
"""The first and the longest wait between two requests. A restore takes minutes to two days."""


def restore(space: Namespace, id: str, *, days: int, tier: RestoreTier, wait: bool = False) -> Plan[bool]:
    """Ask the archive for a readable copy of a module's current version. Returns whether it can be read now.

    With `wait`, the plan asks again until it can be read, or until the deadline. A hot or dirty module needs no
    restore.

    Raises:
        NotFound: The module does not exist.
        Corrupt: The archive has no object of this version.
    """
    shard, pause_s = space.shard(check_id(id)), POLL_S
    while True:
        record = yield from newest_record(Located(space, shard, id))
        if record is None or record.deleted:
            raise NotFound(f"there is no module {id!r} in namespace {space.namespace!r}")
        if not record.clean or record.tier == "hot":
            return True
        if (yield from ArchiveRestore(names.object_key(space.namespace, record), days, tier)):
            return True
        if not wait:
            return False
        yield from Sleep(pause_s, f"module {id!r} is being restored")
        pause_s = min(2 * pause_s, POLL_MAX_S)
