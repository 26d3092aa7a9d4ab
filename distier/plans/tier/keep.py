"""Keeping a copy of what was read further up: in hot, or as a frame in warm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.outcome import MOVED, Outcome, Refusal
from distier.effects import Count, LocalPut, Pipeline, Plan, RunScript, collect
from distier.errors import Corrupt, Full, Unavailable
from distier.lua import Applied, Move, Over, Refused, install, promote
from distier.plans.common.content import make_frame
from distier.plans.common.namespace import Namespace
from distier.plans.tier.ledger import enlarge_quota
from distier.plans.tier.room import with_room


def keep(plan: Plan[Outcome]) -> Plan[Outcome]:
    """Run `to_hot` or `to_warm` for a read that has its content, and never fail.

    The read succeeds without a copy where there is no room for one (Redis is at maxmemory, or a victim cannot leave), and
    where Redis no longer replies.
    """
    try:
        return (yield from plan)
    except (Full, Corrupt):
        yield Count("keeps.refused")
        return Outcome.NO_ROOM
    except Unavailable:
        yield Count("keeps.failed")
        return Outcome.UNAVAILABLE


def to_hot(
    space: Namespace, shard: Shard, record: Record, content: bytes, reason: str, keep: Collection[str] = ()
) -> Plan[Outcome]:
    """Make this version hot if there is room. Modules in `keep` are not evicted for it."""

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return promote(shard, record.id, record.order.write_id, content, reason, moves)

    reply = yield from with_room(space, shard, attempt, keep=keep)
    if is_too_large(reply) and (yield from enlarge_quota(space, shard, record.tokens, len(content))):
        reply = yield from with_room(space, shard, attempt, keep=keep)
    if isinstance(reply, Over):
        return Outcome.NO_ROOM
    outcome = outcome_of(reply)
    yield Count("moves.promoted", int(outcome is MOVED))
    return outcome


def is_too_large(reply: object) -> bool:
    """Return whether a module does not fit into hot, however empty: of one shard among several, that means its quota."""
    return isinstance(reply, Refused) and reply.why is Refusal.TOO_LARGE


_REFUSED = {
    Refusal.ALREADY: Outcome.ALREADY,
    Refusal.CHANGED: Outcome.CHANGED,
    Refusal.TOO_LARGE: Outcome.TOO_LARGE_FOR_HOT,
}


def outcome_of(reply: Applied | Refused) -> Outcome:
    """Return what the reply to a promotion means."""
    return MOVED if isinstance(reply, Applied) else _REFUSED[reply.why]


def to_warm(
    space: Namespace, shard: Shard, record: Record, content: bytes, reason: str, also: Sequence[RunScript[Any]] = ()
) -> Plan[Outcome]:
    """Leave a warm copy of this clean version if there is room. `also` is sent in the same round trip."""
    kind, frame = yield from make_frame(space, content, fast=True)

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return install(shard, record.id, record.order.write_id, kind, frame, reason, moves)

    first = collect((yield from Pipeline([attempt(()), *also]))[0])
    reply = yield from with_room(space, shard, attempt, first)
    if isinstance(reply, Over):
        return Outcome.NO_ROOM
    if isinstance(reply, Refused):
        return Outcome.TOO_LARGE_FOR_WARM if reply.why is Refusal.TOO_LARGE else _REFUSED[reply.why]
    return MOVED


def keep_warm(
    space: Namespace, shard: Shard, record: Record, content: bytes, reason: str, also: Sequence[RunScript[Any]] = ()
) -> Plan[Outcome]:
    """Leave a warm copy of this clean version where this node has them: on its disk, in Redis, or both. `also` is sent in
    the same round trip."""
    kept = space.node is not None and (yield from LocalPut(record, content))
    if not space.local_only:
        return (yield from keep(to_warm(space, shard, record, content, reason, also)))
    if also:
        yield from Pipeline(also)
    return Outcome.MOVED if kept else Outcome.NO_ROOM
