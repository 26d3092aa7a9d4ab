"""Making room: what to do when a script answers that a budget would be exceeded.

The script changed nothing and named candidates. The plan reads them, lets the policy choose, compresses those that go
from hot to warm (Lua cannot), and calls again with the moves: the script evicts and admits in one step, so that the
budget is not exceeded for a moment. A victim that changed meanwhile is left out by the script, which then names others.

Warm has budgets too. Its clean modules leave for cold by dropping the frame; where only dirty ones are left, they are
written back first. So a cache full of dirty modules slows writers down to the speed of the archive, and with the
archive down it refuses them (`Full`): it never drops the only copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.domain.module import Record, parse_record
from distier.effects import Command, LocalPut, Parallel, Pipeline, Plan, RunScript, collect
from distier.errors import ArchiveUnavailable, Full
from distier.lua import Move, Over, demote
from distier.policy.evict import Candidate, Need, select_for_eviction, still_missing

from .records import make_frame, record_command
from .recover import stand_back
from .space import Space
from .writeback import write_back

CANDIDATES_MAX = 64
"""As many as the scripts name at most (`candidates` in prelude.lua). Fewer are all that may leave."""

READ_FIRST = 2
"""Victims are read with their content, so only as many as it takes: at first this many, then twice as many."""

ROUNDS_MAX = 12
"""Each lost round means that another client made progress; after this many the caller falls back, if it can."""
LAST_ROUNDS_MAX = 64
"""Where it cannot: some seconds, as it stands back for a moment of its own after each of those behind `ROUNDS_MAX`."""


def with_room(
    space: Space,
    shard: Shard,
    attempt: Callable[[Sequence[Move]], RunScript[Any]],
    reply: Any = None,
    *,
    last_resort: bool = False,
    keep: Collection[str] = (),
) -> Plan[Any]:
    """Run `attempt` with the moves that make room for it; `reply` is what it answered without any, if known. Answers `Over`
    where no room can be made: all that is left is pinned, or others took the room in every round. Raises `Full` where only
    the archive could make room and it does not answer. Hot modules in `keep` stay.

    The `last_resort`, a put into warm with nowhere else to go, is not given up because others are quicker: nor where nothing
    could leave at the first look, as long as warm changes between two looks."""
    if reply is None:
        reply = yield from attempt(())
    drained = 0
    for n in range(LAST_ROUNDS_MAX if last_resort else ROUNDS_MAX):
        if not isinstance(reply, Over):
            break
        if n >= ROUNDS_MAX:
            yield from stand_back(n - ROUNDS_MAX)
        if keep:
            reply = reply._replace(hot_ids=tuple(id for id in reply.hot_ids if id not in keep))
        room = yield from find_room(space, shard, reply)
        if room.moves and room.enough:
            reply = yield from attempt(room.moves)
        elif room.moves and drained < ROUNDS_MAX:  # more victims than one script names: these go first
            drained += 1
            yield from demote(shard, "evict", room.moves)
            reply = yield from attempt(())
        elif room.moves or not last_resort or not reply.warm_ids:
            break
        else:
            before, reply = reply, (yield from attempt(()))
            if isinstance(reply, Over) and set(reply.warm_ids) == set(before.warm_ids):
                break
    return reply


class Room(NamedTuple):
    """Moves that make room; `enough` is False where they are only the first part of what must go."""

    moves: list[Move]
    enough: bool = True


def find_room(space: Space, shard: Shard, over: Over) -> Plan[Room]:
    """The moves that make the room which `over` says is missing; none if it cannot be made."""
    need = Need(over.hot_tokens_over, over.hot_bytes_over)
    victims: list[Record] = []
    enough = True
    if not need.met:
        victims = yield from _hot_victims(shard, over.hot_ids, need)
        enough = still_missing([_hot_candidate(v) for v in victims], need).met
        if not enough and len(over.hot_ids) < CANDIDATES_MAX:
            return Room([])
    gone, moves, staying = [], [], []
    for victim in victims:
        move = yield from step_down(space, victim)
        if move.to == "cold":
            gone.append(move)
        else:
            moves.append(move)
            staying.append(victim)
    room = yield from _into_warm(space, shard, moves, staying, over)
    # Where warm takes none of those that need it, what can leave leaves, and the caller sees what that is worth.
    enough = enough and room.enough and bool(room.moves or not staying)
    return Room(gone + room.moves, enough)


def step_down(space: Space, victim: Record) -> Plan[Move]:
    """How a hot module leaves: into a frame in Redis, or, being clean, to this node's disk (and both, if so configured). Not
    kept there (a full disk), it is cold: the archive has it."""
    assert victim.content is not None
    if space.node is not None and victim.clean:
        yield from LocalPut(victim, victim.content)
        if space.local_only:
            return Move(victim.id, victim.order.tok, "cold")
    return Move(victim.id, victim.order.tok, "warm", *(yield from make_frame(space, victim.content)))


def _hot_victims(shard: Shard, ids: Sequence[str], need: Need) -> Plan[list[Record]]:
    """The first of `ids` that suffice, with their contents; all that are still hot if they do not."""
    found: dict[str, Record] = {}
    at, step = 0, READ_FIRST
    while at < len(ids):
        records = yield from _read(shard, ids[at : at + step], record_command)
        found |= {r.id: r for r in records if r.content is not None}
        chosen = select_for_eviction([_hot_candidate(r) for r in found.values()], need)
        if still_missing(chosen, need).met:
            return [found[c.id] for c in chosen]
        at, step = at + step, step * 2
    return list(found.values())


def _into_warm(space: Space, shard: Shard, moves: list[Move], victims: list[Record], over: Over) -> Plan[Room]:
    """`moves` into warm, preceded by what must leave warm for them; those that warm cannot take go to cold."""
    need = Need(over.warm_modules_over + len(moves), over.warm_bytes_over + sum(len(m.frame) for m in moves))
    if need.met:
        return Room(moves)
    leaving = yield from drop_from_warm(space, shard, over.warm_ids, need)
    missing = still_missing(leaving, need, by_count=True)
    drops = [Move(c.id, c.tok, "cold") for c in leaving]
    if missing.met:
        return Room(drops + moves)
    if drops and len(over.warm_ids) >= CANDIDATES_MAX:
        return Room(drops, enough=False)  # there are more behind them
    # Warm cannot take them all: the least recently used victims go on to the archive.
    staying = list(zip(moves, victims, strict=True))
    skipping = []
    while staying and not missing.met:
        move, victim = staying.pop(0)
        skipping.append(victim)
        missing = Need(missing.amount - 1, missing.size_bytes - len(move.frame))
    if not missing.met:
        return Room([])
    yield from archive_all(space, shard, [v.id for v in skipping if not v.clean])
    return Room(drops + [Move(v.id, v.order.tok, "cold") for v in skipping] + [move for move, _ in staying])


def drop_from_warm(space: Space, shard: Shard, ids: Sequence[str], need: Need) -> Plan[list[Candidate]]:
    """Warm modules whose frames may be dropped now, so as to meet `need` if that is possible: clean ones as they are
    due; where they do not suffice, dirty ones after writing them back."""
    records = yield from _read(shard, ids, _sizes_command)
    warm = [_warm_candidate(r) for r in records if r.tier == "warm"]
    chosen = select_for_eviction([c for c in warm if c.clean], need, by_count=True)
    if still_missing(chosen, need, by_count=True).met:
        return chosen
    chosen = select_for_eviction(warm, need, by_count=True)
    yield from archive_all(space, shard, [c.id for c in chosen if not c.clean])
    return chosen


def archive_all(space: Space, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    """Write these dirty modules back, or raise `Full`: the cache holds nothing else that could go."""
    for result in (yield from Parallel([write_back(space, shard, id) for id in ids])):
        try:
            collect(result)
        except ArchiveUnavailable as e:
            raise Full(
                "hot and warm are full of versions that are not archived yet, and the archive does not answer; "
                "nothing was changed. Bring the archive back (`distier doctor`), or raise the budgets"
            ) from e


def _hot_candidate(record: Record) -> Candidate:
    return Candidate(record.id, record.order.tok, record.tokens, record.size_bytes, record.clean)


def _warm_candidate(record: Record) -> Candidate:
    return Candidate(record.id, record.order.tok, record.tokens, record.frame_bytes, record.clean)


_SIZES = ("tier", "epoch", "ver", "tok", "bytes", "tokens", "clean", "frame_bytes")


def _sizes_command(shard: Shard, id: str) -> Command[Record | None]:
    """A record without content and descriptions, for choosing only."""

    def parse(values: Sequence[bytes | None]) -> Record | None:
        fields = {name.encode(): v for name, v in zip(_SIZES, values, strict=True) if v is not None}
        return parse_record(id, fields)

    return Command(shard, ("HMGET", shard.module(id), *_SIZES), parse)


def _read(shard: Shard, ids: Sequence[str], command: Callable[[Shard, str], Command[Any]]) -> Plan[list[Record]]:
    if not ids:
        return []
    replies = yield from Pipeline([command(shard, id) for id in ids])
    return [record for record in map(collect, replies) if record is not None]
