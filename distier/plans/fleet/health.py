"""The state of a namespace besides its totals: who maintains its shards, and what waits for the archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distier.domain import archived as names
from distier.effects import ArchiveList, Command, Pipeline, Plan, collect
from distier.plans.common.commands import scores, server_ms
from distier.plans.common.namespace import Namespace

WORKERS_MAX = 100


@dataclass(frozen=True, slots=True)
class ShardHealth:
    """One shard. `worker` has its lease for `lease_ms` more milliseconds; both are None if no worker maintains it.

    `oldest_dirty` is the module that waits longest to be archived, and `dirty_ms` how long it has waited.
    """

    shard: int
    worker: str | None
    lease_ms: int | None
    oldest_dirty: str | None
    dirty_ms: int


@dataclass(frozen=True, slots=True)
class Health:
    """All shards, the workers that are alive, and the server's time in ms since the Unix epoch."""

    shards: tuple[ShardHealth, ...]
    workers: tuple[str, ...]
    now_ms: int

    @property
    def oldest(self) -> ShardHealth | None:
        """The shard with the module that waits longest to be archived."""
        waiting = [shard for shard in self.shards if shard.oldest_dirty is not None]
        return max(waiting, key=lambda shard: shard.dirty_ms, default=None)


def read_health(space: Namespace) -> Plan[Health]:
    """Read the leases, the workers and the oldest dirty modules: one round trip, however large the namespace."""
    shards, first = space.keys.shards, space.keys.shards[0]
    calls: list[Command[Any]] = [
        Command(first, ("ZRANGE", first.workers, 0, WORKERS_MAX - 1, "WITHSCORES"), scores),
    ]
    for shard in shards:
        calls += [
            Command(shard, ("GET", shard.worker_lease), lambda reply: (reply or b"").decode(errors="replace")),
            Command(shard, ("PTTL", shard.worker_lease), int),
            Command(shard, ("ZRANGE", shard.dirty, 0, 0, "WITHSCORES"), scores),
            server_ms(shard),
        ]
    workers, *replies = [collect(reply) for reply in (yield from Pipeline(calls))]
    found = []
    for i, (lease, ttl_ms, oldest, now_ms) in enumerate(zip(*(replies[n::4] for n in range(4)), strict=True)):
        worker = lease.partition(":")[2] or None
        id, since_ms = oldest[0] if oldest else (None, now_ms)
        found.append(ShardHealth(i, worker, ttl_ms if worker else None, id, max(0, int(now_ms - since_ms))))
    now_ms = replies[3]
    return Health(tuple(found), tuple(sorted(name for name, until_ms in workers if until_ms > now_ms)), now_ms)


def probe_archive(space: Namespace) -> Plan[None]:
    """Return if the archive can be listed: the cheapest request that shows that it replies. Raises `ArchiveUnavailable`."""
    yield from ArchiveList(names.modules_prefix(space.namespace), limit=1)
