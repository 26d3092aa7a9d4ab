"""Moving modules between tiers on request, one or many, and pinning them.

    promote   cold or warm -> hot    (the content comes from the nearest copy; nothing is copied twice)
    demote    hot -> warm -> cold    (a dirty version is written back before it leaves Redis)

Every move is prepared outside of Redis and flipped by one script that checks the version's token: losing a race costs
work, nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.domain.module import Moved, Record, Tier
from distier.effects import Command, Count, LocalDelete, LocalGet, LocalHas, Parallel, Pipeline, Plan, collect
from distier.errors import Corrupt, DistierError, Invalid, NotFound, Recovering
from distier.lua import Move, Over
from distier.lua import demote as demote_script
from distier.lua import pin as pin_script
from distier.lua import promote as promote_script
from distier.policy.evict import Need, still_missing

from .peers import PROMOTED, ask, ask_content, find_holders
from .read import (
    by_bytes,
    fetch_unless_moved,
    is_too_large,
    need_record,
    open_frames,
    promoted_word,
    to_hot,
)  # fmt: skip
from .records import chunks, content_unless_moved, frame_command, numbers
from .recover import newest_records
from .room import CANDIDATES_MAX, drop_from_warm, find_room, step_down
from .space import Space
from .writeback import write_back

ROUNDS_MAX = 8
PARALLEL_MAX = 256
PIPELINE_MAX_BYTES = 8 * 1024 * 1024
LOOK_MAX = 1024
"""How far behind pinned modules one looks for those that may leave."""


def promote(space: Space, id: str) -> Plan[Moved]:
    """Make the module hot. Raises `NotFound`, `Corrupt`, `Unavailable`."""
    shard = space.shard(id)
    for _ in range(ROUNDS_MAX):
        record = yield from need_record(space, id)
        if record.content is not None:
            return Moved(id, "hot", False, "already")
        if record.tier == "cold" and (yield from _promote_there(space, shard, record)):
            return Moved(id, "hot", True)
        loaded = yield from _load(space, shard, record, ask_others=False)
        if loaded is None:
            continue
        record, content = loaded
        word = yield from to_hot(space, shard, record, content, "request")
        if word in ("hot", "already"):
            return Moved(id, "hot", word == "hot", None if word == "hot" else word)
        if word != "changed":
            return Moved(id, _tier_of(record), False, word)
    return Moved(id, "warm", False, "changed")


def _promote_there(space: Space, shard: Shard, record: Record) -> Plan[bool]:
    """Have a node that holds a copy promote it, where this one has none: the content goes to Redis once, and not through this
    process."""
    if space.node is None or (yield from LocalHas(record.id, record.order.tok)):
        return False
    holders = yield from find_holders(space, shard, record.id)
    return (yield from ask(space, shard, record, holders, "hot")) == PROMOTED


def _tier_of(record: Record) -> Tier:
    return "warm" if record.tier == "warm" else "hot" if record.tier == "hot" else "cold"


def _load(space: Space, shard: Shard, record: Record, *, ask_others: bool = True) -> Plan[tuple[Record, bytes] | None]:
    """The record with its content from the nearest copy that is whole; None if it changed meanwhile."""
    content = (yield from LocalGet(record)) if space.node is not None and record.clean else None
    if content is not None:
        return record, content
    frame = (yield from frame_command(shard, record.id)) if record.tier == "warm" else None
    try:
        content = yield from content_unless_moved(shard, record, frame)
    except Corrupt:
        if not record.clean:
            raise
        yield from Count("healed.warm")
        content = None
    if content is None and record.clean:
        if ask_others:
            content = yield from ask_content(space, shard, record, (yield from find_holders(space, shard, record.id)))
            if content is not None:
                return record, content
        # Straight from the archive: a warm copy on the way would be compressed only to be dropped.
        content = yield from fetch_unless_moved(space, shard, record)
    return None if content is None else (record, content)


def demote(space: Space, id: str, to: Tier | None = None) -> Plan[Moved]:
    """Take the module one step down, or down to `to`. Raises `NotFound`, `Full`, `ArchiveUnavailable`."""
    if to not in (None, "warm", "cold"):
        raise Invalid(f"a module is demoted to warm or cold, not to {to!r}")
    shard = space.shard(id)
    for _ in range(ROUNDS_MAX):
        record = yield from need_record(space, id)
        tier = _tier_of(record)
        target: Tier = to or ("warm" if tier == "hot" else "cold")
        if target == "cold" and space.node is not None and (yield from LocalDelete(id)) and tier == "cold":
            return Moved(id, "cold", True)
        if tier == "cold" or tier == target:
            return Moved(id, tier, False, "already")
        word = yield from _step_down(space, shard, record, target, "request")
        if word == "moved":
            return Moved(id, target, True)
        if word == "pinned" or word == "no room":
            return Moved(id, tier, False, word)
    return Moved(id, tier, False, "changed")


def _step_down(space: Space, shard: Shard, record: Record, target: Tier, reason: str) -> Plan[str]:
    if target == "cold":
        if not record.clean and (yield from write_back(space, shard, record.id)) is None:
            return "changed"
        return (yield from _demote(space, shard, [Move(record.id, record.order.tok, "cold")], reason))[0]
    if record.content is None:
        return "already"
    return (yield from _demote(space, shard, [(yield from step_down(space, record))], reason))[0]


def _demote(space: Space, shard: Shard, moves: list[Move], reason: str) -> Plan[list[str]]:
    """Run these moves down; room in warm is made for them as needed. A word for each: `no room` if that fails."""
    for _ in range(ROUNDS_MAX):
        reply = yield from demote_script(shard, reason, moves)
        if not isinstance(reply, Over):
            yield from Count("moves.demoted", reply.count("moved"))
            return list(reply)
        need = Need(reply.warm_modules_over, reply.warm_bytes_over)
        named = [i for i in reply.warm_ids if i not in {m.id for m in moves}]
        leaving = yield from drop_from_warm(space, shard, named, need)
        if not leaving or not (still_missing(leaving, need, by_count=True).met or len(named) >= CANDIDATES_MAX):
            break
        # Not in one script with `moves`: a second round could not tell which of its drops still count.
        yield from demote_script(shard, "evict", [Move(c.id, c.tok, "cold") for c in leaving])
    return ["no room"] * len(moves)


# -- many --------------------------------------------------------------------------------------------------------


@dataclass
class _Together:
    """The modules of one call, which never evict each other; `hot` has the tokens and bytes of those that are hot, by shard."""

    ids: frozenset[str]
    hot: dict[Shard, Need] = field(default_factory=dict)
    evicting: bool = False
    """Whether anything was evicted on the way: then others may be evicting too."""

    def now_hot(self, shard: Shard, record: Record) -> None:
        held = self.hot.get(shard, Need(0, 0))
        self.hot[shard] = Need(held.amount + record.tokens, held.size_bytes + record.size_bytes)

    def fits(self, shard: Shard, record: Record, limits: Sequence[int]) -> bool:
        """Whether there is room for `record` beside its own kind, if all others leave."""
        held = self.hot.get(shard, Need(0, 0))
        return held.amount + record.tokens <= limits[0] and held.size_bytes + record.size_bytes <= limits[1]


def promote_many(space: Space, ids: Sequence[str]) -> Plan[list[Moved | DistierError]]:
    """Make these modules hot; a result per id, in order. Contents are loaded in parallel, room for all of them is made
    once per shard before any is promoted, and the promotions are pipelined.

    The first that fit together are promoted; the others are refused before anything is evicted, and none of them is evicted for
    another one. The tiers are those at the end of the call."""
    results: dict[str, Moved | DistierError] = {}
    unique = list(dict.fromkeys(ids))
    call = _Together(frozenset(unique))
    for chunk in chunks(unique, PARALLEL_MAX):
        ready = yield from _load_many(space, chunk, results, call)
        by_shard: dict[Shard, list[tuple[Record, bytes]]] = {}
        for record, content in ready:
            by_shard.setdefault(space.shard(record.id), []).append((record, content))
        plans = [_promote_shard(space, shard, mine, results, call) for shard, mine in by_shard.items()]
        for result in (yield from Parallel(plans)):
            collect(result)
    if call.evicting:
        yield from _as_they_are(space, results)
    return [results[id] for id in ids]


def _as_they_are(space: Space, results: dict[str, Moved | DistierError]) -> Plan[None]:
    """Other clients evict too: a module that is not hot any more is not reported as hot."""
    hot = [id for id, result in results.items() if isinstance(result, Moved) and result.tier == "hot"]
    for chunk in chunks(hot, 500):
        tiers = [Command(space.shard(id), ("HGET", space.shard(id).module(id), "tier"), bytes) for id in chunk]
        for id, tier in zip(chunk, (yield from Pipeline(tiers)), strict=True):
            if tier in (b"warm", b"cold"):
                results[id] = Moved(id, "warm" if tier == b"warm" else "cold", False, "evicted by others")


def _load_many(
    space: Space, ids: Sequence[str], results: dict[str, Moved | DistierError], call: _Together
) -> Plan[list[tuple[Record, bytes]]]:
    """Records and contents of those that are not hot yet; puts the results of the others into `results`."""
    records = yield from newest_records(space, ids)
    below: list[Record] = []
    for id, record in zip(ids, records, strict=True):
        if record is None:
            results[id] = NotFound(f"there is no module {id!r} in namespace {space.namespace!r}")
        elif record.content is not None:
            results[id] = Moved(id, "hot", False, "already")
            call.now_hot(space.shard(id), record)
        else:
            below.append(record)
    ready = []
    warm = [(space.shard(r.id), r) for r in below if r.tier == "warm"]
    for part in by_bytes(warm):
        contents = yield from open_frames(part)
        ready += [(r, content) for (_, r), content in zip(part, contents, strict=True) if content is not None]
    done = {record.id for record, _ in ready}
    rest = [record for record in below if record.id not in done]
    loaded = yield from Parallel([_load(space, space.shard(r.id), r) for r in rest])
    for record, result in zip(rest, loaded, strict=True):
        if isinstance(result, DistierError):
            results[record.id] = result
        elif result is None:
            results[record.id] = Moved(record.id, _tier_of(record), False, "changed")
        else:
            ready.append(result)
    return ready


def _by_size(loaded: list[tuple[Record, bytes]]) -> list[list[tuple[Record, bytes]]]:
    parts: list[list[tuple[Record, bytes]]] = []
    size_bytes = 0
    for item in loaded:
        if not parts or size_bytes + len(item[1]) > PIPELINE_MAX_BYTES:
            parts.append([])
            size_bytes = 0
        parts[-1].append(item)
        size_bytes += len(item[1])
    return parts


def _promote_shard(
    space: Space,
    shard: Shard,
    loaded: list[tuple[Record, bytes]],
    results: dict[str, Moved | DistierError],
    call: _Together,
) -> Plan[None]:
    for part in _by_size(loaded):
        yield from _promote_loaded(space, shard, part, results, call)


def _promote_loaded(
    space: Space,
    shard: Shard,
    part: list[tuple[Record, bytes]],
    results: dict[str, Moved | DistierError],
    call: _Together,
) -> Plan[None]:
    room = yield from look_at_hot(shard)
    fitting, large = [], []
    for record, content in part:
        if record.tokens > room.limits[0] or record.size_bytes > room.limits[1]:
            large.append((record, content))  # than all of hot; of one shard among several, than its share
        elif call.fits(shard, record, room.limits):
            call.now_hot(shard, record)
            fitting.append((record, content))
        else:
            results[record.id] = Moved(record.id, _tier_of(record), False, "no room beside the others of this call")
    tokens, size_bytes = sum(r.tokens for r, _ in fitting), sum(len(c) for _, c in fitting)
    if room.shortage(tokens, size_bytes):
        call.evicting = True
        yield from free_hot(space, shard, tokens, size_bytes, "evict", keep=call.ids, room=room)
    calls = [promote_script(shard, r.id, r.order.tok, content, "request") for r, content in fitting]
    replies = (yield from Pipeline(calls)) if calls else []
    for (record, content), reply in zip(fitting + large, [*replies, *[None] * len(large)], strict=True):
        if (
            reply is None or isinstance(reply, Over) or is_too_large(reply)
        ):  # by itself: with evictions, or a larger share
            call.evicting = True
            word = yield from _caught(to_hot(space, shard, record, content, "request", keep=call.ids))
        elif isinstance(reply, DistierError):
            word = reply
        else:
            word = promoted_word(reply)
        results[record.id] = word if isinstance(word, DistierError) else _moved_up(record, word)


def _moved_up(record: Record, word: str) -> Moved:
    hot = word in ("hot", "already")
    return Moved(record.id, "hot" if hot else _tier_of(record), word == "hot", None if word == "hot" else word)


def _caught(plan: Plan[str]) -> Plan[str | DistierError]:
    try:
        return (yield from plan)
    except DistierError as e:
        return e


def demote_many(space: Space, ids: Sequence[str], to: Tier | None = None) -> Plan[list[Moved | DistierError]]:
    """Take these modules down, in parallel; a result per id, in order."""
    unique = list(dict.fromkeys(ids))
    results: dict[str, Any] = {}
    for chunk in chunks(unique, PARALLEL_MAX):
        results |= zip(chunk, (yield from Parallel([demote(space, id, to) for id in chunk])), strict=True)
    return [results[id] for id in ids]


class Hot(NamedTuple):
    """What hot and warm hold and may hold (hot tokens, hot bytes, warm modules, warm bytes), and who may leave, the first to go
    first: pinned ones are left out."""

    used: Sequence[int]
    limits: Sequence[int]
    hot_ids: tuple[str, ...]
    warm_ids: tuple[str, ...]

    def shortage(self, tokens: int, size_bytes: int, keep: Collection[str] = ()) -> Over | None:
        """What hot lacks to take this much more, with the candidates to leave; None if it has the room."""
        wanted = [min(tokens, self.limits[0]), min(size_bytes, self.limits[1]), 0, 0]
        over = [u + w - limit for u, w, limit in zip(self.used, wanted, self.limits, strict=True)]
        if over[0] <= 0 and over[1] <= 0:
            return None
        leaving = tuple(i for i in self.hot_ids if i not in keep)[:CANDIDATES_MAX]
        return Over(over[0], over[1], over[2], over[3], leaving, self.warm_ids[:CANDIDATES_MAX])


def free_hot(
    space: Space,
    shard: Shard,
    tokens: int,
    size_bytes: int,
    reason: str,
    *,
    keep: Collection[str] = (),
    room: Hot | None = None,
) -> Plan[int]:
    """Demote the least recently used until hot has room for this much more; the number that left. Stops early where
    nothing more can leave. Modules in `keep` stay; `room` is what the last look showed, if there was one."""
    left = 0
    for _ in range(64):
        over = (room or (yield from look_at_hot(shard))).shortage(tokens, size_bytes, keep)
        if over is None:
            break
        room = None
        moves = (yield from find_room(space, shard, over)).moves
        if not moves:
            break
        words = yield from _demote(space, shard, moves, reason)
        left += words.count("moved")
        if "moved" not in words:
            break
    return left


def look_at_hot(shard: Shard) -> Plan[Hot]:
    names = ("hot_tokens", "hot_bytes", "warm_count", "warm_frame_bytes")
    calls: list[Command[Any]] = [
        Command(shard, ("HMGET", shard.usage, *names), numbers),
        Command(shard, ("HMGET", shard.limits, "hot_tokens", "hot_bytes", "warm_modules", "warm_bytes"), numbers),
        Command(shard, ("ZRANGE", shard.hot, 0, LOOK_MAX - 1), lambda r: tuple(i.decode() for i in r)),
        Command(shard, ("ZRANGE", shard.warm, 0, LOOK_MAX - 1), lambda r: tuple(i.decode() for i in r)),
        Command(
            shard, ("ZRANGE", shard.pins, 0, -1, "WITHSCORES"), lambda r: [(i.decode(), float(end)) for i, end in r]
        ),
        Command(shard, ("TIME",), lambda t: int(t[0]) * 1000 + int(t[1]) // 1000),
    ]
    used, limits, hot, warm, pins, now_ms = (collect(r) for r in (yield from Pipeline(calls)))
    pinned = {id for id, end_ms in pins if end_ms > now_ms}
    hot_ids, warm_ids = (tuple(i for i in ids if i not in pinned) for ids in (hot, warm))
    return Hot(used, limits, hot_ids, warm_ids)


# -- pins --------------------------------------------------------------------------------------------------------


def pin(space: Space, id: str, ttl_ms: int) -> Plan[int]:
    """Keep the module where it is (hot, if there is room) until `ttl_ms` from now; the end of the pin in ms since the
    Unix epoch. Raises `NotFound`."""
    for _ in range(ROUNDS_MAX):
        yield from promote(space, id)
        until = yield from pin_script(space.shard(id), id, ttl_ms)
        if until is not None:
            return until
        # The script found no module. That is no proof: Redis may have been emptied since `promote`, which looks again.
    raise Recovering(f"the shard of module {id!r} is emptied again and again while it is pinned; try again")


def unpin(space: Space, id: str) -> Plan[None]:
    yield from pin_script(space.shard(id), id, 0)
