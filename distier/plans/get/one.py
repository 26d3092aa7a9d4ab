"""Reading one module, from its nearest copy.

    near      one read of the record without its content, where the process has had this version before (`suspect`)
    hot       one plain HGETALL, whose reply has the content
    warm      one more round trip, for the frame, together with the gathered uses; none more where this process lately
              found the module there and asked for both at once
    cold      one process fetches the object, while a lease keeps the others waiting, checks it, and leaves a warm copy

The record alone proves a miss: a module that exists has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Module, Record, Tier, parse_copy, parse_hot, parse_record
from distier.domain.outcome import Outcome
from distier.effects import Count, LocalGet, LocalPut, Pipeline, Plan, Used, collect
from distier.errors import Corrupt, DeadlineExceeded
from distier.lua import Opened
from distier.plans.common.clock import has_expired
from distier.plans.common.commands import fields_command, frame_command, version_command
from distier.plans.common.content import content_or_none
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.process_state import Lately
from distier.plans.common.touches import send_touch
from distier.plans.get.fetch import fetch_alone
from distier.plans.get.uses import is_hot_now, is_promotable, use, use_with_copy
from distier.plans.recovery.adopt import newest_record, settle_record
from distier.plans.tier.keep import keep, to_hot

WHOLE_BYTES = 4096
"""A suspect of at most this content is compared with the whole record: sending that takes little longer than a part of it."""
AT_ONCE_BYTES = 64 * 1024
"""A frame of at most this content opens in less time than handing it to a thread takes."""
LOST_MAX = 5
"""How often the copy of an unchanged dirty record must be missing: once or twice, it may have moved between two reads."""
REREADS_MAX = 20
"""A module that moves between every two reads this often is not moving; it is broken."""


def get(space: Namespace, id: str, suspect: Module | None = None) -> Plan[Module | None]:
    """Return the module, from its nearest copy; None if there is none.

    `suspect` is a version that the process has from an earlier read. It is the result if the record still has that version.
    """
    shard, states = space.shard(id), space.process.epochs
    known = states.get(shard)  # what proves a read must be known before it: see `read_record`
    frame: bytes | None = None
    if suspect is not None and known is not None:
        whole = len(suspect.content) <= WHOLE_BYTES
        fields = yield from fields_command(shard, id) if whole else version_command(shard, id)
        if states is space.process.epochs and is_still(suspect, fields, known):
            if suspect.expires_ms is not None and (yield from has_expired(space, shard, suspect.expires_ms)):
                yield Count("misses")
                return None
            return (yield from serve_again(space, shard, suspect, fields))
        if not whole:
            return (yield from get(space, id))
    elif id in space.process.warm and space.node is None:
        replies = yield from Pipeline([fields_command(shard, id), frame_command(shard, id)])
        fields, frame = map(collect, replies)
    else:
        fields = yield from fields_command(shard, id)
    if states is not space.process.epochs:
        known = None
    module = parse_hot(id, fields, known.epoch, known.verified) if known else None
    if module is not None:
        return (yield from serve_hot(space, shard, module))
    at = Located(space, shard, id)
    if (
        known
        and frame is not None
        and (module := open_warm(id, fields, frame, known, space.process.dictionaries)) is not None
    ):
        return (yield from _serve_warm(at, module, fields))
    record = yield from settle_record(at, parse_record(id, fields), known)
    if record is None:
        yield Count("misses")
        return None
    if record.content is not None:
        return (yield from serve_hot(space, shard, record.hot_module()))
    return (yield from read_below(at, record, frame))


def is_still(suspect: Module, fields: Mapping[bytes, bytes], known: Opened) -> bool:
    """Return whether the record with these fields has the version of `suspect`, and is known to be the newest one."""
    try:
        version = (int(fields[b"epoch"]), int(fields[b"ver"]), fields[b"tok"].decode())
        current = known.verified >= known.epoch or int(fields[b"seen"]) >= known.epoch
        content = fields.get(b"content", suspect.content)  # somebody may have changed it by hand
        here = fields[b"tier"] in (b"hot", b"warm", b"cold") and content == suspect.content
        return current and here and version == suspect.version
    except (KeyError, ValueError):
        return False  # the read of the whole record reports what is wrong


def serve_again(space: Namespace, shard: Shard, suspect: Module, fields: Mapping[bytes, bytes]) -> Plan[Module]:
    """Return the suspect with the tier of its record, and note the use. Promote it if it has enough uses."""
    module = as_placed(suspect, fields)
    yield Count("hits.revalidated")
    if module.tier == "hot":
        space.process.warm.pop(module.id, None)
        touch = yield Used(shard, module.id)
        if touch is not None:
            yield from send_touch(space, [touch])
    else:
        yield from _use_below(Located(space, shard, module.id), module, fields)
    return module


def as_placed(suspect: Module, fields: Mapping[bytes, bytes]) -> Module:
    """Return the suspect with the tier of its record."""
    tier: Any = fields[b"tier"].decode()
    return suspect if tier == suspect.tier else replace(suspect, tier=tier)


def serve_hot(space: Namespace, shard: Shard, module: Module) -> Plan[Module]:
    """Count a hot hit and note the use."""
    space.process.warm.pop(module.id, None)
    touch = yield Used(shard, module.id, hit="hits.hot")
    if touch is not None:
        yield from send_touch(space, [touch])
    return module


def open_warm(
    id: str, fields: Mapping[bytes, bytes], frame: bytes, known: Opened, dictionaries: Lately[bytes]
) -> Module | None:
    """Return the module of a small warm record, with the content of the frame that was read with it; None for anything else.

    This is the short way, as `parse_hot` is for hot records. The long way finds out what is wrong, and finds a dictionary that
    this process does not have yet.
    """
    try:
        size_bytes = int(fields[b"bytes"])
        if fields[b"tier"] != b"warm" or size_bytes > AT_ONCE_BYTES:
            return None
        kind, dictionary = fields[b"codec"].decode(), None
        if kind.startswith(codec.WITH_DICTIONARY):
            dictionary = dictionaries.get(kind[len(codec.WITH_DICTIONARY) :])
        content = codec.decompress_frame(kind, frame, size_bytes=size_bytes, dictionary=dictionary)
        # Not in layout 1, nor if it is not compressed, nor with a dictionary.
        named = dictionary is None and codec.names_version(frame, fields[b"tok"])
    except (KeyError, ValueError, Corrupt):
        return None
    if not named and hashlib.sha256(content).hexdigest().encode() != fields.get(b"sha256"):
        return None
    return parse_copy(id, fields, content, "warm", known.epoch, known.verified)


def _serve_warm(at: Located, module: Module, fields: Mapping[bytes, bytes]) -> Plan[Module]:
    """Count a warm hit, note the use, and promote the module if it has enough of them."""
    yield Count("hits.warm")
    yield from _use_below(at, module, fields)
    return module


def _use_below(at: Located, module: Module, fields: Mapping[bytes, bytes]) -> Plan[None]:
    """Note the use of a module below hot, and promote it if it has enough of them."""
    touch = yield from use(at)
    if touch is not None:
        space, shard, id = at
        counts = yield from send_touch(space, [touch])
        if is_promotable(space, id, counts.get(id, 0.0)):
            yield from keep(fields_to_hot(space, shard, module, fields))


def fields_to_hot(space: Namespace, shard: Shard, module: Module, fields: Mapping[bytes, bytes]) -> Plan[Outcome]:
    """Make the version of a record hot, with the content of a module that was read."""
    record = parse_record(module.id, fields)
    assert record is not None
    return (yield from to_hot(space, shard, record, module.content, "uses"))


def read_below(at: Located, record: Record, frame: bytes | None = None) -> Plan[Module | None]:
    """Return the module from its warm or cold copy, and promote it if it has been used often enough. `frame`: the frame, if
    it was read after the record."""
    space, shard, id = at
    lost = 0
    for _ in range(REREADS_MAX):
        if space.node is not None and record.clean:
            module = yield from read_local(space, shard, record)
            if module is not None:
                return module
        if record.tier == "cold" and record.clean:
            touch, uses = yield from use_with_copy(at)
            found = yield from fetch_alone(space, shard, record, touch, uses=uses)
        else:
            found = yield from _content_below(at, record, frame)
        frame = None
        if found is not None:
            content, tier = found
            yield Count(f"hits.{tier}")
            return record.module(content, tier)
        # It moved between our reads: look again.
        again = yield from newest_record(at)
        if again is None:
            yield Count("misses")
            return None
        if again.content is not None:
            return (yield from serve_hot(space, shard, again.hot_module()))
        lost += again == record and not record.clean
        if lost >= LOST_MAX:
            raise Corrupt(
                f"module {id!r} ({record.order}) is not archived yet and its only copy is gone or damaged; "
                "was a key changed by hand? Run `distier doctor`"
            )
        record = again
    raise DeadlineExceeded(f"module {id!r} moved {REREADS_MAX} times while it was read; try again")


def read_local(space: Namespace, shard: Shard, record: Record) -> Plan[Module | None]:
    """Return the module from this node's disk, without a command to Redis; None where the disk does not have this version.

    Its use goes with the next batch. If Redis then counts enough of them, the next read here promotes it.
    """
    content = yield LocalGet(record)
    if content is None:
        return None
    uses = space.process.warm.get(record.id, 0.0)
    space.process.guess_warm(record.id, uses + 1)
    touch = yield Used(shard, record.id, hit="hits.warm")
    if touch is not None:
        yield from send_touch(space, [touch])
    if is_promotable(space, record.id, uses):
        yield from keep(to_hot(space, shard, record, content, "uses"))
        space.process.guess_warm(record.id, 0.0)  # if there was no room, the next try is that many reads later
    return record.module(content, "warm")


def _content_below(at: Located, record: Record, frame: bytes | None) -> Plan[tuple[bytes, Tier] | None]:
    """Return the content from the frame or the archive, promoted if it has enough uses; None where neither has it any more."""
    space, shard, id = at
    touch = yield from use(at)
    calls: list[Any] = [touch] if touch is not None else []
    if frame is None:
        calls.append(frame_command(shard, id))
    replies = (yield from Pipeline(calls)) if calls else []
    if frame is None:
        frame = collect(replies[-1])
    hot_now = is_hot_now(space, id, replies[0] if touch is not None else None)
    damaged = None
    if frame is not None and record.tier == "warm":
        damaged = frame  # unless it opens
        content = yield from _try_frame(at, record, frame)
        if content is not None:
            if space.node is not None and record.clean:
                yield from LocalPut(record, content)
            if hot_now:
                yield from keep(to_hot(space, shard, record, content, "uses"))
            return content, "warm"
    if not record.clean:
        return None
    return (yield from fetch_alone(space, shard, record, None, hot_now, damaged))


def _try_frame(at: Located, record: Record, frame: bytes) -> Plan[bytes | None]:
    """Return the content of a frame, or None if it is not the record's: damaged, or of another version.

    The archive has a clean version whole. For a dirty one, the caller reads the record again.
    """
    content = yield from content_or_none(at.space, at.shard, record, frame)
    if content is None and record.clean:
        yield Count("healed.warm")
    return content
