"""A store that reads while its own worker rescues: no false miss, no old version."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distier import AsyncStore, connect_async
from distier.errors import Unavailable
from distier.worker import AsyncWorker
from tests.servers import TestServer

IDS = [f"m{i}" for i in range(12)]
ROUNDS = 8


async def a_store(url: str, tmp_path: Path) -> AsyncStore:
    settings: dict[str, Any] = {
        "redis__url": url, "namespace": "r", "storage_tiers__cold__directory": tmp_path / "cold", "near__enabled": False,
        "deadline": "20s", "worker__interval": "10ms",
    }  # fmt: skip
    return await connect_async({"counter": "estimate"}, **settings)


@pytest.mark.parametrize("way", ["get", "get_many"])
async def test_nothing_that_is_archived_is_missing_beside_a_rescue(
    server: TestServer, redis_url: str, tmp_path: Path, way: str
):
    """Redis is emptied again and again; `None` would be a false miss."""
    store = await a_store(redis_url, tmp_path)
    for id in IDS:
        await store.put(id, id, durability="archived")
    raw, wrong, reads = server.client(), list[str](), 0
    over = asyncio.Event()

    async def reader(n: int) -> None:
        nonlocal reads
        while not over.is_set():
            with suppress(Unavailable):
                if way == "get_many":
                    found = await store.get_many(IDS)
                else:
                    found = {IDS[n]: await store.get(IDS[n])}
                wrong.extend(id for id, module in found.items() if module is None)
                reads += len(found)

    async with AsyncWorker(store):
        readers = [asyncio.create_task(reader(n)) for n in range(6)]
        for _ in range(ROUNDS):
            raw.flushall()
            await asyncio.sleep(0.15)
        over.set()
        await asyncio.gather(*readers)
    await store.close()
    raw.close()
    assert reads > ROUNDS and not wrong, f"{len(wrong)} false misses in {reads} reads"
