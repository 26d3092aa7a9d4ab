"""The registry of counters is what the code counts, and metrics are rendered as Prometheus reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import distier
from distier.observe.metrics import COUNTERS, METRICS, Metric, Values, render, render_open

COUNTED = re.compile(r"""(?:Count\(|Used\(.*hit=|counters\.add\(|self\.count\()\s*(f?)"([a-z_.{}]+)\"""")


def test_every_counter_is_documented_and_counted() -> None:
    counted: set[str] = set()
    for path in Path(distier.__file__).parent.rglob("*.py"):
        text = path.read_text()
        counted |= {name for formatted, name in COUNTED.findall(text) if not formatted and path.name != "findings.py"}
        counted |= set(re.findall(r'Count\("[a-z_.]+" if [^"]*? else "([a-z_.]+)"\)', text))
    assert counted - {"hits.cold"} == set(COUNTERS) - {"hits.cold"}, "`hits.<tier>` counts the cold ones"


def test_metrics_are_in_the_text_format() -> None:
    metrics = (Metric("a_total", "counter", "What a counts."), Metric("b", "gauge", "No value yet."))
    values = {"a_total": [({"shard": "0"}, 1.5), ({}, 3)]}
    assert render(metrics, values).splitlines() == [
        "# HELP a_total What a counts.", "# TYPE a_total counter", 'a_total{shard="0"} 1.5', "a_total 3",
        "# HELP b No value yet.", "# TYPE b gauge",
    ]  # fmt: skip


def test_metrics_are_open_metrics() -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason="prometheus-client is not installed")
    metrics = (*METRICS, Metric("a_total", "counter", "What a counts."))
    values: Values = {"a_total": [({"shard": "0"}, 1.5)], "distier_shards": [({"namespace": 'a"b'}, 3)]}
    families = {family.name: family for family in parser.text_string_to_metric_families(render_open(metrics, values))}
    assert families.keys() == {metric.name.removesuffix("_total") for metric in metrics}
    assert [(s.name, s.labels, s.value) for s in families["a"].samples] == [("a_total", {"shard": "0"}, 1.5)]
    assert families["distier_shards"].samples[0].labels == {"namespace": 'a"b'}
