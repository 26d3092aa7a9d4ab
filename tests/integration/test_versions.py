"""Older versions: what the archive keeps of them, and what `history`, `get(version=)` and `rollback` do with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distier import Conflict, Invalid, NotFound, Store, connect_async, load_config
from distier.cli import run as cli
from distier.plans.fleet.sweep import sweep, sweep_listed
from distier.plans.recovery.rescue import rescue
from tests.integration.test_manifest import objects, run
from tests.integration.test_rescue import lose
from tests.integration.world import Open
from tests.servers import TestServer

Sweep = Callable[[Any], Any]
SWEEPS = pytest.mark.parametrize("way", [sweep, sweep_listed], ids=["listing", "manifest"])


def write(store: Store, id: str = "a", n: int = 5) -> list[str]:
    """Archive `n` versions; returns them, the oldest first."""
    return [
        str(store.put(id, f"text\n{i}\n", keywords=[f"k{i}"], meta={"n": i}, durability="archived").version)
        for i in range(n)
    ]


@SWEEPS
@pytest.mark.parametrize("keep", [1, 3, 9])
def test_sweep_keeps_the_newest_versions(open_store: Open, tmp_path: Path, keep: int, way: Sweep):
    store = open_store(storage_tiers__cold__keep_versions=keep)
    versions = write(store)
    run(store, way)
    run(store, way)
    assert [str(entry.version) for entry in store.history("a")] == versions[::-1][:keep]
    assert len(objects(tmp_path)) == min(keep, 5)
    for i, version in enumerate(versions):
        found = store.get("a", version=version)
        assert (found and found.text) == (f"text\n{i}\n" if i >= 5 - keep else None)


def test_old_version_is_as_it_was_put(open_store: Open):
    store = open_store(storage_tiers__cold__keep_versions=9)
    landed = store.put("a", b"\0bytes", content_type="application/x-own", keywords=["k", "ü"], meta={"ü": [1]})
    before = store.get("a")
    store.archive_now()
    store.put("a", "new", durability="archived")
    found = store.get("a", version=landed.version)
    assert before and found
    for name in (
        "id",
        "content",
        "content_type",
        "tokens",
        "counter",
        "keywords",
        "meta",
        "sha256",
        "created_ms",
        "updated_ms",
    ):
        assert getattr(found, name) == getattr(before, name), name
    assert found.version[:2] == landed.version[:2] and found.tier == "cold"
    assert store.get("a", version=str(store.history("a")[0].version)) == store.get("a")


def test_history_shows_what_is_not_archived_yet_and_deletions(open_store: Open):
    store = open_store(storage_tiers__cold__keep_versions=9)
    store.put("a", "one", durability="archived")
    store.delete("a", durability="archived")
    store.put("a", "three")
    found = store.history("a")
    assert [(e.current, e.archived, e.deleted) for e in found] == [
        (True, False, False),
        (False, True, True),
        (False, True, False),
    ]
    assert [e.tokens > 0 for e in found] == [True, False, True]
    assert store.history("a", limit=1) == found[:1]
    assert store.history("nothing") == [] and store.get("nothing", version="1-1") is None


def test_version_that_was_never_applied_is_not_in_the_history(open_store: Open, server: TestServer):
    store = open_store(storage_tiers__cold__keep_versions=9)
    store.put("a", "applied", durability="archived")
    with server.client() as raw:
        kept = raw.dump("distier:{t}:module:a")
    refused = store.put("a", "not applied", durability="archived").version
    with server.client() as raw:
        raw.restore("distier:{t}:module:a", 0, kept, replace=True)
    assert len(store.history("a")) == 1 and store.get("a", version=refused) is None


def test_rollback_puts_the_old_content_as_a_new_version(open_store: Open):
    store = open_store(storage_tiers__cold__keep_versions=9)
    versions = write(store)
    landed = store.rollback("a", versions[1])
    found = store.get("a")
    assert found and (found.text, found.keywords, found.meta) == ("text\n1\n", ("k1",), {"n": 1})
    assert found.version == landed.version > store.history("a")[1].version
    with pytest.raises(Conflict):
        store.rollback("a", versions[0], if_version=versions[1])
    with pytest.raises(NotFound, match="keep_versions"):
        store.rollback("a", "1-999")
    with pytest.raises(Invalid):
        store.rollback("a", "yesterday")
    store.delete("a", durability="archived")
    store.rollback("a", versions[2], durability="archived")
    assert (again := store.get("a")) and again.text == "text\n2\n"


@SWEEPS
def test_versions_of_a_deleted_module_go_with_its_tombstone(
    open_store: Open, server: TestServer, tmp_path: Path, way: Sweep
):
    store = open_store(storage_tiers__cold__keep_versions=3)
    write(store)
    store.delete("a", durability="archived")
    run(store, way)
    assert len(objects(tmp_path)) == 3  # the tombstone, and two versions before it
    again = open_store(storage_tiers__cold__keep_versions=3, worker__tombstone_grace="1s")
    time.sleep(1.1)
    run(again, way)
    assert len(objects(tmp_path)) == 1
    with server.client() as raw:
        raw.delete("distier:{t}:module:a")  # as its TTL does
    run(again, way)
    assert objects(tmp_path) == set()


def test_rescue_takes_the_newest_of_the_kept_versions(open_store: Open, server: TestServer):
    store = open_store(storage_tiers__cold__keep_versions=9)
    versions = write(store)
    lose(server)
    assert run(store, rescue).adopted == 1
    assert (found := store.get("a")) and found.text == "text\n4\n"
    assert [str(e.version) for e in store.history("a")] == versions[::-1]
    assert (old := store.get("a", version=versions[0])) and old.text == "text\n0\n"


async def test_asyncio_has_the_same_calls(open_store: Open, redis_url: str, tmp_path: Path):
    store = open_store(storage_tiers__cold__keep_versions=9)
    versions = write(store)
    settings: dict[str, Any] = {
        "redis__url": redis_url, "namespace": "t", "storage_tiers__cold__directory": tmp_path / "cold", "counter": "estimate",
    }  # fmt: skip
    async with await connect_async(load_config(None, **settings)) as other:
        assert await other.history("a") == store.history("a")
        assert await other.get("a", version=versions[1]) == store.get("a", version=versions[1])
        await other.rollback("a", versions[0])
        assert (found := await other.get("a")) and found.text == "text\n0\n"


def test_cli_shows_compares_and_goes_back(
    open_store: Open,
    redis_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    store = open_store(storage_tiers__cold__keep_versions=9)
    versions = write(store, n=3)
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))
    monkeypatch.setenv("DISTIER_COUNTER", "estimate")
    here = ["--url", redis_url, "--namespace", "t"]

    def out(*words: str, code: int = 0) -> str:
        assert cli([*words, *here]) == code
        return capsys.readouterr().out

    lines = out("history", "a").splitlines()
    assert [line.split()[0] for line in lines] == versions[::-1] and "current" in lines[0]
    rows = [json.loads(line) for line in out("history", "a", "--json").splitlines()]
    assert [row["version"] for row in rows] == versions[::-1] and rows[0]["current"] is True
    text = out("diff", "a", code=1)
    assert f"--- a@{versions[1]}" in text and "-1\n+2" in text
    assert out("diff", "a", versions[2], versions[2]) == ""
    assert json.loads(out("rollback", "a", versions[0], "--json"))["id"] == "a"
    assert "+0" in out("diff", "a", versions[2], code=1)
    assert cli(["history", "none", *here]) == 3 and cli(["rollback", "a", "9-9", *here]) == 3
