"""Records the reads of all processes for some time, as a trace for the simulator.

While the field `recording` of a shard's epoch is in the future, the scripts that note uses also add them to a stream. So a
recording costs the reads one command for each batch of uses, and nothing when there is none. Processes report uses once a
second, so the order of reads within a second, and the session of a read, are not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.effects import Command, Pipeline, Plan, collect
from distier.observe.events import entries_of
from distier.plans.common.commands import chunks, server_ms
from distier.plans.common.namespace import Namespace

AHEAD_MS = 10_000
"""How long a recorder that was killed is recorded for, in milliseconds."""
EXPIRES_MS = 60_000
BATCH = 500
_SIZES = 500


class Read(NamedTuple):
    """Uses of a module that one process reported. `at_ms` is the server's time of the report, since the Unix epoch."""

    at_ms: int
    id: str
    uses: int


@dataclass(slots=True)
class Recording:
    """The reads that were recorded so far, in the order of the reports."""

    space: Namespace
    reads: list[Read] = field(default_factory=list)
    _last: dict[Shard, str] = field(default_factory=dict)

    def begin(self) -> Plan[None]:
        """Let the scripts record from now on. Other recorders of the namespace are not disturbed."""
        for shard in self.space.keys.shards:
            last = yield from Command(shard, ("XADD", shard.reads, "*", "", "0"), lambda reply: reply.decode())
            self._last[shard] = last
        yield from self._renew()

    def _renew(self) -> Plan[None]:
        now_ms = yield from server_ms(self.space.keys.shards[0])
        calls: list[Command[Any]] = []
        for shard in self.space.keys.shards:
            calls.append(Command(shard, ("PEXPIRE", shard.reads, EXPIRES_MS), int))
            calls.append(Command(shard, ("HSET", shard.epoch, "recording", now_ms + AHEAD_MS), int))
        for reply in (yield from Pipeline(calls)):
            collect(reply)

    def step(self) -> Plan[int]:
        """Take what was reported since the last step, and return the number of reports. Call it every few seconds."""
        yield from self._renew()
        seen = 0
        for shard in self.space.keys.shards:
            while True:
                command = ("XREAD", "COUNT", BATCH, "STREAMS", shard.reads, self._last[shard])
                entries: list[tuple[str, dict[str, str]]] = yield from Command(shard, command, entries_of)
                for stream_id, uses in entries:
                    self._last[shard] = stream_id
                    self.reads += _reads(int(stream_id.partition("-")[0]), uses)
                seen += len(entries)
                if len(entries) < BATCH:
                    break
        return seen

    def end(self) -> Plan[None]:
        """Let the scripts stop, unless another recorder goes on: it renews the time."""
        calls = [Command(shard, ("HDEL", shard.epoch, "recording"), int) for shard in self.space.keys.shards]
        for reply in (yield from Pipeline(calls)):
            collect(reply)

    def rows(self) -> Plan[list[tuple[float, str, int, int]]]:
        """Return the reads as rows of a trace: time in s, id, bytes, tokens. Modules that are gone by now are left out."""
        sizes = yield from _sizes(self.space, list(dict.fromkeys(read.id for read in self.reads)))
        ordered = sorted(self.reads, key=lambda read: read.at_ms)
        return [
            (read.at_ms / 1000, read.id, *sizes[read.id])
            for read in ordered
            if read.id in sizes
            for _ in range(read.uses)
        ]


def _reads(at_ms: int, uses: Mapping[str, str]) -> Iterator[Read]:
    for id, n in uses.items():
        if id and n.isascii() and n.isdigit() and len(n) < 7:
            yield Read(at_ms, id, int(n))


def _sizes(space: Namespace, ids: Sequence[str]) -> Plan[dict[str, tuple[int, int]]]:
    """Return the bytes and tokens of modules by id."""
    found: dict[str, tuple[int, int]] = {}
    for part in chunks(ids, _SIZES):
        calls: list[Command[Any]] = [
            Command(shard, ("HMGET", shard.module(id), "tier", "bytes", "tokens"), list)
            for shard, id in ((space.shard(id), id) for id in part)
        ]
        for id, reply in zip(part, (yield from Pipeline(calls)), strict=True):
            tier, size_bytes, tokens = collect(reply)
            if tier not in (None, b"deleted"):
                found[id] = int(size_bytes or 0), int(tokens or 0)
    return found
