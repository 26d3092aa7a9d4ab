"""Bulk writes of more than the cache holds. Evicted modules are archived at the archive's speed, modules that cannot be
archived do not block the others, and an error names the reason. Redis is real, and the archive is a directory on a slow
disk.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from distier import Store
from distier.errors import DeadlineExceeded, DistierError, Full
from distier.plans.put.prepare import Item
from tests.integration.world import Open, World

SMALL = {"storage_tiers__hot__max_bytes": 60_000, "storage_tiers__warm__max_bytes": 60_000}
TIGHT = {"storage_tiers__hot__max_bytes": 60_000, "storage_tiers__warm__max_modules": 2}


def noise(n: int, size_bytes: int = 2000) -> bytes:
    return random.Random(n).randbytes(size_bytes)


def items(count: int, name: str = "m") -> list[Item]:
    return [Item(f"{name}/{i:03}", noise(i), tokens=1) for i in range(count)]


def slow_disk(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    fsync = os.fsync

    def slow(fd: int) -> None:
        time.sleep(seconds)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)


def block(archive: Path, ids: list[str]) -> None:
    """Put a file where the directory of each of these modules would be."""
    for id in ids:
        path = archive / "t" / "modules" / id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"in the way")


@pytest.mark.parametrize("budgets", [SMALL, TIGHT], ids=["warm takes some", "warm takes hardly any"])
async def test_bulk_load_archives_in_parallel(
    world: World, monkeypatch: pytest.MonkeyPatch, budgets: dict[str, int]
) -> None:
    """In sequence these would take twelve syncs of 20 ms each, 30 s in all."""
    face = await world.open(deadline="20s", **budgets)
    slow_disk(monkeypatch, 0.02)
    results = await face.put_many(items(150))
    assert [r for r in results if isinstance(r, DistierError)] == []
    for item in items(150):
        assert (await face.get(item.id)).content == item.content


async def test_slow_archive_raises_deadline_exceeded_and_not_unavailable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = await world.open(deadline="1500ms", **SMALL)
    slow_disk(monkeypatch, 0.7)
    begin = time.monotonic()
    results = await face.put_many(items(150))
    assert time.monotonic() - begin < 60
    failed = [r for r in results if isinstance(r, DistierError)]
    assert 0 < len(failed) < 150
    assert all(isinstance(r, DeadlineExceeded) for r in failed), failed
    assert all("archive" in str(r) for r in failed), failed


@pytest.mark.parametrize("count", [70])
async def test_modules_that_cannot_be_archived_do_not_block_others(world: World, count: int) -> None:
    """The first candidates for eviction have a file where their directories should be."""
    stuck = items(count, "stuck")
    block(world.archive, [item.id for item in stuck])
    face = await world.open(
        deadline="20s", storage_tiers__hot__max_bytes=20_000, storage_tiers__warm__max_bytes=180_000
    )
    assert not any(isinstance(r, DistierError) for r in await face.put_many([*stuck, *items(10)]))
    for item in items(30, "more"):
        await face.put(item.id, item.content, tokens=1)
    assert not any(isinstance(r, DistierError) for r in await face.put_many(items(30, "many")))
    for item in [*stuck, *items(10), *items(30, "more"), *items(30, "many")]:
        assert (await face.get(item.id)).content == item.content


async def test_full_error_names_a_module_that_cannot_be_archived(world: World) -> None:
    stuck = items(60, "stuck")
    block(world.archive, [item.id for item in stuck])
    face = await world.open(deadline="20s", **SMALL)
    assert not any(isinstance(r, DistierError) for r in await face.put_many(stuck[:56]))
    with pytest.raises(Full, match=r"cannot be archived.*stuck/") as refused:
        for item in stuck[56:] + items(20):
            await face.put(item.id, item.content, tokens=1)
    assert refused.value.__cause__ is not None


def test_full_error_names_pins_as_the_reason(open_store: Open) -> None:
    store: Store = open_store(**SMALL)
    for item in items(58):
        store.put(item.id, item.content, tokens=1)
    for item in items(58):
        store.pin(item.id, 3600)
    with pytest.raises(Full, match="pins"):
        store.put("new", noise(0, 30_000), tokens=1)
