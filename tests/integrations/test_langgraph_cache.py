"""`DistierCache` as a cache of LangGraph: what its own caches do, and what a shared one must do in addition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from distier import AsyncStore, Store

pytest.importorskip("langgraph.cache.base", reason="langgraph-checkpoint is not installed (the extra `langgraph`)")

from langgraph.cache.memory import InMemoryCache

from distier.integrations.langgraph_cache import DistierCache

A, B, BELOW = (("a", "n"), "k"), (("b",), "k"), (("a", "n", "deeper"), "k")
VALUES: list[Any] = [None, 0, "é", b"\x00\xff", {"a": [1, {"b": [2, 3]}]}, {1, 2}, "x" * 100_000]


@pytest.fixture(params=["distier", "LangGraph's own"])
def make(request: pytest.FixtureRequest, store: Store) -> Callable[[], Any]:
    """Each test of this fixture holds for LangGraph's cache in memory too."""
    own = InMemoryCache[Any]()
    return lambda: DistierCache[Any](store) if request.param == "distier" else own


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__ + str(value)[:5])
def test_values_come_back_as_they_were(make: Callable[[], Any], value: Any) -> None:
    make().set({A: (value, None)})
    assert make().get([A, B]) == {A: value} and make().get([]) == {}


def test_a_value_with_a_ttl_is_a_miss_afterwards(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    make().set({A: (1, 3600), B: (2, 0)})
    assert make().get([A, B]) == {A: 1}
    make().set({A: (1, -1)})
    assert make().get([A]) == {}
    make().set({A: (3, None)})
    assert make().get([A]) == {A: 3}


def test_namespaces_are_cleared_without_those_below(make: Callable[[], Any]) -> None:
    make().set(dict.fromkeys((A, B, BELOW), (1, None)))
    make().clear([("a", "n"), ("none",)])
    assert make().get([A, B, BELOW]) == {B: 1, BELOW: 1}
    make().clear()
    assert make().get([A, B, BELOW]) == {}


@pytest.mark.parametrize("key", ["", "/", "~", "k" * 3000, "\ud800"])
def test_any_key_is_kept_and_cleared(store: Store, key: str) -> None:
    cache = DistierCache[Any](store)
    cache.set({(("ns", key), key): (1, None), (("ns",), "other"): (2, None)})
    assert cache.get([(("ns", key), key)]) == {(("ns", key), key): 1}
    cache.clear([("ns", key)])
    assert cache.get([(("ns", key), key), (("ns",), "other")]) == {(("ns",), "other"): 2}


@pytest.mark.parametrize("damage", ["content", "encoding", "no meta"])
def test_a_value_that_cannot_be_read_is_a_miss_and_is_replaced(store: Store, damage: str) -> None:
    cache = DistierCache[Any](store)
    cache.set({B: ({"a": 1}, None)})
    (id,) = store.list("langgraph-cache/")
    meta = {} if damage == "no meta" else {"encoding": "none" if damage == "encoding" else "msgpack"}
    store.put(id, b"\xc1damaged", meta=meta)
    assert cache.get([B]) == {}
    cache.set({B: (2, None)})
    assert cache.get([B]) == {B: 2}


async def test_asyncio_methods_work_on_both_stores(store: Store, async_store: AsyncStore) -> None:
    one, other = DistierCache[Any](async_store), DistierCache[Any](store)
    await one.aset({A: (1, None), B: (2, None)})
    assert await other.aget([A, B]) == {A: 1, B: 2}
    await other.aclear([("b",)])
    assert await one.aget([A]) == {A: 1} and (await one.aget([B])) == {}


def test_a_node_of_a_graph_runs_once_for_all_processes(store: Store) -> None:
    graph_of = pytest.importorskip("langgraph.graph", reason="langgraph itself is not installed")
    types = pytest.importorskip("langgraph.types")
    ran: list[float] = []

    def node(state: dict[str, Any]) -> dict[str, Any]:
        ran.append(time.time())
        return {"n": state["n"] + 1}

    for _ in range(2):
        builder = graph_of.StateGraph(dict)
        builder.add_node("node", node, cache_policy=types.CachePolicy(ttl=60))
        builder.set_entry_point("node")
        assert builder.compile(cache=DistierCache[Any](store)).invoke({"n": 1}) == {"n": 2}
    assert len(ran) == 1
