"""The function library for redis-cli: the same answers as Python gives, the client's rules, and clear refusals."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import Invalid, Item, Store, connect
from distier.lua.deploy import deploy, loaded
from distier.lua.library import LIBRARY, LIBRARY_BYTES_MAX, READS, WRITES, library, number_of
from distier.plans.recovery.fsck.check import fsck
from distier.views import REASONS, explained_text
from tests.conftest import empty
from tests.servers import TestServer

ROOT = "distier:{f}:"


class Cli:
    """Calls functions as redis-cli does; `data` asks for a map."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def lines(self, name: str, *args: Any, root: str = ROOT) -> list[str]:
        call = self.client.fcall if name in WRITES else self.client.fcall_ro
        reply: Any = call(f"distier_{name}", 1, root, *args)
        return [line.decode() for line in reply]

    def data(self, name: str, *args: Any) -> Any:
        call = self.client.fcall if name in WRITES else self.client.fcall_ro
        return _text(call(f"distier_{name}", 1, ROOT, *args, "map"))


def _text(reply: Any) -> Any:
    if isinstance(reply, dict):
        return {key.decode(): _text(value) for key, value in reply.items()}
    if isinstance(reply, list):
        return [_text(one) for one in reply]
    return reply.decode() if isinstance(reply, bytes) else reply


@pytest.fixture(params=["lru", "gdsf"])
def store(request: pytest.FixtureRequest, server: TestServer, tmp_path: Path) -> Iterator[Store]:
    empty(server)
    with connect(
        {"counter": "estimate"}, redis__url=server.url, namespace="f", near__enabled=False,
        storage_tiers__cold__directory=tmp_path, storage_tiers__hot__eviction_policy=request.param,
    ) as opened:  # fmt: skip
        opened.run(deploy(opened.space.keys.shards[0], "0.0.0"))
        yield opened


@pytest.fixture
def cli(store: Store, server: TestServer) -> Iterator[Cli]:
    with server.client(protocol=3) as client:
        yield Cli(client)


def fill(store: Store, seed: int = 7) -> list[str]:
    """Modules in every state, by a seeded history."""
    chance = random.Random(seed)
    ids = [f"skills/é {n}" if n % 7 == 0 else f"m/{n}" for n in range(40)]
    store.put_many([Item(id, f"{id} " * chance.randint(1, 60), keywords=["k"]) for id in ids])
    for id in chance.sample(ids, 30):
        store.get(id)
    store.archive_now()
    for id in chance.sample(ids, 20):
        store.demote(id)
    for id in chance.sample(ids, 10):
        store.demote(id, to="cold")
    for id in chance.sample(ids, 8):
        store.get(id)
    for id in chance.sample(ids, 5):
        store.put(id, f"again {id}")
    for id in chance.sample(ids, 4):
        store.pin(id, 3600)
    return ids


def test_where_says_what_python_says(store: Store, cli: Cli) -> None:
    same = (
        "id", "tier", "tokens", "size_bytes", "stored_bytes", "clean", "archived_bytes", "uses", "last_use_ms", "due_ms",
        "dirty_since_ms", "pinned_until_ms", "created_ms", "updated_ms", "content_type", "sha256",
    )  # fmt: skip
    for id in fill(store):
        placed, found = store.where(id), cli.data("where", id)
        assert placed is not None
        assert {name: found.get(name) for name in same} == {name: getattr(placed, name) for name in same}
        assert found["version"] == str(placed.version)
        assert (found.get("ttl_ms") is None) == (placed.ttl_ms is None)
        lines = cli.lines("where", id)
        assert lines[0].startswith(f"{id}: {placed.tier}, {'archived' if placed.clean else 'not archived yet'}")


def test_explain_says_what_python_says(store: Store, cli: Cli) -> None:
    for id in fill(store):
        explained = store.explain(id)
        assert explained is not None
        text = " ".join(cli.lines("explain", id))
        ours = re.sub(r" [0-9,]+ more uses? would make it hot\.$", "", explained_text(explained))
        assert _untimed(text) == _untimed(ours)
        data = cli.data("explain", id)
        assert (data.get("before"), data.get("of"), data["policy"]) == (
            explained.before,
            explained.of,
            explained.policy,
        )
        assert (data.get("reason"), data.get("moved_ms")) == (explained.reason, explained.moved_ms)


def _untimed(text: str) -> str:
    return re.sub(r"[0-9]+ (s|min|h|days)\b", "#", text)


def test_reasons_are_explained_alike() -> None:
    source = (resources.files("distier.lua") / "functions" / "where.lua").read_text("utf-8")
    table = source.partition("local REASONS = {")[2].partition("}")[0]
    assert dict(re.findall(r"(\w+) = '([^']*)'", table)) == REASONS


def test_tiers_are_those_of_stats(store: Store, cli: Cli) -> None:
    fill(store)
    stats, found = store.stats(), cli.data("tiers")
    assert (found["hot_count"], found["hot_tokens"], found["hot_bytes"]) == (
        stats.hot.count, stats.hot.tokens, stats.hot.size_bytes,
    )  # fmt: skip
    assert (found["warm_count"], found["warm_frame_bytes"]) == (stats.warm.count, stats.warm.stored_bytes)
    assert (found["cold_count"], found["dirty_count"]) == (stats.cold.count, stats.dirty_count)
    assert (found["max_hot_tokens"], found["max_warm_modules"]) == (stats.hot.max_tokens, stats.warm.max_modules)
    assert (found["reads_hot"], found["reads_cold"]) == (stats.reads.hot, stats.reads.cold)
    assert found["policy"] == stats.eviction.policy


def test_top_is_in_the_order_that_it_names(store: Store, cli: Cli) -> None:
    ids = fill(store)
    places = {id: placed for id in ids if (placed := store.where(id))}
    hot = sorted((id for id in ids if places[id].tier == "hot"), key=lambda one: places[one].last_use_ms or 0)
    assert [places[m["id"]].last_use_ms for m in cli.data("top", "lru", 5)] == [
        places[id].last_use_ms for id in hot[:5]
    ]
    assert [places[m["id"]].last_use_ms for m in cli.data("top", "mru", 5)] == [
        places[id].last_use_ms for id in hot[:-6:-1]
    ]
    sizes = sorted((p.size_bytes for p in places.values() if p.tier != "cold"), reverse=True)
    assert [m["size_bytes"] for m in cli.data("top", "biggest", 5)] == sizes[:5]
    assert {m["id"] for m in cli.data("top", "dirty", 100)} == {id for id, p in places.items() if not p.clean}
    assert {m["id"] for m in cli.data("top", "pins", 100)} == {id for id, p in places.items() if p.pinned_until_ms}
    assert cli.lines("top", "biggest", 3)[-1].startswith("the ")


def test_moves_are_the_events(store: Store, cli: Cli) -> None:
    fill(store)
    moves = cli.data("moves", 600, "m/")
    events = [e for e in store.events(since="0", wait=False) if e.is_tier_change and e.id.startswith("m/")]
    assert [(m["id"], m["from"], m["to"], m["reason"]) for m in reversed(moves)] == [
        (e.id, e.from_, e.to, e.reason) for e in events[-len(moves) :]
    ]
    assert cli.lines("moves", 600, "none/") == ["nothing moved in the last 10 min"]


def test_health_names_what_to_look_at(store: Store, cli: Cli) -> None:
    assert cli.data("health")["healthy"] is False
    assert "LOOK  no worker maintains this shard" in cli.lines("health")


@pytest.mark.parametrize("archived", [True, False])
def test_demote_takes_a_module_one_tier_down_and_promote_back(store: Store, cli: Cli, archived: bool) -> None:
    store.put("a", "text of a")
    if archived:
        store.archive_now()
    assert cli.lines("demote", "a") == [f"a is now {'cold' if archived else 'warm'}"]
    (text,) = cli.lines("promote", "a")
    if archived:
        assert text == "a stays cold: it is in the archive only; distier promote fetches it"
    else:
        assert text == "a is now hot"
        assert cli.lines("demote", "a") == ["a is now warm"]
        assert "not archived yet" in cli.lines("demote", "a")[0]
    found = store.get("a")
    assert found is not None
    assert found.text == "text of a"
    assert store.run(fsck(store.space), deadline_s=60).listed == []


def test_demote_of_a_prefix_walks_the_index(store: Store, cli: Cli) -> None:
    store.put_many([Item(f"p/{n:04}", "x") for n in range(300)] + [Item("q", "x"), Item("o", "x")])
    store.archive_now()
    assert cli.data("demote", "p/*", 120) == {"moved": 120, "stayed": 0, "looked_at": 120}
    assert cli.data("demote", "p/*", 1000)["moved"] == 180
    tiers = {id: placed.tier for id in ("o", "q", "p/0000", "p/0299") if (placed := store.where(id))}
    assert tiers == {"o": "hot", "q": "hot", "p/0000": "cold", "p/0299": "cold"}
    assert store.run(fsck(store.space), deadline_s=60).listed == []


def test_pinned_module_stays_until_it_is_unpinned(store: Store, cli: Cli) -> None:
    store.put("a", "x")
    store.archive_now()
    assert cli.lines("pin", "a", 60) == ["a is pinned for 60 s"]
    assert store.where("a").pinned_until_ms is not None  # type: ignore[union-attr]
    assert cli.lines("demote", "a") == ["a stays hot: it is pinned"]
    assert cli.lines("unpin", "a") == ["a is not pinned any more"]
    assert cli.lines("demote", "a") == ["a is now cold"]


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("where", ["none"], "there is no module none"),
        ("where", [], "name a module"),
        ("top", ["odd"], "top takes lru, mru"),
        ("top", ["lru", "1000"], "is 1 to 100"),
        ("moves", ["x"], "moves takes a number of seconds"),
        ("pin", ["a"], "pin takes an id and a number of seconds"),
        ("demote", ["p*", "5000"], "is 1 to 1000"),
    ],
)
def test_bad_call_says_what_to_do(store: Store, cli: Cli, name: str, args: list[str], text: str) -> None:
    with pytest.raises(redis.ResponseError, match=re.escape(text)):
        cli.lines(name, *args)


@pytest.mark.parametrize("root", ["", "distier:{f}", "other", "distier:{none}:"])
def test_key_that_is_no_root_is_refused(store: Store, cli: Cli, root: str) -> None:
    with pytest.raises(redis.ResponseError, match="distier: "):
        cli.lines("tiers", root=root)


def test_id_of_another_shard_is_named_with_its_root(server: TestServer, tmp_path: Path) -> None:
    empty(server)
    with connect({"counter": "estimate"}, redis__url=server.url, namespace="f", shards=3, near__enabled=False,
                 storage_tiers__cold__directory=tmp_path) as store, server.client() as client:  # fmt: skip
        for shard in store.space.keys.shards:
            store.run(deploy(shard, "0.0.0"))
        ids = [f"id {n}" for n in range(12)]
        store.put_many([Item(id, "x") for id in ids])
        cli = Cli(client)
        for id in ids:
            root = store.space.shard(id).root
            assert cli.lines("where", id, root=root)[0].startswith(f"{id}: hot")
            other = next(s.root for s in store.space.keys.shards if s.root != root)
            with pytest.raises(redis.ResponseError, match=re.escape(root)):
                cli.lines("where", id, root=other)
        with pytest.raises(redis.ResponseError, match=re.escape("distier:{f.0}:")):
            cli.lines("tiers", root=ROOT)


def test_older_library_does_not_replace_a_newer_one(store: Store, server: TestServer) -> None:
    shard = store.space.keys.shards[0]
    assert store.run(loaded(shard)) == LIBRARY
    newer = library("9.9.9").replace(f"local LIBRARY = {LIBRARY}\n", f"local LIBRARY = {LIBRARY + 1}\n")
    with server.client() as client:
        client.function_load(newer, replace=True)
        with pytest.raises(Invalid, match="deploy them from a newer distier"):
            store.run(deploy(shard, "0.0.0"))
        assert store.run(loaded(shard)) == LIBRARY + 1
        client.function_delete("distier")
    assert store.run(loaded(shard)) == 0


def test_library_is_small_and_never_scans() -> None:
    code = library("0.0.0")
    assert len(code) <= LIBRARY_BYTES_MAX
    assert number_of(code) == LIBRARY
    assert not re.search(r"call\('(KEYS|SCAN|ZSCAN|HSCAN|SMEMBERS)'", code)
    assert set(re.findall(r"function_name='distier_(\w+)'", code)) == {*READS, *WRITES}
