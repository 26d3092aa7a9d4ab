"""Making modules hot on request, one or many, and pinning them.

The content comes from the nearest copy. A move is prepared outside of Redis and applied by one script that compares the
write id of the version, so losing a race costs work and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distier.domain.keys import Shard
from distier.domain.module import Moved, Record
from distier.domain.outcome import ALREADY, CHANGED, MOVED, Outcome
from distier.effects import Command, LocalHas, Parallel, Pipeline, Plan, collect
from distier.errors import DistierError, NotFound, Recovering
from distier.lua import Over
from distier.lua import pin as pin_script
from distier.lua import promote as promote_script
from distier.plans.common.commands import chunks
from distier.plans.common.content import by_bytes, open_frames
from distier.plans.common.namespace import Located, Namespace
from distier.plans.recovery.adopt import need_record, newest_records
from distier.plans.tier.demote import PARALLEL_MAX, ROUNDS_MAX, free_hot, tier_of
from distier.plans.tier.keep import is_too_large, outcome_of, to_hot
from distier.plans.tier.load import load
from distier.plans.tier.peers import PROMOTED, ask, find_holders
from distier.plans.tier.room import look_at_hot
from distier.policy.eviction.victims import Need

PIPELINE_MAX_BYTES = 8 * 1024 * 1024


def promote(space: Namespace, id: str) -> Plan[Moved]:
    """Make the module hot. Raises `NotFound`, `Corrupt`, `Unavailable`."""
    shard = space.shard(id)
    for _ in range(ROUNDS_MAX):
        record = yield from need_record(space, id)
        if record.content is not None:
            return Moved(id, "hot", False, Outcome.ALREADY)
        if record.tier == "cold" and (yield from _promote_there(space, shard, record)):
            return Moved(id, "hot", True)
        loaded = yield from load(space, shard, record, ask_others=False)
        if loaded is None:
            continue
        record, content = loaded
        outcome = yield from to_hot(space, shard, record, content, "request")
        if outcome is MOVED:
            return Moved(id, "hot", True)
        if outcome is not CHANGED:
            return _moved_up(record, outcome)
    return Moved(id, "warm", False, Outcome.CHANGED)


def _promote_there(space: Namespace, shard: Shard, record: Record) -> Plan[bool]:
    """Let a node that holds a copy promote it, where this one has none: the content is sent to Redis once, and not through
    this process."""
    if space.node is None or (yield from LocalHas(record.id, record.order.write_id)):
        return False
    holders = yield from find_holders(Located(space, shard, record.id))
    return (yield from ask(space, shard, record, holders, "hot")) == PROMOTED


@dataclass
class _Together:
    """The modules of one call, which never evict each other. `hot` has the tokens and bytes of those that are hot, by shard."""

    ids: frozenset[str]
    hot: dict[Shard, Need] = field(default_factory=dict)
    evicting: bool = False
    """Whether the call evicted anything: then other clients may be evicting too."""

    def now_hot(self, shard: Shard, record: Record) -> None:
        held = self.hot.get(shard, Need(0, 0))
        self.hot[shard] = Need(held.amount + record.tokens, held.size_bytes + record.size_bytes)

    def fits(self, shard: Shard, record: Record, limits: Sequence[int]) -> bool:
        """Return whether there is room for `record` next to the modules of this call, if all others leave."""
        held = self.hot.get(shard, Need(0, 0))
        return held.amount + record.tokens <= limits[0] and held.size_bytes + record.size_bytes <= limits[1]


def promote_many(space: Namespace, ids: Sequence[str]) -> Plan[list[Moved | DistierError]]:
    """Make these modules hot. Returns a result per id, in order.

    Contents are loaded in parallel, room for all of them is made once per shard before any is promoted, and the promotions
    are pipelined. The first modules that fit together are promoted. The others are refused before anything is evicted, and
    none of them is evicted for another one. The tiers are those at the end of the call.
    """
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


def _as_they_are(space: Namespace, results: dict[str, Moved | DistierError]) -> Plan[None]:
    """Correct the results where other clients evicted meanwhile: a module that is no longer hot is not reported as hot."""
    hot = [id for id, result in results.items() if isinstance(result, Moved) and result.tier == "hot"]
    for chunk in chunks(hot, 500):
        tiers = [Command(space.shard(id), ("HGET", space.shard(id).module(id), "tier"), bytes) for id in chunk]
        for id, tier in zip(chunk, (yield from Pipeline(tiers)), strict=True):
            if tier in (b"warm", b"cold"):
                results[id] = Moved(id, "warm" if tier == b"warm" else "cold", False, Outcome.EVICTED)


def _load_many(
    space: Namespace, ids: Sequence[str], results: dict[str, Moved | DistierError], call: _Together
) -> Plan[list[tuple[Record, bytes]]]:
    """Return the records and contents of modules that are not hot yet. Puts the results of the others into `results`."""
    records = yield from newest_records(space, ids)
    below: list[Record] = []
    for id, record in zip(ids, records, strict=True):
        if record is None:
            results[id] = NotFound(f"there is no module {id!r} in namespace {space.namespace!r}")
        elif record.content is not None:
            results[id] = Moved(id, "hot", False, Outcome.ALREADY)
            call.now_hot(space.shard(id), record)
        else:
            below.append(record)
    ready = []
    warm = [(space.shard(r.id), r) for r in below if r.tier == "warm"]
    for part in by_bytes(warm):
        contents = yield from open_frames(space, part)
        ready += [(r, content) for (_, r), content in zip(part, contents, strict=True) if content is not None]
    done = {record.id for record, _ in ready}
    rest = [record for record in below if record.id not in done]
    loaded = yield from Parallel([load(space, space.shard(r.id), r) for r in rest])
    for record, result in zip(rest, loaded, strict=True):
        if isinstance(result, DistierError):
            results[record.id] = result
        elif result is None:
            results[record.id] = Moved(record.id, tier_of(record), False, Outcome.CHANGED)
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
    space: Namespace,
    shard: Shard,
    loaded: list[tuple[Record, bytes]],
    results: dict[str, Moved | DistierError],
    call: _Together,
) -> Plan[None]:
    for part in _by_size(loaded):
        yield from _promote_loaded(space, shard, part, results, call)


def _promote_loaded(
    space: Namespace,
    shard: Shard,
    part: list[tuple[Record, bytes]],
    results: dict[str, Moved | DistierError],
    call: _Together,
) -> Plan[None]:
    room = yield from look_at_hot(space, shard)
    fitting, large = [], []
    for record, content in part:
        if record.tokens > room.limits[0] or record.size_bytes > room.limits[1]:
            large.append((record, content))  # than all of hot, or than the quota of one shard among several
        elif call.fits(shard, record, room.limits):
            call.now_hot(shard, record)
            fitting.append((record, content))
        else:
            results[record.id] = Moved(record.id, tier_of(record), False, Outcome.NO_ROOM_TOGETHER)
    tokens, size_bytes = sum(r.tokens for r, _ in fitting), sum(len(c) for _, c in fitting)
    if room.shortage(tokens, size_bytes):
        call.evicting = True
        yield from free_hot(space, shard, tokens, size_bytes, "evict", keep=call.ids, room=room)
    calls = [promote_script(shard, r.id, r.order.write_id, content, "request") for r, content in fitting]
    replies = (yield from Pipeline(calls)) if calls else []
    for (record, content), reply in zip(fitting + large, [*replies, *[None] * len(large)], strict=True):
        if (
            reply is None or isinstance(reply, Over) or is_too_large(reply)
        ):  # by itself: with evictions, or a larger quota
            call.evicting = True
            word = yield from _caught(to_hot(space, shard, record, content, "request", keep=call.ids))
        elif isinstance(reply, DistierError):
            word = reply
        else:
            word = outcome_of(reply)
        results[record.id] = word if isinstance(word, DistierError) else _moved_up(record, word)


def _moved_up(record: Record, outcome: Outcome) -> Moved:
    if outcome is MOVED:
        return Moved(record.id, "hot", True)
    return Moved(record.id, "hot" if outcome is ALREADY else tier_of(record), False, outcome)


def _caught(plan: Plan[Outcome]) -> Plan[Outcome | DistierError]:
    try:
        return (yield from plan)
    except DistierError as e:
        return e


def pin(space: Namespace, id: str, ttl_ms: int) -> Plan[int]:
    """Pin the module, made hot if there is room, for `ttl_ms` from now. Returns the end of the pin in ms since the Unix
    epoch.

    Raises `NotFound`.
    """
    for _ in range(ROUNDS_MAX):
        yield from promote(space, id)
        until = yield from pin_script(space.shard(id), id, ttl_ms)
        if until is not None:
            return until
        # The script found no module. That proves nothing: Redis may have been emptied since `promote`, which looks again.
    raise Recovering(f"the shard of module {id!r} keeps being emptied while it is pinned; retry")


def unpin(space: Namespace, id: str) -> Plan[None]:
    """End the module's pin, if it has one."""
    yield from pin_script(space.shard(id), id, 0)
