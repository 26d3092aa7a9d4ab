"""Ratios in one run: several ways to do one thing, measured in turn, so that a noisy machine disturbs all of them
equally.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

Do = Callable[[], object]
AsyncDo = Callable[[], Awaitable[object]]

ROUND_S = 0.008
CALLS_MAX = 5000


class Batch(NamedTuple):
    us: float
    cpu_us: float


class Race:
    """Microseconds per call: one figure per contender and round. The rounds alternate: A B C, A B C, ...

    `us` is wall time. `cpu_us` is the CPU time of this process with all its threads, without servers, where it was measured.
    """

    def __init__(self, us: Mapping[str, list[float]], cpu_us: Mapping[str, list[float]] | None = None) -> None:
        self.us, self.cpu_us = us, cpu_us or {}

    def median(self, name: str) -> float:
        return statistics.median(self.us[name])

    def cpu_median(self, name: str) -> float:
        return statistics.median(self.cpu_us[name])

    def ratio(self, name: str, base: str) -> float:
        """The median of the rounds' ratios: below 1 is faster than `base`."""
        return statistics.median(a / b for a, b in zip(self.us[name], self.us[base], strict=True))


def race(contenders: Mapping[str, Do], *, rounds: int = 15, calls: int = 0) -> Race:
    """Measure `calls` calls of each contender in a round; 0: as many as fit in 8 ms."""

    def batch(do: Do, n: int) -> Batch:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for _ in range(n):
            do()
        return Batch((time.perf_counter() - begin) / n * 1e6, (time.process_time() - cpu_begin) / n * 1e6)

    many = {name: calls or _calls(min(batch(do, 3), batch(do, 3)).us) for name, do in contenders.items()}
    found: dict[str, list[Batch]] = {name: [] for name in contenders}
    gc.collect()
    for _ in range(rounds):
        for name, do in contenders.items():
            found[name].append(batch(do, many[name]))
    return _race_of(found)


async def arace(contenders: Mapping[str, AsyncDo], *, rounds: int = 15, calls: int = 0) -> Race:
    """`race` for coroutines, awaited one after the other."""

    async def batch(do: AsyncDo, n: int) -> Batch:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        for _ in range(n):
            await do()
        return Batch((time.perf_counter() - begin) / n * 1e6, (time.process_time() - cpu_begin) / n * 1e6)

    many = {name: calls or _calls(min(await batch(do, 3), await batch(do, 3)).us) for name, do in contenders.items()}
    found: dict[str, list[Batch]] = {name: [] for name in contenders}
    gc.collect()
    for _ in range(rounds):
        for name, do in contenders.items():
            found[name].append(await batch(do, many[name]))
    return _race_of(found)


def _race_of(found: Mapping[str, list[Batch]]) -> Race:
    return Race(
        {name: [batch.us for batch in batches] for name, batches in found.items()},
        {name: [batch.cpu_us for batch in batches] for name, batches in found.items()},
    )


def _calls(us: float) -> int:
    return max(1, min(CALLS_MAX, int(ROUND_S * 1e6 / us)))
