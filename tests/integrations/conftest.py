"""Stores for the adapters: blocking and asyncio, on the Valkey that distier embeds, empty for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from distier import AsyncStore, Store, connect, connect_async
from tests.conftest import empty
from tests.servers import TestServer


@pytest.fixture
def settings(valkey_server: TestServer, tmp_path: Path) -> dict[str, Any]:
    empty(valkey_server)
    # No near cache: the two stores of a test look at each other's writes at once, and a hit may be as old as a push is late.
    return {
        "counter": "estimate", "redis__url": valkey_server.url, "namespace": "t", "deadline": "20s",
        "near__enabled": False,
        "storage_tiers__cold__directory": tmp_path / "distier-cold",
    }  # fmt: skip


@pytest.fixture
def store(settings: dict[str, Any]) -> Iterator[Store]:
    with connect({}, **settings) as store:
        yield store


@pytest_asyncio.fixture
async def async_store(settings: dict[str, Any]) -> AsyncIterator[AsyncStore]:
    async with await connect_async({}, **settings) as store:
        yield store
