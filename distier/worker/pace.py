"""How fast a worker may be: token buckets for its requests to the archive and for its CPU, and what both have come to."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from distier.effects import T
from distier.errors import ArchiveUnavailable

BURST_S = 0.25
"""What was not used for this long may be used at once."""


class Pacer:
    """`requests_per_second` to the archive and `cpu_share` of one core, None: as fast as it goes. Thread-safe; what it counts
    is for metrics."""

    def __init__(
        self,
        requests_per_second: float | None,
        cpu_share: float | None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.requests: Counter[str] = Counter()
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
        """See `plans.fleet.pacing.Pace`. Each request moves the time of the next one on, from `BURST_S` ago at the earliest."""
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
        """See `plans.fleet.pacing.Pace`. Time of this thread's CPU: threads that run at once are added up."""

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

    def asked(self, verb: str, error: ArchiveUnavailable | None) -> None:
        """See `plans.fleet.pacing.Pace`."""
        with self._lock:
            self.requests[verb] += 1
            self.failures += error is not None
            self.last_answer_s = self._clock()
            self.last_failure = None if error is None else str(error)
