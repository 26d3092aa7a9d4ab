"""Scripts for moves between tiers, uses, pins, leases, and the placement of a module."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from distier.domain.keys import WAITING, Shard
from distier.domain.module import MAX_COUNT
from distier.domain.order import Order
from distier.domain.outcome import Outcome
from distier.effects import HINT_S, USE_S, RunScript
from distier.errors import Corrupt
from distier.lua.loader import script
from distier.lua.replies import (
    Applied,
    Installed,
    Move,
    Over,
    Refused,
    Seen,
    move_args,
    move_keys,
    over_of,
    pairs_of,
    parse_change,
    parse_number,
    word_of,
)

COPY_BYTES_PER_S = 1_000_000
"""A read that leaves a copy for others waits for its transmission: as long as this rate needs, and `HINT_S`."""


class Released(IntEnum):
    """What became of a lease."""

    NOT_HELD = 0
    DONE = 1
    WANTED = 2
    """The caller keeps it, because readers wait for a copy."""


def promote(
    shard: Shard, id: str, write_id: str, content: bytes, reason: str, moves: Sequence[Move] = ()
) -> RunScript[Applied | Over | Refused]:
    """Make the version `write_id` of a module hot, and demote the victims `moves`.

    It is a hint unless `reason` is `request`.
    """
    keys = (*shard.fixed, *pairs_of(shard, [id]), *move_keys(shard, moves))
    args = (id, write_id, content, reason, *move_args(moves))
    hint = 0.0 if reason == "request" else HINT_S + len(content) / COPY_BYTES_PER_S
    return RunScript(shard, script("promote"), keys, args, parse_change, hint=hint)


def install(
    shard: Shard, id: str, write_id: str, codec: str, frame: bytes, reason: str, moves: Sequence[Move] = (), *,
    holder: str = "", uses: int = 0, likely: float = 0.0,
) -> RunScript[Installed]:  # fmt: skip
    """Make the version `write_id` of a cold module warm, and demote the victims `moves`. It is a hint.

    It also replaces the frame of a warm module, if that is damaged or has expired. It releases the lease of the module if
    `holder` has it, and records `uses`. It is not sent twice if it records uses. With `likely`, the probability of a predicted
    use, the reason is `predict`.
    """
    if likely:
        reason = f"predict:{likely:.2f}"

    def parse(reply: Any) -> Installed:
        return Installed(parse_change(reply), float(reply[-1]), reply[-2].decode())

    keys = (*shard.fixed, *pairs_of(shard, [id]), shard.lease(id), shard.waiting(id), *move_keys(shard, moves))
    args = (id, write_id, codec, frame, reason, holder, uses, *move_args(moves))
    hint = HINT_S + len(frame) / COPY_BYTES_PER_S
    return RunScript(shard, script("install"), keys, args, parse, retry=not uses, hint=hint)


def demote(shard: Shard, reason: str, moves: Sequence[Move]) -> RunScript[tuple[Outcome, ...] | Over]:
    """Demote modules. The result has the outcome of each move: `MOVED`, `ALREADY`, `CHANGED`, `PINNED` or `DIRTY`."""

    def parse(reply: Any) -> tuple[Outcome, ...] | Over:
        return over_of(reply) if word_of(reply) == "OVER" else tuple(Outcome(w.decode()) for w in reply[1])

    keys = (*shard.fixed, *move_keys(shard, moves))
    return RunScript(shard, script("demote"), keys, (reason, *move_args(moves)), parse)


def archived(shard: Shard, id: str, order: Order, size_bytes: int) -> RunScript[Applied | Refused]:
    """Mark a version as clean; its object in the archive has `size_bytes`."""
    keys = (*shard.fixed, *pairs_of(shard, [id]))
    return RunScript(shard, script("archived"), keys, (id, order.write_id, str(order), size_bytes), parse_change)  # type: ignore[arg-type]


class Reference(NamedTuple):
    """Where the archive has a version now. `key` is a reference to a pack, or a key; empty for the object's own name."""

    id: str
    order: Order
    key: str
    archived_bytes: int


def refer(shard: Shard, references: Sequence[Reference]) -> RunScript[int]:
    """Let the records of clean versions name where the archive has them. The result is how many records were changed."""
    keys = (*shard.fixed, *(shard.module(reference.id) for reference in references))
    args = tuple(w for r in references for w in (r.id, r.order.write_id[:8], str(r.order), r.key, r.archived_bytes))
    return RunScript(shard, script("refer"), keys, args, parse_number)


def touch(shard: Shard, uses: Sequence[tuple[str, int]]) -> RunScript[dict[str, float]]:
    """Record uses. The result has the counts after the touch, by id; -1 for ids that no longer exist.

    The script is not sent twice, because a lost batch costs only recency.
    """

    def parse(reply: Any) -> dict[str, float]:
        word_of(reply)
        return {id: float(count) for (id, _), count in zip(uses, reply[1], strict=True)}

    keys = (*shard.fixed, *pairs_of(shard, [id for id, _ in uses]))
    args = tuple(w for use in uses for w in use)
    return RunScript(shard, script("touch"), keys, args, parse, retry=False, hint=USE_S)


def pin(shard: Shard, id: str, ttl_ms: int) -> RunScript[int | None]:
    """Pin a module for `ttl_ms`; 0 unpins it.

    The result is the end of the pin in milliseconds since the Unix epoch (0 after an unpin), or None if the module does not
    exist.
    """

    def parse(reply: Any) -> int | None:
        return int(reply[1]) if word_of(reply) == "OK" else None

    return RunScript(shard, script("pin"), (*shard.fixed, shard.module(id)), (id, ttl_ms), parse)


def expire(shard: Shard, ids: Sequence[str]) -> RunScript[int]:
    """Make warm modules cold whose frames have expired. The result is their number."""
    keys = (*shard.fixed, *pairs_of(shard, ids))
    return RunScript(shard, script("expire"), keys, tuple(ids), parse_number)


def lapse(shard: Shard, ids: Sequence[str], grace_ms: int) -> RunScript[list[str]]:
    """Correct the list of modules with a TTL for some ids.

    The result has the version (`epoch-ver`) of each module that expired more than `grace_ms` ago, and is empty for the others.
    """

    def parse(reply: Any) -> list[str]:
        word_of(reply)
        return [version.decode() for version in reply[1:]]

    keys = (*shard.fixed, *pairs_of(shard, ids))
    return RunScript(shard, script("lapse"), keys, (grace_ms, *ids), parse)


def age(shard: Shard, half_life_ms: int) -> RunScript[int]:
    """Halve the counts of uses if the last time was `half_life_ms` ago. The result is 1 if this call did it, otherwise 0."""
    return RunScript(shard, script("age"), shard.fixed, (half_life_ms,), parse_number)


def read_range(
    shard: Shard, id: str, start: int, length: int | None, least: int
) -> RunScript[tuple[bytes, int, Order, str] | None]:
    """Read a part of the content of a hot module that has at least `least` bytes.

    The result is the part, the size of the whole content in bytes, the version and the content type; None if the module has to
    be read whole.
    """

    def parse(reply: Any) -> tuple[bytes, int, Order, str] | None:
        if word_of(reply) == "WHOLE":
            return None
        part, size_bytes, epoch, ver, write_id, content_type = reply[1:]
        return part, int(size_bytes), Order(int(epoch), int(ver), write_id.decode()), content_type.decode()

    keys, most = (*shard.fixed, shard.module(id)), MAX_COUNT if length is None else length
    return RunScript(shard, script("range"), keys, (start, most, least), parse)


def where(shard: Shard, id: str) -> RunScript[Seen | None]:
    """Look where a module is. The result is None if it does not exist."""

    def number(value: bytes) -> int | None:
        return int(float(value)) if value else None

    def parse(reply: Any) -> Seen | None:
        if not reply:
            return None
        flat, last_use, due, uses, dirty, pinned, pttl = reply
        if len(flat) % 2:
            raise Corrupt(f"the record of module {id!r} is damaged; run `distier fsck`")
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return Seen(fields, number(last_use), number(due), float(uses or 0), number(dirty), number(pinned), int(pttl))

    return RunScript(shard, script("where"), (*shard.fixed, *pairs_of(shard, [id])), (id,), parse)


def release(shard: Shard, lease: str, holder: str, *, unless_waiting: bool = False) -> RunScript[Released]:
    """Release a lease if `holder` still has it; with `unless_waiting`, not if readers wait for a copy of the module."""
    keys = (lease, lease + WAITING)
    return RunScript(shard, script("release"), keys, (holder, int(unless_waiting)), Released, hint=HINT_S)
