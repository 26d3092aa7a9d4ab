"""Spans and metrics of stores for OpenTelemetry (the extra `opentelemetry`).

Names follow the stable semantic conventions for database clients
(https://opentelemetry.io/docs/specs/semconv/db/database-spans/), with `distier` as the system.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from distier.drive.process import Counters
from distier.observe.metrics import COUNTERS

BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""The limits of buckets that the conventions advise for durations of database calls, in seconds."""


class OpenTelemetryHook:
    """A `MetricsHook` that makes a span of each call of a store, and exports these metrics:

    `db.client.operation.duration`: a histogram of the calls, with `db.operation.name`, and `error.type` of a failed one.
    `distier.archive.request.duration`: a histogram of the requests to the archive, with `distier.archive.verb`.
    `distier.store.count`: each counter of `Stats.counters`, with `distier.counter`.

    A read from the near cache takes less time than a span: it is counted, and has none.

    Args:
        namespace: what the spans and metrics say as `db.namespace`; pass the namespace of the store.
        tracer_provider: the provider of spans; the global one if not given.
        meter_provider: the provider of metrics; the global one if not given.
    """

    def __init__(self, namespace: str = "default", *, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as e:
            raise ImportError("OpenTelemetryHook needs opentelemetry-api: pip install 'distier[opentelemetry]'") from e
        self._attributes = {"db.system.name": "distier", "db.namespace": namespace}
        self._counts = Counters()
        self._observation = metrics.Observation
        self._kind = trace.SpanKind.CLIENT
        self._tracer = trace.get_tracer("distier", version("distier"), tracer_provider)
        meter = metrics.get_meter("distier", version("distier"), meter_provider)
        self._calls = meter.create_histogram(
            "db.client.operation.duration", "s", "Duration of calls of a store.",
            explicit_bucket_boundaries_advisory=BUCKETS_S,
        )  # fmt: skip
        self._requests = meter.create_histogram(
            "distier.archive.request.duration", "s", "Duration of requests to the archive.",
            explicit_bucket_boundaries_advisory=BUCKETS_S,
        )  # fmt: skip
        meter.create_observable_counter(
            "distier.store.count", [self._counted], description="What stores counted, by counter."
        )

    def count(self, name: str, amount: int) -> None:
        self._counts.add(name, amount)

    def observe(self, name: str, seconds: float) -> None:
        self._requests.record(seconds, {**self._attributes, "distier.archive.verb": name.removeprefix("archive.")})

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        attributes = {**self._attributes, "db.operation.name": name}
        title = f"{name} {self._attributes['db.namespace']}"
        began_s = time.monotonic()
        try:
            with self._tracer.start_as_current_span(title, kind=self._kind, attributes=attributes) as span:
                try:
                    yield
                except Exception as e:
                    attributes["error.type"] = type(e).__qualname__
                    span.set_attribute("error.type", attributes["error.type"])
                    raise
        finally:
            self._calls.record(time.monotonic() - began_s, attributes)

    def _counted(self, _: object) -> Iterable[Any]:
        for name, n in (dict.fromkeys(COUNTERS, 0) | self._counts.snapshot()).items():
            yield self._observation(n, {**self._attributes, "distier.counter": name})
