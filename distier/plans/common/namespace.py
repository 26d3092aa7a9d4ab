"""The namespace that a plan works in."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from distier.config import Config
from distier.domain.archived import Limits
from distier.domain.keys import Keyspace, Shard
from distier.domain.tokens import TokenCounter
from distier.lua import Limit
from distier.plans.common.process_state import ProcessState
from distier.policy.quotas import Amounts, equal


@dataclass(frozen=True)
class Namespace:
    """A namespace as plans see it: its configuration and keys, which do not change, and the state of this process.

    `sidecar`: whether every archived version needs a sidecar, because the archive keeps no metadata. `node`: this node's name,
    where it keeps copies on its own disk. `archive_limits`: the names that the archive can take, None for any.
    """

    config: Config
    counter: TokenCounter
    sidecar: bool
    node: str | None = None
    archive_limits: Limits | None = None
    process: ProcessState = field(default_factory=ProcessState, compare=False)

    @property
    def local_only(self) -> bool:
        """Whether clean warm versions are kept on disks instead of in Redis."""
        return self.node is not None and self.config.storage_tiers.warm.placement == "local"

    @cached_property
    def keys(self) -> Keyspace:
        return Keyspace(self.config.namespace, self.config.shards)

    def shard(self, id: str) -> Shard:
        return self.keys.shard(id)

    def locate(self, id: str) -> Located:
        return Located(self, self.keys.shard(id), id)

    @property
    def namespace(self) -> str:
        return self.config.namespace

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The budgets of the namespace. Values that nobody set only fill gaps, so a process with a bare configuration cannot
        shrink what operators have set."""
        tiers = self.config.storage_tiers

        def limit(name: str, key: str, value: int) -> Limit:
            return Limit(name, value, self.config.explicit(key))

        return (
            limit("hot_tokens", "storage_tiers.hot.max_size", tiers.hot.max_size),
            limit("hot_bytes", "storage_tiers.hot.max_bytes", tiers.hot.max_bytes),
            limit("warm_modules", "storage_tiers.warm.max_modules", tiers.warm.max_modules),
            limit("warm_bytes", "storage_tiers.warm.max_bytes", tiers.warm.max_bytes),
            limit("warm_ttl_ms", "storage_tiers.warm.ttl", tiers.warm.ttl_ms),
            limit("events_max", "events.max_length", self.config.events.max_length),
        )

    def limits_of(self, shard: Shard) -> tuple[Limit, ...]:
        """Return the limits that a shard is opened with.

        One of several shards gets an equal quota, but only where it has none: from then on the ledger has its quota, also
        where the totals are set explicitly (`plans/tier/ledger.py`).
        """
        if shard.count == 1:
            return self.limits
        budgets = self.limits[: len(Amounts._fields)]
        quotas = equal(Amounts(*(limit.value for limit in budgets)), shard.count)[shard.index]
        mine = tuple(Limit(b.name, quota, False) for b, quota in zip(budgets, quotas, strict=True))
        return mine + self.limits[len(budgets) :]

    @property
    def eviction(self) -> str:
        """The eviction policy that operators have set; empty if nobody set it here, which leaves it as it is."""
        name = "storage_tiers.hot.eviction_policy"
        return self.config.storage_tiers.hot.eviction_policy if self.config.explicit(name) else ""

    @property
    def frame_level(self) -> int | None:
        """The lz4 level of new frames; None stores them uncompressed."""
        warm = self.config.storage_tiers.warm
        return warm.compression_level if warm.compression == "lz4" else None


class Located(NamedTuple):
    """An id with its shard and namespace: what most plans about one module need.

    A named tuple is made in half the time of a frozen dataclass. A read of a hot module needs none.
    """

    space: Namespace
    shard: Shard
    id: str
