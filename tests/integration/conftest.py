"""`world`: each kind of store (blocking, asyncio) on each kind of server, each test with its own archive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from distier import Store, connect
from tests.conftest import empty
from tests.integration.world import Open, World
from tests.servers import TestServer


@pytest.fixture
def shards(request: pytest.FixtureRequest) -> int:
    """1, or the number that a test parametrises it with (`indirect=True`)."""
    return int(getattr(request, "param", 1))


@pytest_asyncio.fixture(params=["sync", "async"])
async def world(
    request: pytest.FixtureRequest, server: TestServer, redis_url: str, tmp_path: Path, shards: int
) -> AsyncIterator[World]:
    world = World(server, redis_url, tmp_path / "cold", request.param, shards)
    yield world
    await world.close()


@pytest.fixture
def own_server(shared_server: TestServer) -> TestServer:
    """The file's `shared_server`, emptied. Each test has its own archive."""
    empty(shared_server)
    return shared_server


@pytest.fixture
def open_store(redis_url: str, tmp_path: Path) -> Iterator[Open]:
    stores: list[Store] = []

    def open(**overrides: Any) -> Store:
        settings: dict[str, Any] = {
            "redis__url": redis_url, "namespace": "t", "storage_tiers__cold__directory": tmp_path / "cold",
            "near__enabled": False, "deadline": "60s",
        }  # fmt: skip
        stores.append(connect({"counter": "estimate"}, **(settings | overrides)))
        return stores[-1]

    yield open
    for store in stores:
        store.close()
