"""Keeping a copy further up of what was read: into hot, or as a frame into warm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.effects import Count, LocalPut, Pipeline, Plan, RunScript, collect
from distier.errors import Corrupt, Full, Unavailable
from distier.lua import Applied, Move, Over, Refused, install, promote
from distier.plans.common.content import make_frame
from distier.plans.common.space import Space
from distier.plans.tier.ledger import make_share
from distier.plans.tier.room import with_room


def keep(plan: Plan[str]) -> Plan[str]:
    """`to_hot` or `to_warm` beside a read that has its content: where there is no room for a copy (Redis is at
    maxmemory, or a victim cannot leave), or Redis does not answer any more, the read succeeds without."""
    try:
        return (yield from plan)
    except (Full, Corrupt) as e:
        yield Count("keeps.refused")
        return f"no room: {e}"
    except Unavailable as e:
        yield Count("keeps.failed")
        return f"unavailable: {e}"


def to_hot(
    space: Space, shard: Shard, record: Record, content: bytes, reason: str, keep: Collection[str] = ()
) -> Plan[str]:
    """Make this version hot if there is room: `hot`, or why not. Modules in `keep` are not evicted for it."""

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return promote(shard, record.id, record.order.tok, content, reason, moves)

    reply = yield from with_room(space, shard, attempt, keep=keep)
    if is_too_large(reply) and (yield from make_share(space, shard, record.tokens, len(content))):
        reply = yield from with_room(space, shard, attempt, keep=keep)
    if isinstance(reply, Over):
        return "no room"
    word = promoted_word(reply)
    yield Count("moves.promoted", 1 if word == "hot" else 0)
    return word


def is_too_large(reply: object) -> bool:
    """Whether it does not fit into hot, however empty: of one shard among several, that means its share."""
    return isinstance(reply, Refused) and reply.word == "TOO_LARGE"


def promoted_word(reply: Applied | Refused) -> str:
    """What the answer to a promotion means: `hot`, or why not."""
    if isinstance(reply, Applied):
        return "hot"
    return {"ALREADY": "already", "CHANGED": "changed", "TOO_LARGE": "too large for hot"}[reply.word]


def to_warm(
    space: Space, shard: Shard, record: Record, content: bytes, reason: str, also: Sequence[RunScript[Any]] = ()
) -> Plan[str]:
    """Leave a warm copy of this clean version if there is room: `warm`, or why not. `also` is sent along."""
    kind, frame = yield from make_frame(space, content, fast=True)

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return install(shard, record.id, record.order.tok, kind, frame, reason, moves)

    first = collect((yield from Pipeline([attempt(()), *also]))[0])
    reply = yield from with_room(space, shard, attempt, first)
    if isinstance(reply, Over):
        return "no room"
    word = getattr(reply, "word", "OK")
    return {"OK": "warm", "CHANGED": "changed", "TOO_LARGE": "too large for warm"}[word]


def keep_warm(
    space: Space, shard: Shard, record: Record, content: bytes, reason: str, also: Sequence[RunScript[Any]] = ()
) -> Plan[str]:
    """Leave a warm copy of this clean version where this node has them: on its disk, in Redis, or both. `also` is sent
    along."""
    kept = space.node is not None and (yield from LocalPut(record, content))
    if not space.local_only:
        return (yield from keep(to_warm(space, shard, record, content, reason, also)))
    if also:
        yield from Pipeline(also)
    return "warm" if kept else "no room"
