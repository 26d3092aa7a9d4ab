"""How workers share the shards: which workers are alive, and which has the lease of which shard.

A lease saves work and guards nothing: every step of the worker is correct next to any other. A worker that slept past the
end of its lease thus does no harm when it wakes up. In addition a lease has a *fence*, a number that only grows. Moves of
quotas, which two workers could undo for each other for ever, name it, and are refused once the lease has gone to another
worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.effects import Cancelled, Command, NewToken, Pipeline, Plan, Progress, RunScript, collect
from distier.errors import DistierError, Full
from distier.lua import claim, heartbeat, release
from distier.plans.common.commands import scores, server_ms
from distier.plans.common.leases import cut_lease, take_lease
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.packing import pack_if_due
from distier.plans.fleet.sweep import sweep_due
from distier.plans.recovery.browse import write_page_if_changed
from distier.policy.fleet import assign

HeldLeases = dict[Shard, int]
"""Shards whose lease a worker has, with the fence of each."""


class Fleet(NamedTuple):
    """The workers that are alive, and the leases of this one. `failure`: why a shard, or the list of workers, was not
    reached."""

    workers: list[str]
    held: HeldLeases
    failure: DistierError | None = None


class Claims(NamedTuple):
    """The leases that were granted. A shard that did not reply is not held; `failure` is the first reason."""

    held: HeldLeases
    failure: DistierError | None = None
    answered: bool = False


def join(
    space: Namespace, worker: str, held: Mapping[Shard, int], ttl_ms: int, *, workers: Sequence[str] = ()
) -> Plan[Fleet]:
    """Report that this worker is alive, and take or keep the leases of its part of the shards.

    It gives back the leases that are not its part any more. A shard that another worker still has comes with a later call.

    A shard whose master does not reply delays none of the others: the shards that are held, and those that are due by
    `workers` (the list as last known), are asked together with the list, all masters at once. Where the first shard, which
    has the list, does not reply, the last list stays valid. Raises only where no shard replied.
    """
    shards = space.keys.shards
    due = assign(workers, len(shards)).get(worker, [])
    asked = [s for s in shards if s in held or s.index in due]
    # Not retried where a connection fails: the next heartbeat comes soon, and others wait for the end of this one.
    said, *replies = yield from Pipeline(
        [replace(heartbeat(shards[0], worker, ttl_ms), retry=False), *_claim_calls(asked, worker, ttl_ms)]
    )
    found = _claims(asked, replies)
    failure = said if isinstance(said, DistierError) else None
    alive = (list(workers) or [worker]) if failure else said
    mine = assign(alive, len(shards)).get(worker, [])
    more = Claims({})
    new = [s for s in shards if s.index in mine and s not in asked]
    try:
        more = yield from claim_shards(new, worker, ttl_ms)
    except DistierError as e:  # a shard that did not reply took all the time: the next heartbeat does it
        failure = failure or e
    with suppress(DistierError):
        yield from give_back_leases(worker, [(s, fence) for s, fence in found.held.items() if s.index not in mine])
    failure = failure or found.failure or more.failure
    if isinstance(said, DistierError) and not (found.answered or more.answered):
        raise said
    return Fleet(alive, {s: fence for s, fence in (found.held | more.held).items() if s.index in mine}, failure)


def claim_shards(shards: Sequence[Shard], worker: str, ttl_ms: int) -> Plan[Claims]:
    """Return those of these shards whose lease this worker has now."""
    return _claims(shards, (yield from Pipeline(_claim_calls(shards, worker, ttl_ms)))) if shards else Claims({})


def _claim_calls(shards: Sequence[Shard], worker: str, ttl_ms: int) -> list[RunScript[int | None]]:
    return [replace(claim(shard, worker, ttl_ms), retry=False) for shard in shards]


def _claims(shards: Sequence[Shard], replies: Sequence[int | DistierError | None]) -> Claims:
    failures = [reply for reply in replies if isinstance(reply, DistierError)]
    held = {shard: reply for shard, reply in zip(shards, replies, strict=True) if isinstance(reply, int)}
    return Claims(held, failures[0] if failures else None, len(failures) < len(replies))


def give_back_leases(worker: str, held: Iterable[tuple[Shard, int]]) -> Plan[None]:
    """Give leases back, so that others need not wait for their end. A failure does not matter, so it is ignored."""
    yield from Pipeline([release(shard, shard.worker_lease, f"{fence}:{worker}") for shard, fence in held])


def leave(space: Namespace, worker: str, held: Mapping[Shard, int]) -> Plan[None]:
    """Give all leases back and leave the list: others take over at their next heartbeat."""
    yield from give_back_leases(worker, held.items())
    yield from heartbeat(space.keys.shards[0], worker, 0)


def sweep_in_turn(space: Namespace) -> Plan[int | None]:
    """Sweep the archive if nobody has for `worker.sweep_interval`; None if somebody has.

    Afterwards old versions are packed, once a day, and the page that shows the archive is brought up to date. A worker that
    is killed in a sweep leaves the rest to the next one: nothing waits for it.
    """
    first, holder = space.keys.shards[0], (yield from NewToken())
    try:
        due = yield from take_lease(first, first.sweep_lease, holder, space.config.worker.sweep_interval_ms)
    except Full:  # at maxmemory there are no leases
        due = False
    if not due:
        yield from cut_lease(first, first.sweep_lease, space.config.worker.sweep_interval_ms)
        return None
    try:
        deleted = yield from sweep_due(space)
        if (packed := (yield from pack_if_due(space))) is not None:
            yield Progress({"packed": packed.members})
        yield from write_page_if_changed(space)
        return deleted
    except (DistierError, Cancelled):
        yield from release(first, first.sweep_lease, holder)
        raise


class ShardSample(NamedTuple):
    """What one shard holds and may hold, for how long its oldest dirty version has waited, the reads of the fleet, and how long
    ago the module of hot that was used least recently was used. Times are in ms."""

    usage: Mapping[str, int]
    limits: Mapping[str, int]
    dirty_age_ms: int
    reads: Mapping[str, int]
    idle_ms: int


def sample(shards: Sequence[Shard]) -> Plan[dict[Shard, ShardSample]]:
    """Look at some shards, for monitoring."""
    calls: list[Command[Any]] = []
    for s in shards:
        calls += [
            Command(s, ("HGETALL", s.usage), _numbers),
            Command(s, ("HGETALL", s.limits), _numbers),
            Command(s, ("ZRANGE", s.dirty, 0, 0, "WITHSCORES"), _first_score),
            server_ms(s),
            Command(s, ("HGETALL", s.hits), _numbers),
            Command(s, ("ZRANGE", s.hot, 0, 0, "WITHSCORES"), _first_score),
        ]
    replies = [collect(r) for r in (yield from Pipeline(calls))]
    found = {}
    for shard, usage, limits, dirty_ms, now_ms, reads, used_ms in zip(
        shards, *(replies[n::6] for n in range(6)), strict=True
    ):
        ages = [0 if since_ms is None else max(0, now_ms - since_ms) for since_ms in (dirty_ms, used_ms)]
        found[shard] = ShardSample(usage, limits, ages[0], reads, ages[1])
    return found


def _first_score(reply: Any) -> int | None:
    return next((int(score) for _, score in scores(reply)), None)


def _numbers(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}
