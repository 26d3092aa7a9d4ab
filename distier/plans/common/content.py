"""Contents and their copies: making and opening frames, counting tokens, comparing with the checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial

from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.effects import Offload, Pipeline, Plan, collect
from distier.errors import Corrupt, Unavailable
from distier.plans.common.commands import frame_command, record_command
from distier.plans.common.dictionaries import current_dictionary, dictionary_of
from distier.plans.common.namespace import Namespace

# The names of computations in errors that say what took a call's time.
COUNTING = "counting tokens and hashing"
LZ4 = "compressing and decompressing (lz4)"
UNPACKING = "decompressing archived objects (xz)"


FAST_LEVEL_MAX = 6
"""lz4's level of frames with a dictionary for a caller who waits. The fast mode hardly uses a dictionary: its frames would be a
third larger. This level takes three quarters of the time of level 9, and its frames are a part in three hundred larger."""


def make_frame(
    space: Namespace, content: bytes, write_id: str, *, fast: bool = False, clean_in: Shard | None = None
) -> Plan[tuple[str, bytes]]:
    """Make the warm copy of the content of a version. Returns its codec and bytes.

    Args:
        space: the namespace.
        content: the content.
        write_id: the version.
        fast: for a caller who waits although it has the content. Without a dictionary it takes a tenth of the time, and frames
            are a fifth larger.
        clean_in: the shard of a version that is archived. Its frame is made with the shard's current dictionary, if there is
            one. Never for a version that is not archived: its frame is its only copy, and must not depend on anything else.
    """
    level = space.frame_level
    if level is None:
        return "raw", content
    if clean_in is not None and space.process.dictionary.get(clean_in):
        found = yield from current_dictionary(space, clean_in, len(content))
        if found is not None:
            name, data, at = *found, min(level, FAST_LEVEL_MAX) if fast else level
            return (
                yield from Offload(
                    len(content), lambda: codec.compress_with_dictionary(content, name, data, level=at), LZ4
                )
            )
    level = 0 if fast else level
    return (
        yield from Offload(len(content), lambda: codec.compress_frame(content, level=level, write_id=write_id), LZ4)
    )


def count_tokens(space: Namespace, content: bytes) -> Plan[int]:
    """Count the tokens of a content. A large one is counted in steps, if the counter can, so that the call can end between
    two."""
    cut = getattr(space.counter, "parts", None)
    parts = (content,) if cut is None else (yield from Offload(len(content), partial(cut, content), COUNTING))
    tokens = 0
    for part in parts:
        tokens += yield from Offload(len(part), partial(space.counter.count, part), COUNTING)
    return tokens


def open_frame(space: Namespace, shard: Shard, record: Record, frame: bytes) -> Plan[bytes]:
    """Return the content of a frame. The caller compares what needed a dictionary with its SHA-256.

    Raises `Corrupt`, also if the dictionary is gone, and `Unavailable` if nobody knows whether it is.
    """
    try:
        dictionary = None
        if record.codec.startswith(codec.WITH_DICTIONARY):
            dictionary = yield from dictionary_of(space, shard, record)
        return (
            yield from Offload(
                record.size_bytes,
                lambda: codec.decompress_frame(
                    record.codec, frame, size_bytes=record.size_bytes, dictionary=dictionary
                ),
                LZ4,
            )
        )
    except Corrupt as e:
        raise Corrupt(f"the warm copy of module {record.id!r} ({record.order}) is damaged: {e}") from e


def check_content(record: Record, content: bytes, where: str) -> bytes:
    """Return `content` if it is what the record describes. Raises `Corrupt` otherwise."""
    if len(content) != record.size_bytes or hashlib.sha256(content).hexdigest() != record.sha256:
        raise Corrupt(
            f"the {where} copy of module {record.id!r} ({record.order}) does not match its SHA-256; run `distier fsck`"
        )
    return content


def content_of(
    space: Namespace, shard: Shard, record: Record, frame: bytes | None, *, for_reader: bool = False
) -> Plan[bytes | None]:
    """Return the checked content of a record from the copies in Redis; None if Redis has none any more.

    For a reader, the frame's own checksum suffices if it names the version. What goes to the archive is compared with the
    SHA-256, and so is what needed a dictionary: its frame names no version.
    """
    if record.content is not None:
        return check_content(record, record.content, "hot")
    if (
        frame is None or record.tier != "warm"
    ):  # a frame that was written after the record was read says nothing about it
        return None
    content = yield from open_frame(space, shard, record, frame)
    if for_reader and codec.names_version(frame, record.order.write_id.encode()):
        return content
    return check_content(record, content, "warm")


def content_unless_moved(space: Namespace, shard: Shard, record: Record, frame: bytes | None) -> Plan[bytes | None]:
    """Return `content_of`, or None where the module has moved on.

    Record and frame are read one after the other, so a newer version may come between them. Raises `Corrupt` where none has.
    """
    try:
        return (yield from content_of(space, shard, record, frame))
    except Corrupt:
        if (yield from is_current(shard, record)):
            raise
        return None


def is_current(shard: Shard, record: Record) -> Plan[bool]:
    """Return whether the record is still the same, in every field."""
    now = yield from record_command(shard, record.id)
    return now == record


PART_MAX = 500
PART_MAX_BYTES = 8 * 1024 * 1024
"""The most modules, and the most bytes of content, whose frames are read and opened at once. A larger module is read alone."""


def open_frames(space: Namespace, part: Sequence[tuple[Shard, Record]]) -> Plan[list[bytes | None]]:
    """Return the contents of several warm records, read in one round trip; None for a frame that is gone, damaged or of
    another version."""
    frames = yield from Pipeline([frame_command(shard, record.id) for shard, record in part])
    contents = []
    for (shard, record), reply in zip(part, frames, strict=True):
        frame = collect(reply)
        contents.append(None if frame is None else (yield from content_or_none(space, shard, record, frame)))
    return contents


def by_bytes(warm: Sequence[tuple[Shard, Record]]) -> Iterator[list[tuple[Shard, Record]]]:
    """Split warm records into the parts that `open_frames` takes at once."""
    part: list[tuple[Shard, Record]] = []
    size_bytes = 0
    for shard, record in warm:
        if part and (len(part) >= PART_MAX or size_bytes + record.size_bytes > PART_MAX_BYTES):
            yield part
            part, size_bytes = [], 0
        part.append((shard, record))
        size_bytes += record.size_bytes
    if part:
        yield part


def content_or_none(space: Namespace, shard: Shard, record: Record, frame: bytes | None) -> Plan[bytes | None]:
    """Return the content of a frame, or None if it does not fit the record.

    None also if its dictionary cannot be had: the archive has the version, and says itself where it does not answer. Raises
    `Unavailable` if it has not.
    """
    try:
        return (yield from content_of(space, shard, record, frame, for_reader=True))
    except Corrupt:
        return None
    except Unavailable:
        if not record.clean:
            raise
        return None
