"""Sentinel: each new connection asks for the current master, and clients leave a demoted master at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from distier import connect, connect_async
from distier.config import load_config
from distier.domain.keys import Shard
from distier.errors import ConfigError
from distier.stores.redis import RedisExchange
from tests.servers import (
    KINDS,
    TestSentinels,
    TestServer,
    available_kinds,
    await_replica,
    poll,
    short_directory,
    start_replica,
    start_sentinels,
    start_server,
)

FOUND_AGAIN_S = 15


class Fleet(NamedTuple):
    primary: TestServer
    replica: TestServer
    sentinels: TestSentinels

    def settings(self, tmp_path: Path, **more: Any) -> dict[str, Any]:
        return {"redis": {"url": self.sentinels.url}, "namespace": "t", "counter": "estimate", "deadline": f"{FOUND_AGAIN_S}s",
                "near": {"enabled": False}, "storage_tiers": {"cold": {"directory": tmp_path / "cold"}}, **more}  # fmt: skip


@pytest.fixture(params=KINDS)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    if reason := available_kinds()[request.param]:
        pytest.skip(reason)
    with short_directory() as tmp:
        for name in "ab":
            (tmp / name).mkdir()
        primary = start_server(request.param, tmp / "a", tcp=True)
        replica = start_replica(primary, tmp / "b")
        sentinels = start_sentinels(primary, tmp)
        try:
            poll(lambda: sentinels.see_replica(replica.port), what="the replica")
            yield Fleet(primary, replica, sentinels)
        finally:
            sentinels.stop()
            primary.kill9()
            replica.kill9()


async def test_both_clients_find_the_new_master_in_one_call(fleet: Fleet, tmp_path: Path):
    with connect(fleet.settings(tmp_path)) as store:
        other = await connect_async(fleet.settings(tmp_path))
        try:
            store.put("a", b"1", durability="replicated")
            assert (await other.get("a")) is not None
            fleet.primary.kill9()
            began = time.monotonic()
            landed, module = await asyncio.gather(asyncio.to_thread(store.put, "b", b"2"), other.get("a"))
            assert time.monotonic() - began < FOUND_AGAIN_S
            assert module is not None and module.content == b"1"
            assert landed.version.epoch > module.version.epoch
            # The sentinel that is asked here may be the last one to learn it.
            await asyncio.to_thread(poll, lambda: fleet.sentinels.primary_port() == fleet.replica.port, what="it")
        finally:
            await other.close()


async def test_demoted_live_master_is_left(fleet: Fleet, tmp_path: Path):
    """`SENTINEL FAILOVER`: the old master keeps running as a replica, and replies READONLY."""
    with connect(fleet.settings(tmp_path)) as store:
        other = await connect_async(fleet.settings(tmp_path))
        try:
            store.put("a", b"1")
            await other.put("b", b"1")
            fleet.sentinels.ask(0, "SENTINEL", "FAILOVER", "mymaster")
            await asyncio.to_thread(poll, lambda: fleet.sentinels.primary_port() == fleet.replica.port, what="it")
            await asyncio.to_thread(await_replica, fleet.primary)
            for n in range(20):
                # Concurrent calls share a connection, and none may get the reply of another.
                found = await asyncio.gather(*(other.put(f"m{i}", b"%d" % n) for i in range(10)))
                assert [landed.id for landed in found] == [f"m{i}" for i in range(10)]
                await asyncio.to_thread(store.put, "a", b"%d" % n)
            with fleet.replica.client() as client:
                assert client.hget(Shard("t", 0, 1).module("a"), "content") == b"19"
        finally:
            await other.close()


def test_connection_to_a_replica_is_dropped(fleet: Fleet, tmp_path: Path):
    """After READONLY the next command uses a new connection, which may lead elsewhere (a name, a proxy, a sentinel)."""
    config = load_config(fleet.settings(tmp_path) | {"redis": {"url": fleet.primary.url}})
    exchange, shard = RedisExchange(config, fleet.primary.url), Shard("t", 0, 1)
    first, second = (exchange.exchange(shard, [("CLIENT", "ID")], 5)[0] for _ in range(2))
    assert first == second
    with fleet.primary.client() as client:
        client.replicaof("127.0.0.1", fleet.replica.port)
    assert exchange.exchange(shard, [("CLIENT", "ID")], 5)[0] == first
    assert "READONLY" in str(exchange.exchange(shard, [("SET", "x", "1")], 5)[0])
    assert exchange.exchange(shard, [("CLIENT", "ID")], 5)[0] != first
    exchange.close()


def test_down_sentinel_is_skipped_and_unknown_master_is_reported(fleet: Fleet, tmp_path: Path):
    url = fleet.sentinels.url.replace("://", "://127.0.0.1:1,")  # the first sentinel does not exist
    with connect(fleet.settings(tmp_path) | {"redis": {"url": url}}) as store:
        store.put("a", b"1")
    settings = fleet.settings(tmp_path) | {"deadline": "1s"}
    unknown = fleet.sentinels.url.replace("/mymaster", "/no-such-master")
    began = time.monotonic()
    with pytest.raises(Exception, match="no-such-master"):
        connect(settings | {"redis": {"url": unknown}})
    assert time.monotonic() - began < 10


async def test_server_that_is_no_sentinel_is_reported_at_once(server: TestServer, redis_url: str, tmp_path: Path):
    settings = {"redis": {"url": f"sentinel://127.0.0.1:{server.port}/mymaster"}, "namespace": "t", "deadline": "60s",
                "storage_tiers": {"cold": {"directory": tmp_path / "cold"}}}  # fmt: skip
    began = time.monotonic()
    with pytest.raises(ConfigError, match="this server is not a sentinel"):
        connect(settings)
    with pytest.raises(ConfigError, match="this server is not a sentinel"):
        await connect_async(settings)
    assert time.monotonic() - began < 30  # not until the deadline
