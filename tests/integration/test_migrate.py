"""Namespaces of layout 1: an embedded one is migrated when it is opened, a shared one by `distier migrate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import Store, connect
from distier.cli import run
from distier.embedded import Home, stop_server
from distier.errors import Invalid
from tests.servers import Reaper, TestServer, short_directory


@pytest.fixture
def home(reaper: Reaper) -> Iterator[Path]:
    with short_directory() as path:
        reaper.watch(path / "home")
        yield path / "home"
        stop_server(Home(path / "home"))


def back_to_layout_1(store: Store) -> None:
    shard = store.space.keys.shards[0]
    for command in (
        ("DEL", shard.ids, shard.chunk("")),
        ("HDEL", shard.module("a"), "moved"),
        ("HSET", shard.epoch, "layout", "1"),
    ):
        store._driver.redis.exchange(shard, [command], 5.0)


def index(store: Store) -> list[bytes]:
    shard = store.space.keys.shards[0]
    found: list[bytes] = store._driver.redis.exchange(shard, [("ZRANGE", shard.chunk(""), 0, -1)], 5.0)[0]
    return found


def test_embedded_namespace_is_migrated_when_it_is_opened(home: Path) -> None:
    with connect(home, counter="estimate") as store:
        store.put("a", "text of a")
        store.put("b", "text of b")
        back_to_layout_1(store)
    with connect(home, counter="estimate") as store:
        assert store.get("a").text == "text of a"  # type: ignore[union-attr]
        assert index(store) == [b"a", b"b"]
        store.put("c", "text of c")
        assert index(store) == [b"a", b"b", b"c"]


def test_shared_namespace_is_migrated_by_the_command(
    server: TestServer,
    redis_url: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings: dict[str, Any] = {
        "redis__url": redis_url, "namespace": "t", "counter": "estimate", "near__enabled": False,
        "storage_tiers__cold__directory": tmp_path / "cold",
    }  # fmt: skip
    with connect({}, **settings) as store:
        store.put("a", "text of a")
        back_to_layout_1(store)
    with pytest.raises(Invalid, match=r"has key layout 1, .* run `distier migrate`"):
        connect({}, **settings)
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))
    assert run(["--url", redis_url, "-n", "t", "migrate"]) == 0
    assert "namespace 't' has key layout 2; 1 record migrated" in capfd.readouterr().out
    assert run(["--url", redis_url, "-n", "t", "migrate"]) == 0
    assert "0 records migrated" in capfd.readouterr().out
    with connect({}, **settings) as store:
        assert store.get("a").text == "text of a"  # type: ignore[union-attr]
        assert index(store) == [b"a"]
