"""Loading the content of a version from its nearest whole copy: this node's disk, a frame, another node, the archive."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from distier.domain import archived as names
from distier.domain.codec import WITH_DICTIONARY
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.order import Order
from distier.effects import Count, LocalGet, Plan
from distier.errors import Corrupt, DistierError, Recovering, Unavailable
from distier.lua import Reference, refer
from distier.plans.common.commands import frame_command
from distier.plans.common.content import content_unless_moved, is_current
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.objects import read_archived
from distier.plans.common.turn import Turn
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.epochs import list_epochs, shard_state
from distier.plans.recovery.walk import list_module
from distier.plans.tier.peers import ask_content, find_holders


class ObjectGone(Corrupt):
    """The archive reports that it does not have the object of a record."""


def fetch_unless_moved(space: Namespace, shard: Shard, record: Record) -> Plan[bytes | None]:
    """Return `fetch_cold`, or None where a newer version explains the missing object.

    The newer version came and the sweep was quick, or it is in the archive and nobody has applied it, because its writer
    died in between, or is an old primary whose worker archived it and swept what was before it. Or the version was packed, or
    its pack was replaced: then a listing tells where it is now.
    """
    try:
        return (yield from fetch_cold(space, record))
    except Corrupt as e:
        if not (yield from is_current(shard, record)):
            return None
        if isinstance(e, ObjectGone):
            content = yield from look_for(space, shard, record)
            if content is not None:
                return content
            yield from _adopt_newer(Located(space, shard, record.id), record)
        if (yield from is_current(shard, record)):
            known = yield from shard_state(space, shard)
            if isinstance(e, ObjectGone) and (yield from list_epochs(space, shard, known.epoch)):
                raise Recovering(
                    f"the object of module {record.id!r} was swept in a newer epoch, so this Redis is no longer the primary of "
                    "its shard. Connect to the current primary"
                ) from e
            raise
        return None


def _adopt_newer(at: Located, record: Record) -> Plan[None]:
    """Adopt what the archive has after a version that it has no more. A durable write that holds a position in front of the
    module prevents that: it ends, or seems dead and is passed."""
    turn, given_up = Turn(at.space, at.id), ""
    while holder := (yield from verify(at, given_up)):
        if holder == given_up or not (yield from is_current(at.shard, record)):
            return
        given_up = yield from turn.wait(holder)


def look_for(space: Namespace, shard: Shard, record: Record) -> Plan[bytes | None]:
    """Look for another copy of a version in a listing, and let the record name it; None if there is none."""
    group = yield from list_module(space, record.id)
    short = Order(record.order.epoch, record.order.ver, record.order.write_id[:8])
    mine = {found.key for found in group.objects if found.kind == "content" and found.order == short}
    own = names.content_key(space.namespace, record)
    keys = {
        ("" if key == own else key): group.sizes[key] for key in mine if key not in group.rows or key in group.doubles
    }
    prefix = names.modules_prefix(space.namespace)
    for row in sorted(group.copies, key=lambda row: row.place, reverse=True):
        if prefix + row.key in mine and row.pack:
            keys[row.pack.reference(record.id)] = row.archived_bytes
    for key, size_bytes in keys.items():
        if key == (record.archived_key or ""):
            continue
        content = yield from read_archived(space, replace(record, archived_key=key or None))
        if content is not None:
            yield Count("archive.found_elsewhere")
            with suppress(DistierError):  # the next read would look again
                yield from refer(shard, [Reference(record.id, record.order, key, size_bytes)])
            return content
    return None


def fetch_cold(space: Namespace, record: Record) -> Plan[bytes]:
    """Return the checked content of a clean version from the archive. Raises `ArchiveUnavailable` or `Corrupt`."""
    content = yield from read_archived(space, record)
    if content is None:
        raise ObjectGone(
            f"the archive has no object {names.object_key(space.namespace, record)!r}, of module {record.id!r} "
            f"({record.order}); was it deleted by hand? `distier fsck` lists what is missing"
        )
    return content


def load(
    space: Namespace, shard: Shard, record: Record, *, ask_others: bool = True
) -> Plan[tuple[Record, bytes] | None]:
    """Return the record with its content from the nearest whole copy; None if the module changed meanwhile."""
    content = (yield from LocalGet(record)) if space.node is not None and record.clean else None
    if content is not None:
        return record, content
    frame = (yield from frame_command(shard, record.id)) if record.tier == "warm" else None
    try:
        content = yield from content_unless_moved(space, shard, record, frame)
    except (Corrupt, Unavailable) as e:  # the archive has a clean version, also where its dictionary cannot be had
        if not record.clean or (isinstance(e, Unavailable) and not record.codec.startswith(WITH_DICTIONARY)):
            raise
        yield from Count("healed.warm", int(isinstance(e, Corrupt)))
        content = None
    if content is None and record.clean:
        if ask_others:
            holders = yield from find_holders(Located(space, shard, record.id))
            content = yield from ask_content(space, shard, record, holders)
            if content is not None:
                return record, content
        # Straight from the archive: a warm copy would be compressed only to be dropped.
        content = yield from fetch_unless_moved(space, shard, record)
    return None if content is None else (record, content)
