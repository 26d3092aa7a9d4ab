"""Rate limits of a worker: token buckets for archive requests and CPU time, and counters of both."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

from distier.effects import T
from distier.errors import ArchiveUnavailable
from distier.observe.metrics import Histogram

BURST_S = 0.25
"""Unused capacity of this many seconds may be used in a burst."""


class Pacer:
    """Limits archive requests per second and CPU time in cores, and counts both for metrics. It is thread-safe.

    Args:
        requests_per_second: Limit of archive requests; None for no limit.
        cpu_share: Limit of CPU time, in cores on average; None for no limit.
        clock: Returns a monotonic time in seconds.
        cpu_clock: Returns the CPU time of the calling thread in seconds.
    """

    def __init__(
        self,
        requests_per_second: float | None,
        cpu_share: float | None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.requests: Counter[str] = Counter()
        self.durations: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.failures = 0
        self.throttled_s = {"archive": 0.0, "cpu": 0.0}
        self.cpu_s = 0.0
        self.last_answer_s: float | None = None
        self.last_failure: str | None = None
        self.ending = self.over = False
        self._clock, self._cpu_clock = clock, cpu_clock
        self._lock = threading.Lock()
        self._request_s = 1 / requests_per_second if requests_per_second else 0.0
        self._cpu_factor = 1 / cpu_share if cpu_share else 0.0
        self._next_request_s = self._cpu_free_s = clock()

    def archive_wait_s(self) -> float:
        """See `plans.fleet.pacing.Pace`. Each request postpones the next one, starting at most `BURST_S` in the past."""
        with self._lock:
            now_s = self._clock()
            wait_s = self._next_request_s - now_s
            if self._request_s and wait_s > 0:
                return wait_s
            earliest_s = now_s - max(0.0, BURST_S - self._request_s)
            self._next_request_s = max(self._next_request_s, earliest_s) + self._request_s
            return 0.0

    def cpu_wait_s(self) -> float:
        """See `plans.fleet.pacing.Pace`."""
        with self._lock:
            return max(0.0, self._cpu_free_s - self._clock()) if self._cpu_factor else 0.0

    def measured(self, function: Callable[[], T]) -> Callable[[], T]:
        """See `plans.fleet.pacing.Pace`. Measures CPU time per thread, so the times of parallel threads add up."""

        def run() -> T:
            began_s = self._cpu_clock()
            try:
                return function()
            finally:
                self._worked(self._cpu_clock() - began_s)

        return run

    def _worked(self, cpu_s: float) -> None:
        with self._lock:
            self.cpu_s += cpu_s
            earliest_s = self._clock() - BURST_S
            self._cpu_free_s = max(self._cpu_free_s, earliest_s) + cpu_s * self._cpu_factor

    def waited(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.throttled_s[kind] += seconds

    def asks(self, verb: str) -> Callable[[ArchiveUnavailable | None], None]:
        """See `plans.fleet.pacing.Pace`."""
        began_s = self._clock()

        def ended(error: ArchiveUnavailable | None) -> None:
            with self._lock:
                self.requests[verb] += 1
                self.failures += error is not None
                self.last_answer_s = self._clock()
                self.last_failure = None if error is None else str(error)
                self.durations[verb].add(self.last_answer_s - began_s)

        return ended
