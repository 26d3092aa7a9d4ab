"""The metrics: those of a worker, the counters of a process, and their text format.

`METRICS` is the registry of what a worker exports, `COUNTERS` that of the counters in `Stats.counters`. Tests compare the first
with the dashboards and the alerts, and the second with what the code counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple


class Metric(NamedTuple):
    """A metric of Prometheus: its name, its type, and its help text."""

    name: str
    kind: str
    what: str


METRICS: tuple[Metric, ...] = (
    Metric("distier_worker_rounds_total", "counter", "Finished rounds."),
    Metric("distier_worker_failures_total", "counter", "Steps of rounds that failed."),
    Metric("distier_worker_done_total", "counter", "Work done in rounds, by `what`: archived, idle, headroom, expired, "
           "ttl_ended, aged, ranked, compacted, dictionaries, rescued, shares, nodes_forgotten, learned, swept, packed."),
    Metric("distier_worker_last_round_age_seconds", "gauge", "Time since the last round ended."),
    Metric("distier_worker_healthy", "gauge", "1 while /healthz returns 200."),
    Metric("distier_worker_fleet_size", "gauge", "Live workers that this worker knows, including itself."),
    Metric("distier_worker_leases_held", "gauge", "Shards that this worker maintains."),
    Metric("distier_worker_archive_requests_total", "counter", "Requests to the archive, by `verb`: put, get, list, delete."),
    Metric("distier_worker_archive_failures_total", "counter", "Requests for which the archive was unavailable."),
    Metric("distier_archive_request_duration_seconds", "histogram", "Time of the requests of this worker to the archive, by "
           "`verb`, failed ones included."),
    Metric("distier_worker_throttled_seconds_total", "counter", "Time waited because of worker.archive_requests_per_second "
           "or worker.cpu_share, by `kind`: archive, cpu."),
    Metric("distier_worker_compress_cpu_seconds_total", "counter", "CPU time spent compressing and decompressing."),
    Metric("distier_shards", "gauge", "Shards of the namespace."),
    Metric("distier_dirty_modules", "gauge", "Versions that are not archived yet, by `shard`."),
    Metric("distier_dirty_bytes", "gauge", "Bytes of the versions that are not archived yet, by `shard`."),
    Metric("distier_dirty_oldest_age_seconds", "gauge", "Age of the oldest version that is not archived yet, by `shard`."),
    Metric("distier_write_back_lag_seconds", "gauge", "Time since the oldest version that is not archived yet became due: "
           "its age minus storage_tiers.cold.archive_after, by `shard`."),
    Metric("distier_modules", "gauge", "Modules, by `shard` and `tier`."),
    Metric("distier_moves_total", "counter", "Moves of modules between tiers in the shards that this worker leases, by "
           "`from`, `to` and `reason`. A module comes from `none` when it is new, and goes to `deleted`."),
    Metric("distier_eviction_idle_seconds", "gauge", "Time since the last use of the module in hot that was used least "
           "recently, by `shard`."),
    Metric("distier_budget", "gauge", "Quota of the shard, by `shard` and `budget`: hot_tokens, hot_bytes, warm_modules, "
           "warm_bytes."),
    Metric("distier_budget_used", "gauge", "Used part of the quota, by `shard` and `budget`."),
    Metric("distier_reads_total", "counter", "Reads of all processes, by `shard` and the `tier` of the module when they were "
           "reported."),
    Metric("distier_read_tokens_total", "counter", "Tokens of these reads, by `shard` and `tier`."),
    Metric("distier_evict_regret_total", "counter", "Modules that were fetched from the archive within ten minutes after they "
           "were evicted, by `shard`."),
    Metric("distier_evict_regret_tokens_total", "counter", "Tokens of these modules, by `shard`."),
    Metric("distier_build_info", "gauge", "1; the label `version` is that of the worker."),
)  # fmt: skip

COUNTERS: Mapping[str, str] = {
    "hits.near": "reads from the near cache",
    "hits.revalidated": "reads whose version in the near cache was still the record's, so that no content was transferred",
    "hits.hot": "reads from hot",
    "hits.warm": "reads from warm, or from this node's disk",
    "hits.cold": "reads from the archive",
    "misses": "reads of modules that do not exist",
    "puts": "writes",
    "deletes": "deletes",
    "moves.promoted": "modules that became hot",
    "moves.demoted": "modules that were demoted on request or by the worker",
    "moves.evicted": "modules that left hot or warm for a write",
    "moves.archived": "versions that were written back",
    "keeps.refused": "copies of reads that found no room",
    "keeps.not_admitted": "copies of reads that were used less than what would have left for them",
    "keeps.failed": "copies of reads that Redis did not take",
    "touches.lost": "batches of uses that could not be sent",
    "waits.lease": "waits for another reader's fetch",
    "leases.left": "leases that could not be given back, and end by themselves",
    "healed.warm": "damaged or missing warm copies that the archive replaced",
    "dictionaries.learned": "dictionaries for warm copies that were taken into use",
    "dictionaries.dropped": "earlier dictionaries that no record named any more",
    "dictionaries.missing": "warm copies whose dictionary was neither in Redis nor in the archive",
    "archive.bytes_read": "bytes of objects read",
    "archive.bytes_written": "bytes of objects written",
    "archive.swept": "objects that the sweep deleted",
    "archive.kept": "objects that the sweep could not delete",
    "archive.found_elsewhere": "versions that a listing found where their records did not say",
    "packs.made": "packs that were made",
    "packs.members": "versions that were packed",
    "packs.relisted": "listings of packs that met a packer, and were repeated",
    "packs.damaged": "indexes of packs that could not be read, and were made again from the pack",
    "archive.buried": "modules whose last tombstone was deleted",
    "browse.no_readme": "README.txt not written at the root of the archive, where this user may not write",
    "archive.foreign": "objects that name another module",
    "archive.not_identified": "comparisons of the archive's identity that failed",
    "manifest.relisted": "readings of the manifest that met a compactor, and were repeated",
    "manifest.damaged": "files of the manifest that could not be read",
    "manifest.given_up": "compactions of the manifest that another process overtook",
    "manifest.undescribed": "objects that could not be described for the manifest",
    "epochs.installed": "epochs that this process installed",
    "recover.verified": "modules that were compared with the archive",
    "recover.relisted": "listings that had to be repeated",
    "writeback.rereads": "modules that moved while they were written back",
    "writes.not_settled": "refused durable writes whose end is not known",
    "shares.asked": "requests to enlarge a quota",
    "shares.moved": "moves of quotas",
    "shares.undone": "moves of quotas that were undone",
    "shares.refused": "quotas that could not be enlarged",
    "predict.issued": "predicted modules that were brought nearer",
    "predict.used": "predicted modules that were used after that",
    "predict.wasted": "predicted modules that were not used in time",
    "predict.fetched": "predicted modules that were read from the archive",
    "predict.failed": "predicted modules that could not be read",
    "predict.lost": "readings and batches of learned counts that failed",
    "peers.asked": "copies that were requested from other nodes",
    "peers.answered": "copies that other nodes sent",
    "peers.silent": "requests to nodes that did not reply in time",
    "peers.absent": "requests to nodes that no longer had the copy",
    "peers.damaged": "copies of other nodes that were damaged",
    "asks.answered": "requests of other nodes that got a copy, or a promotion",
    "asks.absent": "requests of other nodes for copies that are gone",
    "asks.invalid": "requests that distier did not write",
    "asks.lost": "replies to other nodes that could not be sent",
    "local.kept": "copies that this node's disk took",
    "local.rebuilt": "times that this node's disk was emptied because it was damaged or of another layout",
    "local.misses": "versions that this node's disk did not have",
    "local.evicted": "copies that left this node's disk for others",
    "local.refused": "copies that this node's disk did not take",
    "local.busy": "copies that were not kept because the disk was busy",
    "local.damaged": "damaged copies on this node's disk",
    "local.errors": "errors of this node's disk",
}
"""The counters of a process, by name. `worker.failed.<step>` counts the failures of each step of a worker's round."""

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The upper limits of the buckets of durations, in seconds."""


class Histogram:
    """How many durations were in each bucket, and their sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Return the samples of a metric of the kind `histogram`: the suffix of its name, labels and value."""
        counts = list(accumulate(self._counts))
        for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
            yield "_bucket", {"le": limit}, count
        yield "_count", {}, counts[-1]
        yield "_sum", {}, self._sum_s


Values = Mapping[str, Iterable[tuple[Mapping[str, str], float]]]
"""The values of metrics, by the name of the sample: labels and value."""


def render(metrics: Iterable[Metric], values: Values) -> str:
    """Return metrics in the text format of Prometheus, version 0.0.4."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.what}", f"# TYPE {metric.name} {metric.kind}"]
        lines += _samples(metric, values)
    return "\n".join(lines) + "\n"


def _samples(metric: Metric, values: Values) -> list[str]:
    names = [
        metric.name + suffix for suffix in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
    ]
    return [f"{name}{_labels(labels)} {value:.15g}" for name in names for labels, value in values.get(name, ())]


OPEN_METRICS = "application/openmetrics-text"


def render_open(metrics: Iterable[Metric], values: Values) -> str:
    """Return metrics in the format OpenMetrics 1.0, for a request that accepts `OPEN_METRICS`."""
    lines = []
    for metric in metrics:
        family = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        lines += [f"# TYPE {family} {metric.kind}", f"# HELP {family} {metric.what}"]
        lines += _samples(metric, values)
    return "\n".join([*lines, "# EOF"]) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
