"""Deletes: a tombstone takes the module's position in the order."""

from __future__ import annotations

from distier.domain.order import make_write_id
from distier.domain.outcome import Refusal
from distier.effects import Count, NewToken, Plan, Sending
from distier.errors import Recovering, Unavailable
from distier.lua import Deleted, Replayed, Reserved, reserve
from distier.lua import delete as delete_script
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.turn import Turn
from distier.plans.put.durable import archive_tombstone, is_settled, list_newer_epochs, reserve_position
from distier.plans.put.prepare import ArchivedPosition, Durability, Expected, expected_of, level_of, need_replica
from distier.plans.put.refused import FENCED_MAX, conflict, unknown, unsure
from distier.plans.recovery.adopt import newest_record, newest_version, verify
from distier.plans.recovery.epochs import list_epochs
from distier.plans.tier.writeback import write_back


def delete(space: Namespace, id: str, if_version: Expected = None, durability: Durability | None = None) -> Plan[bool]:
    """Delete a module. Returns whether there was one. Raises `Conflict`, `Unavailable`, `Recovering`."""
    at, write_id, expected = space.locate(id), make_write_id((yield from NewToken()), id), expected_of(if_version)
    shard, level = at.shard, level_of(space, durability)
    if level == "archived":
        return (yield from _delete_archived(at, write_id, expected))
    if level == "replicated":
        yield from need_replica(shard)
    sending, turn, given_up, looks = Sending(space.process.since(shard)), Turn(space, id), "", 0
    while looks < FENCED_MAX:
        call = delete_script(shard, id, write_id, f"{expected}/{given_up}" if given_up else expected, None, sending)
        call.replicas = int(level == "replicated")
        reply = yield from call
        if isinstance(reply, Deleted):
            yield Count("deletes")
            space.process.note_version(shard, reply.version.epoch, reply.version.ver)
            return reply.existed is not False
        if reply.why is Refusal.CONFLICT:
            raise conflict(id, reply.version, expected)
        if reply.why is Refusal.UNKNOWN:
            raise Unavailable(unknown(id, reply.version))
        if reply.why is Refusal.BUSY:
            given_up = yield from turn.wait(reply.version)
            continue
        looks += 1
        if reply.why is Refusal.UNVERIFIED:
            yield from verify(at)
        elif reply.why is Refusal.MISSING and (yield from newest_record(at)) is None:
            if level == "replicated":  # by a delete that may not be replicated yet: "no" must be as safe as "yes"
                confirm = reserve(shard, id)
                confirm.replicas = 1
                yield from confirm
            return False
    raise Recovering(f"the shard of module {id!r} keeps changing its primary; retry")


def _delete_archived(at: Located, write_id: str, expected: str) -> Plan[bool]:
    """Put a tombstone into the archive before the call returns, by the same steps as `put_archived`.

    Of several deletes of one module, one returns True: the one that found the module when its tombstone was applied.
    """
    space, shard, id = at
    first: ArchivedPosition | None = None
    existed = False
    for _ in range(FENCED_MAX):
        if first is None:
            found = yield from newest_version(at)
            if found is None or (found.deleted and found.clean):
                if (yield from _is_primary(at)):
                    return False
                continue
            if found.deleted:  # a delete that is not archived yet: "no" must be durable too, if it is still "no" then
                yield from write_back(at)
                continue
        reserved = yield from reserve_position(at, expected, write_id, first)
        if isinstance(reserved, Replayed):
            return existed
        existed = reserved.exists if first is None else existed
        position = yield from archive_tombstone(space, id, write_id, reserved)
        if (yield from list_newer_epochs(space, shard, position)):
            space.process.epochs.pop(shard, None)
            first = first or position
            continue
        reply = yield from delete_script(shard, id, write_id, expected, position[:2])
        if isinstance(reply, Deleted):
            yield Count("deletes")
            return existed if reply.existed is None else reply.existed
        if reply.why is Refusal.SUPERSEDED and not expected:
            return existed  # by unconditional puts alone: it took effect just before them
        if reply.why in (Refusal.CONFLICT, Refusal.SUPERSEDED):
            if not (yield from is_settled(at, position)):
                raise Recovering(unsure(id))
            raise conflict(id, reply.version, expected)
        if reply.why is Refusal.UNHELD:
            raise Recovering(unsure(id))
        if reply.why is Refusal.FENCED:
            first = first or position
        elif reply.why is Refusal.UNVERIFIED:
            yield from verify(at)
        # DELETED_SINCE: a delete and a put came before it. Its position was held, so nobody has adopted it: try again.
    raise Recovering(f"the shard of module {id!r} keeps changing its primary; retry")


def _is_primary(at: Located) -> Plan[bool]:
    """Return whether what was read here before is what the shard's primary has: nobody has claimed a newer epoch since."""
    space, shard, id = at
    now = yield from reserve(shard, id)
    if isinstance(now, Reserved) and not (yield from list_epochs(space, shard, now.epoch, but_of=now.replid)):
        return True
    space.process.epochs.pop(shard, None)
    return False
