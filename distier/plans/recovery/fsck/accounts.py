"""The accounts of a shard, compared with a recount of its records while others write."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distier.domain.keys import Shard
from distier.domain.schema import COUNTED, contribution
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import Corrupt
from distier.lua import Moving, account
from distier.plans.common.commands import unparsed
from distier.plans.recovery.fsck.findings import Run

CHANGED_MAX = 10_000
RECOUNTS_MAX = 30


@dataclass
class _Recount:
    """Records, each counted at some moment of a scan, so that any of them can be taken out again."""

    since: str
    seen: set[int] = field(default_factory=set)
    marks: array[int] = field(default_factory=lambda: array("q"))
    values: list[array[int]] = field(default_factory=lambda: [array("q") for _ in COUNTED])

    def add(self, key: bytes, reply: Sequence[bytes | None]) -> None:
        mark = hash(key)
        if reply[0] is None or mark in self.seen:
            return
        self.seen.add(mark)
        self.marks.append(mark)
        tier = _TIERS.index(reply[0]) if reply[0] in _TIERS else -1
        numbers = [tier, *(int(n) if n and n.isdigit() else 0 for n in reply[1:])]
        for column, number in zip(self.values, numbers, strict=True):
            column.append(number)

    def sums(self, without: set[int]) -> dict[str, int]:
        total: dict[str, int] = {}
        for mark, tier, *numbers in zip(self.marks, *self.values, strict=True):
            if mark in without or tier < 0:
                continue
            for name, n in contribution([_TIERS[tier], *(b"%d" % n for n in numbers)]).items():
                total[name] = total.get(name, 0) + n
        return {name: n for name, n in total.items() if n}


_TIERS = (b"hot", b"warm", b"cold", b"deleted")


def check_accounts(run: Run, shard: Shard) -> Plan[None]:
    before: dict[str, int] | None = None
    for _ in range(2):
        counted = yield from _recount(shard)
        off = yield from _compare(shard, counted, repair=False)
        if off is None:
            run.found("accounts-unknown", key=shard.usage)
            return
        if not off or before not in (None, off):
            return
        if before is None:
            before = off
    repaired = False
    if run.repair:
        repaired = (yield from _compare(shard, counted, repair=True)) == before
    for name, n in sorted((before or {}).items()):
        run.found("accounts", key=shard.usage, detail=f"{name} is {n:+d} off", repaired=repaired)


def _recount(shard: Shard) -> Plan[_Recount]:
    counted, cursor = _Recount((yield from _last_event(shard))), 0
    while True:
        command = ("SCAN", cursor, "MATCH", shard.module_pattern(""), "COUNT", 1000)
        after, keys = yield from Command(shard, command, unparsed)
        calls: list[Command[Any]] = [Command(shard, ("HMGET", key, *COUNTED), unparsed) for key in keys]
        for key, reply in zip(keys, (yield from Pipeline(calls)), strict=True):
            if not isinstance(reply, Corrupt):  # a foreign type, reported as such
                counted.add(key, collect(reply))
        cursor = int(after)
        if not cursor:
            return counted


def _last_event(shard: Shard) -> Plan[str]:
    command = ("XREVRANGE", shard.events, "+", "-", "COUNT", 1)
    return (yield from Command(shard, command, lambda r: r[0][0].decode() if r else "0-0"))


def _compare(shard: Shard, counted: _Recount, *, repair: bool) -> Plan[dict[str, int] | None]:
    """Return how far the accounts are off; None where too much has changed to tell."""
    for _ in range(RECOUNTS_MAX):
        changed = yield from _changed(shard, counted.since)
        if changed is None:
            return None
        last, ids = changed
        sums = counted.sums({hash(shard.module(id).encode()) for id in ids})
        reply = yield from account(shard, sums, sorted(ids), last, repair=repair)
        if not isinstance(reply, Moving):
            return reply
    return None


def _changed(shard: Shard, since: str) -> Plan[tuple[str, set[str]] | None]:
    """Return the last event, and the modules that had any after `since`; None where the stream was trimmed since."""
    ids: set[str] = set()
    last, n = since, 0
    while True:
        page = yield from Command(shard, ("XRANGE", shard.events, f"({last}", "+", "COUNT", 1000), unparsed)
        for event, flat in page or ():
            last, n = event.decode(), n + 1
            ids |= set(_event_id(flat))
        if len(page or ()) < 1000:
            break
    command = ("XRANGE", shard.events, "-", "+", "COUNT", 1)
    first = yield from Command(shard, command, lambda r: r[0][0].decode() if r else "0-0")
    whole = n == 0 or _order(first) <= _order(since) or (since == "0-0" and n < 1000)
    return (last, ids - {""}) if whole and len(ids) <= CHANGED_MAX else None


def _event_id(flat: Sequence[bytes] | Mapping[bytes, bytes]) -> Iterator[str]:
    pairs = flat.items() if isinstance(flat, Mapping) else zip(flat[::2], flat[1::2], strict=True)
    for name, value in pairs:
        if name == b"id":
            yield value.decode()


def _order(stream_id: str) -> tuple[int, int]:
    ms, _, n = stream_id.partition("-")
    return int(ms), int(n or 0)
