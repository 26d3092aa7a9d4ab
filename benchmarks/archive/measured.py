"""An archive that counts its requests and is far away, and what a block of calls costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distier import Store
from distier.stores.archive import Archive

LATENCY_S = 0.02


class Counted:
    """An archive that counts its requests, and adds a latency to each."""

    def __init__(self, archive: Archive, latency_s: float = 0.0) -> None:
        self._archive, self._latency_s = archive, latency_s
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._archive, name)
        if name not in ("put", "get", "list", "delete"):
            return method

        def call(*args: Any, **options: Any) -> Any:
            self.requests[name] += 1
            time.sleep(self._latency_s)
            return method(*args, **options)

        return call


@contextmanager
def measured(store: Store, latency_s: float = 0.0) -> Iterator[dict[str, Any]]:
    """Count the requests of a block, and measure its wall and CPU seconds."""
    archive = store._driver.archive
    counted = Counted(archive, latency_s)
    store._driver.archive = counted
    found: dict[str, Any] = {}
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found |= {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s, **counted.requests}
        store._driver.archive = archive
