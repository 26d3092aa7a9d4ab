"""The totals of a namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distier.domain.schema import BUDGETS
from distier.effects import Command, Pipeline, Plan, collect
from distier.plans.common.namespace import Namespace
from distier.plans.tier.peers import DiskSums, look_for_nodes, read_nodes


@dataclass(frozen=True, slots=True)
class HotStats:
    """`max_tokens` is the setting `storage_tiers.hot.max_size`."""

    count: int
    tokens: int
    size_bytes: int
    max_tokens: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class WarmStats:
    """`stored_bytes` is the size of the frames, `size_bytes` that of their contents; `ratio` is None when empty.
    `dictionary` is the name of the dictionary with which new frames of archived versions are made; empty for none."""

    count: int
    tokens: int
    size_bytes: int
    stored_bytes: int
    max_modules: int
    max_bytes: int
    dictionary: str = ""

    @property
    def size_mb(self) -> float:
        return self.stored_bytes / 1e6

    @property
    def ratio(self) -> float | None:
        return self.size_bytes / self.stored_bytes if self.stored_bytes else None


@dataclass(frozen=True, slots=True)
class ColdStats:
    """`count`: modules that are only in the archive. `archived_count` and `stored_bytes`: all current versions that are
    archived, in whatever tier they are used, and the size of their objects."""

    count: int
    tokens: int
    size_bytes: int
    archived_count: int
    stored_bytes: int
    archived_size_bytes: int

    @property
    def size_gb(self) -> float:
        return self.stored_bytes / 1e9

    @property
    def ratio(self) -> float | None:
        return self.archived_size_bytes / self.stored_bytes if self.stored_bytes else None


@dataclass(frozen=True, slots=True)
class NearStats:
    """The near cache of this process. `status` is `on`, or says why it is not. `suspects` are the modules among `count` whose
    version must be compared with the record before they are served again."""

    status: str = "off"
    count: int = 0
    tokens: int = 0
    size_bytes: int = 0
    hits: int = 0
    max_entries: int = 0
    max_tokens: int = 0
    max_bytes: int = 0
    suspects: int = 0


@dataclass(frozen=True, slots=True)
class SourceStats:
    """Predictions of one source (`sequence`, `context`, `hour`) that were acted on: `used`, `wasted`, or still open."""

    issued: int = 0
    used: int = 0
    wasted: int = 0

    @property
    def precision(self) -> float | None:
        """The used part of those whose outcome is known; None if there is none."""
        known = self.used + self.wasted
        return self.used / known if known else None


@dataclass(frozen=True, slots=True)
class PredictionStats:
    """Prediction in this process. `threshold` is the least probability that it acts on now, `modules` are those whose followers
    are known here. A prediction counts for its strongest source."""

    enabled: bool = False
    sessions: int = 0
    modules: int = 0
    threshold: float = 0.0
    sources: Mapping[str, SourceStats] = field(default_factory=dict)

    @property
    def issued(self) -> int:
        return sum(source.issued for source in self.sources.values())

    @property
    def used(self) -> int:
        return sum(source.used for source in self.sources.values())

    @property
    def wasted(self) -> int:
        return sum(source.wasted for source in self.sources.values())

    @property
    def precision(self) -> float | None:
        """As `SourceStats.precision`, over all sources."""
        return SourceStats(0, self.used, self.wasted).precision


@dataclass(frozen=True, slots=True)
class ShardEpoch:
    """The epoch of a shard.

    `first`: the one that the shard was made with (it may have any number: a claim is above those of all shards). If it is
    not the first, the Redis of the shard restarted, failed over or was lost at `since_ms` (ms since the Unix epoch), and
    `redis` writes just before that may be lost. `verified`: all records have been compared with the archive since then.
    """

    shard: int
    epoch: int
    verified: bool
    since_ms: int
    first: bool


@dataclass(frozen=True, slots=True)
class ShardQuota:
    """What one of several shards holds, and its quota of the budgets."""

    shard: int
    hot_tokens: int
    max_hot_tokens: int
    hot_bytes: int
    max_hot_bytes: int
    warm_modules: int
    max_warm_modules: int
    warm_bytes: int
    max_warm_bytes: int


@dataclass(frozen=True, slots=True)
class EvictionStats:
    """The eviction policy of the namespace. `ranking`: the shards whose modules the worker is ranking, after a change of the
    policy; until then they evict what was used least recently. `regret` and `regret_tokens`: modules that were fetched from
    the archive within ten minutes after they were evicted, and their tokens."""

    policy: str = "lru"
    ranking: int = 0
    regret: int = 0
    regret_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FleetReads:
    """The reads of all processes since the namespace was made, and their tokens, by the tier in which the modules were when
    their uses were reported. Reads from near caches count too."""

    hot: int = 0
    warm: int = 0
    cold: int = 0
    hot_tokens: int = 0
    warm_tokens: int = 0
    cold_tokens: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """The part of the reads that did not need the archive; None without reads."""
        every = self.hot + self.warm + self.cold
        return (self.hot + self.warm) / every if every else None


@dataclass(frozen=True, slots=True)
class Stats:
    """The totals of the namespace, the counters of this process (`hits.near`, `hits.hot`, `hits.warm`, `hits.cold`,
    `misses`, ...) and its near cache."""

    hot: HotStats
    warm: WarmStats
    cold: ColdStats
    dirty_count: int
    dirty_bytes: int
    counters: Mapping[str, int]
    near: NearStats = NearStats()
    epochs: tuple[ShardEpoch, ...] = ()
    quotas: tuple[ShardQuota, ...] = ()
    nodes: Mapping[str, DiskSums] = field(default_factory=dict)
    """What the disks of the live nodes hold, over all namespaces, by the name of the node."""
    node: str | None = None
    """The node of this process, where it keeps copies on a disk."""
    dirty_deletions: int = 0
    """How many of `dirty_count` are tombstones that are not archived yet."""
    eviction: EvictionStats = EvictionStats()
    reads: FleetReads = FleetReads()
    prediction: PredictionStats = PredictionStats()

    @property
    def count(self) -> int:
        """The number of modules."""
        return self.hot.count + self.warm.count + self.cold.count

    @property
    def hits(self) -> Mapping[str, int]:
        """The hits of this process by tier."""
        prefix = "hits."
        return {k[len(prefix) :]: n for k, n in self.counters.items() if k.startswith(prefix)}

    @property
    def misses(self) -> int:
        """The misses of this process."""
        return self.counters.get("misses", 0)


def read_stats(
    space: Namespace,
    counters: Mapping[str, int],
    near: NearStats = NearStats(),
    prediction: PredictionStats = PredictionStats(),
) -> Plan[Stats]:
    """Add up the accounts of all shards, which the scripts keep: a few round trips, however large the namespace."""
    calls: list[Command[dict[str, int]]] = [
        Command(shard, ("HGETALL", key), _numbers) for shard in space.keys.shards for key in (shard.usage, shard.limits)
    ]
    hits = [Command(shard, ("HGETALL", shard.hits), _numbers) for shard in space.keys.shards]
    epochs = [
        Command(
            s, ("HMGET", s.epoch, "epoch", "verified", "since", "created", "eviction", "ranked", "dictionary"), _epoch
        )
        for s in space.keys.shards
    ]
    total: dict[str, int] = {}
    *replies, now_ms, nodes_found = map(
        collect, (yield from Pipeline([*calls, *hits, *epochs, *look_for_nodes(space)]))
    )
    for i, numbers in enumerate(replies[: len(calls)]):
        for name, number in numbers.items():
            key = f"max.{name}" if i % 2 else name
            total[key] = total.get(key, 0) + number
    nodes = yield from read_nodes(space, (now_ms, nodes_found))
    reads: dict[str, int] = {}
    for counted in replies[len(calls) : len(calls) + len(hits)]:
        for name, number in counted.items():
            reads[name] = reads.get(name, 0) + number
    shards = replies[len(calls) + len(hits) :]
    incarnations = tuple(ShardEpoch(i, *incarnation) for i, (incarnation, *_) in enumerate(shards))
    eviction = EvictionStats(
        shards[0][1], sum(ranking for _, _, ranking, _ in shards), reads.get("regret", 0), reads.get("regret_tokens", 0)
    )
    pairs = list(zip(replies[: len(calls) : 2], replies[1 : len(calls) : 2], strict=True))
    quotas = tuple(_quota_of(i, *pair) for i, pair in enumerate(pairs)) if len(pairs) > 1 else ()
    n = total.get
    all_bytes = sum(n(f"{tier}_bytes", 0) for tier in ("hot", "warm", "cold"))
    return Stats(
        HotStats(n("hot_count", 0), n("hot_tokens", 0), n("hot_bytes", 0),
                 n("max.hot_tokens", 0), n("max.hot_bytes", 0)),
        WarmStats(n("warm_count", 0), n("warm_tokens", 0), n("warm_bytes", 0), n("warm_frame_bytes", 0),
                  n("max.warm_modules", 0), n("max.warm_bytes", 0), shards[0][3]),
        ColdStats(n("cold_count", 0), n("cold_tokens", 0), n("cold_bytes", 0), n("archived_count", 0),
                  n("archived_bytes", 0), all_bytes - n("dirty_bytes", 0)),
        n("dirty_count", 0), n("dirty_bytes", 0), counters, near, incarnations, quotas, nodes, space.node,
        n("deleted_count", 0), eviction, FleetReads(*(reads.get(name, 0) for name in FleetReads.__dataclass_fields__)),
        prediction,
    )  # fmt: skip


def _quota_of(shard: int, usage: Mapping[str, int], limits: Mapping[str, int]) -> ShardQuota:
    return ShardQuota(
        shard, *(n for limit, used in BUDGETS.items() for n in (usage.get(used, 0), limits.get(limit, 0)))
    )


def _numbers(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in fields.items()}


def _epoch(values: Sequence[bytes | None]) -> tuple[tuple[int, bool, int, bool], str, bool, str]:
    """Return the epoch of a shard, its eviction policy, whether modules are still without ranks, and its dictionary."""
    epoch, verified, since_ms, created_ms = [int(value or 0) for value in values[:4]]
    policy = (values[4] or b"lru").decode()
    incarnation = epoch, verified >= epoch, since_ms, since_ms <= created_ms
    return incarnation, policy, policy != "lru" and not values[5], (values[6] or b"").decode()
