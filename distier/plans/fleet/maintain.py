"""What the worker does, in short plans that several workers may run at once: none of them needs to be alone.

write back        dirty versions older than `cold.archive_after`
demote idle       hot modules unused for `demotion_threshold`
keep head-room    demote until `worker.headroom` of hot is free, so that a put seldom has to evict
expire            account for warm frames that their TTL took
delete expired    delete modules whose own TTL ended some time ago
age               halve the use counts once per half-life
rank              rank the modules after the eviction policy was changed
compact           merge small files of the archive's manifest
dictionaries      give a shard the current dictionary for warm copies, drop earlier ones (`dictionaries.py`, which also learns)
sweep             delete archive objects that nobody needs (`sweep.py`), never the greatest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.domain.schema import COUNTED, contribution
from distier.effects import HINT_S, Cancelled, Command, Count, NewToken, Parallel, Pipeline, Plan, Progress, collect
from distier.errors import Conflict, Corrupt, DistierError, Full, Invalid, NotFound, RedisUnavailable
from distier.lua import age, expire, lapse, rank, release
from distier.plans.common.commands import chunks, eviction_command, numbers, server_ms
from distier.plans.common.leases import cut_lease, patience_ms, take_lease
from distier.plans.common.namespace import Located, Namespace
from distier.plans.fleet.dictionaries import keep_dictionaries
from distier.plans.fleet.nodes import forget_dead
from distier.plans.put.delete import delete
from distier.plans.recovery.manifest import compact_if_due
from distier.plans.tier.demote import demote, free_hot
from distier.plans.tier.writeback import Archived, Uploaded, look_at_archive, upload, write_back_all

BATCH = 64
FOREIGN = "\ufffd"
EXPIRED_GRACE_MS = 600_000
"""How long after the end of its TTL a module is deleted, in milliseconds. A clock that is ahead for a moment, perhaps after a
failover, hides modules, and does not delete them."""
CLOCK_SLACK_MS = 1000
"""A version that was put since the clock was read is slightly ahead of it, and not due."""


def write_back_due(space: Namespace, shard: Shard, *, older_than_ms: int | None = None) -> Plan[int]:
    """Archive the dirty versions that are due. Returns how many.

    `older_than_ms=0` archives all (`archive_now`), whatever their times, also those whose lease another worker has: it may
    be dead, and the caller wants to be sure.

    A module that cannot be archived delays no other one: the others are tried, and a worker waits longer before each further
    try. Raises the first `DistierError` after having tried each; at once where the archive does not reply at all.
    """
    flush = older_than_ms == 0
    after_ms = space.config.storage_tiers.cold.archive_after_ms if older_than_ms is None else older_than_ms
    held: dict[str, str] = {}
    upload_one = upload if flush else partial(_upload_alone, held)
    now_ms = yield from server_ms(shard)
    tried: set[str] = set()
    done = 0
    failure: DistierError | None = None
    for low, high in [("-inf", "+inf")] if flush else _due_times(now_ms, after_ms):
        stuck = 0
        while True:
            page = yield from _page(shard, shard.dirty, low, high, stuck)
            ids = [
                id
                for id in page
                if id not in tried and (flush or not space.process.failing.is_waiting(shard, id, now_ms))
            ]
            tried |= set(ids)
            try:
                results = yield from write_back_all(space, shard, ids, upload_one)
            except (DistierError, Cancelled):
                yield from _give_all_back(shard, held)
                raise
            yield from _give_all_back(shard, held)
            failed = [r for r in results if isinstance(r, DistierError)]
            if failed and len(failed) == len(ids):
                yield from look_at_archive(
                    space
                )  # if it is away, no module is at fault, and all are due when it returns
            space.process.failing.note(shard, zip(ids, results, strict=True), now_ms)
            went = sum(isinstance(r, Archived) for r in results)
            done, failure = done + went, failure or next(iter(failed), None)
            stuck += len(page) - went  # the others stay in the list: look behind them
            if len(page) < BATCH:
                break
    if failure:
        raise failure
    return done


def _due_times(now_ms: int, after_ms: int) -> list[tuple[str, str]]:
    """Return the ranges of the times since when a due version has been dirty.

    A time that is ahead of the server's clock is from before the clock went back. Nobody knows how long ago that was, so it
    counts as due.
    """
    return [("-inf", f"{now_ms - after_ms}.999"), (f"({now_ms + CLOCK_SLACK_MS}", "+inf")]


def _due(shard: Shard, zset: str, older_than_ms: int, offset: int) -> Plan[list[str]]:
    """Return the next ids of a time-ordered set that are older than this, by the server's clock."""
    now_ms = yield from server_ms(shard)
    return (yield from _page(shard, zset, "-inf", f"{now_ms - older_than_ms}.999", offset))  # scores have microseconds


def _page(shard: Shard, zset: str, low: str, high: str, offset: int) -> Plan[list[str]]:
    command = ("ZRANGEBYSCORE", zset, low, high, "LIMIT", offset, BATCH)
    ids: list[str] = yield from Command(shard, command, lambda reply: [_id(i) for i in reply])
    return ids


def _id(raw: bytes) -> str:
    """Return an id, or FOREIGN for a member that is none: it has no record, and so does not delay the others."""
    try:
        return check_id(raw.decode())
    except (Invalid, UnicodeDecodeError):
        return FOREIGN


def _upload_alone(held: dict[str, str], at: Located) -> Plan[Uploaded | None]:
    """Put the object unless another worker is doing it, which would only do the same work twice.

    The lease that was taken is in `held` then, by the module. A worker that died with the lease delays the module no longer
    than the holder of a fetch does.
    """
    space, shard, id = at
    lease, holder = shard.write_back_lease(id), (yield from NewToken())
    try:
        taken = yield from take_lease(shard, lease, holder, patience_ms(space), hint=HINT_S)
    except (Full, RedisUnavailable):  # at maxmemory there are no leases, and archiving is what makes room
        taken = True
    if not taken:
        yield from cut_lease(shard, lease, patience_ms(space))
        return None
    held[id] = holder
    return (yield from upload(at))


def _give_all_back(shard: Shard, held: dict[str, str]) -> Plan[None]:
    """Release the leases of a batch. A failure does not matter, because they end by themselves."""
    calls = [release(shard, shard.write_back_lease(id), holder) for id, holder in held.items()]
    held.clear()
    if calls:
        yield from Pipeline(calls)


def demote_idle(space: Namespace, shard: Shard) -> Plan[int]:
    """Demote hot modules that nobody used for `demotion_threshold`. Returns how many. Raises the first failure after having
    tried each."""
    threshold_ms = space.config.storage_tiers.demotion_threshold_ms
    moved, offset = 0, 0
    failure: DistierError | None = None
    while True:
        ids = yield from _due(shard, shard.hot, threshold_ms, offset)
        went = 0
        for result in (yield from Parallel([demote(space, id, "warm") for id in ids])):
            if not isinstance(result, DistierError):
                went += result.moved
            elif not isinstance(result, NotFound):  # deleted meanwhile
                failure = failure or result
        moved, offset = moved + went, offset + len(ids) - went
        if len(ids) < BATCH:
            break
    if failure:
        raise failure
    return moved


def keep_headroom(space: Namespace, shard: Shard) -> Plan[int]:
    """Demote the least recently used modules until the head-room is free. Returns how many.

    A single module stays: a shard that had to give it up each time could never show that it needs more.
    """
    headroom = space.config.worker.headroom
    calls = [
        Command(shard, ("HMGET", shard.limits, "hot_tokens", "hot_bytes"), numbers),
        Command(shard, ("HMGET", shard.usage, "hot_count"), numbers),
    ]
    limits, (count,) = [collect(reply) for reply in (yield from Pipeline(calls))]
    if count <= 1:
        return 0
    tokens, size_bytes = (int(n * headroom) for n in limits)
    return (yield from free_hot(space, shard, tokens, size_bytes, "headroom"))


def expire_warm(space: Namespace, shard: Shard) -> Plan[int]:
    """Account for frames that are gone. Returns how many modules became cold. Raises the first failure after having tried
    each."""
    gone, offset = 0, 0
    failure: DistierError | None = None
    while True:
        ids = yield from _due(shard, shard.warm, 0, offset)
        if not ids:
            break
        went, stuck, failed = yield from _expire(shard, ids)
        gone, offset, failure = (
            gone + went,
            offset + stuck,
            failure or failed,
        )  # others got a later time, so the list moved on
        if len(ids) < BATCH:
            break
    if failure:
        raise failure
    return gone


def delete_expired(space: Namespace, shard: Shard, grace_ms: int = EXPIRED_GRACE_MS) -> Plan[int]:
    """Delete the modules whose TTL ended more than `grace_ms` ago. Returns how many. Raises the first failure after having
    tried each.

    Readers do not see them since their TTL ended. Each is deleted only at the version that was found expired, so a put that
    comes meanwhile stays.
    """
    done, offset = 0, 0
    tried: set[str] = set()
    failure: DistierError | None = None
    while True:
        page = yield from _due(shard, shard.expiring, grace_ms, offset)
        ids = [id for id in page if id not in tried]
        versions = (yield from lapse(shard, ids, grace_ms)) if ids else []
        over = [(id, version) for id, version in zip(ids, versions, strict=True) if version]
        deletions = [delete(space, id, version, "redis") for id, version in over]
        for result in (yield Parallel(deletions)) if deletions else ():
            if not isinstance(result, DistierError):
                done += 1
            elif not isinstance(result, Conflict):  # put again meanwhile
                failure = failure or result
        if len(page) < BATCH:
            break
        tried |= set(ids)
        offset += 0 if ids else len(page)  # deleted ones leave the list; the others are passed when they come again
    if failure:
        raise failure
    return done


def _expire(shard: Shard, ids: Sequence[str]) -> Plan[tuple[int, int, DistierError | None]]:
    """Return how many of these became cold, how many stay in the list as they are, and why the first of those does.

    A key of a foreign type fails the script before it writes: then each id is tried alone.
    """
    try:
        return (yield from expire(shard, ids)), ids.count(FOREIGN), None
    except Corrupt as e:
        if len(ids) == 1:
            return 0, 1, e
    gone, stuck = 0, 0
    failure: DistierError | None = None
    for id in ids:
        went, left, failed = yield from _expire(shard, [id])
        gone, stuck, failure = gone + went, stuck + left, failure or failed
    return gone, stuck, failure


def age_uses(space: Namespace, shard: Shard) -> Plan[int]:
    """Halve the use counts if a half-life has passed. Returns how many were changed."""
    return (yield from age(shard, space.config.worker.uses_half_life_ms))


def rank_modules(space: Namespace, shard: Shard) -> Plan[int]:
    """Rank the modules of hot and warm after the eviction policy was changed, a page at a time. Returns how many.

    Meanwhile modules are evicted in the order of their last uses.
    """
    policy, complete = yield from eviction_command(shard)
    done = 0
    if policy == "lru":
        return done
    for zset in () if complete else (shard.hot, shard.warm):
        cursor = 0
        while True:
            after, flat = yield from Command(shard, ("ZSCAN", zset, cursor, "COUNT", BATCH), lambda reply: reply)
            for part in chunks([_id(member) for member in flat[::2]], BATCH):
                ranking = yield from rank(shard, part)
                done, complete = done + ranking.ranked, ranking.complete
            cursor = int(after)
            if not cursor:
                break
    known = space.process.epochs.get(shard)
    if known is not None and known.ranked != complete:
        space.process.epochs[shard] = known._replace(ranked=complete)
    return done


class Step(NamedTuple):
    """A step of a worker's round: its name in reports and metrics, and its plan, which returns how much it did."""

    name: str
    plan: Callable[[Namespace, Shard], Plan[int]]
    first_shard_only: bool = False


STEPS: tuple[Step, ...] = (
    Step("archived", write_back_due),
    Step("idle", demote_idle),
    Step("headroom", keep_headroom),
    Step("expired", expire_warm),
    Step("ttl_ended", delete_expired),
    Step("aged", age_uses),
    Step("ranked", rank_modules),
    Step("compacted", compact_if_due),
    Step("dictionaries", keep_dictionaries),
    Step("nodes_forgotten", lambda space, shard: forget_dead(space), first_shard_only=True),
)
"""What a round does, in this order. A new step is a plan and a row here."""


def maintain(space: Namespace, shard: Shard) -> Plan[None]:
    """Run each step of `STEPS` over a shard and report what it did, by name, as progress.

    A step that fails does not keep the others from running; the first failure is raised at the end.
    """
    failure: DistierError | None = None
    for step in STEPS:
        if shard.index and step.first_shard_only:
            continue
        try:
            yield Progress({step.name: (yield from step.plan(space, shard))})
        except DistierError as e:
            failure = failure or e
            yield from Count(f"worker.failed.{step.name}")
    if failure:
        raise failure


def recount(space: Namespace, shard: Shard) -> Plan[dict[str, int]]:
    """Recount the usage of a shard from its records, to compare with `usage`. It is exact while nothing moves."""
    sums: dict[str, int] = {}
    cursor = 0
    while True:
        command = ("SCAN", cursor, "MATCH", shard.module_pattern(""), "COUNT", 1000)
        after, keys = yield from Command(shard, command, lambda reply: reply)
        calls: list[Command[Any]] = [Command(shard, ("HMGET", key, *COUNTED), lambda r: r) for key in set(keys)]
        for reply in (yield from Pipeline(calls)):
            _add(sums, collect(reply))
        cursor = int(after)
        if not cursor:
            return {name: n for name, n in sums.items() if n}


def _add(sums: dict[str, int], values: list[bytes | None]) -> None:
    for name, n in contribution(values).items():
        sums[name] = sums.get(name, 0) + n
