"""The clock of a shard, by which modules expire. It is the same for all processes, and never goes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.effects import Command, Monotonic, Pipeline, Plan, collect
from distier.plans.common.commands import server_ms
from distier.plans.common.namespace import Namespace
from distier.plans.common.process_state import ClockLook

KEPT_S = 1.0
"""How long a look at the clock is used for estimates. A server whose clock is set meanwhile is noticed that much later."""


def clock_ms(space: Namespace, shard: Shard) -> Plan[int]:
    """Read the clock of a shard, in ms since the Unix epoch."""
    asked_s = yield from Monotonic()
    looks: list[Command[Any]] = [server_ms(shard), Command(shard, ("HGET", shard.epoch, "clock"), _whole)]
    ms: int = max(map(collect, (yield from Pipeline(looks))))
    space.process.clocks[shard] = ClockLook(ms, asked_s, (yield from Monotonic()))
    return ms


def _whole(reply: bytes | None) -> int:
    return int(float(reply or 0))


def has_expired(space: Namespace, shard: Shard, expires_ms: int | None) -> Plan[bool]:
    """Return whether a module that was just read has expired; False for one without a TTL.

    It costs a round trip only if this process has not looked at the clock for a second, or if the two times are so close that
    the last look does not decide.
    """
    if expires_ms is None:
        return False
    look, now_s = space.process.clocks.get(shard), (yield from Monotonic())
    if look is not None and now_s - look.asked_s < KEPT_S:
        if expires_ms > look.latest_ms(now_s):
            return False
        if expires_ms <= look.earliest_ms(now_s):
            return True
    return (yield from clock_ms(space, shard)) >= expires_ms


def ttl_left(space: Namespace, id: str, expires_ms: int | None) -> Plan[float | None]:
    """Return the TTL, in seconds, with which a module that is put again expires at the same time; None for none."""
    if expires_ms is None:
        return None
    return max(1, expires_ms - (yield from clock_ms(space, space.shard(id)))) / 1000


def expiry_of(updated: bytes | None, ttl: bytes | None) -> int | None:
    """Return when a module expires, by two fields of its record; None if it does not, or if a field is damaged."""
    if ttl is None or not ttl.isdigit() or not (updated or b"").isdigit():
        return None
    return int(updated or 0) + int(ttl)


def unexpired(space: Namespace, records: Sequence[Record | None]) -> Plan[list[Record | None]]:
    """Return the records, None in place of those that have expired."""
    kept = list(records)
    for i, record in enumerate(records):
        if record is None or record.ttl_ms is None:
            continue
        if (yield from has_expired(space, space.shard(record.id), record.expires_ms)):
            kept[i] = None
    return kept
