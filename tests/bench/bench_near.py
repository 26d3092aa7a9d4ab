"""What a hit in the near cache costs, beside a dict and `cachetools.LRUCache` under a lock, and beside the same read
over a unix socket. Figures of one run compare, those of two do not.

Run by `make bench` (`pytest tests/bench/bench_near.py`); the printed table needs `-s`. cachetools is no part of the
development environment: its row is skipped without it.
"""

from __future__ import annotations

import asyncio
import threading
import timeit
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import Store, connect, connect_async
from distier.domain.tokens import token_counter
from tests.servers import TestServer, poll, running_server

IDS = [f"skills/{i:03}" for i in range(100)]
CONTENT = "x" * 2000
ROUNDS = 200_000


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    with running_server("valkey") as server:
        yield server


def settings(server: TestServer, tmp: Path, **overrides: Any) -> dict[str, Any]:
    base = {"redis__url": server.url, "namespace": "t", "storage_tiers__cold__directory": tmp}
    return base | {"counter": token_counter("estimate")} | overrides


@pytest.fixture(scope="module")
def store(server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with connect({}, **settings(server, tmp_path_factory.mktemp("cold"))) as store:
        for id in IDS:
            store.put(id, CONTENT)
        poll(lambda: store.get_many(IDS) and all(id in store.near.cache for id in IDS))
        yield store


def lru_with_a_lock(values: dict[str, Any]) -> Callable[[str], Any]:
    cachetools = pytest.importorskip("cachetools", reason="pip install cachetools to compare")
    cache, lock = cachetools.LRUCache(10_000), threading.Lock()
    cache.update(values)

    def get(id: str) -> Any:
        with lock:
            return cache.get(id)

    return get


def per_call_us(get: Callable[[str], Any]) -> float:
    calls = ROUNDS // len(IDS)
    return min(timeit.repeat(lambda: [get(id) for id in IDS], number=calls, repeat=5)) / ROUNDS * 1e6


async def per_await_us(get: Callable[[str], Awaitable[Any]], rounds: int = ROUNDS // len(IDS)) -> float:
    best = float("inf")
    for _ in range(5):
        began = timeit.default_timer()
        for _ in range(rounds):
            for id in IDS:
                await get(id)
        best = min(best, timeit.default_timer() - began)
    return best / (rounds * len(IDS)) * 1e6


def test_table(store: Store, server: TestServer, tmp_path: Path) -> None:
    values = {id: store.get(id) for id in IDS}
    rows = {"dict.get": per_call_us(values.get), "Store.get, near": per_call_us(store.get)}
    try:
        rows["cachetools.LRUCache + lock"] = per_call_us(lru_with_a_lock(values))
    except pytest.skip.Exception:
        print("\n(no cachetools)")

    async def awaited() -> None:
        async with await connect_async({}, **settings(server, tmp_path)) as near:
            while not (await near.get_many(IDS) and all(id in near.near.cache for id in IDS)):
                await asyncio.sleep(0.01)
            rows["AsyncStore.get, near"] = await per_await_us(near.get)

    asyncio.run(awaited())
    with connect({}, **settings(server, tmp_path, near__enabled=False)) as far:
        rows["Store.get, hot over a unix socket"] = timeit.timeit(lambda: far.get(IDS[0]), number=3000) / 3000 * 1e6
    unit = rows["Store.get, near"]
    print(f"\n{'':36}{'us':>8}{'ratio':>8}")
    for name, us in rows.items():
        print(f"{name:36}{us:8.3f}{us / unit:8.2f}")
    assert store.near.status == "on"


def test_near_hit(benchmark: Any, store: Store) -> None:
    assert benchmark(store.get, IDS[7])


def test_near_miss_of_an_unknown_module(benchmark: Any, store: Store) -> None:
    assert benchmark(store.get, "none") is None


def test_a_dict(benchmark: Any) -> None:
    assert benchmark({"a": 1}.get, "a")


def test_cachetools_with_a_lock(benchmark: Any) -> None:
    assert benchmark(lru_with_a_lock({"a": 1}), "a")
