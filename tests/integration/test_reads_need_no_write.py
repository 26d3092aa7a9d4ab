"""While Redis refuses writes, reads continue: recency, leases, warm copies and promotions are hints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from distier.errors import Unavailable
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from tests.integration.world import Face, World

DEADLINE_S = 20.0
"""The time for which a refused hint would be retried. A read that waits for a hint takes at least half of it."""


async def opened(world: World) -> Face:
    """A store with modules in hot, warm and cold."""
    face = await world.open(deadline=f"{DEADLINE_S:g}s", storage_tiers__promotion_threshold=1)
    for id in ("hot", "warm", "cold", "cold2"):
        await face.put(id, id)
    await face.archive_now()
    await face.demote("warm", to="warm")
    for id in ("cold", "cold2"):
        await face.demote(id, to="cold")
    return face


@pytest_asyncio.fixture
async def face(world: World) -> AsyncIterator[Face]:
    """Hot, warm and cold modules on a server that then refuses writes, because it requires a replica and has none."""
    face = await opened(world)
    world.raw.config_set("min-replicas-to-write", 1)
    yield face
    world.raw.config_set("min-replicas-to-write", 0)


async def test_reads_continue_while_writes_are_refused(face: Face) -> None:
    with pytest.raises(Unavailable):
        await face.run(_write(face), deadline_s=0.5)
    began = time.monotonic()
    for _ in range(3):
        for id in ("hot", "warm", "cold"):
            assert (await face.get(id)).text == id
        found = await face.get_many(["hot", "warm", "cold", "cold2", "none"])
        assert {id: module and module.text for id, module in found.items()} == {
            **{id: id for id in ("hot", "warm", "cold", "cold2")}, "none": None
        }  # fmt: skip
        time.sleep(1.1)  # uses are due
    assert await face.exists("cold") and (await face.where("warm")).tier == "warm"
    assert time.monotonic() - began < DEADLINE_S / 2


async def test_reads_continue_while_writes_are_paused(world: World) -> None:
    """`CLIENT PAUSE WRITE`, as managed services use it before a failover. A read waits for one hint, briefly, and then
    sends none. On asyncio a waiting put delays no read.
    """
    face = await opened(world)
    time.sleep(1.1)  # uses are due
    world.raw.client_pause(int(DEADLINE_S * 1000), all=False)
    try:
        began = time.monotonic()
        putting = asyncio.ensure_future(face.run(_write(face))) if world.kind == "async" else None
        await asyncio.sleep(0)
        for id in ("hot", "warm", "cold"):
            assert (await face.get(id)).text == id
        found = await face.get_many(["hot", "warm", "cold", "cold2", "none"])
        assert sorted(id for id, module in found.items() if module) == ["cold", "cold2", "hot", "warm"]
        assert await face.get("none") is None
        assert await face.exists("cold") and (await face.where("warm")).tier == "warm"
        other = await world.open(deadline=f"{DEADLINE_S:g}s")
        assert (await other.get("warm")).text == "warm", "a client that opens while writes wait can read"
        assert time.monotonic() - began < DEADLINE_S / 2
    finally:
        world.raw.client_unpause()
    if putting is not None:
        assert (await putting).id == "new"


@pytest.mark.parametrize("shards", [1, 3], indirect=True)
async def test_new_process_can_open_while_writes_are_refused(face: Face, world: World) -> None:
    began = time.monotonic()
    other = await world.open(deadline=f"{DEADLINE_S:g}s")
    assert (await other.get("hot")).text == "hot"
    assert (await other.get("warm")).text == "warm"
    with pytest.raises(Unavailable, match="NOREPLICAS"):
        await world.open(deadline="1s", namespace="new")
    assert time.monotonic() - began < DEADLINE_S


def _write(face: Face) -> Any:

    return put(face.space, Item("new", "x"))
