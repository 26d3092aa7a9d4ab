"""The registry of counters is what the code counts, and metrics are rendered as Prometheus reads them."""

from __future__ import annotations

import re
from pathlib import Path

import distier
from distier.observe.metrics import COUNTERS, Metric, render

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
