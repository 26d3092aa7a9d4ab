"""Pages of a namespace's modules: by id, or in an order that a sorted set has. Each page is bounded work at any size."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from distier.domain.keys import Shard
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import Invalid
from distier.plans.common.clock import expiry_of, has_expired
from distier.plans.common.commands import scores, server_ms, unparsed
from distier.plans.common.namespace import Namespace

LOOKED_MAX = 1000
"""How many ids one page looks at, at most. A page that filters may have fewer rows, and continues where it stopped."""
PAGE_MAX = 200
_STEP = 128
_SHARD_MIN = 50

Rank = Literal["lru", "mru", "uses", "due", "dirty", "pins", "biggest"]
RANKS: tuple[Rank, ...] = get_args(Rank)
"""The orders of `page_by_rank`, as the function `distier_top` names them."""
_SETS: Mapping[str, tuple[str, bool]] = {
    "lru": ("hot", False), "mru": ("hot", True), "uses": ("uses", True), "due": ("warm", False), "dirty": ("dirty", False),
    "pins": ("pins", False),
}  # fmt: skip
"""The sorted set of each order, and whether the greatest score is first."""


@dataclass(frozen=True, slots=True)
class Row:
    """A module in a listing. `score` is what the order sorts by: ms since the Unix epoch, uses, or bytes; None by id."""

    id: str
    tier: str
    tokens: int
    size_bytes: int
    clean: bool
    uses: float
    updated_ms: int
    score: float | None = None


class Page(NamedTuple):
    """Part of a listing.

    `after` continues it: the last id by id, or a position for each shard; None at the end. `looked` is how many ids were
    looked at, and `of` how many there are in the order (None by id). `now_ms` is the server's time.
    """

    rows: list[Row]
    after: str | None
    looked: int
    of: int | None
    now_ms: int


_END = "\U0010ffff"
"""The last character: a folder's name and this come after all ids in the folder."""
_LEVEL_STEP = 16
_SHARD_STEP = 8
"""How many ids more than twice its part one of several shards is asked for."""


def page_by_id(space: Namespace, prefix: str, after: str, limit: int, tier: str | None = None) -> Plan[Page]:
    """Return the modules after the id `after` whose ids have this prefix, in the order of the bytes of their ids.

    It reads the index of ids, never all records. After a loss of Redis the index lacks modules until they are compared with
    the archive.
    """
    limit = min(limit, PAGE_MAX)
    rows: list[Row] = []
    looked, last = 0, after
    now_ms = yield from server_ms(space.keys.shards[0])
    while True:
        ids, more = yield from next_ids(space, prefix, last, _STEP)
        found = yield from _rows(space, [(id, None) for id in ids])
        for id in ids:
            looked, last = looked + 1, id
            row = found.get(id)
            if row is not None and tier in (None, row.tier):
                rows.append(row)
            if len(rows) == limit:
                ends = not more and id == ids[-1]
                return Page(rows, None if ends else last, looked, None, now_ms)
        if not more:
            return Page(rows, None, looked, None, now_ms)
        if looked >= LOOKED_MAX:
            return Page(rows, last, looked, None, now_ms)


class Level(NamedTuple):
    """One level of the tree that the ids are: modules, and folders, whose names end in `/`.

    Attributes:
        names: The ids, and the prefixes of folders, in the order of their bytes.
        after: Continues the level; None at the end.
    """

    names: list[str]
    after: str | None


def level(space: Namespace, prefix: str, after: str, limit: int) -> Plan[Level]:
    """Return the modules and folders directly below a prefix, after the name `after`.

    What a folder has is passed over without being read, so a level costs a few round trips for each of its folders.
    """
    names: list[str] = []
    last = after + _END if after.endswith("/") else after
    while True:
        ids, more = yield from next_ids(space, prefix, last, _LEVEL_STEP)
        for id in ids:
            first, slash, _ = id.removeprefix(prefix).partition("/")
            name = prefix + first + slash
            last = name + _END if slash else name
            if names and names[-1] == name:
                continue
            if len(names) == limit:
                return Level(names, names[-1])
            names.append(name)
        if not more:
            return Level(names, None)


def next_ids(space: Namespace, prefix: str, after: str, limit: int) -> Plan[tuple[list[str], bool]]:
    """Return the next ids of all shards in order, at most `limit`, and whether there may be more.

    All shards are asked at once, for about their part of the ids. Of a shard that has more, the next id is not known, and may
    come before ids of other shards: it is asked again until it cannot.
    """
    shards = space.keys.shards
    most = limit + 1 if len(shards) == 1 else 2 * limit // len(shards) + _SHARD_STEP
    walks = [_Walk(shard, prefix, after) for shard in shards]
    for walk, first in zip(walks, (yield from Pipeline([walk.find_chunk() for walk in walks])), strict=True):
        walk.begin(collect(first))
    while True:
        open_walks = [walk for walk in walks if not walk.ended]
        end = min((walk.last for walk in open_walks), default=None)
        ids = [id for id in heapq.merge(*(walk.found for walk in walks)) if end is None or id <= end]
        if end is None or len(ids) > limit:
            return [id.decode(errors="replace") for id in ids[:limit]], len(ids) > limit
        behind = [walk for walk in open_walks if walk.last == end]
        replies = [collect(reply) for reply in (yield from Pipeline([c for walk in behind for c in walk.read(most)]))]
        for walk, some, following in zip(behind, replies[::2], replies[1::2], strict=True):
            walk.take(some, following)


class _Walk:
    """The ids of a shard with a prefix, from the chunks of its index, in the order of their bytes.

    The first id of the next chunk is read after the chunk. So if the chunk is divided in between, its other half is read as
    the next chunk, and nothing is left out.
    """

    def __init__(self, shard: Shard, prefix: str, after: str) -> None:
        self._shard, self._prefix = shard, prefix.encode()
        self._start = max(self._prefix, after.encode())
        self._low = b"(" + self._start if after and self._start == after.encode() else b"[" + self._start
        if not self._start:
            self._low = b"-"
        self._chunk: bytes | None = b""
        self._asked = 0
        self.found: list[bytes] = []

    @property
    def ended(self) -> bool:
        return self._chunk is None

    @property
    def last(self) -> bytes:
        """The last id so far: others of the shard come after it. Empty if none was read."""
        return self.found[-1] if self.found else b""

    def find_chunk(self) -> Command[Any]:
        """Find the chunk in which the ids begin."""
        ids = self._shard.ids
        return Command(self._shard, ("ZRANGE", ids, b"[" + self._start, "-", "BYLEX", "REV", "LIMIT", 0, 1), unparsed)

    def begin(self, firsts: Sequence[bytes]) -> None:
        self._chunk = next(iter(firsts), b"")

    def read(self, most: int) -> list[Command[Any]]:
        """Read the next ids of the chunk, and the first id of the chunk after it."""
        shard, chunk, self._asked = self._shard, self._chunk or b"", most
        above = b"(" + chunk if chunk else b"-"
        return [
            Command(
                shard,
                ("ZRANGE", shard.chunk(chunk.decode(errors="replace")), self._low, "+", "BYLEX", "LIMIT", 0, most),
                unparsed,
            ),
            Command(shard, ("ZRANGE", shard.ids, above, "+", "BYLEX", "LIMIT", 0, 1), unparsed),
        ]

    def take(self, some: Sequence[bytes], following: Sequence[bytes]) -> None:
        mine = [id for id in some if id.startswith(self._prefix)]
        self.found += mine
        if mine:
            self._low = b"(" + mine[-1]
        if len(mine) < len(some):
            self._chunk = None  # the ids with the prefix have ended: they are next to each other
        elif len(some) < self._asked:
            self._chunk = next(iter(following), None)


def _ids(reply: Sequence[bytes]) -> list[str]:
    return [id.decode(errors="replace") for id in reply]


def page_by_rank(
    space: Namespace, rank: Rank, after: str, limit: int, *, prefix: str = "", tier: str | None = None
) -> Plan[Page]:
    """Return the modules of an order from the position `after` (as an earlier page returned it; empty for the first page).

    Modules move while pages are read, so one may be on two pages or on none. `biggest` looks at the modules that were used
    last in hot and warm.

    Raises:
        Invalid: there is no such order, or `after` is no position.
    """
    if rank not in RANKS:
        raise Invalid(f"the order must be one of {', '.join(RANKS)}, not {rank!r}")
    if rank == "biggest":
        return (yield from _biggest(space, after, min(limit, PAGE_MAX), prefix, tier))
    limit, shards = min(limit, PAGE_MAX), space.keys.shards
    name, reverse = _SETS[rank]
    at = _positions(after, len(shards))
    rows: list[Row] = []
    looked = 0
    cards: list[Command[Any]] = [Command(shard, ("ZCARD", getattr(shard, name)), int) for shard in shards]
    *sizes, now_ms = [collect(reply) for reply in (yield from Pipeline([*cards, server_ms(shards[0])]))]
    while looked < LOOKED_MAX:
        scored = yield from _next_scored(space, name, reverse, at, _STEP)
        if not scored:
            return Page(rows, None, looked, sum(sizes), now_ms)
        wanted = [(id, score) for score, id, _ in scored if id.startswith(prefix)]
        found = yield from _rows(space, wanted)
        for _, id, shard in scored:
            looked += 1
            at[shard] += 1
            row = found.get(id)
            if row is not None and tier in (None, row.tier):
                rows.append(row)
            if len(rows) == limit:
                ends = all(n >= size for n, size in zip(at, sizes, strict=True))
                return Page(rows, None if ends else _joined(at), looked, sum(sizes), now_ms)
    return Page(rows, _joined(at), looked, sum(sizes), now_ms)


def _next_scored(
    space: Namespace, name: str, reverse: bool, at: Sequence[int], limit: int
) -> Plan[list[tuple[float, str, int]]]:
    """Return the next (score, id, shard) of all shards, merged by score."""
    calls: list[Command[Any]] = [
        Command(s, ("ZRANGE", getattr(s, name), n, n + limit - 1, *(("REV",) if reverse else ()), "WITHSCORES"), scores)
        for s, n in zip(space.keys.shards, at, strict=True)
    ]
    lists = [[(score, id, i) for id, score in collect(reply)] for i, reply in enumerate((yield from Pipeline(calls)))]
    return list(heapq.merge(*lists, key=lambda entry: -entry[0] if reverse else entry[0]))[:limit]


def _biggest(space: Namespace, after: str, limit: int, prefix: str, tier: str | None) -> Plan[Page]:
    (skip,) = _positions(after, 1)
    shards = space.keys.shards
    most = max(_SHARD_MIN, LOOKED_MAX // (2 * len(shards)))
    calls: list[Command[Any]] = [
        command
        for shard in shards
        for zset in (shard.hot, shard.warm)
        for command in (
            Command(shard, ("ZRANGE", zset, 0, most - 1, "REV"), _ids),
            Command(shard, ("ZCARD", zset), int),
        )
    ]
    *replies, now_ms = [collect(reply) for reply in (yield from Pipeline([*calls, server_ms(shards[0])]))]
    ids = list(dict.fromkeys(id for listed in replies[::2] for id in listed))
    rows = yield from _rows(space, [(id, None) for id in ids if id.startswith(prefix)])
    sized = [
        Row(r.id, r.tier, r.tokens, r.size_bytes, r.clean, r.uses, r.updated_ms, r.size_bytes)
        for r in rows.values()
        if tier in (None, r.tier)
    ]
    sized.sort(key=lambda row: (-row.size_bytes, row.id))
    end = skip + limit
    return Page(sized[skip:end], str(end) if end < len(sized) else None, len(ids), sum(replies[1::2]), now_ms)


def _rows(space: Namespace, wanted: Sequence[tuple[str, float | None]]) -> Plan[dict[str, Row]]:
    """Return what a listing shows of each module, by id, without its content. Deleted modules are left out."""
    calls: list[Command[Any]] = []
    for id, _ in wanted:
        shard = space.shard(id)
        calls.append(
            Command(shard, ("HMGET", shard.module(id), "tier", "tokens", "bytes", "clean", "updated", "ttl"), list)
        )
        calls.append(Command(shard, ("ZSCORE", shard.uses, id), lambda score: float(score or 0)))
    replies = [collect(reply) for reply in (yield from Pipeline(calls))] if calls else []
    found: dict[str, Row] = {}
    for (id, score), values, uses in zip(wanted, replies[::2], replies[1::2], strict=True):
        gone = values[0] in (None, b"deleted")
        if values[5] is not None:
            gone = gone or (yield from has_expired(space, space.shard(id), expiry_of(values[4], values[5])))
        if not gone:
            tokens, size_bytes, updated_ms = (int(value or 0) for value in (values[1], values[2], values[4]))
            tier = values[0].decode(errors="replace")
            found[id] = Row(id, tier, tokens, size_bytes, values[3] == b"1", uses, updated_ms, score)
    return found


def _positions(after: str, shards: int) -> list[int]:
    parts = after.split(".") if after else ["0"] * shards
    if len(parts) != shards or not all(part.isascii() and part.isdigit() and len(part) < 12 for part in parts):
        raise Invalid(f"{after[:40]!r} is no position of this order")
    return [int(part) for part in parts]


def _joined(at: Sequence[int]) -> str:
    return ".".join(map(str, at))
