"""`DistierKVStore` next to LlamaIndex's own store, and under its document store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distier import AsyncStore, Store

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed: docs/how-to/use-with-llama-index.md")

from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore

from distier.integrations.llama_index import DistierKVStore


@pytest.fixture(params=["distier", "LlamaIndex's own"])
def make(request: pytest.FixtureRequest, store: Store) -> Callable[[], Any]:
    """Each test of this fixture holds for LlamaIndex's store in memory too."""
    own = SimpleKVStore()
    return lambda: DistierKVStore(store) if request.param == "distier" else own


def test_values_are_kept_by_collection(make: Callable[[], Any]) -> None:
    make().put("k", {"a": [1, {"é": None}]})
    make().put("k", {"b": 2}, collection="other")
    make().put_all([("x", {"n": 1}), ("y", {"n": 2}), ("x", {"n": 3})])
    assert make().get("k") == {"a": [1, {"é": None}]} and make().get("k", collection="other") == {"b": 2}
    assert make().get("none") is None and make().get("k", collection="none") is None
    assert make().get_all() == {"k": {"a": [1, {"é": None}]}, "x": {"n": 3}, "y": {"n": 2}}
    assert make().get_all("none") == {}
    assert make().delete("x") is True and make().delete("x") is False and make().get("x") is None


@pytest.mark.parametrize("key", ["", "/", "a/b", "~", "k" * 3000, "é%"])
def test_any_key_is_kept(store: Store, key: str) -> None:
    values = DistierKVStore(store)
    values.put(key, {"n": 1}, collection=key)
    assert values.get(key, collection=key) == {"n": 1} and values.get_all(key) == {key: {"n": 1}}
    assert values.delete(key, collection=key) and values.get_all(key) == {}


async def test_asyncio_methods_work_on_both_stores(store: Store, async_store: AsyncStore) -> None:
    one, other = DistierKVStore(async_store), DistierKVStore(store)
    await one.aput_all([(f"k{n:03}", {"n": n}) for n in range(250)])
    assert await other.aget("k007") == {"n": 7} and len(await one.aget_all()) == 250
    assert await other.adelete("k007") and await one.aget("k007") is None


def test_a_document_store_works_on_it(store: Store) -> None:
    documents = KVDocumentStore(DistierKVStore(store))
    nodes = [TextNode(id_=f"n{n}", text=f"text {n}") for n in range(5)]
    documents.add_documents(nodes)
    assert {id: node.get_content() for id, node in KVDocumentStore(DistierKVStore(store)).docs.items()} == {
        f"n{n}": f"text {n}" for n in range(5)
    }
    documents.delete_document("n0")
    assert sorted(documents.docs) == ["n1", "n2", "n3", "n4"]
    assert any(id.endswith("/n1") for id in store.list("llama-index/"))
