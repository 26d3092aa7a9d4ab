"""LangChain's own suites, as the package langchain-tests ships them, pass against `DistierByteStore` and `DistierCache`."""

from __future__ import annotations

import pytest

from distier import AsyncStore, Store

pytest.importorskip("langchain_tests.integration_tests", reason="langchain-tests is not installed: run `make suites`")

from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests
from langchain_tests.integration_tests.cache import AsyncCacheTestSuite, SyncCacheTestSuite

from distier.integrations.langchain import DistierByteStore, DistierCache

VALUES = (b"\x00first", b"", b"third" * 1000)


class TestByteStore(BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, store: Store) -> DistierByteStore:
        return DistierByteStore(store)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return VALUES


class TestAsyncByteStore(BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    async def kv_store(self, async_store: AsyncStore) -> DistierByteStore:
        return DistierByteStore(async_store)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return VALUES


class TestAsyncByteStoreInThreads(TestAsyncByteStore):
    @pytest.fixture
    async def kv_store(self, store: Store) -> DistierByteStore:
        return DistierByteStore(store)


class TestCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, store: Store) -> DistierCache:
        return DistierCache(store)


class TestAsyncCache(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, async_store: AsyncStore) -> DistierCache:
        return DistierCache(async_store)


class TestAsyncCacheInThreads(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, store: Store) -> DistierCache:
        return DistierCache(store)
