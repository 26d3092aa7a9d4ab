"""One level of the tree of ids, next to the same level made of all ids."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from distier import Item, Store, connect
from distier.plans.get.browse import Level, level
from tests.conftest import empty
from tests.servers import TestServer


def open_store(server: TestServer, tmp_path: Path, shards: int = 1) -> Store:
    return connect({"counter": "estimate"}, redis__url=server.url, namespace="l", shards=shards, near__enabled=False,
                   storage_tiers__cold__directory=tmp_path)  # fmt: skip


def expected(ids: list[str], prefix: str) -> list[str]:
    names = set()
    for id in ids:
        if id.startswith(prefix):
            first, slash, _ = id[len(prefix) :].partition("/")
            names.add(prefix + first + slash)
    return sorted(names, key=str.encode)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_level_is_that_of_all_ids(server: TestServer, shards: int, limit: int, tmp_path: Path) -> None:
    empty(server)
    chosen = random.Random(7)
    parts = ["a", "ab", "b", "é", "~", "-", "0", "z" * 40, ".x"]
    ids = sorted({"/".join(chosen.choices(parts, k=chosen.randint(1, 4))) for _ in range(400)})
    ids += [f"big/{i:04}" for i in range(300)] + [f"a/big/{i}/x" for i in range(50)]
    with open_store(server, tmp_path, shards=shards) as store:
        store.put_many([Item(id, "x", tokens=1) for id in ids])
        for prefix in ("", "a/", "a/ab/", "big/", "é/", "none/", "a/big/"):
            found: list[str] = []
            after: str | None = ""
            while after is not None:
                page: Level = store.run(level(store.space, prefix, after, limit))
                assert len(page.names) <= limit
                found, after = found + page.names, page.after
            assert found == expected(ids, prefix), prefix


def test_a_level_does_not_read_what_is_in_its_folders(server: TestServer, tmp_path: Path) -> None:
    empty(server)
    with (
        open_store(server, tmp_path) as store,
        server.client() as raw,
    ):
        store.put_many([Item(f"{folder}/{i:05}", "x", tokens=1) for folder in "abc" for i in range(2000)])
        raw.config_resetstat()
        assert store.run(level(store.space, "", "", 50)).names == ["a/", "b/", "c/"]
        calls = sum(row["calls"] for name, row in raw.info("commandstats").items() if name != "cmdstat_info")
    assert calls < 60
