"""What stores count, as metrics of the package `prometheus-client` (the extra `prometheus`).

The hook is a collector: a scrape reads sums that `count` has added up. (Rejected: a `prometheus_client.Counter` for each name.
It holds a plain lock while it counts, and a signal handler or a finaliser that calls a store at that moment would wait for it
for good. Our `Counters` can be used at any line.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distier.drive.process import Counters
from distier.observe.metrics import COUNTERS

VERBS = ("get", "put", "list", "delete")


class PrometheusHook:
    """A `MetricsHook` that exports two metrics.

    `distier_store_counts_total`, by `counter`, has each counter of `Stats.counters`.
    `distier_store_archive_request_seconds`, by `verb`, is a summary of the requests to the archive, without quantiles.

    Several stores may share one hook, which then exports their sums. A registry takes one hook.

    Args:
        registry: the `prometheus_client.CollectorRegistry` that exports the metrics; the default one of `prometheus_client` if
            not given.
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            import prometheus_client
        except ImportError as e:
            raise ImportError("PrometheusHook needs prometheus-client: pip install 'distier[prometheus]'") from e
        self._counts = Counters()
        self._requests = Counters()
        self._microseconds = Counters()
        (prometheus_client.REGISTRY if registry is None else registry).register(self)

    def count(self, name: str, amount: int) -> None:
        self._counts.add(name, amount)

    def observe(self, name: str, seconds: float) -> None:
        verb = name.removeprefix("archive.")
        self._requests.add(verb)
        self._microseconds.add(verb, round(seconds * 1e6))

    def collect(self) -> Iterator[Any]:
        """Return the metrics. A registry calls this for each scrape."""
        from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily

        counts = CounterMetricFamily("distier_store_counts", "What stores counted, by counter.", labels=["counter"])
        for name, n in (dict.fromkeys(COUNTERS, 0) | self._counts.snapshot()).items():
            counts.add_metric([name], n)
        yield counts
        help = "Requests to the archive, by verb."
        requests = SummaryMetricFamily("distier_store_archive_request_seconds", help, labels=["verb"])
        made, spent_us = self._requests.snapshot(), self._microseconds.snapshot()
        for verb in VERBS:
            requests.add_metric([verb], made.get(verb, 0), spent_us.get(verb, 0) / 1e6)
        yield requests
