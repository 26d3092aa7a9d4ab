"""Ratios in one run: several ways to do one thing, measured in turn, so that a noisy machine disturbs all of them
equally.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping

Do = Callable[[], object]
AsyncDo = Callable[[], Awaitable[object]]

ROUND_S = 0.008
CALLS_MAX = 5000


class Race:
    """Microseconds per call: one figure per contender and round. The rounds alternate: A B C, A B C, ..."""

    def __init__(self, us: Mapping[str, list[float]]) -> None:
        self.us = us

    def median(self, name: str) -> float:
        return statistics.median(self.us[name])

    def ratio(self, name: str, base: str) -> float:
        """The median of the rounds' ratios: below 1 is faster than `base`."""
        return statistics.median(a / b for a, b in zip(self.us[name], self.us[base], strict=True))


def race(contenders: Mapping[str, Do], *, rounds: int = 15, calls: int = 0) -> Race:
    """Measure `calls` calls of each contender in a round; 0: as many as fit in 8 ms."""

    def batch(do: Do, n: int) -> float:
        begin = time.perf_counter()
        for _ in range(n):
            do()
        return (time.perf_counter() - begin) / n * 1e6

    many = {name: calls or _calls(min(batch(do, 3), batch(do, 3))) for name, do in contenders.items()}
    us: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    for _ in range(rounds):
        for name, do in contenders.items():
            us[name].append(batch(do, many[name]))
    return Race(us)


async def arace(contenders: Mapping[str, AsyncDo], *, rounds: int = 15, calls: int = 0) -> Race:
    """`race` for coroutines, awaited one after the other."""

    async def batch(do: AsyncDo, n: int) -> float:
        begin = time.perf_counter()
        for _ in range(n):
            await do()
        return (time.perf_counter() - begin) / n * 1e6

    many = {name: calls or _calls(min(await batch(do, 3), await batch(do, 3))) for name, do in contenders.items()}
    us: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    for _ in range(rounds):
        for name, do in contenders.items():
            us[name].append(await batch(do, many[name]))
    return Race(us)


def _calls(us: float) -> int:
    return max(1, min(CALLS_MAX, int(ROUND_S * 1e6 / us)))
