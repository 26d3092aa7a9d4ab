"""What a plan knows of the namespace that it works in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from distier.config import Config
from distier.domain.archived import Limits
from distier.domain.keys import Keyspace, Shard
from distier.domain.tokens import TokenCounter
from distier.errors import DistierError
from distier.lua import Limit, Opened
from distier.policy.quotas import Amounts, equal

WARM_MAX = 4096


class Failing:
    """What this process could not archive lately, and when it is worth another try: later each time. What a worker passes over
    for a while keeps the others from nothing."""

    FIRST_MS = 2_000
    LAST_MS = 300_000
    MODULES_MAX = 4096

    def __init__(self) -> None:
        self._until_ms: dict[tuple[Shard, str], tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._until_ms)

    def is_waiting(self, shard: Shard, id: str, now_ms: int) -> bool:
        _, until_ms = self._until_ms.get((shard, id), (0, 0))
        return 0 < until_ms - now_ms <= self.LAST_MS

    def note(self, shard: Shard, results: Iterable[tuple[str, object]], now_ms: int) -> None:
        """What came of some tries: an error, or anything else."""
        for id, result in results:
            pause_ms, _ = self._until_ms.pop((shard, id), (0, 0))
            if isinstance(result, DistierError) and len(self._until_ms) < self.MODULES_MAX:
                pause_ms = min(max(2 * pause_ms, self.FIRST_MS), self.LAST_MS)
                self._until_ms[(shard, id)] = pause_ms, now_ms + pause_ms


@dataclass(frozen=True)
class Space:
    """A namespace: its configuration, its keys, who counts tokens, and whether every archived version needs a
    sidecar (the archive keeps no metadata)."""

    config: Config
    counter: TokenCounter
    sidecar: bool
    states: dict[Shard, Opened] = field(default_factory=dict, compare=False)
    """What this process knows of each shard's epoch. Replaced, not emptied, when a connection meets another life of a server: a
    reader that still sees the same mapping after its read knows that its connection was to the life that it knew."""
    on_new_incarnation: list[Callable[[], None]] = field(default_factory=list, compare=False)
    warm: dict[str, float] = field(default_factory=dict, compare=False)
    """Modules that this process has lately found below hot, with their uses: the count that Redis last answered, and the
    reads here since. A guess, which saves a round trip (the frame is asked for together with the record) and a script (the
    use is told with the next batch, where it cannot be the one that promotes)."""
    versions: dict[Shard, tuple[int, int]] = field(default_factory=dict, compare=False)
    """The last version, (epoch, ver), that this process was given in each shard."""
    failing: Failing = field(default_factory=Failing, compare=False)
    claiming: dict[Shard, object] = field(default_factory=dict, compare=False)
    """Which call of this process is claiming an epoch for a shard: the others wait for it (`recovery.epochs.recover`)."""
    node: str | None = None
    """This node's name, where it keeps copies on its own disk."""
    archive_limits: Limits | None = None
    """What the archive can take; None where that is any id."""

    def guess_warm(self, id: str, uses: float) -> None:
        if len(self.warm) >= WARM_MAX:
            self.warm.clear()
        self.warm[id] = uses

    def learn_uses(self, counts: Mapping[str, float]) -> None:
        """What Redis counted: more than what is known here, where other processes have read the module too."""
        for id, uses in counts.items():
            if id in self.warm:
                self.warm[id] = uses

    def forget(self) -> None:
        """A new connection has met another life of a server: what was known of the old one is worth nothing."""
        object.__setattr__(self, "states", {})
        for told in self.on_new_incarnation:
            told()

    def note_version(self, shard: Shard, epoch: int, ver: int) -> None:
        """A write of this process was given this version."""
        self.versions[shard] = (epoch, ver)

    def since(self, shard: Shard) -> str:
        """A version of the shard that was given before now, the latest that is known here: for `Sending`."""
        known = self.states.get(shard)
        given = self.versions.get(shard, (0, 0))
        epoch, ver = max(given, (known.epoch, known.ver)) if known else given
        return f"{epoch}-{ver}"

    @property
    def local_only(self) -> bool:
        """Whether clean warm versions are kept on disks instead of in Redis."""
        return self.node is not None and self.config.storage_tiers.warm.placement == "local"

    @cached_property
    def keys(self) -> Keyspace:
        return Keyspace(self.config.namespace, self.config.shards)

    def shard(self, id: str) -> Shard:
        return self.keys.shard(id)

    @property
    def namespace(self) -> str:
        return self.config.namespace

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The namespace's budgets. What nobody set explicitly only fills gaps, so a process with a bare configuration
        cannot shrink what operators have set."""
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
        """What a shard is opened with. One of several gets an equal share, only where it has none: from then on the ledger
        says which share it has, also where the totals are set explicitly (`plans/tier/ledger.py`)."""
        if shard.count == 1:
            return self.limits
        budgets = self.limits[: len(Amounts._fields)]
        quotas = equal(Amounts(*(limit.value for limit in budgets)), shard.count)[shard.index]
        mine = tuple(Limit(b.name, quota, False) for b, quota in zip(budgets, quotas, strict=True))
        return mine + self.limits[len(budgets) :]

    @property
    def frame_level(self) -> int | None:
        """The lz4 level of new frames; None stores them plain."""
        warm = self.config.storage_tiers.warm
        return warm.compression_level if warm.compression == "lz4" else None
