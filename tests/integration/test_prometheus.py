"""The metrics, the alerts and the dashboard on a real Prometheus, with a real worker and a real redis_exporter.

Debian has the programs: `apt install prometheus prometheus-redis-exporter`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from distier import connect
from distier.worker import Worker
from distier.worker.health import HealthServer
from tests.conftest import empty
from tests.servers import TestServer, free_port, poll
from tests.unit.test_deploy import DEPLOY, rules

PROMETHEUS = DEPLOY / "prometheus"
NAMESPACE = "shop"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus, prometheus-redis-exporter)")
    return found


def promtool(*words: str | Path, text: str | None = None) -> str:
    done = subprocess.run(
        [program("promtool"), *words], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(rules())} rules found" in promtool("check", "rules", PROMETHEUS / "alerts.yml")


N = {"namespace": NAMESPACE}
REDIS = {"instance": "r"}
BAD: dict[str, tuple[str, list[tuple[str, dict[str, str], str]]]] = {
    "DistierRedisDown": ("3m", [("redis_up", REDIS, "0x30")]),
    "DistierNewEpoch": ("6m", [("redis_script_values", {"key": "shop.epoch"}, "1x3 2x30")]),
    "DistierWriteBackLate": ("8m", [("redis_script_values", {"key": "shop.dirty_oldest_seconds"}, "700x30")]),
    "DistierShardsWithoutWorker": (
        "5m", [("distier_worker_leases_held", N, "1x30"), ("distier_shards", N, "2x30")]),
    "DistierWorkerNotHealthy": ("8m", [("distier_worker_healthy", N, "0x30")]),
    "DistierWriteBackLag": ("8m", [("distier_write_back_lag_seconds", N, "700x30")]),
    "DistierArchiveFails": ("25m", [("distier_worker_archive_failures_total", N, "0+12x60")]),
    "DistierBudgetFull": (
        "20m", [("distier_budget_used", {**N, "budget": "hot_tokens"}, "99x60"),
                ("distier_budget", {**N, "budget": "hot_tokens"}, "100x60")]),
    "DistierThrash": (
        "30m", [("distier_evict_regret_tokens_total", N, "0+30x60"), ("distier_read_tokens_total", N, "0+100x60")]),
    "DistierSlowScripts": ("12m", [("redis_slowlog_last_id", REDIS, "0+1x30")]),
    "DistierRedisMemory": (
        "8m", [("redis_memory_used_bytes", REDIS, "95x30"), ("redis_memory_max_bytes", REDIS, "100x30")]),
    "DistierAppendOnlyFile": ("3m", [("redis_aof_last_write_status", REDIS, "0x30"), ("redis_aof_enabled", REDIS, "1x30")]),
    "DistierEviction": ("12m", [("redis_evicted_keys_total", REDIS, "0+1x30")]),
}  # fmt: skip
"""For each alert a time, and series that make it fire by then."""
GOOD: list[tuple[str, dict[str, str], str]] = [
    ("redis_up", REDIS, "1x60"), ("redis_script_values", {"key": "shop.epoch"}, "1x60"),
    ("redis_script_values", {"key": "shop.dirty_oldest_seconds"}, "30x60"), ("distier_worker_leases_held", N, "2x60"),
    ("distier_shards", N, "2x60"), ("distier_worker_healthy", N, "1x60"), ("distier_write_back_lag_seconds", N, "20x60"),
    ("distier_worker_archive_failures_total", N, "0x60"), ("distier_budget_used", {**N, "budget": "hot_tokens"}, "90x60"),
    ("distier_budget", {**N, "budget": "hot_tokens"}, "100x60"), ("distier_evict_regret_tokens_total", N, "0+5x60"),
    ("distier_read_tokens_total", N, "0+100x60"), ("redis_slowlog_last_id", REDIS, "0x60"),
    ("redis_memory_used_bytes", REDIS, "50x60"), ("redis_memory_max_bytes", REDIS, "100x60"),
    ("redis_aof_last_write_status", REDIS, "1x60"), ("redis_aof_enabled", REDIS, "1x60"),
    ("redis_evicted_keys_total", REDIS, "0x60"),
]  # fmt: skip


def _series(found: list[tuple[str, dict[str, str], str]]) -> list[dict[str, str]]:
    def series(name: str, labels: dict[str, str]) -> str:
        return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"

    return [{"series": series(name, labels), "values": values} for name, labels, values in found]


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    assert BAD.keys() == {rule["alert"] for rule in rules()}
    tests: list[dict[str, Any]] = []
    for name, (at, bad) in BAD.items():
        changed = {(metric, *sorted(labels.items())) for metric, labels, _ in bad}
        others = [one for one in GOOD if (one[0], *sorted(one[1].items())) not in changed]
        query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
        tests.append({
            "interval": "1m", "input_series": _series(bad + others),
            "promql_expr_test": [{"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}]}],
        })  # fmt: skip
    nothing = {"expr": 'count(ALERTS{alertstate="firing"})', "eval_time": "50m", "exp_samples": []}
    tests.append({"interval": "1m", "input_series": _series(GOOD), "promql_expr_test": [nothing]})
    file, files = tmp_path / "rules.yml", [str(PROMETHEUS / "alerts.yml")]
    file.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", file)


def test_promtool_finds_no_fault_in_the_metrics_of_a_worker(valkey_server: TestServer, tmp_path: Path) -> None:
    empty(valkey_server)
    own: dict[str, Any] = {
        "redis__url": valkey_server.url,
        "namespace": NAMESPACE,
        "storage_tiers__cold__directory": str(tmp_path),
    }
    with (
        connect({}, **own, storage_tiers__cold__archive_after="0s", worker__interval="50ms") as store,
        Worker(store) as worker,
    ):
        server = HealthServer("127.0.0.1:0", worker)
        ids = map(str, count())

        def is_seen() -> bool:
            store.put(next(ids), "content " * 50)  # moves are counted from the worker's first round on
            return bool(worker.flow.moves) and "put" in worker.pacer.durations

        poll(is_seen, what="the worker saw a move and an archive request")
        text = _get(f"http://127.0.0.1:{server.port}/metrics")
        server.close()
    assert 'distier_moves_total{namespace="shop",from="none",to="hot",reason="put"} ' in text
    assert promtool("check", "metrics", text=text) == ""


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as reply:
        return str(reply.read().decode())


@pytest.fixture
def prometheus(valkey_server: TestServer, tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a Prometheus with our rules, which scrapes a worker and a redis_exporter with our script."""
    server, exporter = program("prometheus"), program("prometheus-redis-exporter")
    empty(valkey_server)
    own: dict[str, Any] = {
        "redis__url": valkey_server.url,
        "namespace": NAMESPACE,
        "storage_tiers__cold__directory": str(tmp_path / "archive"),
    }
    port, redis_port = free_port(), free_port()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "redis_exporter").symlink_to(exporter)
    processes: list[subprocess.Popen[bytes]] = []
    with connect({}, **own, worker__interval="100ms") as store, Worker(store) as worker:
        health = HealthServer("127.0.0.1:0", worker)
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]}
            for name, at in (("worker", health.port), ("redis", redis_port))
        ]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(PROMETHEUS / "alerts.yml")], "scrape_configs": jobs,
        }))  # fmt: skip
        try:
            environment = {
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "EXPORTER_CONFIG_DIR": str(PROMETHEUS),
                "EXPORTER_SCRIPT": str(tmp_path / "distier.lua"), "NAMESPACES": NAMESPACE,
            }  # fmt: skip
            words = [
                str(PROMETHEUS / "exporter.sh"),
                f"-redis.addr={valkey_server.url}",
                f"-web.listen-address=127.0.0.1:{redis_port}",
            ]
            log = (tmp_path / "exporter.log").open("wb")
            processes.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
            own_words = [server, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
                         f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
            processes.append(subprocess.Popen(own_words, stdout=log, stderr=log))
            poll(lambda: worker.report.rounds > 1, what="a round, from which on moves are counted")
            store.put("skills/pdf", "# PDF\n" * 50)
            store.archive_now()
            store.demote("skills/pdf", to="cold")
            store.get("skills/pdf")
            yield f"http://127.0.0.1:{port}"
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)
            log.close()
            health.close()


def _query(base: str, expression: str) -> list[Any]:
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        reply = json.loads(_get(url))
    except OSError:
        return []
    assert reply["status"] == "success", reply
    return list(reply["data"]["result"])


RARE = re.compile(
    "evict_regret|distier_reads_total|read_tokens|rate\\(redis_commands|requests_total|moves_total|bucket"
)
"""Rates need two samples with a change between them. These are valid, and may have no value in a short test."""


def test_prometheus_answers_the_queries_of_the_dashboard_and_the_alerts(prometheus: str) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "distier.json").read_text())
    asked = [t["expr"].replace("$namespace", NAMESPACE) for panel in dashboard["panels"] for t in panel["targets"]]
    poll(lambda: len([1 for one in _query(prometheus, "up") if one["value"][1] == "1"]) == 2, what="both are scraped")
    for expression in asked:
        if RARE.search(expression):
            _query(prometheus, expression)
        else:
            poll(lambda e=expression: _query(prometheus, e), what=expression)  # type: ignore[misc]
    poll(lambda: _query(prometheus, 'sum(distier_moves_total{from="none",to="hot"})'), what="moves")
    found = json.loads(_get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
    health = {rule["name"]: rule["health"] for group in found for rule in group["rules"]}
    assert health.keys() == BAD.keys()
    poll(lambda: {rule["health"] for g in json.loads(_get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
                  for rule in g["rules"]} == {"ok"}, what="each rule was evaluated")  # fmt: skip
