"""Taking modules down: hot -> warm -> cold. A dirty version is written back before it leaves Redis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from distier.domain.codec import WITH_DICTIONARY
from distier.domain.keys import Shard
from distier.domain.module import Moved, Record, Tier
from distier.domain.outcome import Outcome
from distier.effects import Count, LocalDelete, Parallel, Plan
from distier.errors import DistierError, Invalid
from distier.lua import Move, Over
from distier.lua import demote as demote_script
from distier.plans.common.commands import chunks
from distier.plans.common.dictionaries import look_for_current
from distier.plans.common.namespace import Located, Namespace
from distier.plans.recovery.adopt import need_record
from distier.plans.tier.room import CANDIDATES_MAX, Hot, Stuck, drop_from_warm, find_room, look_at_hot, past, step_down
from distier.plans.tier.writeback import write_back
from distier.policy.eviction.victims import Need, still_missing

ROUNDS_MAX = 8
PARALLEL_MAX = 256


def tier_of(record: Record) -> Tier:
    """Return the tier of a record; a damaged one counts as cold."""
    return "warm" if record.tier == "warm" else "hot" if record.tier == "hot" else "cold"


def demote(space: Namespace, id: str, to: Tier | None = None) -> Plan[Moved]:
    """Take the module one step down, or down to `to`. Raises `NotFound`, `Full`, `ArchiveUnavailable`."""
    if to not in (None, "warm", "cold"):
        raise Invalid(f"a module can be demoted to warm or cold, not to {to!r}")
    shard = space.shard(id)
    for _ in range(ROUNDS_MAX):
        record = yield from need_record(space, id)
        tier = tier_of(record)
        target: Tier = to or ("warm" if tier == "hot" else "cold")
        if target == "cold" and space.node is not None and (yield from LocalDelete(id)) and tier == "cold":
            return Moved(id, "cold", True)
        if tier == "cold" or tier == target:
            return Moved(id, tier, False, Outcome.ALREADY)
        outcome = yield from _step_down(space, shard, record, target, "request")
        if outcome is Outcome.MOVED:
            return Moved(id, target, True)
        if outcome in (Outcome.PINNED, Outcome.NO_ROOM):
            return Moved(id, tier, False, outcome)
    return Moved(id, tier, False, Outcome.CHANGED)


def _step_down(space: Namespace, shard: Shard, record: Record, target: Tier, reason: str) -> Plan[Outcome]:
    if target == "cold":
        if not record.clean and (yield from write_back(Located(space, shard, record.id))) is None:
            return Outcome.CHANGED
        return (yield from _demote(space, shard, [Move(record.id, record.order.write_id, "cold")], reason))[0]
    if record.content is None:
        return Outcome.ALREADY
    move = yield from step_down(space, shard, record)
    outcome = (yield from _demote(space, shard, [move], reason))[0]
    if outcome is Outcome.CHANGED and move.codec.startswith(WITH_DICTIONARY):
        yield from look_for_current(space, shard)  # perhaps another dictionary is the current one now
    return outcome


def _demote(space: Namespace, shard: Shard, moves: list[Move], reason: str) -> Plan[list[Outcome]]:
    """Run these moves down, and make room for them in warm as needed. Returns the outcome of each: `NO_ROOM` where that
    fails."""
    own, stuck = {m.id for m in moves}, dict[str, DistierError]()
    for _ in range(ROUNDS_MAX):
        reply = yield from demote_script(shard, reason, moves)
        if not isinstance(reply, Over):
            yield from Count("moves.demoted", reply.count(Outcome.MOVED))
            return list(reply)
        need = Need(reply.warm_modules_over, reply.warm_bytes_over)
        left = (yield from past(space, shard, reply, own | stuck.keys())) if stuck else reply
        named = [i for i in left.warm_ids if i not in own]
        try:
            leaving = yield from drop_from_warm(space, shard, named, need, Need(len(stuck), len(stuck)))
        except Stuck as e:
            stuck |= e.failed
            continue
        if not leaving or not (still_missing(leaving, need, by_count=True).met or len(named) >= CANDIDATES_MAX):
            break
        # Not in one script with `moves`: a second round could not tell which of its drops still count.
        yield from demote_script(shard, "evict", [Move(c.id, c.write_id, "cold") for c in leaving])
    return [Outcome.NO_ROOM] * len(moves)


def demote_many(space: Namespace, ids: Sequence[str], to: Tier | None = None) -> Plan[list[Moved | DistierError]]:
    """Take these modules down, in parallel. Returns a result per id, in order."""
    unique = list(dict.fromkeys(ids))
    results: dict[str, Any] = {}
    for chunk in chunks(unique, PARALLEL_MAX):
        results |= zip(chunk, (yield from Parallel([demote(space, id, to) for id in chunk])), strict=True)
    return [results[id] for id in ids]


def free_hot(
    space: Namespace,
    shard: Shard,
    tokens: int,
    size_bytes: int,
    reason: str,
    *,
    keep: Collection[str] = (),
    room: Hot | None = None,
) -> Plan[int]:
    """Demote the least recently used modules until hot has room for this much more. Returns how many left.

    It stops early where nothing more can leave. Modules in `keep` stay; `room` is the result of the last look, if there was
    one.
    """
    left = 0
    for _ in range(64):
        over = (room or (yield from look_at_hot(space, shard))).shortage(tokens, size_bytes, keep)
        if over is None:
            break
        room = None
        moves = (yield from find_room(space, shard, over)).moves
        if not moves:
            break
        outcomes = yield from _demote(space, shard, moves, reason)
        left += outcomes.count(Outcome.MOVED)
        if Outcome.MOVED not in outcomes:
            break
    return left
