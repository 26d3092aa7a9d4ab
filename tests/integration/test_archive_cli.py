"""`distier archive ls|tree|du|cat|history|restore` read the archive, and need no Redis."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from distier import Store
from distier.cli import run as cli
from distier.plans.fleet.sweep import sweep
from tests.integration.test_manifest import counting, files, run
from tests.integration.test_rescue import fill
from tests.integration.world import Open

NOWHERE = ["--url", "redis://127.0.0.1:9", "--namespace", "t"]
Out = Callable[..., str]


@pytest.fixture
def out(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Out:
    """Run `distier archive` with a Redis that does not exist; returns what it writes to stdout."""
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))
    monkeypatch.setenv("DISTIER_COUNTER", "estimate")

    def call(*words: str, code: int = 0) -> str:
        assert cli(["archive", *words, *NOWHERE]) == code, capfd.readouterr()
        return capfd.readouterr().out

    return call


@pytest.fixture
def times(open_store: Open) -> list[str]:
    """Modules with a history: three moments, before and between the changes."""
    store, moments = open_store(storage_tiers__cold__keep_versions=9), list[str]()

    def moment() -> None:
        time.sleep(0.02)
        moments.append(datetime.now().isoformat())
        time.sleep(0.02)

    moment()
    for id in ("a/one.md", "a/two.md", "b.md"):
        store.put(id, f"{id} first", durability="archived")
    moment()
    store.put("a/one.md", "changed", durability="archived")
    store.delete("a/two.md", durability="archived")
    store.put("c.md", "new", durability="archived")
    moment()
    return moments


@pytest.fixture(params=["manifest", "without", "damaged"])
def listing(request: pytest.FixtureRequest, times: list[str], open_store: Open, tmp_path: Path) -> str:
    """How the archive is listed: by its manifest, or by its objects."""
    store: Store = open_store(storage_tiers__cold__keep_versions=9)
    run(store, sweep)
    if request.param == "without":
        shutil.rmtree(tmp_path / "cold/t/manifest")
    elif request.param == "damaged":
        files(tmp_path)[0].write_bytes(b"damaged")
    return str(request.param)


def test_ls_shows_what_exists_now_and_then(out: Out, times: list[str], listing: str):
    assert out("ls").split() == ["a/one.md", "b.md", "c.md"]
    assert out("ls", "a/").split() == ["a/one.md"]
    assert out("ls", "--at", times[0]) == ""
    assert out("ls", "--at", times[1]).split() == ["a/one.md", "a/two.md", "b.md"]
    assert out("ls", "--at", times[2]).split() == ["a/one.md", "b.md", "c.md"]
    rows = [json.loads(line) for line in out("ls", "--json").splitlines()]
    assert [row["id"] for row in rows] == ["a/one.md", "b.md", "c.md"]
    assert (rows[1]["size_bytes"] == 10) is (listing == "manifest") and rows[1]["archived_bytes"] > 10


def test_restore_writes_the_files_of_a_moment(out: Out, times: list[str], listing: str, tmp_path: Path):
    def restored(*words: str) -> dict[str, str]:
        to = tmp_path / "out" / str(len(words))
        out("restore", str(to), *words)
        return {p.relative_to(to).as_posix(): p.read_text() for p in sorted(to.rglob("*")) if p.is_file()}

    assert restored() == {"a/one.md": "changed", "b.md": "b.md first", "c.md": "new"}
    first = {"a/one.md": "a/one.md first", "a/two.md": "a/two.md first", "b.md": "b.md first"}
    assert restored("--at", times[1]) == first
    assert restored("a/", "--at", times[1]) == {id: text for id, text in first.items() if id.startswith("a/")}


def test_restore_names_what_it_could_not_write(out: Out, open_store: Open, tmp_path: Path):
    store = open_store()
    store.put("a", "file", durability="archived")
    store.put("a/b", "below it", durability="archived")
    out("restore", str(tmp_path / "out"), code=10)
    assert (tmp_path / "out/a").exists()


def test_cat_and_history_read_one_module(out: Out, times: list[str]):
    versions = [line.split()[0] for line in out("history", "a/one.md").splitlines()]
    assert len(versions) == 2 and out("cat", "a/one.md") == "changed"
    assert out("cat", "a/one.md", "--version", versions[1]) == "a/one.md first"
    assert out("cat", "a/one.md", "--at", times[1]) == "a/one.md first"
    rows = [json.loads(line) for line in out("history", "a/two.md", "--json").splitlines()]
    assert [row["deleted"] for row in rows] == [True, False] and not rows[0]["current"]
    out("cat", "a/two.md", code=3)
    out("cat", "a/one.md", "--at", times[0], code=3)
    out("cat", "nothing", code=3)
    out("history", "nothing", code=3)
    out("ls", "--at", "yesterday", code=2)


def test_tree_and_du_show_sizes(out: Out, times: list[str]):
    lines = out("tree").splitlines()
    assert [line.split("  ")[0] or line.strip().split("  ")[0] for line in lines] == ["a/", "one.md", "b.md", "c.md"]
    rows = [json.loads(line) for line in out("du", "--json").splitlines()]
    assert {row["prefix"]: row["modules"] for row in rows} == {"a/": 1, "b.md": 1, "c.md": 1}
    assert out("du").splitlines()[-1].endswith("3 modules  total")


def test_ls_of_the_manifest_lists_no_objects(open_store: Open):
    from distier.plans.get.archive import list_archive

    store = open_store()
    before = fill(store)
    run(store, sweep)
    archive, found = counting(store), list[Any]()
    n = store.run(list_archive(store.space), on_progress=found.extend)
    assert n == len(before) and {module.id for module in found} == set(before)
    assert archive.count("list", "/modules") == archive.count("get", "/modules") == 0
