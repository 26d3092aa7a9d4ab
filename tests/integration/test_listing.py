"""Descriptions without contents, and listings in pages with a cursor, blocking and with asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from distier import Described, Invalid, Item, Store, connect
from distier.domain.ids import encode_id
from tests.conftest import empty
from tests.integration.world import Face
from tests.servers import TestServer

IDS = [f"docs/{n:04}" for n in range(250)] + ["docs", "docs-other", "é/1", "z/%x", "z/y"]


@pytest.fixture(params=[1, 5])
def store(request: pytest.FixtureRequest, server: TestServer, tmp_path: Path) -> Any:
    empty(server)
    with connect(
        {"counter": "estimate"}, redis__url=server.url, namespace="n", shards=request.param, near__enabled=False,
        storage_tiers__cold__directory=tmp_path,
    ) as opened:  # fmt: skip
        opened.put_many([Item(id, f"content of {id}", keywords=["k"], meta={"name": f"name of {id}"}) for id in IDS])
        opened.archive_now()
        opened.demote_many(IDS[::3], to="cold")
        opened.demote_many(IDS[1::3], to="warm")
        yield opened


def records(store: Store, server: TestServer) -> dict[str, Any]:
    with server.client() as client:
        keys = sorted(client.scan_iter(count=1000))
        return {
            key.decode(): client.zrange(key, 0, -1, withscores=True)
            if client.type(key) == b"zset"
            else client.dump(key)
            for key in keys
            if not key.endswith((b":epoch", b":events"))
        }


def test_descriptions_say_what_modules_are_and_change_nothing(store: Store, server: TestServer) -> None:
    before = records(store, server)
    found = store.describe(["docs/0001", "none", "docs/0000", "docs/0001"])
    assert list(found) == ["docs/0001", "none", "docs/0000"] and found["none"] is None
    one = found["docs/0000"]
    assert isinstance(one, Described)
    assert (one.tier, one.clean, one.size_bytes, one.keywords) == ("cold", True, len("content of docs/0000"), ("k",))
    assert (one.name, one.description, one.extension, one.content_type) == (
        "name of docs/0000",
        None,
        "txt",
        "text/plain",
    )
    assert records(store, server) == before
    placed, content = store.where("docs/0001"), store.get("docs/0001")
    assert placed is not None and content is not None and found["docs/0001"] is not None
    assert found["docs/0001"].version == placed.version == content.version
    assert found["docs/0001"].tokens == placed.tokens
    with pytest.raises(Invalid):
        store.describe("docs/0001")


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_pages_have_every_module_once_in_the_order_of_bytes(store: Store, limit: int) -> None:
    found, after, pages = list[str](), "", 0
    while True:
        page = store.page("docs", after=after, limit=limit)
        assert len(page.modules) <= limit
        found += [module.id for module in page.modules]
        pages += 1
        if page.after is None:
            break
        after = page.after
    assert found == sorted((id for id in IDS if id.startswith("docs")), key=str.encode)
    assert pages <= len(found) // limit + 2


def test_cursor_survives_deletes_and_names_that_do_not_exist(store: Store) -> None:
    first = store.page("docs/", limit=10)
    assert first.after == "docs/0009"
    store.delete("docs/0009")
    store.put("docs/0009x", "new")
    second = store.page("docs/", after=first.after, limit=2)
    assert [module.id for module in second.modules] == ["docs/0009x", "docs/0010"]
    assert store.page("docs/", after="docs/zzz").modules == ()
    assert store.page("no such prefix").after is None
    assert [module.id for module in store.page("", after="docs/0249", limit=3).modules] == ["z/%x", "z/y", "é/1"]


def test_tier_filters_pages(store: Store) -> None:
    cold = [module.id for module in store.page("docs/", limit=1000, tier="cold").modules]
    placed = store.where_many(sorted(id for id in IDS if id.startswith("docs/")))
    assert cold == [id for id, one in placed.items() if one is not None and one.tier == "cold"]
    assert len(cold) >= 83
    assert list(store.list("docs/", tier="cold")) == cold


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"limit": "5"}, {"tier": "none"}, {"after": 5}, {"prefix": 1}])
def test_impossible_arguments_are_refused(store: Store, arguments: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        store.page(**arguments)


def test_where_many_is_where_of_each(store: Store) -> None:
    ids = ["docs/0003", "none", "docs/0004"]
    found = store.where_many(ids)
    assert list(found) == ids and found["none"] is None
    assert [found[id] and found[id].tier for id in ids] == [store.where(id) and store.where(id).tier for id in ids]  # type: ignore[union-attr]


@pytest.fixture(params=["sync", "async"])
async def face(request: pytest.FixtureRequest, server: TestServer, tmp_path: Path) -> AsyncIterator[Face]:
    from distier import connect_async

    empty(server)
    own: dict[str, Any] = {"redis__url": server.url, "namespace": "n", "counter": "estimate"}
    own["storage_tiers__cold__directory"] = tmp_path
    opened = Face(connect({}, **own) if request.param == "sync" else await connect_async({}, **own))
    yield opened
    await opened.close()


async def test_both_kinds_of_stores_describe_and_list(face: Face) -> None:
    await face.put_many([Item(id, "x") for id in ("a", "b", "c")])
    assert list(await face.describe(["c", "a"])) == ["c", "a"]
    page = await face.page(limit=2)
    assert ([module.id for module in page.modules], page.after) == (["a", "b"], "b")
    assert list(await face.where_many(["b"])) == ["b"]


def test_damaged_record_is_reported_and_not_listed_as_missing(store: Store, server: TestServer) -> None:
    from distier import Corrupt

    shard = store.space.shard("docs/0002")
    with server.client() as client:
        client.hset(f"{shard.modules}{encode_id('docs/0002')}", "bytes", "many")
    with pytest.raises(Corrupt, match="docs/0002"):
        store.describe(["docs/0002"])
