"""The HTTP endpoints of a worker: `/healthz`, `/readyz`, and `/metrics` for Prometheus.

    /healthz   200 while rounds succeed and Redis (each master) and the archive are available; otherwise 503 with the
               reasons. Use it for alerts, not for restarts: restarting the worker does not end an outage of Redis or S3
    /readyz    200 while the worker is in the fleet, also as a standby without shards; otherwise 503. Use it for probes
    /metrics   the worker's own work, and samples of the shards that it leases. The sum over all workers is the whole
               namespace

The server uses plain HTTP without a password at the address in `worker.health`. It exposes numbers, shard numbers, the
names of the worker and the namespace, and the latest errors.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from distier.errors import ConfigError

from . import ROUND_DEADLINE_S, Rounds

SILENT_LEASES = 2
"""Redis counts as silent after this many lease durations without a successful heartbeat."""


class Metric(NamedTuple):
    name: str
    kind: str
    what: str


METRICS: tuple[Metric, ...] = (
    Metric("distier_worker_rounds_total", "counter", "Finished rounds."),
    Metric("distier_worker_failures_total", "counter", "Steps of rounds that failed."),
    Metric("distier_worker_done_total", "counter", "Work done in rounds, by `what`: archived, idle, headroom, expired, "
           "aged, rescued, shares, nodes_forgotten, swept."),
    Metric("distier_worker_last_round_age_seconds", "gauge", "Time since the last round ended."),
    Metric("distier_worker_healthy", "gauge", "1 while /healthz returns 200."),
    Metric("distier_worker_fleet_size", "gauge", "Live workers that this worker knows, including itself."),
    Metric("distier_worker_leases_held", "gauge", "Shards that this worker maintains."),
    Metric("distier_worker_archive_requests_total", "counter", "Requests to the archive, by `verb`: put, get, list, delete."),
    Metric("distier_worker_archive_failures_total", "counter", "Requests for which the archive was unavailable."),
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
    Metric("distier_budget", "gauge", "Quota of the shard, by `shard` and `budget`: hot_tokens, hot_bytes, warm_modules, "
           "warm_bytes."),
    Metric("distier_budget_used", "gauge", "Used part of the quota, by `shard` and `budget`."),
)  # fmt: skip
USED = {
    "hot_tokens": "hot_tokens",
    "hot_bytes": "hot_bytes",
    "warm_modules": "warm_count",
    "warm_bytes": "warm_frame_bytes",
}


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


def render(worker: Rounds) -> str:
    """Return the metrics in the text format of Prometheus."""
    values = _values(worker)
    lines = []
    for metric in METRICS:
        lines += [f"# HELP {metric.name} {metric.what}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{_labels(labels)} {value:.15g}" for labels, value in values.get(metric.name, ())]
    return "\n".join(lines) + "\n"


Values = dict[str, list[tuple[Mapping[str, str], float]]]


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _values(worker: Rounds) -> Values:
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
    values: Values = {name: [(names, value)] for name, value in one.items()}
    values["distier_worker_done_total"] = [(names | {"what": k}, n) for k, n in sorted(report.did.items())]
    values["distier_worker_archive_requests_total"] = [
        (names | {"verb": verb}, pacer.requests[verb]) for verb in ("put", "get", "list", "delete")
    ]
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
        for budget, used in USED.items():
            add("distier_budget", seen.limits.get(budget, 0), budget=budget)
            add("distier_budget_used", seen.usage.get(used, 0), budget=budget)
    return values


# -- HTTP -------------------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    worker: Rounds

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of connections: a client may disconnect at any time."""


class _Server6(_Server):
    import socket as _socket

    address_family = _socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def version_string(self) -> str:
        return "distier"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        worker, path = self.server.worker, self.path.partition("?")[0]
        if path == "/metrics":
            return self._send(200, "text/plain; version=0.0.4; charset=utf-8", render(worker))
        if path == "/healthz":
            return self._state("ok", reasons(worker))
        if path == "/readyz":
            return self._state("ready", not_ready(worker))
        return self._send(404, "text/plain; charset=utf-8", "known paths: /healthz, /readyz, /metrics\n")

    def _state(self, good: str, why: list[str]) -> None:
        worker = self.server.worker
        state = {"status": "not " + good if why else good, "reasons": why, "worker": worker.name,
                "namespace": worker.space.namespace, "shards": [s.index for s in worker.held]}  # fmt: skip
        self._send(503 if why else 200, "application/json", json.dumps(state) + "\n")

    def _send(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes arrive every few seconds."""


def _advice(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return "the port is in use, perhaps by another worker; each worker of a host needs its own port (0 selects a free one)"
    if number == errno.EADDRNOTAVAIL:
        return "this host does not have that address; use 127.0.0.1 for local access only, or 0.0.0.0 for all addresses"
    if number == errno.EACCES:
        return "this user may not listen there; use a port above 1023"
    return str(getattr(error, "strerror", None) or error)


class HealthServer:
    """Serves the state and metrics of `worker` at `address` until `close`.

    Args:
        address: `host:port`. Port 0 selects a free port; see the attribute `port`.
        worker: The worker to report on.

    Raises:
        ConfigError: The process cannot listen at that address.
    """

    def __init__(self, address: str, worker: Rounds) -> None:
        host, _, port = address.rpartition(":")
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host.strip("[]"), int(port)), _Handler)
        except (OSError, OverflowError) as e:
            raise ConfigError(f"worker.health: cannot listen at {address}: {_advice(e)}") from e
        self._server.worker = worker
        worker.watched = True
        self.port: int = self._server.server_address[1]
        self.address = f"{host}:{self.port}"
        threading.Thread(target=self._server.serve_forever, name="distier-health", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
