"""`DistierStore` where LangGraph's own suite does not look. `test_suites.py` runs that suite."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from distier import AsyncStore, RedisUnavailable, Store

pytest.importorskip("langgraph.store.base", reason="langgraph-checkpoint is not installed (the extra `langgraph`)")

from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, PutOp, SearchOp

from distier.integrations import langgraph as adapter
from distier.integrations.langgraph import DistierStore


@pytest.fixture
def memory(store: Store) -> DistierStore:
    return DistierStore(store)


def test_an_item_is_a_readable_module(memory: DistierStore, store: Store) -> None:
    memory.put(("users", "ada"), "food", {"likes": "figs"})
    module = store.get("langgraph/users/ada/food")
    assert module is not None
    assert (module.text, module.content_type) == ('{"likes": "figs"}', "application/json")


def test_an_item_has_the_times_of_its_module(memory: DistierStore, store: Store) -> None:
    memory.put(("a",), "k", {"v": 1})
    memory.put(("a",), "k", {"v": 2})
    item, module = memory.get(("a",), "k"), store.get("langgraph/a/k")
    assert item is not None and module is not None
    times = [int(at.timestamp() * 1000 + 0.5) for at in (item.created_at, item.updated_at)]
    assert times == [module.created_ms, module.updated_ms]
    assert item.updated_at.tzinfo is not None


@pytest.mark.parametrize("key", ["", "a/b", "%2F", "~x", "naïve key", "k" * 5000, "\ud800"])
def test_any_key_can_be_put_read_found_and_deleted(memory: DistierStore, key: str) -> None:
    memory.put(("users", "a/b"), key, {"v": 1})
    assert memory.get(("users", "a/b"), key) is not None
    assert [(item.namespace, item.key) for item in memory.search(("users",))] == [(("users", "a/b"), key)]
    assert memory.list_namespaces() == [("users", "a/b")]
    memory.delete(("users", "a/b"), key)
    assert memory.search(()) == []


def test_a_namespace_too_long_for_an_id_is_found_by_each_of_its_prefixes(memory: DistierStore) -> None:
    namespace = tuple(f"{i}" * 60 for i in range(8))
    memory.put(namespace, "k", {"v": 1})
    memory.put((*namespace[:7], "other"), "k", {"v": 2})
    assert [len(memory.search(namespace[:n])) for n in range(9)] == [2] * 8 + [1]
    assert memory.list_namespaces(prefix=namespace) == [namespace]


def test_each_get_of_a_batch_returns_its_own_item(memory: DistierStore) -> None:
    memory.batch([PutOp(("a",), str(n), {"n": n}) for n in range(3)])
    found = memory.batch([
        GetOp(("a",), "2"), SearchOp(("a",), limit=1), GetOp(("a",), "none"), GetOp(("a",), "0"), PutOp(("a",), "0", {}),
        GetOp(("a",), "2"),
    ])  # fmt: skip
    assert [item and (item.key, item.value) for item in (found[0], *found[2:4], found[5])] == [  # type: ignore[union-attr]
        ("2", {"n": 2}), None, ("0", {"n": 0}), ("2", {"n": 2}),
    ]  # fmt: skip


def test_reads_of_a_batch_see_what_was_there_before_it(memory: DistierStore) -> None:
    memory.put(("a",), "k", {"v": 1})
    got, found, spaces, *rest = memory.batch([
        GetOp(("a",), "k"), SearchOp(("a",)), ListNamespacesOp(), PutOp(("a",), "k", {"v": 2}), PutOp(("b",), "k", {}),
        PutOp(("b",), "k", None),
    ])  # fmt: skip
    assert got.value == found[0].value == {"v": 1} and spaces == [("a",)] and rest == [None] * 3  # type: ignore[union-attr,index]
    after = memory.get(("a",), "k")
    assert after is not None and after.value == {"v": 2}
    assert memory.get(("b",), "k") is None, "the last put of a key counts"


def test_pages_of_a_search_follow_each_other_in_the_order_of_ids(
    memory: DistierStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "READ_AT_ONCE", 4)
    memory.batch([PutOp(("a",), f"{i:02}", {"even": i % 2 == 0}) for i in range(25)])
    pages = [memory.search(("a",), limit=5, offset=at, filter={"even": True}) for at in range(0, 15, 5)]
    assert [int(item.key) for page in pages for item in page] == list(range(0, 25, 2))


def test_modules_outside_the_root_are_not_found(memory: DistierStore, store: Store) -> None:
    store.put("langgraph", "{}")
    store.put("langgraphs/a/b", "{}")
    assert memory.search(()) == [] and memory.list_namespaces() == []


@pytest.mark.parametrize(
    ("filter", "keys"),
    [
        ({"n": {"$gt": 1}}, ["two"]), ({"n": {"$gte": 1, "$lt": 2}}, ["one"]), ({"n": {"$ne": 1}}, ["none", "two"]),
        ({"n": {"$lte": 1}}, ["one"]), ({"s": {"$gt": "a"}}, ["two"]), ({"in": {"x": 1}}, ["two"]),
        ({"in.x": 1}, ["two"]), ({"l": [1, {"$gt": 1}]}, ["one"]), ({"n": None}, ["none"]),
    ],
)  # fmt: skip
def test_filter_keeps_the_items_that_match(memory: DistierStore, filter: dict[str, Any], keys: list[str]) -> None:
    memory.put(("a",), "one", {"n": 1, "s": "a", "l": [1, 2]})
    memory.put(("a",), "two", {"n": 2, "s": "b", "in": {"x": 1}})
    memory.put(("a",), "none", {})
    assert [item.key for item in memory.search(("a",), filter=filter)] == keys


def test_an_unknown_operator_is_refused(memory: DistierStore) -> None:
    memory.put(("a",), "k", {"n": 1})
    with pytest.raises(ValueError, match=r"\$near"):
        memory.search(("a",), filter={"n": {"$near": 1}})


def test_an_item_with_a_ttl_expires(memory: DistierStore) -> None:
    memory.put(("a",), "k", {"n": 1}, ttl=0.05 / 60)
    memory.put(("a",), "lasting", {"n": 2}, ttl=60)
    while memory.get(("a",), "k", refresh_ttl=False) is not None:  # by default, reading lets the TTL begin again
        pass
    assert [item.key for item in memory.search(("a",))] == ["lasting"]
    assert memory.list_namespaces() == [("a",)]


@pytest.mark.parametrize("refreshes", [False, True])
@pytest.mark.parametrize("passed", [0.05, 0.2])
def test_a_read_lets_a_ttl_begin_again(
    memory: DistierStore, store: Store, monkeypatch: pytest.MonkeyPatch, passed: float, refreshes: bool
) -> None:
    """But not at every read: a tenth of it must have passed."""
    memory.put(("a",), "k", {"n": 1}, ttl=60)
    memory.put(("a",), "lasting", {"n": 2})
    before, now_s = store.get("langgraph/a/k"), time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + passed * 3600)
    memory.get(("a",), "k", refresh_ttl=refreshes)
    after = store.get("langgraph/a/k")
    assert before and after
    assert (after.version != before.version) == (refreshes and passed > 0.1)
    assert (after.content, _ttl_s(store, "k")) == (before.content, 3600)
    memory.search(("a",), refresh_ttl=refreshes)
    found = store.where("langgraph/a/k")
    assert found and (found.version != after.version) == (refreshes and passed > 0.1)


def test_the_default_ttl_is_that_of_the_store(memory: DistierStore, store: Store) -> None:
    memory = DistierStore(store, ttl={"default_ttl": 2, "refresh_on_read": False})
    memory.put(("a",), "k", {})
    memory.put(("a",), "l", {}, ttl=None)
    assert [_ttl_s(store, key) for key in "kl"] == [120, None]


def _ttl_s(store: Store, key: str) -> float | None:
    module = store.get(f"langgraph/a/{key}")
    assert module is not None
    return None if module.expires_ms is None else (module.expires_ms - module.updated_ms) / 1000


def test_a_namespace_that_batch_gets_is_checked_too(memory: DistierStore) -> None:
    with pytest.raises(InvalidNamespaceError):
        memory.batch([GetOp(("a.b",), "k")])


async def test_asyncio_methods_work_on_both_kinds_of_store(store: Store, async_store: AsyncStore) -> None:
    blocking, native = DistierStore(store), DistierStore(async_store)
    await asyncio.gather(*(each.aput(("a",), f"{i}", {}) for i, each in enumerate((blocking, native))))
    assert [[item.key for item in await each.asearch(("a",))] for each in (blocking, native)] == [["0", "1"]] * 2
    await native.adelete(("a",), "0")
    assert await blocking.aget(("a",), "0") is None
    with pytest.raises(asyncio.InvalidStateError):
        native.get(("a",), "1")


def test_a_server_that_is_down_is_an_error_and_never_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any) -> None:
        raise RedisUnavailable("down")

    monkeypatch.setattr(store, "get_many", down)
    with pytest.raises(RedisUnavailable):
        DistierStore(store).get(("a",), "k")
