"""The level `replicated`, on a primary with a real replica: an acknowledged write is on the replica, and a write that
is not there is not acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from distier import Item
from distier.domain.module import Landed
from distier.errors import RedisUnavailable, Unavailable
from tests.children import freeze
from tests.integration.world import Face, World
from tests.servers import KINDS, TestServer, available_kinds, poll, running_server, short_directory, start_replica


@pytest.fixture(scope="module", params=KINDS)
def primary(request: pytest.FixtureRequest) -> Iterator[TestServer]:
    if reason := available_kinds()[request.param]:
        pytest.skip(reason)
    # Slow to notice a silent replica, because these tests stop the replica and do not end it.
    with running_server(request.param, tcp=True, args=("--repl-timeout", "600")) as server:
        yield server


def states(info: Any) -> list[str]:
    return [value["state"] for name, value in info.items() if name.startswith("slave") and isinstance(value, dict)]


@pytest.fixture(scope="module")
def replica(primary: TestServer) -> Iterator[TestServer]:
    with short_directory() as tmp:
        found = start_replica(primary, tmp)
        with (
            primary.client() as client
        ):  # the primary may still be sending to a replica that reports that it has everything
            poll(lambda: "online" in states(client.info("replication")), what="an online replica")
        yield found
        found.kill9()


@pytest_asyncio.fixture(params=["sync", "async"])
async def face(request: pytest.FixtureRequest, primary: TestServer, tmp_path: Any) -> AsyncIterator[Face]:
    with primary.client() as client:
        client.flushall()
    world = World(primary, primary.url, tmp_path / "cold", request.param)
    yield await world.open()
    await world.close()


async def test_replicated_write_without_a_replica_is_refused_and_changes_nothing(primary: TestServer, face: Face):
    await face.put("there", "x")
    with primary.client() as client:
        assert client.info("replication")["connected_slaves"] == 0
    refused = "no replica is connected to this Redis; nothing was changed"
    with pytest.raises(Unavailable, match=refused):
        await face.put("new", "x", durability="replicated")
    with pytest.raises(Unavailable, match=refused):
        await face.put("there", "y", durability="replicated")
    with pytest.raises(Unavailable, match=refused):
        await face.delete("there", durability="replicated")
    one, two = await face.put_many([Item("new", "x", durability="replicated"), Item("other", "x")])
    assert isinstance(one, Unavailable) and refused in str(one)
    assert isinstance(two, Landed)
    assert await face.get("new") is None and (await face.get("there")).text == "x"


async def test_acknowledged_write_is_on_the_replica(primary: TestServer, replica: TestServer, face: Face):
    """The replica is read at once, a hundred times. Without WAIT some of these reads would come too early."""
    with replica.client() as there:
        for i in range(100):
            await face.put(f"m{i}", f"{i}", durability="replicated")
            assert there.hget(face.space.shard(f"m{i}").module(f"m{i}"), "content") == f"{i}".encode()
        assert await face.delete("m0", durability="replicated")
        assert there.hget(face.space.shard("m0").module("m0"), "tier") == b"deleted"
        landed = await face.put_many([Item(f"n{i}", "x", durability="replicated") for i in range(20)])
        assert all(isinstance(one, Landed) for one in landed)
        assert {there.hget(face.space.shard(f"n{i}").module(f"n{i}"), "content") for i in range(20)} == {b"x"}


async def test_hanging_replica_acknowledges_nothing(primary: TestServer, replica: TestServer, face: Face):
    await face.put("there", "x")
    await face.put("gone", "x")
    freeze(replica.pid)
    try:
        assert await face.delete("gone")
        with pytest.raises(RedisUnavailable, match="not replicated"):
            await face.delete("gone", durability="replicated")
        with pytest.raises(RedisUnavailable, match="applied, but is not replicated: 0 of 1 replicas"):
            await face.put("a", "x", durability="replicated")
        with pytest.raises(RedisUnavailable, match="applied, but is not replicated"):
            await face.delete("there", durability="replicated")
        (one,) = await face.put_many([Item("b", "x", durability="replicated")])
        assert isinstance(one, RedisUnavailable)
        assert (await face.get("a")).text == "x", "as it reported"
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert (await face.put("a", "y", durability="replicated")).tier == "hot"
    assert not await face.delete("gone", durability="replicated")
    with replica.client() as there:
        assert there.hget(face.space.shard("a").module("a"), "content") == b"y"


async def test_connection_killed_while_idle_does_not_block_wait(primary: TestServer, replica: TestServer, face: Face):
    with primary.client() as client:
        for i in range(4):
            async with asyncio.timeout(60):  # it once hung for good
                assert (await face.put("a", str(i), durability="replicated")).tier == "hot"
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.05)
