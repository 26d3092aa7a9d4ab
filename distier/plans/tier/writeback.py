"""Write-back: a dirty version goes into the archive, then its record says so.

The worker does this with a batch at a time: the objects, then one file of the manifest with a row for each, then the scripts.
A stop before the PUT leaves nothing. A stop between PUT and commit leaves the object under the version's own order, and the
next attempt writes the same key. Where a new version comes meanwhile, the commit finds another write id and changes nothing;
the object is dominated later and swept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import NamedTuple

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.manifest import row_of
from distier.domain.module import Record
from distier.domain.outcome import Refusal
from distier.effects import (
    ArchiveList,
    ArchivePut,
    Command,
    Count,
    LocalPut,
    Offload,
    Parallel,
    Pipeline,
    Plan,
    collect,
)
from distier.errors import Corrupt, DistierError
from distier.lua import Move, Refused, archived, demote
from distier.plans.common.commands import frame_command, record_command
from distier.plans.common.content import content_unless_moved
from distier.plans.common.namespace import Located, Namespace
from distier.plans.recovery.manifest import list_rows

REREADS_MAX = 8
BATCH_BYTES = 4 << 20
"""How much content one batch of a write-back has: seconds of compression."""
XZ = "compressing for the archive (xz)"


class Archived(NamedTuple):
    """A version that is in the archive now: its key, and its size there in bytes."""

    id: str
    write_id: str
    key: str
    size_bytes: int


class Uploaded(NamedTuple):
    """A version whose object is in the archive, and whose record does not say so yet."""

    record: Record
    content: bytes
    key: str
    size_bytes: int


def write_back(at: Located) -> Plan[Archived | None]:
    """Archive the module's version if it is dirty. Returns None where there was nothing to do, or a newer version came.

    Raises `ArchiveUnavailable`, and `Corrupt` where the only copy does not match its checksum.
    """
    space, shard, _ = at
    one = yield from upload(at)
    if one is None:
        return None
    (result,) = yield from commit(space, shard, [one])
    return collect(result)


def upload(at: Located) -> Plan[Uploaded | None]:
    """Put the object of a dirty version. Returns None where there is none."""
    space = at.space
    found = yield from _read_dirty(at)
    if found is None:
        return None
    record, content = found
    body = yield from _object(space, record, content)
    key = names.content_key(space.namespace, record)
    yield from put_object(space, record, key, body)
    return Uploaded(record, content, key, len(body))


def commit(space: Namespace, shard: Shard, uploaded: Sequence[Uploaded]) -> Plan[list[Archived | DistierError | None]]:
    """List versions in the manifest, all in one file, and then mark them clean. The results are in order; None where a newer
    version came. Raises `ArchiveUnavailable`."""
    rows = [row_of(space.namespace, one.record, one.key, one.size_bytes) for one in uploaded]
    yield from list_rows(space, shard, rows)
    calls = [archived(shard, one.record.id, one.record.order, one.size_bytes) for one in uploaded]
    replies = (yield from Pipeline(calls)) if len(calls) > 1 else [(yield from calls[0])] if calls else []
    results: list[Archived | DistierError | None] = []
    for one, reply in zip(uploaded, replies, strict=True):
        if isinstance(reply, DistierError):
            results.append(reply)
        elif isinstance(reply, Refused) and reply.why is Refusal.CHANGED:
            results.append(None)
        else:
            yield from Count("moves.archived")
            yield from Count("archive.bytes_written", one.size_bytes)
            results.append((yield from _committed(space, shard, one)))
    return results


def _committed(space: Namespace, shard: Shard, one: Uploaded) -> Plan[Archived | DistierError]:
    try:
        if space.node is not None and one.record.tier == "warm":
            yield from _to_disk(space, shard, one.record, one.content)
    except DistierError as e:
        return e
    return Archived(one.record.id, one.record.order.write_id, one.key, one.size_bytes)


def write_back_all(
    space: Namespace, shard: Shard, ids: Sequence[str], upload_one: Callable[[Located], Plan[Uploaded | None]] = upload
) -> Plan[list[Archived | DistierError | None]]:
    """Archive those of these modules that are dirty, in batches of `BATCH_BYTES`. The results are in order, errors as values.

    A batch is committed as a whole, so that one file of the manifest has it. A small one is done before a deadline that many
    large modules would miss together, again and again.
    """
    results: list[Archived | DistierError | None] = []
    for batch in (yield from _batches(shard, ids)):
        uploads = yield from Parallel([upload_one(Located(space, shard, id)) for id in batch])
        done: Iterator[Archived | DistierError | None]
        try:
            done = iter((yield from commit(space, shard, [one for one in uploads if isinstance(one, Uploaded)])))
        except DistierError as e:
            done = repeat(e)
        results += [next(done) if isinstance(one, Uploaded) else one for one in uploads]
    return results


def _batches(shard: Shard, ids: Sequence[str]) -> Plan[list[list[str]]]:
    if len(ids) <= 1:
        return [list(ids)] if ids else []
    calls = [Command(shard, ("HGET", shard.module(id), "bytes"), _size) for id in ids]
    batches: list[list[str]] = []
    room = 0
    for id, reply in zip(ids, (yield from Pipeline(calls)), strict=True):
        size = 0 if isinstance(reply, DistierError) else reply
        room -= size
        if room < 0 or not batches:
            batches.append([])
            room = BATCH_BYTES - size
        batches[-1].append(id)
    return batches


def _size(reply: bytes | None) -> int:
    return int(reply) if reply and reply.isdigit() else 0


def _to_disk(space: Namespace, shard: Shard, record: Record, content: bytes) -> Plan[None]:
    """Put a warm version that has just become clean on this node's disk, as if it had left hot clean.

    Its frame in Redis is dropped where warm is not kept there. A version that was put meanwhile stays, by its write id. One
    that became hot in this moment leaves it again, which costs a promotion and no content.
    """
    kept = yield from LocalPut(replace(record, clean=True), content)
    if kept and space.local_only:
        yield from demote(shard, "disk", [Move(record.id, record.order.write_id, "cold")])


def _read_dirty(at: Located) -> Plan[tuple[Record, bytes] | None]:
    """Return a dirty record and its content (empty for a tombstone); None where there is none.

    A pipeline is no transaction: the module may move between the two reads, so a copy that looks lost is read again.
    """
    space, shard, id = at
    for _ in range(REREADS_MAX):
        record, frame = yield from Pipeline([record_command(shard, id), frame_command(shard, id)])
        record, frame = collect(record), collect(frame)
        if record is None or record.clean:
            return None
        if record.deleted:
            return record, b""
        content = yield from content_unless_moved(space, shard, record, frame)
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
