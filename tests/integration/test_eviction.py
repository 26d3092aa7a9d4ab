"""Eviction policies on real servers: what leaves, and a policy that is changed while the namespace is in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distier import Corrupt, Item, Store, connect
from distier.lua import touch
from distier.plans.common.touches import send_touch
from distier.plans.fleet.maintain import maintain, rank_modules, recount
from distier.plans.recovery.fsck.check import fsck
from distier.policy.eviction.table import POLICIES
from tests.conftest import empty
from tests.servers import TestServer

RANKED = sorted(POLICIES.keys() - {"lru"})
WIDTH = 1000


@contextmanager
def opened(server: TestServer, archive: Path, policy: str = "", **more: Any) -> Iterator[Store]:
    settings: dict[str, Any] = {
        "redis__url": server.url, "namespace": "evict", "counter": "estimate", "near__enabled": False,
        "storage_tiers__cold__directory": archive, "storage_tiers__cold__archive_after": "1h",
        "storage_tiers__hot__max_bytes": 10 * WIDTH, "storage_tiers__warm__max_modules": 20,
    }  # fmt: skip
    if policy:
        settings["storage_tiers__hot__eviction_policy"] = policy
    with connect({}, **settings | more) as store:
        yield store


@pytest.fixture
def clean_server(server: TestServer) -> TestServer:
    empty(server)
    return server


def load(store: Store, ids: list[str]) -> None:
    store.put_many([Item(id, id.encode().ljust(WIDTH, b".")) for id in ids])


def test_gdsf_evicts_what_is_used_least_for_its_size(clean_server: TestServer, tmp_path: Path) -> None:
    with opened(clean_server, tmp_path, "gdsf") as store:
        load(store, [f"m{n}" for n in range(9)])
        shard = store.space.keys.shards[0]
        store.run(send_touch(store.space, [touch(shard, [(f"m{n}", 4) for n in range(8)]), touch(shard, [("m8", 1)])]))
        load(store, ["x", "y"])
        hot = {f"m{n}" for n in range(9) if (placed := store.where(f"m{n}")) and placed.tier == "hot"}
        assert "m8" not in hot, "it is the most recently used one, and was used least"
        assert len(hot) == 8


@pytest.mark.parametrize("policy", RANKED)
def test_policy_is_changed_while_the_namespace_is_in_use(clean_server: TestServer, tmp_path: Path, policy: str) -> None:
    ids = [f"m{n}" for n in range(40)]
    with opened(clean_server, tmp_path) as before:
        load(before, ids)
        before.archive_now()
        assert (before.stats().eviction.policy, before.stats().eviction.ranking) == ("lru", 0)
        with opened(clean_server, tmp_path, policy) as store:
            assert (store.stats().eviction.policy, store.stats().eviction.ranking) == (policy, 1)
            load(store, ["new"])
            assert before.get("m0") is not None, "an earlier process works on"
            shard = store.space.keys.shards[0]
            assert store.run(rank_modules(store.space, shard)) > 0
            assert store.stats().eviction.ranking == 0
            assert store.run(rank_modules(store.space, shard)) == 0
            load(store, ["newer", "newest"])
            for id in [*ids, "new", "newer", "newest"]:
                assert store.get(id) is not None
            assert store.run(fsck(store.space), deadline_s=60).listed == []
            store.run(maintain(store.space, shard), deadline_s=60)
            stats = store.stats()
            assert stats.hot.size_bytes <= stats.hot.max_bytes
            assert stats.warm.count <= stats.warm.max_modules
            counted = store.run(recount(store.space, shard))
            assert counted["hot_bytes"] == stats.hot.size_bytes
        with opened(clean_server, tmp_path, "lru") as last:
            assert last.stats().eviction.policy == "lru"
            assert last.run(fsck(last.space), deadline_s=60).listed == []


def test_process_without_a_setting_leaves_the_policy(clean_server: TestServer, tmp_path: Path) -> None:
    with opened(clean_server, tmp_path, "gdsf"), opened(clean_server, tmp_path) as other:
        assert other.stats().eviction.policy == "gdsf"


def test_damaged_ranks_are_found_and_repaired(clean_server: TestServer, tmp_path: Path) -> None:
    with opened(clean_server, tmp_path, "gdsf") as store, clean_server.client() as raw:
        load(store, ["a", "b"])
        shard = store.space.keys.shards[0]
        raw.zrem(shard.ranks("hot"), "a")
        raw.zadd(shard.ranks("warm"), {"b": 1, "missing": 2})
        kinds = {finding.kind for finding in store.run(fsck(store.space, repair=True), deadline_s=60).listed}
        assert kinds == {"missing-rank:hot", "stray-rank:warm"}
        assert store.run(fsck(store.space), deadline_s=60).listed == []
        assert {bytes(id) for id in raw.zrange(shard.ranks("hot"), 0, -1)} == {b"a", b"b"}


def test_foreign_type_of_ranks_fails_writes_and_is_named(clean_server: TestServer, tmp_path: Path) -> None:
    with opened(clean_server, tmp_path, "gdsf") as store, clean_server.client() as raw:
        raw.set(store.space.keys.shards[0].ranks("hot"), "foreign")
        with pytest.raises(Corrupt):
            store.put("a", b"a")


def test_reads_of_the_fleet_and_regretted_evictions_are_counted(clean_server: TestServer, tmp_path: Path) -> None:
    small: dict[str, Any] = {"storage_tiers__warm__max_modules": 2, "storage_tiers__hot__max_bytes": 2 * WIDTH}
    ids = [f"m{n}" for n in range(8)]
    with opened(clean_server, tmp_path, **small) as store:
        assert store.stats().reads.hit_ratio is None
        load(store, ids)
        store.archive_now()
        each = store.where("m0").tokens  # type: ignore[union-attr]
        for id in ids:
            assert store.get(id) is not None
    with opened(clean_server, tmp_path, **small) as other:
        stats = other.stats()
        reads = stats.reads
        assert reads.hot + reads.warm + reads.cold == len(ids)
        assert reads.cold_tokens == reads.cold * each
        assert 0 < reads.cold < len(ids)
        assert reads.hit_ratio == 1 - reads.cold / len(ids)
        assert stats.eviction.regret > 0, "they were evicted a moment ago"
        assert stats.eviction.regret_tokens == stats.eviction.regret * each


def test_foreign_type_of_the_counted_reads_fails_no_read(clean_server: TestServer, tmp_path: Path) -> None:
    with opened(clean_server, tmp_path) as store, clean_server.client() as raw:
        load(store, ["a"])
        store.archive_now()
        store.demote("a", to="cold")
        raw.set(store.space.keys.shards[0].hits, "foreign")
        assert store.get("a") is not None
        assert store.where("a").tier == "warm"  # type: ignore[union-attr]
