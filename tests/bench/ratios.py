"""Ratios in one run: two ways of doing a thing, measured in turn, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """`ours_us` and `theirs_us` are medians over the rounds, in microseconds a call; `ratio` is the median of the rounds'
    ratios, ours by theirs: below 1 is faster."""

    ours_us: float
    theirs_us: float
    ratio: float


def compare(ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int = 21, calls: int = 100) -> Ratio:
    def batch(function: Callable[[], object]) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - begin) / calls * 1e6

    batch(ours), batch(theirs)
    return _ratio([(batch(ours), batch(theirs)) for _ in range(rounds)])


async def compare_async(
    ours: Callable[[], Awaitable[object]],
    theirs: Callable[[], Awaitable[object]],
    *,
    rounds: int = 21,
    calls: int = 100,
) -> Ratio:
    async def batch(function: Callable[[], Awaitable[object]]) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            await function()
        return (time.perf_counter() - begin) / calls * 1e6

    await batch(ours), await batch(theirs)
    return _ratio([(await batch(ours), await batch(theirs)) for _ in range(rounds)])


def _ratio(pairs: list[tuple[float, float]]) -> Ratio:
    return Ratio(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )
