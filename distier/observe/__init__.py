"""Events, logs and metrics of distier. `MetricsHook` is for programs that export what their stores count."""

from __future__ import annotations

from distier.observe.hooks import MetricsHook
from distier.observe.metrics import COUNTERS

__all__ = ["COUNTERS", "MetricsHook"]
