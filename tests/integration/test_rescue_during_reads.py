"""A store that reads while its own worker rescues: no false miss, no old version."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distier import AsyncStore, connect_async
from distier.errors import Unavailable
from distier.worker import AsyncWorker
from tests.integration.world import until
from tests.servers import TestServer

IDS = [f"m{i}" for i in range(12)]
ROUNDS = 8
READERS = 6


async def a_store(url: str, tmp_path: Path) -> AsyncStore:
    settings: dict[str, Any] = {
        "redis__url": url, "namespace": "r", "storage_tiers__cold__directory": tmp_path / "cold", "near__enabled": False,
        "deadline": "20s", "worker__interval": "10ms",
    }  # fmt: skip
    return await connect_async({"counter": "estimate"}, **settings)


@pytest.mark.parametrize("way", ["get", "get_many"])
async def test_archived_modules_are_never_missing_during_a_rescue(
    server: TestServer, redis_url: str, tmp_path: Path, way: str
):
    """Redis is emptied repeatedly; `None` would be a false miss."""
    store = await a_store(redis_url, tmp_path)
    for id in IDS:
        await store.put(id, id, durability="archived")
    raw, wrong, reads = server.client(), list[str](), [0] * READERS
    over = asyncio.Event()

    async def reader(n: int) -> None:
        while not over.is_set():
            with suppress(Unavailable):
                if way == "get_many":
                    found = await store.get_many(IDS)
                else:
                    found = {IDS[n]: await store.get(IDS[n])}
                wrong.extend(id for id, module in found.items() if module is None)
                reads[n] += 1

    def all_have_read_since(before: list[int]) -> bool:
        # The first reply may belong to a call that began before.
        return any(task.done() for task in readers) or all(now >= n + 2 for now, n in zip(reads, before, strict=True))

    async with AsyncWorker(store):
        readers = [asyncio.create_task(reader(n)) for n in range(READERS)]
        for _ in range(ROUNDS):
            raw.flushall()
            await until(partial(all_have_read_since, list(reads)), timeout_s=100, what="two results for each reader")
        over.set()
        await asyncio.gather(*readers)
    await store.close()
    raw.close()
    assert not wrong, f"{len(wrong)} false misses in {sum(reads)} reads"


async def test_concurrent_calls_without_an_epoch_claim_one(redis_url: str, server: TestServer, tmp_path: Path):
    """72 calls for one shard at once. Each claim is an object in the archive and takes several requests."""
    store = await a_store(redis_url, tmp_path)
    for id in IDS:
        await store.put(id, id, durability="archived")
    raw = server.client()

    def claims() -> int:
        return len(list((tmp_path / "cold" / "r" / "epochs").glob("*/@*")))

    before = claims()
    for _ in range(ROUNDS):
        raw.flushall()
        for found in await asyncio.gather(*(store.get_many(IDS) for _ in range(READERS))):
            assert all(found.values())
    assert claims() - before <= 2 * ROUNDS
    await store.close()
    raw.close()
