"""`DistierStore` for py-key-value where its own suite does not look. `test_suites.py` runs that suite."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from distier import AsyncStore, RedisUnavailable, Store

pytest.importorskip("key_value.aio", reason="py-key-value-aio is not installed (the extra `key-value`)")

from key_value.aio.errors import DeserializationError, StoreConnectionError
from key_value.aio.stores.base import ManagedEntry

from distier.integrations import key_value as adapter
from distier.integrations.key_value import DistierStore


@pytest.fixture
def values(async_store: AsyncStore) -> DistierStore:
    return DistierStore(async_store)


@pytest.mark.parametrize("key", ["a/b", "%", "~x", "k" * 3000, "é", "\ud800"])
async def test_any_key_can_be_put_listed_and_deleted(values: DistierStore, key: str) -> None:
    await values.put_many(["other", key], [{"n": 1}, {"n": 2}], collection=f"c{key}")
    assert await values.get_many([key, "none", key], collection=f"c{key}") == [{"n": 2}, None, {"n": 2}]
    assert sorted(await values.keys(f"c{key}")) == sorted(["other", key])
    assert await values.collections() == [f"c{key}"]
    assert await values.delete(key, collection=f"c{key}") and not await values.delete(key, collection=f"c{key}")


async def test_an_entry_is_a_readable_module(values: DistierStore, store: Store) -> None:
    await values.put("k", {"n": 1}, collection="c")
    module = store.get("key-value/c/k")
    assert module is not None and module.content_type == "application/json" and '"value": {"n": 1}' in module.text


async def test_expired_entries_are_hidden_and_culled(
    values: DistierStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CULLED_AT_ONCE", 2)
    await values.put_many(["a", "b", "c"], [{"n": 1}] * 3, collection="c", ttl=0.001)
    await values.put("kept", {"n": 2}, collection="c", ttl=600)
    store.put("key-value/c/foreign", "no entry")
    while await values.get("c", collection="c") is not None:
        pass
    assert await values.keys("c") == ["foreign", "kept"]
    await values.cull()
    assert await values.keys("c") == ["foreign", "kept"]
    kept = store.get("key-value/c/kept")
    assert kept and kept.expires_ms


async def test_an_entry_that_was_written_again_is_not_culled(
    values: DistierStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = ManagedEntry(value={"n": 1}, expires_at=datetime(2026, 1, 1, tzinfo=UTC))
    store.put("key-value/c/a", values._serialization_adapter.dump_json(entry=over))  # as before modules had TTLs
    assert await values.get("a", collection="c") is None
    found = values._entry

    def entry(module: Any) -> Any:
        store.put("key-value/c/a", '{"value": {"n": 2}}')
        return found(module)

    monkeypatch.setattr(values, "_entry", entry)
    await values.cull()
    monkeypatch.undo()
    assert await values.get("a", collection="c") == {"n": 2}


async def test_destroying_a_collection_leaves_the_others(values: DistierStore, store: Store) -> None:
    store.put("key-values/other", "x")
    for collection in ("a", "aa"):
        await values.put("k", {"n": 1}, collection=collection)
    assert await values.destroy_collection("a") and await values.collections() == ["aa"]
    assert await values.destroy() and not await values.destroy()
    assert store.exists("key-values/other")


async def test_a_server_that_is_down_is_the_hosts_error_and_never_a_miss(
    values: DistierStore, async_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> None:
        raise RedisUnavailable("down")

    monkeypatch.setattr(async_store, "get_many", down)
    with pytest.raises(StoreConnectionError, match="down") as caught:
        await values.get("k")
    assert isinstance(caught.value.__cause__, RedisUnavailable)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}"])
async def test_a_module_that_is_no_entry_is_the_hosts_error(values: DistierStore, store: Store, content: bytes) -> None:
    store.put("key-value/c/k", content)
    with pytest.raises(DeserializationError):
        await values.get("k", collection="c")


async def test_a_blocking_store_works_in_threads(store: Store) -> None:
    values = DistierStore(store, default_collection="mine")
    await values.put("k", {"n": 1})
    assert store.exists("key-value/mine/k") and await values.get("k") == {"n": 1}
