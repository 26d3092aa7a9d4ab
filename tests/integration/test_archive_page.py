"""`index.html` and README.txt in the archive: what they list, when they are written, and that a sweep needs neither."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from distier import Store, browse
from distier.cli import run as cli
from distier.errors import ConfigError
from distier.plans.fleet.leases import sweep_in_turn
from tests.integration.test_archive_cli import NOWHERE, Out, out, times
from tests.integration.test_manifest import counting, run
from tests.integration.world import Open

__all__ = ["out", "times"]
ODD = ["skills/über mut/SKILL.md", "a%2Fb.md", "con/.hidden", "</script><b>.md"]


def page(tmp_path: Path) -> Path:
    return tmp_path / "cold/t/index.html"


def listed(path: Path) -> dict[str, list[str]]:
    """Return the names of the objects of each module on a page, the newest version first."""
    packed = re.search(r'id="rows">([^<]*)<', path.read_text("utf-8"))
    assert packed
    lines = gzip.decompress(base64.b64decode(packed[1])).decode().splitlines()
    return {
        id: [f"{directory}/{version[0]}" for version in versions] for id, directory, versions in map(json.loads, lines)
    }


def age(tmp_path: Path, pattern: str, by_s: float) -> None:
    for path in (tmp_path / "cold/t").glob(pattern):
        os.utime(path, (time.time() - by_s,) * 2)


def sweep_again(store: Store) -> None:
    """Sweep as a worker does that finds no sweep lease."""
    store._driver.redis.exchange(store.space.keys.shards[0], [("DEL", store.space.keys.shards[0].sweep_lease)], 10.0)
    assert run(store, sweep_in_turn) is not None


def test_page_lists_every_version_with_its_object(open_store: Open, tmp_path: Path) -> None:
    store = open_store(storage_tiers__cold__keep_versions=3)
    for i in range(3):
        for id in ODD:
            store.put(id, f"{id} {i}", durability="archived")
    store.put("gone.md", "x", durability="archived")
    store.delete("gone.md", durability="archived")
    sweep_again(store)
    found = listed(page(tmp_path))
    assert found.keys() == {*ODD, "gone.md"}
    for id in ODD:
        objects = [tmp_path / "cold/t/modules" / name for name in found[id]]
        texts = [module.text for e in store.history(id) if (module := store.get(id, version=e.version))]
        assert texts == [f"{id} {i}" for i in (2, 1, 0)]
        assert all(path.exists() for path in objects)
        assert objects == sorted(objects, reverse=True)
    assert found["gone.md"][0].endswith(".deleted")
    assert "</script><b>" not in page(tmp_path).read_text("utf-8").replace("<script>\n", "")
    assert "xz -dc" in (tmp_path / "cold/README.txt").read_text("utf-8")


def test_page_is_written_again_only_after_a_change(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    store.put("a", "x", durability="archived")
    sweep_again(store)
    age(tmp_path, "manifest/*/*", 7200)
    age(tmp_path, "index.html", 3600)
    archive = counting(store)
    sweep_again(store)
    assert archive.count("put", "index.html") == 0
    before = archive.requests[:]
    store.put("b", "x", durability="archived")
    sweep_again(store)
    assert archive.count("put", "index.html") == 1 and len(before) < 20
    assert listed(page(tmp_path)).keys() == {"a", "b"}
    assert archive.count("put", "README.txt") == 0


def test_what_is_written_while_the_page_is_made_is_on_the_next(open_store: Open, tmp_path: Path) -> None:
    """The manifest's file is newer than what the page lists, and older than the page."""
    store = open_store()
    store.put("a", "x", durability="archived")
    sweep_again(store)
    store.put("late", "x", durability="archived")
    os.utime(page(tmp_path))
    sweep_again(store)
    assert "late" in listed(page(tmp_path))


@pytest.mark.parametrize("setting", ["index_page", "manifest"])
def test_page_can_be_switched_off(open_store: Open, tmp_path: Path, setting: str) -> None:
    store = open_store(**{f"storage_tiers__cold__{setting}": False})
    store.put("a", "x", durability="archived")
    sweep_again(store)
    assert not page(tmp_path).exists() and not (tmp_path / "cold/README.txt").exists()


def test_user_who_may_write_only_below_the_namespace_gets_a_page(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.put("a", "x", durability="archived")
    put = store._driver.archive.put

    def denied(key: str, data: bytes, **more: Any) -> None:
        if not key.startswith("t/"):
            raise ConfigError("AccessDenied")
        put(key, data, **more)

    monkeypatch.setattr(store._driver.archive, "put", denied)
    sweep_again(store)
    assert listed(page(tmp_path)).keys() == {"a"} and not (tmp_path / "cold/README.txt").exists()


def test_page_says_what_it_leaves_out(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Out
) -> None:
    monkeypatch.setattr(browse, "VERSIONS_MAX", 4)
    store = open_store()
    for i in range(6):
        store.put(f"m{i}", "x", durability="archived")
    result = json.loads(out("index", "--json"))
    assert (result["modules"], result["complete"]) == (4, False)
    assert "only the beginning" in page(tmp_path).read_text("utf-8")


@pytest.mark.usefixtures("times")
def test_command_writes_the_page_without_redis(tmp_path: Path, out: Out, capfd: pytest.CaptureFixture[str]) -> None:
    assert "6 versions of 4 modules" in out("index")
    assert page(tmp_path).exists()
    file = tmp_path / "copy.html"
    out("index", "-o", str(file))
    assert listed(file) == listed(page(tmp_path))
    assert cli(["archive", "index", "-o", str(tmp_path / "none/x.html"), *NOWHERE]) == 2
    assert "cannot write" in capfd.readouterr().err
