"""`world`: each kind of store (blocking, asyncio) on each kind of server, with an archive of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.world import World
from tests.servers import TestServer


@pytest.fixture
def shards(request: pytest.FixtureRequest) -> int:
    """1, or what a test parametrises it with (`indirect=True`)."""
    return int(getattr(request, "param", 1))


@pytest_asyncio.fixture(params=["sync", "async"])
async def world(
    request: pytest.FixtureRequest, server: TestServer, redis_url: str, tmp_path: Path, shards: int
) -> AsyncIterator[World]:
    world = World(server, redis_url, tmp_path / "cold", request.param, shards)
    yield world
    await world.close()
