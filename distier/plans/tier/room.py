"""Making room, where a script replies that a budget would be exceeded.

The script changed nothing and named candidates. The plan reads them, lets the policy choose, compresses those that go from
hot to warm (Lua cannot), and calls again with the moves. The script then evicts and admits in one step, so the budget is not
exceeded for a moment. It leaves out a victim that changed meanwhile, and names others.

Warm has budgets too. Its clean modules leave for cold by dropping the frame. Where only dirty ones are left, they are
written back first. A cache full of dirty modules thus slows writers down to the speed of the archive, and with the archive
down it refuses them (`Full`): it never drops the only copy. A version that cannot be archived stays, and others leave
instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.schema import BUDGETS
from distier.effects import Command, LocalPut, Pipeline, Plan, RunScript, collect
from distier.errors import ArchiveUnavailable, DeadlineExceeded, DistierError, Full, RedisUnavailable
from distier.lua import Move, Over, demote
from distier.plans.common.backoff import back_off
from distier.plans.common.commands import numbers, read_records, record_command, server_ms, sizes_command
from distier.plans.common.content import make_frame
from distier.plans.common.namespace import Namespace
from distier.plans.tier.writeback import look_at_archive, write_back_all
from distier.policy.eviction.victims import Candidate, Need, select_for_eviction, still_missing

CANDIDATES_MAX = 64
"""The most candidates that a script names (`candidates` in prelude.lua). If it names fewer, those are all that may leave."""
READ_FIRST = 2
"""Victims are read with their content, so no more than needed: this many at first, then twice as many."""
ROUNDS_MAX = 12
"""Each lost round means that another client made progress. After this many the caller falls back, if it can."""
LAST_ROUNDS_MAX = 64
"""The rounds where it cannot: some seconds, since it waits with backoff after each round behind `ROUNDS_MAX`."""
LOOK_MAX = 1024
"""How far behind pinned modules, and those that cannot be archived, to look for candidates."""
NOTHING = Need(0, 0)


class Stuck(Exception):
    """These versions would have to leave and cannot be archived, each for a reason of its own. Others may leave."""

    def __init__(self, failed: dict[str, DistierError]) -> None:
        super().__init__()
        self.failed = failed


def with_room(
    space: Namespace,
    shard: Shard,
    attempt: Callable[[Sequence[Move]], RunScript[Any]],
    reply: Any = None,
    *,
    last_resort: bool = False,
    keep: Collection[str] = (),
    own: str = "",
    ahead: Need = NOTHING,
) -> Plan[Any]:
    """Run `attempt` with the moves that make room for it.

    Args:
        reply: its reply without any moves, if that is known.
        last_resort: for a put into warm that can go nowhere else. It is not given up because others are quicker, nor because
            nothing could leave at the first look, as long as warm changes between two looks.
        keep: hot modules that stay.
        own: the module that the room is for.
        ahead: the modules and bytes that the same call still puts; the archive takes their victims at the same time.

    Returns:
        The reply of `attempt`; `Over` where no room can be made, because all that is left is pinned, or others took the room in
        every round.

    Raises:
        Full: only the archive could make room, and it does not reply.
        DeadlineExceeded: the archive is too slow.
    """
    if reply is None:
        reply = yield from attempt(())
    drained, stuck = 0, dict[str, DistierError]()
    for n in range(LAST_ROUNDS_MAX if last_resort else ROUNDS_MAX):
        if not isinstance(reply, Over):
            break
        if n >= ROUNDS_MAX:
            yield from back_off(n - ROUNDS_MAX)
        if keep:
            reply = reply._replace(hot_ids=tuple(id for id in reply.hot_ids if id not in keep))
        # First without a look at warm: the script drops clean frames itself.
        look = n > 0 or not reply.warm_ids
        room = yield from find_room(space, shard, reply, stuck, own=own, keep=keep, ahead=ahead, look=look)
        if room.moves and room.enough:
            reply = yield from attempt(room.moves)
        elif room.moves and drained < ROUNDS_MAX:  # more victims than one script names: evict these first
            drained += 1
            yield from demote(shard, "evict", room.moves)
            reply = yield from attempt(())
        elif room.moves or not last_resort or not reply.warm_ids:
            break
        else:
            before, reply = reply, (yield from attempt(()))
            if isinstance(reply, Over) and set(reply.warm_ids) == set(before.warm_ids):
                break
    if isinstance(reply, Over) and last_resort and stuck:
        first, error = next(iter(stuck.items()))
        raise Full(
            f"hot and warm are full of versions that cannot be archived; {len(stuck)} were tried, first that of "
            f"module {first!r}: {error}. Nothing was changed. Repair that (`distier doctor`), or raise the budgets"
        ) from error
    return reply


class Room(NamedTuple):
    """Moves that make room. `enough` is False where they are only the first part of the victims."""

    moves: list[Move]
    enough: bool = True


def find_room(
    space: Namespace,
    shard: Shard,
    over: Over,
    stuck: dict[str, DistierError] | None = None,
    *,
    own: str = "",
    keep: Collection[str] = (),
    ahead: Need = NOTHING,
    look: bool = True,
) -> Plan[Room]:
    """Return the moves that make the missing room; none where it cannot be made.

    Modules that cannot be archived are put into `stuck`, and others leave instead. Without `look`, moves from hot to warm are
    returned although warm may be full: the script drops what is clean there.
    """
    stuck = {} if stuck is None else stuck
    while True:
        try:
            left = (yield from past(space, shard, over, {*stuck, *keep, own})) if stuck else over
            return (yield from _find_room(space, shard, left, ahead, tries=len(stuck), look=look))
        except Stuck as e:
            stuck |= e.failed


def past(space: Namespace, shard: Shard, over: Over, but: Collection[str]) -> Plan[Over]:
    """Return `over` with candidates other than those in `but`, also from behind those that a script names."""
    hot, warm = over.hot_ids, over.warm_ids
    if max(len(hot), len(warm)) >= CANDIDATES_MAX:
        found = yield from look_at_hot(space, shard)
        hot, warm = found.hot_ids if hot else (), found.warm_ids
    hot, warm = (tuple(i for i in ids if i not in but)[:CANDIDATES_MAX] for ids in (hot, warm))
    return over._replace(hot_ids=hot, warm_ids=warm)


def _find_room(space: Namespace, shard: Shard, over: Over, ahead: Need, tries: int, look: bool) -> Plan[Room]:
    if over.dictionary is not None:
        space.process.dictionary[shard] = over.dictionary
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
        move = yield from step_down(space, shard, victim)
        if move.to == "cold":
            gone.append(move)
        else:
            moves.append(move)
            staying.append(victim)
    if moves and enough and not look:
        return Room(gone + moves)
    # Where some could not be archived, each round tries more at once.
    ahead = Need(max(ahead.amount, tries), max(ahead.size_bytes, 1 if tries else 0))
    room = yield from _into_warm(space, shard, moves, staying, over, ahead)
    # Where warm takes none of those that need it, evict what can leave; the caller sees whether that helps.
    enough = enough and room.enough and bool(room.moves or not staying)
    return Room(gone + room.moves, enough)


def step_down(space: Namespace, shard: Shard, victim: Record) -> Plan[Move]:
    """Return how a hot module leaves: into a frame in Redis, or, if clean, to this node's disk, or both, as configured.

    A module that the disk does not take (it is full) becomes cold: the archive has it.
    """
    assert victim.content is not None
    if space.node is not None and victim.clean:
        yield from LocalPut(victim, victim.content)
        if space.local_only:
            return Move(victim.id, victim.order.write_id, "cold")
    write_id = victim.order.write_id
    frame = yield from make_frame(space, victim.content, write_id, clean_in=shard if victim.clean else None)
    return Move(victim.id, write_id, "warm", *frame)


def _hot_victims(shard: Shard, ids: Sequence[str], need: Need) -> Plan[list[Record]]:
    """Return the first of `ids` that suffice, with their contents; all that are still hot if they do not."""
    found: dict[str, Record] = {}
    at, step = 0, READ_FIRST
    while at < len(ids):
        records = yield from read_records(shard, ids[at : at + step], record_command)
        found |= {r.id: r for r in records if r.content is not None}
        chosen = select_for_eviction([_hot_candidate(r) for r in found.values()], need)
        if still_missing(chosen, need).met:
            return [found[c.id] for c in chosen]
        at, step = at + step, step * 2
    return list(found.values())


def _into_warm(
    space: Namespace, shard: Shard, moves: list[Move], victims: list[Record], over: Over, ahead: Need
) -> Plan[Room]:
    """Return `moves` into warm, preceded by what has to leave warm for them. Those that warm cannot take go to cold."""
    need = Need(over.warm_modules_over + len(moves), over.warm_bytes_over + sum(len(m.frame) for m in moves))
    if need.met:
        return Room(moves)
    chosen = {v.id for v in victims}
    behind = [id for id in over.hot_ids if id not in chosen][: max(ahead.amount, 0)]
    leaving = yield from drop_from_warm(space, shard, over.warm_ids, need, ahead, behind)
    missing = still_missing(leaving, need, by_count=True)
    drops = [Move(c.id, c.write_id, "cold") for c in leaving]
    if missing.met:
        return Room(drops + moves)
    if drops and len(over.warm_ids) >= CANDIDATES_MAX:
        return Room(drops, enough=False)  # there are more candidates behind them
    # Warm cannot take them all: the least recently used victims go to cold.
    staying = list(zip(moves, victims, strict=True))
    skipping = []
    while staying and not missing.met:
        move, victim = staying.pop(0)
        skipping.append(victim)
        missing = Need(missing.amount - 1, missing.size_bytes - len(move.frame))
    if not missing.met:
        return Room([])
    yield from archive_all(space, shard, [v.id for v in skipping if not v.clean], behind)
    return Room(drops + [Move(v.id, v.order.write_id, "cold") for v in skipping] + [move for move, _ in staying])


def drop_from_warm(
    space: Namespace, shard: Shard, ids: Sequence[str], need: Need, ahead: Need = NOTHING, then: Sequence[str] = ()
) -> Plan[list[Candidate]]:
    """Return the warm modules whose frames may be dropped now, so as to meet `need` if possible.

    Clean ones go first, as they are due. Where they do not suffice, dirty ones follow after they were written back, together
    with those that are needed `ahead`, in warm and `then` in hot.
    """
    records = yield from read_records(shard, ids, sizes_command)
    warm = [_warm_candidate(r) for r in records if r.tier == "warm"]
    chosen = select_for_eviction([c for c in warm if c.clean], need, by_count=True)
    if still_missing(chosen, need, by_count=True).met:
        return chosen
    waiting = yield from _failed_lately(space, shard, [c.id for c in warm if not c.clean])
    warm.sort(key=lambda c: c.id in waiting)
    chosen = select_for_eviction(warm, need, by_count=True)
    more = Need(need.amount + ahead.amount, need.size_bytes + ahead.size_bytes)
    behind = select_for_eviction(warm, more, by_count=True)[len(chosen) :]
    later = [*(c.id for c in behind if not c.clean), *then[: max(ahead.amount - len(behind), 0)]]
    yield from archive_all(space, shard, [c.id for c in chosen if not c.clean], later[:CANDIDATES_MAX])
    return chosen


def _failed_lately(space: Namespace, shard: Shard, ids: Sequence[str]) -> Plan[set[str]]:
    """Return those of `ids` that this process lately failed to archive: they are tried last."""
    if not ids or not space.process.failing:
        return set()
    now_ms = yield from server_ms(shard)
    return {id for id in ids if space.process.failing.is_waiting(shard, id, now_ms)}


def archive_all(space: Namespace, shard: Shard, ids: Sequence[str], more: Sequence[str] = ()) -> Plan[None]:
    """Write these dirty modules back, and `more`, of which none needs to succeed.

    Raises `Stuck` where some of `ids` cannot be archived, `Full` where the archive does not reply at all, and
    `DeadlineExceeded` where there was no time for them.
    """
    if not ids:
        return
    every = [*ids, *more]
    results = yield from write_back_all(space, shard, every)
    failed = {id: r for id, r in zip(every, results, strict=True) if isinstance(r, DistierError)}
    if all(id not in failed for id in ids):
        return
    for error in failed.values():
        if isinstance(error, DeadlineExceeded | RedisUnavailable):
            raise error
    try:
        yield from look_at_archive(space)
    except DistierError as e:
        # With no time left for the look, the error of a write is the reason.
        told = next((error for error in failed.values() if isinstance(error, ArchiveUnavailable)), None)
        if isinstance(e, DeadlineExceeded) and told is None:
            raise
        cause = told if told is not None and isinstance(e, DeadlineExceeded) else e
        reason = (
            "the archive does not answer" if isinstance(cause, ArchiveUnavailable) else f"the archive fails: {cause}"
        )
        raise Full(
            f"hot and warm are full of versions that are not archived yet, and {reason}; "
            "nothing was changed. Bring the archive back (`distier doctor`), or raise the budgets"
        ) from cause
    space.process.failing.note(shard, zip(every, results, strict=True), (yield from server_ms(shard)))
    raise Stuck(failed)


class Hot(NamedTuple):
    """What hot and warm hold and may hold (hot tokens, hot bytes, warm modules, warm bytes), and the candidates to leave, in
    order, without pinned ones."""

    used: Sequence[int]
    limits: Sequence[int]
    hot_ids: tuple[str, ...]
    warm_ids: tuple[str, ...]

    def shortage(self, tokens: int, size_bytes: int, keep: Collection[str] = ()) -> Over | None:
        """Return what hot lacks to take this much more, with the candidates to leave; None if it has the room."""
        wanted = [min(tokens, self.limits[0]), min(size_bytes, self.limits[1]), 0, 0]
        over = [u + w - limit for u, w, limit in zip(self.used, wanted, self.limits, strict=True)]
        if over[0] <= 0 and over[1] <= 0:
            return None
        leaving = tuple(i for i in self.hot_ids if i not in keep)[:CANDIDATES_MAX]
        return Over(over[0], over[1], over[2], over[3], leaving, self.warm_ids[:CANDIDATES_MAX])


def look_at_hot(space: Namespace, shard: Shard) -> Plan[Hot]:
    """Read what hot and warm hold, their limits and their candidates."""
    known = space.process.epochs.get(shard)
    hot_order, warm_order = shard.hot, shard.warm
    if known is not None and known.ranked:
        hot_order, warm_order = shard.ranks("hot"), shard.ranks("warm")
    calls: list[Command[Any]] = [
        Command(shard, ("HMGET", shard.usage, *BUDGETS.values()), numbers),
        Command(shard, ("HMGET", shard.limits, *BUDGETS), numbers),
        Command(shard, ("ZRANGE", hot_order, 0, LOOK_MAX - 1), _ids),
        Command(shard, ("ZRANGE", warm_order, 0, LOOK_MAX - 1), _ids),
        Command(
            shard, ("ZRANGE", shard.pins, 0, -1, "WITHSCORES"), lambda r: [(i.decode(), float(end)) for i, end in r]
        ),
        server_ms(shard),
    ]
    used, limits, hot, warm, pins, now_ms = (collect(r) for r in (yield from Pipeline(calls)))
    if known is not None and known.ranked and not hot and used[0]:  # the policy was changed since this process looked
        space.process.epochs[shard] = known._replace(ranked=False)
        return (yield from look_at_hot(space, shard))
    if pins:
        pinned = {id for id, end_ms in pins if end_ms > now_ms}
        hot, warm = (tuple(i for i in ids if i not in pinned) for ids in (hot, warm))
    return Hot(used, limits, hot, warm)


def _ids(reply: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(id.decode() for id in reply)


def _hot_candidate(record: Record) -> Candidate:
    return Candidate(record.id, record.order.write_id, record.tokens, record.size_bytes, record.clean)


def _warm_candidate(record: Record) -> Candidate:
    return Candidate(record.id, record.order.write_id, record.tokens, record.frame_bytes, record.clean)
