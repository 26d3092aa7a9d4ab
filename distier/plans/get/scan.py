"""A walk through the ids of a namespace, a step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from distier.domain.ids import encode_prefix
from distier.domain.keys import Shard
from distier.domain.module import TIERS, Tier
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import ArchiveUnavailable, DeadlineExceeded, Invalid, Recovering
from distier.lua import state
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.rescue import rescue_if_needed


class Scanned(NamedTuple):
    """The next cursor (0 at the end), the shard's epoch, and (id, tier) of what was found."""

    cursor: int
    epoch: int
    found: list[tuple[str, Tier]]


def scan(space: Namespace, shard: Shard, prefix: str, tier: str | None, cursor: int, epoch: int = 0) -> Plan[Scanned]:
    """One step through the ids of a shard.

    As Redis' SCAN: what exists all the time is found at least once; what comes or goes meanwhile may be or not. A cursor is
    good for one life of one server, and SCAN names no key that would be refused elsewhere: so the epoch is asked before and
    after it, and where it is not `epoch` all the time, the shard begins anew.
    """
    pattern = shard.module_pattern(encode_prefix(prefix))
    look: Command[Any] = Command(shard, ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000), lambda reply: reply)
    before, scanned, after = [collect(r) for r in (yield from Pipeline([state(shard), look, state(shard)]))]
    if before.epoch != after.epoch or (cursor and before.epoch != epoch):
        return (yield from scan(space, shard, prefix, tier, 0))
    next_cursor, keys = scanned
    ids = [id for id in _ids_of(shard, keys) if id.startswith(prefix)]
    tiers = yield from Pipeline(
        [Command(shard, ("HGET", shard.module(id), "tier"), lambda r: r and r.decode()) for id in ids]
    )
    found = [(id, collect(t)) for id, t in zip(ids, tiers, strict=True)]
    kept = [(id, t) for id, t in found if t and t != "deleted" and tier in (None, t)]
    return Scanned(int(next_cursor), before.epoch, kept)


def _ids_of(shard: Shard, keys: Sequence[bytes]) -> Iterator[str]:
    """The ids of record keys; keys that distier never wrote are passed over."""
    for key in keys:
        with suppress(Invalid):
            yield shard.id_of(key)


def complete(space: Namespace) -> Plan[None]:
    """Records of all that is archived, as far as it can be read: after a loss of Redis some have none before a rescue, and a
    listing would lack them without a word. Raises `Recovering` where that takes longer than this call has time for."""
    try:
        yield from rescue_if_needed(space)
    except (ArchiveUnavailable, DeadlineExceeded) as e:
        raise Recovering(
            f"Redis was restarted or lost, and namespace {space.namespace!r} is not compared with its archive yet: a listing "
            "might lack modules. Run `distier rescue`, or a worker, which does it"
        ) from e


class Listing:
    """A walk through all shards, a step at a time: `step()` is a plan that answers the next (id, tier) pairs."""

    def __init__(self, space: Namespace, prefix: str, tier: str | None, limit: int | None) -> None:
        if tier is not None and tier not in TIERS:
            raise Invalid(f"tier is hot, warm or cold, not {tier!r}")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise Invalid(f"limit is a whole number from 0, not {limit!r}")
        self._space, self._prefix, self._tier = space, prefix, tier
        self._left = limit
        self._shards = list(space.keys.shards)
        self._cursor = self._epoch = 0
        self._seen: set[str] = set()  # SCAN may show a key twice
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
