"""Durable writes: the version is in the archive before the write is acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distier.domain import archived as names
from distier.domain.keys import Shard
from distier.domain.manifest import row_of
from distier.domain.module import Record
from distier.domain.order import Order
from distier.domain.outcome import Refusal
from distier.effects import Count, Parallel, Plan, collect
from distier.errors import DistierError, Recovering
from distier.lua import Refused, Replayed, Reserved, reserve, state
from distier.plans.common.commands import record_command
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.turn import Turn
from distier.plans.put.prepare import ArchivedPosition, Prepared
from distier.plans.put.refused import FENCED_MAX, conflict, unsure
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.epochs import list_epochs
from distier.plans.recovery.manifest import list_rows
from distier.plans.tier.writeback import compressed, put_object, write_back


class Fenced(Recovering):
    """The shard began a new epoch while this write was on its way to the archive."""


def is_settled(at: Located, position: ArchivedPosition) -> Plan[bool]:
    """Return whether a refused conditional write, which is in the archive at `position`, never took effect and never will.

    That holds if the version that refused it comes after it and is in the archive too, and if no newer epoch may have
    adopted it before. It comes after it because of `reserve`: nothing from before a position that is held is applied or
    adopted.
    """
    space, shard, id = at
    try:
        record = yield from record_command(shard, id)
        if record is None or record.order[:2] <= position[:2]:
            return False
        yield from write_back(at)
        if (yield from state(shard)).epoch != position.epoch:
            return False
        return not (yield from list_epochs(space, shard, position.epoch, but_of=position.replid))
    except DistierError:
        yield Count("writes.not_settled")
        return False


def archive_version(space: Namespace, p: Prepared, reserved: Reserved) -> Plan[ArchivedPosition]:
    """Put the version into the archive at the position that was reserved for it."""
    flat = dict(zip(p.fields[::2], p.fields[1::2], strict=True))
    record = new_record(p.id, Order(reserved.epoch, reserved.ver, p.write_id), len(p.content), p.tokens, flat, reserved)
    body = yield from compressed(space, p.content)
    key = names.content_key(space.namespace, record)
    yield from put_object(space, record, key, body)
    row = row_of(space.namespace, record, key, len(body))
    return ArchivedPosition(reserved.epoch, reserved.ver, key, len(body), reserved.replid, row)


def list_newer_epochs(space: Namespace, shard: Shard, position: ArchivedPosition) -> Plan[list[int]]:
    """Look for newer epochs, and list the version in the manifest at the same time: both come after its object and before the
    script that applies it."""
    look = list_epochs(space, shard, position.epoch, but_of=position.replid)
    if not space.config.storage_tiers.cold.manifest:
        return (yield from look)
    listed, found = yield from Parallel([list_rows(space, shard, [position.row], "row"), look])
    newer: list[int] = collect(found)  # first: its failure says more
    collect(listed)
    return newer


def reserve_position(
    at: Located, expected: str, write_id: str, first: ArchivedPosition | None = None
) -> Plan[Reserved | Replayed]:
    """Reserve the next position in the order. Durable writes of one module take turns; a holder that seems dead is passed.

    An object of this write may be in the archive already, at `first`, from before a newer epoch. Then the write gets another
    position only if nobody has adopted that object and nobody will: a newer position is held then, and the record is older.
    Returns `Replayed` where it was adopted, so that the write is done. Raises `Conflict`, `Unavailable`, and `Recovering`
    where that is not known.
    """
    space, shard, id = at
    turn, given_up, looks = Turn(space, id), "", 0
    before = f"{first.epoch}-{first.ver}" if first else ""
    while looks < FENCED_MAX:
        reply = yield from reserve(shard, id, expected, write_id, given_up, before)
        if isinstance(reply, Reserved):
            space.process.note_version(shard, reply.epoch, reply.ver)
        if not isinstance(reply, Refused):
            return reply
        if reply.why is Refusal.UNHELD or (first and reply.why is Refusal.CONFLICT):
            raise Recovering(unsure(id))
        if reply.why is Refusal.CONFLICT:
            raise conflict(id, reply.version, expected)
        if reply.why is Refusal.BUSY:
            given_up = yield from turn.wait(reply.version)
        else:
            looks += 1
            yield from verify(at)
    raise Recovering(f"the shard of module {id!r} keeps changing its primary; retry")


def archive_tombstone(space: Namespace, id: str, write_id: str, reserved: Reserved) -> Plan[ArchivedPosition]:
    """Put a tombstone into the archive at the position that was reserved for it."""
    record = new_record(id, Order(reserved.epoch, reserved.ver, write_id), 0, 0, {}, reserved, tier="deleted")
    key = names.content_key(space.namespace, record)
    yield from put_object(space, record, key, b"")
    row = row_of(space.namespace, record, key, 0)
    return ArchivedPosition(reserved.epoch, reserved.ver, key, 0, reserved.replid, row)


def new_record(
    id: str,
    order: Order,
    size_bytes: int,
    tokens: int,
    fields: Mapping[Any, Any],
    reserved: Reserved,
    tier: str = "cold",
) -> Record:
    """Return the record that a reserved version will have, for the name and the description of its object."""

    def text(name: str) -> str:
        return str(fields.get(name, ""))

    return Record(
        id, tier, order, size_bytes, tokens, text("counter"), text("sha256"), text("type"),
        fields.get("keywords", b""), fields.get("meta", b""), True, order.epoch, None, 0, "", 0,
        reserved.created_ms, reserved.now_ms, fields.get("transform"), fields.get("outline"), None, fields.get("ttl"),
    )  # fmt: skip
