"""`distier sql`: the manifest as tables."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distier.cli import run as cli
from distier.plans.fleet.packing import pack_all
from distier.plans.fleet.sweep import sweep
from tests.integration.test_archive_cli import NOWHERE
from tests.integration.test_manifest import run
from tests.integration.world import Open

pytest.importorskip("duckdb", reason="duckdb is not installed: pip install 'distier[analytics]'")
Ask = Callable[..., str]


@pytest.fixture
def ask(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run `distier sql` with a Redis that does not exist; returns what it writes to stdout, or stderr where it fails."""
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))

    def call(*words: str, code: int = 0) -> str:
        assert cli([*NOWHERE, *words]) == code
        read = capfd.readouterr()
        return read.err if code else read.out

    return call


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("listed", ["manifest", "objects"])
def test_versions_and_modules_are_tables(open_store: Open, ask: Ask, listed: str) -> None:
    store = open_store(storage_tiers__cold__keep_versions=5)
    for i in range(3):
        store.put("skills/pdf", f"# {i}\n" * 9, keywords=["pdf", "ü"], meta={"n": i}, durability="archived")
    for id in ("a", "gone", "weird\nid"):
        store.put(id, "some text", durability="archived")
    store.delete("gone", durability="archived")
    assert run(store, lambda space: pack_all(space, min_age_ms=-(10**15), everything=True)).members == 6
    store.put("a", "another text, which is an object", durability="archived")
    if listed == "manifest":
        run(store, sweep)
    found = rows(ask("--json", "sql", "select * from modules order by id"))
    assert [row["id"] for row in found] == ["a", "skills/pdf", "weird\nid"]
    assert (found[1]["keywords"], json.loads(found[1]["meta"])) == (["pdf", "ü"], {"n": 2})
    assert found[1]["pack"] and found[0]["pack"] is None
    module = store.get("skills/pdf")
    assert module is not None
    assert (found[1]["tokens"], found[1]["bytes"], found[1]["sha256"]) == (
        module.tokens,
        len(module.content),
        module.sha256,
    )
    assert found[1]["updated"].startswith("20")
    counted = rows(
        ask("--json", "sql", "select id, count(*) n, bool_or(deleted) d from versions group by id order by id")
    )
    assert [(row["id"], row["n"], row["d"]) for row in counted] == [
        ("a", 2, False), ("gone", 2, True), ("skills/pdf", 3, False), ("weird\nid", 1, False),
    ]  # fmt: skip


def test_results_are_a_table_or_comma_separated(open_store: Open, ask: Ask, tmp_path: Path) -> None:
    open_store().put("a,b", "text", keywords=["x", "y"], durability="archived")
    text = ask("sql", "select id, tokens, keywords from modules")
    assert text.split() == ["id", "tokens", "keywords", "─" * len(text.splitlines()[1]), "a,b", "1", "x,", "y"]
    table = list(csv.reader(io.StringIO(ask("sql", "--csv", "select id, bytes from modules"))))
    assert table == [["id", "bytes"], ["a,b", "4"]]
    described = ask("sql")
    assert "archived_bytes" in described and "TIMESTAMP" in described
    ask("sql", f"copy modules to '{tmp_path / 'm.parquet'}'")
    assert (tmp_path / "m.parquet").read_bytes()[:4] == b"PAR1"


def test_empty_namespace_has_empty_tables(open_store: Open, ask: Ask) -> None:
    open_store()
    assert ask("--json", "sql", "select count(*) n from versions") == '{"n": 0}\n'


def test_errors_say_what_to_do(open_store: Open, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store()
    assert "an example: select id" in ask("sql", "select nothing from modules", code=9)
    assert "--csv cannot be combined" in ask("--json", "sql", "--csv", "select 1", code=2)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "pip install 'distier[analytics]'" in ask("sql", "select 1", code=9)
