"""A process that reads as fast as it can. It imports little, because eight of them start at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import redis

import distier


def read_for_a_while(
    kind: str,
    url: str,
    settings: Mapping[str, Any],
    ids: list[str],
    keys: list[str],
    begin: Any,
    results: Any,
    for_s: float,
) -> None:
    """Put the reads per second into `results`. `begin` is a barrier: all processes start together."""
    get: Any = distier.connect(url, **settings).get if kind == "distier" else redis.Redis.from_url(url).hgetall
    names = ids if kind == "distier" else keys
    get(names[0])
    begin.wait()
    end, n = time.perf_counter() + for_s, 0
    for name in itertools.cycle(names):
        get(name)
        n += 1
        if time.perf_counter() > end:
            break
    results.put(n / for_s)
