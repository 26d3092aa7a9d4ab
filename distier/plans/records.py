"""Reading records and copies: the small plans that all others are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Record, parse_record
from distier.effects import HINT_S, Command, Offload, Pipeline, Plan
from distier.errors import Corrupt

from .space import Space

T = TypeVar("T")

# What errors call the computations that took a call's time.
COUNTING = "counting tokens and hashing"
LZ4 = "compressing and decompressing (lz4)"
UNPACKING = "decompressing what the archive gave (xz)"


def record_command(shard: Shard, id: str) -> Command[Record | None]:
    """A plain read of the whole record: the fastest that Redis has, and one that near caches can follow."""
    return Command(shard, ("HGETALL", shard.module(id)), lambda fields: parse_record(id, fields))


def fields_command(shard: Shard, id: str) -> Command[dict[bytes, bytes]]:
    """The same, unparsed, for the one place where every microsecond counts."""
    return Command(shard, ("HGETALL", shard.module(id)), _same)


def frame_command(shard: Shard, id: str) -> Command[bytes | None]:
    return Command(shard, ("GET", shard.frame(id)), _same)


def _same(reply: Any) -> Any:
    return reply


def numbers(reply: Sequence[bytes | None]) -> list[int]:
    """What `HMGET` answers where all fields are whole numbers; 0 for those that are not there."""
    return [int(n or 0) for n in reply]


def lease_command(shard: Shard, lease: str, me: str, ttl_ms: int) -> Command[bytes | None]:
    """Take a lease: None if it is mine now, else the name of its holder. `GET` makes it safe to send twice: a repeated one
    meets its own name."""
    words = ("SET", lease, me, "NX", "GET", "PX", ttl_ms)
    return Command(shard, words, lambda before: None if before == me.encode() else before, hint=HINT_S)


def take_lease(shard: Shard, lease: str, holder: str, ttl_ms: int, *, hint: float = 0.0) -> Command[bool]:
    """Whether `holder` has the lease now. `hint`: whoever asks goes on without an answer."""
    return Command(
        shard,
        lease_command(shard, lease, holder, ttl_ms).words,
        lambda before: before in (None, holder.encode()),
        hint=hint,
    )


def cut_lease(shard: Shard, lease: str, ttl_ms: int) -> Plan[None]:
    """A lease that others have does not last longer than any can: one that does is of before the server's clock went back."""
    yield from Pipeline([Command(shard, ("PEXPIRE", lease, ttl_ms, "LT"), int, hint=HINT_S)])


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def make_frame(space: Space, content: bytes, *, fast: bool = False) -> Plan[tuple[str, bytes]]:
    """The warm copy of a content: its codec and bytes. `fast` where somebody waits for it who has the content already: a tenth
    of the time, and frames that are a fifth larger."""
    level = space.frame_level
    if level is None:
        return "raw", content
    level = 0 if fast else level
    return (yield from Offload(len(content), lambda: codec.compress_frame(content, level=level), LZ4))


def count_tokens(space: Space, content: bytes) -> Plan[int]:
    """The tokens of a content. A large one is counted in steps, if the counter can, and the call can end between two."""
    cut = getattr(space.counter, "parts", None)
    parts = (content,) if cut is None else (yield from Offload(len(content), partial(cut, content), COUNTING))
    tokens = 0
    for part in parts:
        tokens += yield from Offload(len(part), partial(space.counter.count, part), COUNTING)
    return tokens


def open_frame(record: Record, frame: bytes) -> Plan[bytes]:
    """The content in a warm copy. Raises `Corrupt`."""
    try:
        return (
            yield from Offload(
                record.size_bytes,
                lambda: codec.decompress_frame(record.codec, frame, size_bytes=record.size_bytes),
                LZ4,
            )
        )
    except Corrupt as e:
        raise Corrupt(f"the warm copy of module {record.id!r} ({record.order}) is damaged: {e}") from e


def check_content(record: Record, content: bytes, where: str) -> bytes:
    """`content` itself if it is what the record says; raises `Corrupt`."""
    if len(content) != record.size_bytes or hashlib.sha256(content).hexdigest() != record.sha256:
        raise Corrupt(
            f"the {where} copy of module {record.id!r} ({record.order}) does not match its SHA-256; run `distier fsck`"
        )
    return content


def content_of(record: Record, frame: bytes | None) -> Plan[bytes | None]:
    """The checked content of a record from the copies that Redis holds; None if it holds none (any more)."""
    if record.content is not None:
        return check_content(record, record.content, "hot")
    if frame is None or record.tier != "warm":  # a frame that came after the record was read says nothing about it
        return None
    content = yield from open_frame(record, frame)
    return check_content(record, content, "warm")


def content_unless_moved(shard: Shard, record: Record, frame: bytes | None) -> Plan[bytes | None]:
    """`content_of`; None also where the copy does not fit the record because the module has moved on: record and frame
    were read one after the other, and a newer version may have come between them. Raises `Corrupt` where it has not."""
    try:
        return (yield from content_of(record, frame))
    except Corrupt:
        if (yield from is_current(shard, record)):
            raise
        return None


def is_current(shard: Shard, record: Record) -> Plan[bool]:
    """Whether the record is still the same, in every field."""
    now = yield from record_command(shard, record.id)
    return now == record
