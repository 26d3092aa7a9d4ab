"""Scans of the ids of a namespace, one step at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

from distier.domain.ids import encode_prefix
from distier.domain.keys import Shard
from distier.domain.module import TIERS, Tier
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import ArchiveUnavailable, DeadlineExceeded, Invalid, Recovering
from distier.lua import state
from distier.plans.common.commands import ids_of
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.rescue import rescue_if_needed


class Scanned(NamedTuple):
    """The next cursor (0 at the end), the shard's epoch, and (id, tier) of the modules that were found."""

    cursor: int
    epoch: int
    found: list[tuple[str, Tier]]


def scan(space: Namespace, shard: Shard, prefix: str, tier: str | None, cursor: int, epoch: int = 0) -> Plan[Scanned]:
    """Scan the ids of a shard by one step.

    The guarantees are those of Redis' SCAN: a module that exists all the time is found at least once; one that comes or goes
    meanwhile may be found or not. A cursor is valid in one incarnation of one server, and a replica or a partitioned primary
    replies to SCAN too. So the epoch is read before and after it, and the scan of the shard starts again where the epoch is
    not the same all the time.
    """
    pattern = shard.module_pattern(encode_prefix(prefix))
    look: Command[Any] = Command(shard, ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000), lambda reply: reply)
    before, scanned, after = [collect(r) for r in (yield from Pipeline([state(shard), look, state(shard)]))]
    if before.epoch != after.epoch or (cursor and before.epoch != epoch):
        return (yield from scan(space, shard, prefix, tier, 0))
    next_cursor, keys = scanned
    ids = [id for id in ids_of(shard, keys) if id.startswith(prefix)]
    tiers = yield from Pipeline(
        [Command(shard, ("HGET", shard.module(id), "tier"), lambda r: r and r.decode()) for id in ids]
    )
    found = [(id, collect(t)) for id, t in zip(ids, tiers, strict=True)]
    kept = [(id, t) for id, t in found if t and t != "deleted" and tier in (None, t)]
    return Scanned(int(next_cursor), before.epoch, kept)


def complete(space: Namespace) -> Plan[None]:
    """Make sure that every archived module has a record, as far as the archive can be read.

    After a loss of Redis some have none until a rescue, and a listing would silently lack them. Raises `Recovering` where
    the rescue takes longer than this call has time for.
    """
    try:
        yield from rescue_if_needed(space)
    except (ArchiveUnavailable, DeadlineExceeded) as e:
        raise Recovering(
            f"Redis was restarted or lost, and namespace {space.namespace!r} has not been compared with its archive yet, so a "
            "listing might lack modules. Run `distier rescue` or a worker"
        ) from e


class IdScan:
    """A scan through all shards. `step()` is a plan that returns the next (id, tier) pairs."""

    def __init__(self, space: Namespace, prefix: str, tier: str | None, limit: int | None) -> None:
        if tier is not None and tier not in TIERS:
            raise Invalid(f"tier must be hot, warm or cold, not {tier!r}")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise Invalid(f"limit must be a whole number from 0, not {limit!r}")
        self._space, self._prefix, self._tier = space, prefix, tier
        self._left = limit
        self._shards = list(space.keys.shards)
        self._cursor = self._epoch = 0
        self._seen: set[str] = set()  # SCAN may return a key twice
        self._complete = False

    @property
    def done(self) -> bool:
        return not self._shards or self._left == 0

    def step(self) -> Plan[list[tuple[str, Tier]]]:
        if not self._complete:
            yield from complete(self._space)
            self._complete = True
        shard = self._shards[0]
        self._cursor, self._epoch, found = yield from scan(
            self._space, shard, self._prefix, self._tier, self._cursor, self._epoch
        )
        fresh = [(id, tier) for id, tier in found if id not in self._seen][: self._left]
        self._seen.update(id for id, _ in fresh)
        if self._left is not None:
            self._left -= len(fresh)
        if not self._cursor:
            self._shards.pop(0)
            self._seen.clear()
        return fresh
