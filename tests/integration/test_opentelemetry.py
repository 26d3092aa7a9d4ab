"""Spans and metrics of a store, as the SDK of OpenTelemetry exports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from distier import Conflict, connect, connect_async
from distier.observe.opentelemetry import OpenTelemetryHook


class Exported:
    """A hook, and what the SDK exported of it."""

    def __init__(self) -> None:
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        meters = MeterProvider([self._reader])
        self.hook = OpenTelemetryHook("n", tracer_provider=self.tracers, meter_provider=meters)

    def spans(self) -> list[Any]:
        return list(self._spans.get_finished_spans())

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        assert data is not None
        metrics = [m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def exported() -> Exported:
    return Exported()


def settings(redis_url: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "redis__url": redis_url,
        "namespace": "n",
        "storage_tiers__cold__directory": str(tmp_path),
        "deadline": "60s",
    }


def test_calls_are_spans_and_durations(exported: Exported, redis_url: str, tmp_path: Path) -> None:
    with connect({}, metrics=[exported.hook], **settings(redis_url, tmp_path)) as store:
        store.put("a", "text")
        with exported.tracers.get_tracer("app").start_as_current_span("answer"):
            store.get("a")
        store.archive_now()
        with pytest.raises(Conflict):
            store.put("a", "other", if_version="9-9")
    spans = exported.spans()
    by_name = {span.name: span for span in spans}
    assert by_name["get n"].parent.span_id == by_name["answer"].context.span_id, "the span of the caller is the parent"
    put = next(span for span in spans if span.name == "put n")
    assert put.kind is SpanKind.CLIENT
    assert dict(put.attributes) == {"db.system.name": "distier", "db.namespace": "n", "db.operation.name": "put"}
    failed = next(span for span in spans if span.status.status_code is StatusCode.ERROR)
    assert failed.name == "put n" and failed.attributes["error.type"] == "Conflict"
    calls = {(p.attributes["db.operation.name"], p.attributes.get("error.type")): p.count
             for p in exported.points("db.client.operation.duration")}  # fmt: skip
    assert calls["put", None] == 1 and calls["put", "Conflict"] == 1 and calls["get", None] == 1
    verbs = {p.attributes["distier.archive.verb"]: p.count for p in exported.points("distier.archive.request.duration")}
    assert verbs["put"] >= 1
    counts = {p.attributes["distier.counter"]: p.value for p in exported.points("distier.store.count")}
    assert counts["puts"] == 1 and counts["hits.hot"] == 1 and counts["moves.archived"] == 1


async def test_spans_of_tasks_have_their_own_parents(exported: Exported, redis_url: str, tmp_path: Path) -> None:
    import asyncio

    tracer = exported.tracers.get_tracer("app")
    async with await connect_async({}, metrics=[exported.hook], **settings(redis_url, tmp_path)) as store:
        await store.put("a", "text")

        async def read(name: str) -> None:
            with tracer.start_as_current_span(name):
                await store.get_many(["a", "b"])

        await asyncio.gather(read("one"), read("two"))
    parents = {span.name: span.context.span_id for span in exported.spans() if span.name in ("one", "two")}
    reads = [span for span in exported.spans() if span.name == "get_many n"]
    assert {span.parent.span_id for span in reads} == set(parents.values()) and len(reads) == 2
