"""The HTTP endpoints of a worker: `/healthz`, `/readyz`, and `/metrics` for Prometheus.

    /healthz   200 while rounds succeed and Redis (each master) and the archive are available; otherwise 503 with the
               reasons. Use it for alerts, not for restarts: restarting the worker does not end an outage of Redis or S3
    /readyz    200 while the worker is in the fleet, also as a standby without shards; otherwise 503. Use it for probes
    /metrics   the worker's own work, and samples of the shards that it leases; as OpenMetrics if the request accepts
               that. The sum over all workers is the whole namespace

The server uses plain HTTP without a password at the address in `worker.health`. It exposes numbers, shard numbers, the
names of the worker and the namespace, and the latest errors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from distier.domain.schema import BUDGETS
from distier.http.server import HttpServer, Response
from distier.observe.metrics import METRICS, OPEN_METRICS, render, render_open

from . import ROUND_DEADLINE_S, Rounds

SILENT_LEASES = 2
"""Redis counts as silent after this many lease durations without a successful heartbeat."""


def reasons(worker: Rounds) -> list[str]:
    """Return the reasons why the worker is not healthy; empty if it is."""
    return [*not_ready(worker), *_not_working(worker)]


def not_ready(worker: Rounds) -> list[str]:
    """Return the reasons why the worker is not in the fleet; empty if it is."""
    if worker.stopping:
        return ["stopping"]
    if worker.last_heartbeat_s is None:
        return [f"redis: {worker.last_heartbeat_failure or 'no heartbeat yet'}"]
    silent_s = time.monotonic() - worker.last_heartbeat_s
    if silent_s > SILENT_LEASES * worker.lease_s:
        return [f"redis: no reply for {silent_s:.0f} s: {worker.last_heartbeat_failure or 'the worker hangs'}"]
    return []


def _not_working(worker: Rounds) -> Iterator[str]:
    if worker.unanswered is not None:
        yield f"redis: {worker.unanswered}"
    if worker.pacer.last_failure is not None:
        yield f"archive: {worker.pacer.last_failure}"
    if worker.last_round_failure is not None:
        yield f"rounds: {worker.last_round_failure}"
    elif worker.last_round_s is not None and not (worker.step and worker.step.long):
        silent_s = time.monotonic() - worker.last_round_s
        if silent_s > 2 * ROUND_DEADLINE_S:
            yield f"rounds: none has finished for {silent_s:.0f} s"


def _values(worker: Rounds) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    report, pacer = worker.report, worker.pacer
    age_s = 0.0 if worker.last_round_s is None else time.monotonic() - worker.last_round_s
    one: dict[str, float] = {
        "distier_worker_rounds_total": report.rounds,
        "distier_worker_failures_total": report.failures,
        "distier_worker_last_round_age_seconds": age_s,
        "distier_worker_healthy": not reasons(worker),
        "distier_worker_fleet_size": len(worker.workers),
        "distier_worker_leases_held": len(worker.held),
        "distier_worker_archive_failures_total": pacer.failures,
        "distier_worker_compress_cpu_seconds_total": pacer.cpu_s,
        "distier_shards": worker.space.config.shards,
    }
    names = {"namespace": worker.space.namespace}
    values: dict[str, list[tuple[Mapping[str, str], float]]] = {name: [(names, value)] for name, value in one.items()}
    values["distier_build_info"] = [(names | {"version": version("distier")}, 1)]
    values["distier_worker_done_total"] = [(names | {"what": k}, n) for k, n in sorted(report.did.items())]
    values["distier_worker_archive_requests_total"] = [
        (names | {"verb": verb}, pacer.requests[verb]) for verb in ("put", "get", "list", "delete")
    ]
    values["distier_moves_total"] = [
        (names | {"from": from_, "to": to, "reason": reason}, n)
        for (from_, to, reason), n in sorted(worker.flow.moves.items())
    ]
    for verb, durations in sorted(pacer.durations.items()):
        for suffix, labels, value in durations.samples():
            name = f"distier_archive_request_duration_seconds{suffix}"
            values.setdefault(name, []).append(({**names, "verb": verb, **labels}, value))
    values["distier_worker_throttled_seconds_total"] = [
        (names | {"kind": kind}, seconds) for kind, seconds in pacer.throttled_s.items()
    ]
    after_ms = worker.space.config.storage_tiers.cold.archive_after_ms
    for shard, seen in worker.samples.items():
        if not worker.holds(shard):
            continue  # another worker reports it
        of = names | {"shard": str(shard.index)}

        def add(name: str, value: float, of: Mapping[str, str] = of, **labels: str) -> None:
            values.setdefault(name, []).append(({**of, **labels}, value))

        add("distier_dirty_modules", seen.usage.get("dirty_count", 0))
        add("distier_dirty_bytes", seen.usage.get("dirty_bytes", 0))
        add("distier_dirty_oldest_age_seconds", seen.dirty_age_ms / 1000)
        add("distier_write_back_lag_seconds", max(0, seen.dirty_age_ms - after_ms) / 1000)
        for tier in ("hot", "warm", "cold"):
            add("distier_modules", seen.usage.get(f"{tier}_count", 0), tier=tier)
            add("distier_reads_total", seen.reads.get(tier, 0), tier=tier)
            add("distier_read_tokens_total", seen.reads.get(f"{tier}_tokens", 0), tier=tier)
        add("distier_eviction_idle_seconds", seen.idle_ms / 1000)
        add("distier_evict_regret_total", seen.reads.get("regret", 0))
        add("distier_evict_regret_tokens_total", seen.reads.get("regret_tokens", 0))
        for budget, used in BUDGETS.items():
            add("distier_budget", seen.limits.get(budget, 0), budget=budget)
            add("distier_budget_used", seen.usage.get(used, 0), budget=budget)
    return values


class HealthServer(HttpServer):
    """Serves the state and metrics of `worker` at `address` until `close`.

    Args:
        address: `host:port`. Port 0 selects a free port; see the attribute `port`.
        worker: The worker to report on.

    Raises:
        ConfigError: The process cannot listen at that address.
    """

    def __init__(self, address: str, worker: Rounds) -> None:
        def metrics(accept: str) -> Response:
            if OPEN_METRICS in accept:
                form = f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
                return Response(200, form, render_open(METRICS, _values(worker)))
            return Response(200, "text/plain; version=0.0.4; charset=utf-8", render(METRICS, _values(worker)))

        def state(good: str, why: list[str]) -> Response:
            found = {"status": "not " + good if why else good, "reasons": why, "worker": worker.name,
                     "namespace": worker.space.namespace, "shards": [s.index for s in worker.held]}  # fmt: skip
            return Response(503 if why else 200, "application/json", json.dumps(found) + "\n")

        routes = {
            "/healthz": lambda _: state("ok", reasons(worker)),
            "/readyz": lambda _: state("ready", not_ready(worker)),
            "/metrics": metrics,
        }
        super().__init__("worker.health", address, routes)
        worker.watched = True
