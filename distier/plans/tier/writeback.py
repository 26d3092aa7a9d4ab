"""Write-back: a dirty version goes into the archive, then its record says so.

A stop before the PUT leaves nothing. A stop between PUT and commit leaves the object under the version's own order, and the
next attempt writes the same key. Where a new version comes meanwhile, the commit finds another write id and changes nothing;
the object is dominated later and swept.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.outcome import Refusal
from distier.effects import ArchiveList, ArchivePut, Count, LocalPut, Offload, Pipeline, Plan, collect
from distier.errors import Corrupt
from distier.lua import Move, Refused, archived, demote
from distier.plans.common.commands import frame_command, record_command
from distier.plans.common.content import content_unless_moved
from distier.plans.common.namespace import Located, Namespace

REREADS_MAX = 8
XZ = "compressing for the archive (xz)"


class Archived(NamedTuple):
    """A version that is in the archive now: its key, and its size there in bytes."""

    id: str
    write_id: str
    key: str
    size_bytes: int


def write_back(at: Located) -> Plan[Archived | None]:
    """Archive the module's version if it is dirty. Returns None where there was nothing to do, or a newer version came.

    Raises `ArchiveUnavailable`, and `Corrupt` where the only copy does not match its checksum.
    """
    space, shard, id = at
    found = yield from _read_dirty(shard, id)
    if found is None:
        return None
    record, content = found
    body = yield from _object(space, record, content)
    key = names.content_key(space.namespace, record)
    yield from put_object(space, record, key, body)
    reply = yield from archived(shard, id, record.order, len(body))
    if isinstance(reply, Refused) and reply.why is Refusal.CHANGED:
        return None
    yield from Count("moves.archived")
    yield from Count("archive.bytes_written", len(body))
    if space.node is not None and record.tier == "warm":
        yield from _to_disk(space, shard, record, content)
    return Archived(id, record.order.write_id, key, len(body))


def _to_disk(space: Namespace, shard: Shard, record: Record, content: bytes) -> Plan[None]:
    """Put a warm version that has just become clean on this node's disk, as if it had left hot clean.

    Its frame in Redis is dropped where warm is not kept there. A version that was put meanwhile stays, by its write id. One
    that became hot in this moment leaves it again, which costs a promotion and no content.
    """
    kept = yield from LocalPut(replace(record, clean=True), content)
    if kept and space.local_only:
        yield from demote(shard, "disk", [Move(record.id, record.order.write_id, "cold")])


def _read_dirty(shard: Shard, id: str) -> Plan[tuple[Record, bytes] | None]:
    """Return a dirty record and its content (empty for a tombstone); None where there is none.

    A pipeline is no transaction: the module may move between the two reads, so a copy that looks lost is read again.
    """
    for _ in range(REREADS_MAX):
        record, frame = yield from Pipeline([record_command(shard, id), frame_command(shard, id)])
        record, frame = collect(record), collect(frame)
        if record is None or record.clean:
            return None
        if record.deleted:
            return record, b""
        content = yield from content_unless_moved(shard, record, frame)
        if content is not None:
            return record, content
        yield from Count("writeback.rereads")
    raise Corrupt(
        f"module {id!r} is not archived yet and its warm copy is gone; was a key deleted by hand, or is "
        "maxmemory-policy not noeviction? Run `distier doctor`"
    )


def _object(space: Namespace, record: Record, content: bytes) -> Plan[bytes]:
    if record.deleted:
        return b""
    return (yield from compressed(space, content))


def compressed(space: Namespace, content: bytes) -> Plan[bytes]:
    """Return `content` as the archive keeps it.

    A large one is compressed in steps, so that the call can end between two: xz takes most of a second for a MiB.
    """
    level, step = space.config.storage_tiers.cold.compression_level, codec.XzPacker.STEP_BYTES
    if len(content) <= step:
        return (yield from Offload(len(content) * 8, lambda: codec.compress_xz(content, level=level), XZ))
    packer = codec.XzPacker(len(content), level=level)
    parts = []
    for start in range(0, len(content), step):
        some = memoryview(content)[start : start + step]
        parts.append((yield from Offload(len(some) * 8, partial(packer.add, some), XZ)))
    parts.append((yield from Offload(step * 8, packer.end, XZ)))
    return b"".join(parts)


def look_at_archive(space: Namespace) -> Plan[None]:
    """Send the smallest request that shows whether the archive replies. Raises `ArchiveUnavailable`."""
    yield from ArchiveList(f"{space.namespace}/epochs/", limit=1)


def put_object(space: Namespace, record: Record, key: str, body: bytes) -> Plan[None]:
    """Write a version's object, and its sidecar where it needs one."""
    described = names.describe(record)
    metadata = names.user_metadata(described)
    if not record.deleted and (space.sidecar or len(metadata) < len(described)):
        # Before the content: a reader that sees the content finds its sidecar.
        yield from ArchivePut(names.sidecar_key(key), names.pack_sidecar(described), "application/json", {})
    content_type = "application/octet-stream" if record.deleted else names.CONTENT_TYPE
    yield from ArchivePut(key, body, content_type, metadata)
