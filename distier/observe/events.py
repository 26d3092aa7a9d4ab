"""Reads the shards' event streams. They are a trimmed history and a source of hints, not a work queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Event
from distier.effects import Command, Pipeline, Plan, Sleep, collect

BATCH = 500
POLL_S = 0.05


@dataclass(slots=True)
class Cursor:
    """How far the streams have been read: the id of the last event of each shard."""

    last: dict[Shard, str]

    @staticmethod
    def start(shards: Sequence[Shard], since: str) -> Plan[Cursor]:
        """Return a cursor after the stream id `since` in each of the shards; `$` is the current end of each stream."""
        if since != "$":
            return Cursor(dict.fromkeys(shards, since))
        calls: list[Command[str]] = [
            Command(s, ("XREVRANGE", s.events, "+", "-", "COUNT", 1), _last_id) for s in shards
        ]
        return Cursor(dict(zip(shards, [collect(r) for r in (yield from Pipeline(calls))], strict=True)))


def read_events(cursor: Cursor, wait_ms: int) -> Plan[list[Event]]:
    """Return the next events of all shards by time, at most 500 per shard, and advance the cursor.

    Args:
        cursor: Where to start.
        wait_ms: How long to wait if there are no events, in milliseconds. With one shard Redis waits; several shards are
            polled every `POLL_S` seconds.
    """
    found = yield from _read_once(cursor, wait_ms if len(cursor.last) == 1 else 0)
    waited_ms = 0.0
    while not found and len(cursor.last) > 1 and waited_ms < wait_ms:
        yield Sleep(POLL_S)
        waited_ms += POLL_S * 1000
        found = yield from _read_once(cursor, 0)
    return found


def are_lost(cursor: Cursor) -> Plan[bool]:
    """Return whether events after the cursor may have been trimmed, or were lost with a stream."""
    calls: list[Command[str]] = [
        Command(shard, command, _last_id)
        for shard in cursor.last
        for command in (
            ("XRANGE", shard.events, "-", "+", "COUNT", 1),
            ("XREVRANGE", shard.events, "+", "-", "COUNT", 1),
        )
    ]
    replies = [collect(reply) for reply in (yield from Pipeline(calls))]
    return any(
        _position(first) > _position(last) or _position(end) < _position(last)
        for first, end, last in zip(replies[::2], replies[1::2], cursor.last.values(), strict=True)
        if (first, last) != ("0", "0")
    )


def _read_once(cursor: Cursor, block_ms: int) -> Plan[list[Event]]:
    block = ("BLOCK", block_ms) if block_ms else ()
    calls: list[Command[Any]] = []
    for shard, last in cursor.last.items():
        calls.append(Command(shard, ("XREVRANGE", shard.events, "+", "-", "COUNT", 1), _last_id))
        calls.append(Command(shard, ("XREAD", "COUNT", BATCH, *block, "STREAMS", shard.events, last), _parse))
    found: list[Event] = []
    replies = [collect(reply) for reply in (yield from Pipeline(calls))]
    for shard, end, events in zip(list(cursor.last), replies[::2], replies[1::2], strict=True):
        if events:
            cursor.last[shard] = events[-1].stream_id
        elif _position(end) < _position(cursor.last[shard]):
            # The stream ends before the last event that was read: it was lost and starts again, perhaps with an earlier clock.
            cursor.last[shard] = "0"
        found += events
    return sorted(found, key=lambda e: e.at_ms)


def _last_id(reply: Any) -> str:
    return reply[0][0].decode() if reply else "0"


def _position(stream_id: str) -> tuple[int, int]:
    ms, _, n = stream_id.partition("-")
    return int(ms), int(n or 0)


def entries_of(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """Return the entries in a reply to XREAD of one stream. Invalid bytes are replaced: a foreign entry must stop no reader."""
    if not reply:
        return []
    # RESP3 returns {stream: [[entry, ...]]} or {stream: [entry, ...]}, RESP2 [[stream, [entry, ...]]].
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    if entries and entries[0] and isinstance(entries[0][0], list | tuple):
        entries = entries[0]
    return [(entry_id.decode(), _fields(fields)) for entry_id, fields in entries]


def _fields(fields: Any) -> dict[str, str]:
    pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in pairs}


def _parse(reply: Any) -> list[Event]:
    return [_event(stream_id, fields) for stream_id, fields in entries_of(reply)]


def _event(stream_id: str, fields: dict[str, str]) -> Event:
    get = fields.get
    at_ms = int(stream_id.partition("-")[0])
    return Event(stream_id, get("id", ""), get("from", ""), get("to", ""), get("reason", ""), get("version", ""), at_ms)
