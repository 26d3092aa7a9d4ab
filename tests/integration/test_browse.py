"""Pages of modules, of archive folders, and looks at a module: complete, in order, in bounded work, and without a trace."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import Invalid, Item, Store, connect
from distier.plans.fleet.health import probe_archive, read_health
from distier.plans.get.browse import LOOKED_MAX, RANKS, Page, Row, page_by_id, page_by_rank
from distier.plans.get.peek import archived_versions, peek
from distier.plans.recovery.folders import list_folder
from distier.views import health_view
from tests.conftest import empty
from tests.servers import TestServer, poll

ODD = ["a//b", "/a", "a/", "..", "ä/ö", "日本/語", "a b", "a\nb", "x\x00y", "{t}", "%41", "z~", "\U0001f600"]


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def store(request: pytest.FixtureRequest, server: TestServer, tmp_path: Path) -> Iterator[Store]:
    empty(server)
    with connect(
        {"counter": "estimate"}, redis__url=server.url, namespace="b", shards=request.param, near__enabled=False,
        storage_tiers__cold__directory=tmp_path, deadline="20s",
    ) as opened:  # fmt: skip
        yield opened


def put_all(store: Store, ids: list[str]) -> None:
    for i in range(0, len(ids), 500):
        assert not [
            r for r in store.put_many([Item(id, f"text of {id}") for id in ids[i : i + 500]]) if not hasattr(r, "id")
        ]


def all_by_id(store: Store, prefix: str, limit: int, tier: str | None = None) -> list[Row]:
    rows: list[Row] = []
    after: str | None = ""
    while after is not None:
        page = store.run(page_by_id(store.space, prefix, after, limit, tier))
        assert len(page.rows) <= limit
        assert page.looked <= LOOKED_MAX + 128
        rows += page.rows
        after = page.after
    return rows


def all_by_rank(store: Store, rank: Any, limit: int, **given: Any) -> list[Row]:
    rows: list[Row] = []
    after: str | None = ""
    while after is not None:
        page: Page = store.run(page_by_rank(store.space, rank, after, limit, **given))
        assert len(page.rows) <= limit
        rows += page.rows
        after = page.after
    return rows


def test_pages_by_id_have_every_module_once_in_order(store: Store) -> None:
    ids = [f"skills/{i % 13}/m{i}" for i in range(700)] + ODD
    random.Random(3).shuffle(ids)
    put_all(store, ids)
    for id in ids[:40]:
        store.delete(id)
    left = sorted(ids[40:], key=str.encode)
    for limit in (7, 50, 200):
        assert [row.id for row in all_by_id(store, "", limit)] == left
    for prefix in ("skills/1", "skills/12/", "a", "ä", "nothing", "日"):
        assert [row.id for row in all_by_id(store, prefix, 9)] == [id for id in left if id.startswith(prefix)]


def test_a_page_continues_after_an_id_that_was_deleted(store: Store) -> None:
    put_all(store, [f"m{i:03}" for i in range(300)])
    page = store.run(page_by_id(store.space, "m", "", 10))
    assert page.after == "m009"
    for i in range(5, 15):
        store.delete(f"m{i:03}")
    assert store.run(page_by_id(store.space, "m", page.after, 1)).rows[0].id == "m015"


def test_a_page_with_a_rare_tier_ends_in_bounded_work_and_continues(store: Store) -> None:
    put_all(store, [f"m{i:04}" for i in range(1500)])
    store.archive_now()
    for id in ("m0003", "m1490"):
        store.demote(id, to="cold")
    first = store.run(page_by_id(store.space, "", "", 50, "cold"))
    assert [row.id for row in first.rows] == ["m0003"]
    assert first.after is not None
    assert [row.id for row in all_by_id(store, "", 50, "cold")] == ["m0003", "m1490"]


def test_ranks_are_in_the_order_of_their_sets(store: Store) -> None:
    ids = [f"m{i}" for i in range(120)]
    for i, id in enumerate(ids):
        store.put(id, "x" * (i + 1))
    for n, id in enumerate(ids[:5]):
        for _ in range(n + 1):
            store.get(id)
    store.pin("m7", 60)
    # Uses are sent in batches, once a second, with a later call to the same shard.
    poll(lambda: store.get("m3") and store.where("m3").uses > 1, what="a use of m3 in Redis")  # type: ignore[union-attr]
    for rank in ("lru", "mru", "uses", "dirty"):
        rows = all_by_rank(store, rank, 17)
        scores = [row.score for row in rows if row.score is not None]
        assert scores == sorted(scores, reverse=rank in ("mru", "uses")), rank
        assert len({row.id for row in rows}) == len(rows)
    assert {row.id for row in all_by_rank(store, "lru", 17)} == set(ids)
    assert {row.id for row in all_by_rank(store, "lru", 17, prefix="m1")} == {id for id in ids if id.startswith("m1")}
    assert [row.id for row in all_by_rank(store, "biggest", 50)] == ids[::-1]
    assert [row.id for row in all_by_rank(store, "pins", 50)] == ["m7"]
    store.archive_now()
    assert not all_by_rank(store, "dirty", 50)
    store.demote("m3", to="warm")
    assert [row.id for row in all_by_rank(store, "due", 50)] == ["m3"]
    assert [row.id for row in all_by_rank(store, "due", 50, tier="hot")] == []


def test_impossible_positions_and_orders_are_invalid(store: Store) -> None:
    for after in ("x", "-1", "1.2.3.4", "²", "9" * 13):
        with pytest.raises(Invalid):
            store.run(page_by_rank(store.space, "lru", after, 10))
    wrong: Any = "size"
    with pytest.raises(Invalid, match="biggest"):
        store.run(page_by_rank(store.space, wrong, "", 10))
    assert len(RANKS) == 7


def test_a_look_neither_uses_nor_moves_a_module(store: Store) -> None:
    store.put("m", "the text", keywords=["k"], meta={"a": 1})
    store.archive_now()
    for tier in ("hot", "warm", "cold"):
        if tier != "hot":
            store.demote("m")
        before, events = store.where("m"), len(list(store.events(since="0", wait=False)))
        found = store.run(peek(store.space, "m", max_bytes=100))
        assert found is not None
        assert (found.keywords, found.meta) == (("k",), {"a": 1})
        assert (found.content, found.why) == ((None, "archived") if tier == "cold" else (b"the text", ""))
        again = store.run(peek(store.space, "m", max_bytes=100, from_archive=True))
        assert again is not None
        assert again.content == b"the text"
        after = store.where("m")
        assert before is not None
        assert after is not None
        assert (after.tier, after.uses, after.last_use_ms) == (before.tier, before.uses, before.last_use_ms)
        assert after.tier == tier
        assert len(list(store.events(since="0", wait=False))) == events


def test_a_look_reads_no_content_above_its_limit(store: Store) -> None:
    store.put("m", "x" * 101)
    found = store.run(peek(store.space, "m", max_bytes=100))
    assert found is not None
    assert (found.content, found.why) == (None, "too large")
    assert store.run(peek(store.space, "nothing", max_bytes=100)) is None
    store.delete("m")
    assert store.run(peek(store.space, "m", max_bytes=100)) is None


def test_archived_versions_are_those_of_the_module_alone(store: Store) -> None:
    for id, text in (("a", "1"), ("a/b", "other"), ("a", "2")):
        store.put(id, text)
        store.archive_now()
    versions = store.run(archived_versions(store.space, "a"))
    assert [v.object.kind for v in versions] == ["content", "content"]
    assert versions[-1].object.order.ver == store.where("a").version.ver  # type: ignore[union-attr]


def test_a_folder_lists_its_own_objects_and_jumps_over_folders(store: Store) -> None:
    put_all(store, [f"big/{i}" for i in range(1200)] + ["a", "small/1", "zz"])
    store.archive_now()
    top = store.run(list_folder(store.space, "modules/"))
    assert top.folders == ("a/", "big/", "small/", "zz/")
    assert (top.objects, top.after) == ((), None)
    assert "modules/" in store.run(list_folder(store.space, "")).folders
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = store.run(list_folder(store.space, "modules/big/", after, 200))
        assert len(page.folders) <= 200
        found += page.folders
        after = page.after
    assert sorted(found) == sorted(f"{i}/" for i in range(1200))
    (version,) = [o for o in store.run(list_folder(store.space, "modules/a/")).objects if o.key.endswith(".xz")]
    assert version.key.startswith("b/modules/a/@")
    for path in ("../", "a", "/", "modules//"):
        with pytest.raises(Invalid):
            store.run(list_folder(store.space, path))


def test_health_names_what_needs_a_look(store: Store) -> None:
    def checks(**given: Any) -> dict[str, bool]:
        found = health_view(store.stats(), store.run(read_health(store.space)), **given)
        assert found["healthy"] == all(c["ok"] for c in found["checks"])
        return {c["check"]: c["ok"] for c in found["checks"]}

    store.run(probe_archive(store.space))
    assert checks() == {"epochs": True, "worker": False, "write-back": True, "dirty": True, "budgets": True}
    assert checks(archive="it is away", thrash="")["archive"] is False
    assert checks(thrash="a lot moves")["thrash"] is False
    store.put("old", "x")
    shard = store.space.shard("old")
    with redis_of(store) as client:
        client.zadd(shard.dirty, {"old": time.time() * 1000 - 700_000})
        for one in store.space.keys.shards:
            client.set(one.worker_lease, "3:me", px=5000)
        client.zadd(store.space.keys.shards[0].workers, {"me": time.time() * 1000 + 5000, "gone": 1})
        health = store.run(read_health(store.space))
        assert (health.workers, {s.worker for s in health.shards}) == (("me",), {"me"})
        assert health.oldest is not None
        assert health.oldest.oldest_dirty == "old"
        assert 690_000 < health.oldest.dirty_ms < 800_000
        found = checks()
        assert (found["worker"], found["write-back"]) == (True, False)


def redis_of(store: Store) -> Any:
    import redis

    return redis.Redis.from_url(str(store.space.config.redis.url))
