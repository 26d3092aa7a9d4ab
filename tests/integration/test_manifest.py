"""The manifest of the archive: what writes it, what it saves, and that nothing depends on it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distier import Item, Store
from distier.cli import run as cli
from distier.domain import manifest as names
from distier.domain.archived import parse_key
from distier.domain.manifest import Row
from distier.effects import Plan
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.leases import sweep_in_turn
from distier.plans.fleet.sweep import sweep, sweep_listed
from distier.plans.recovery import manifest as manifest_plans
from distier.plans.recovery.manifest import Manifest, compact, open_manifest
from distier.plans.recovery.rebuild import rebuild
from distier.plans.recovery.rescue import rescue
from distier.stores.archive import Archive
from tests.integration.test_rescue import fill, lose, same, verified
from tests.integration.world import Open
from tests.servers import TestServer, poll


class Counting:
    """An archive that notes its requests: the verb, and the key or prefix."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.requests: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.archive, name)
        if name not in ("get", "put", "list", "delete"):
            return method

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            self.requests.append((name, first if isinstance(first, str) else ",".join(first)))
            return method(first, *args, **kwargs)

        return call

    def count(self, verb: str, part: str = "") -> int:
        return sum(v == verb and part in what for v, what in self.requests)


def counting(store: Store) -> Counting:
    counted = Counting(store._driver.archive)
    store._driver.archive = counted
    return counted


def run(store: Store, plan: Callable[[Namespace], Plan[Any]]) -> Any:
    return store.run(plan(store.space), deadline_s=60)


def rows(store: Store) -> list[Row]:
    found: Manifest = run(store, open_manifest)
    assert not found.damaged
    return [row for group in found.groups() for row in group]


class Busy(Counting):
    """An archive whose compactors are so quick that a file is gone after each of the first `times` listings."""

    def __init__(self, archive: Archive, tmp_path: Path, times: int) -> None:
        super().__init__(archive)
        self.tmp_path, self.times = tmp_path, times

    def list(self, prefix: str, *args: Any, **kwargs: Any) -> Any:
        self.requests.append(("list", prefix))
        listed = self.archive.list(prefix, *args, **kwargs)
        if self.times and "/manifest/" in prefix:
            self.times -= 1
            newest = max(files(self.tmp_path), key=lambda path: path.stat().st_mtime_ns)
            newest.rename(newest.with_name(f"run-{self.times:022}.0-0.jsonl.gz")).touch()
        return listed


def files(tmp_path: Path, kind: str = "") -> list[Path]:
    return sorted((tmp_path / "cold/t/manifest").glob(f"*/{kind}*.gz"))


def objects(tmp_path: Path) -> set[str]:
    found = (p.relative_to(tmp_path / "cold").as_posix() for p in (tmp_path / "cold/t/modules").rglob("@*"))
    return {key for key in found if (o := parse_key(key)) and o.kind != "meta"}


def assert_lists_all(store: Store, tmp_path: Path) -> None:
    assert {"t/modules/" + row.key for row in rows(store)} == objects(tmp_path)


def test_a_batch_writes_one_segment_and_a_durable_put_one_row(open_store: Open, tmp_path: Path):
    store = open_store()
    archive = counting(store)
    store.put_many([Item(f"m/{i}", f"text {i}") for i in range(40)])
    assert store.archive_now() == 40
    assert archive.count("put", "/manifest/") == len(files(tmp_path, "seg")) == 1
    store.put("d", "durable", durability="archived", keywords=["k", "ü"], meta={"a": [1, "ü"]})
    store.delete("m/1", durability="archived")
    assert len(files(tmp_path, "row")) == 2
    assert_lists_all(store, tmp_path)


def test_rows_are_json_lines_that_name_the_object(open_store: Open, tmp_path: Path):
    store = open_store()
    landed = store.put("skills/pdf.md", "# PDF", durability="archived", keywords=["k", "ü"], meta={"a": [1, "ü"]})
    (line,) = gzip.decompress(files(tmp_path)[0].read_bytes()).splitlines()
    row = json.loads(line)
    assert (tmp_path / "cold/t/modules" / row["key"]).exists()
    assert row["id"] == "skills/pdf.md" and row["version"] == str(landed.version)
    assert row["keywords"] == ["k", "ü"] and json.loads(row["meta"]) == {"a": [1, "ü"]}
    assert (row["bytes"], row["type"]) == (5, "text/markdown")
    assert row["archived_bytes"] == (tmp_path / "cold/t/modules" / row["key"]).stat().st_size


def test_without_the_setting_nothing_is_listed(open_store: Open, server: TestServer, tmp_path: Path):
    store = open_store(storage_tiers__cold__manifest=False)
    before = fill(store, 5)
    run(store, sweep)
    assert not (tmp_path / "cold/t/manifest").exists()
    lose(server)
    assert run(store, rescue).adopted == len(before)
    assert not (tmp_path / "cold/t/manifest").exists()


def test_rescue_reads_no_object_of_a_listed_version(open_store: Open, server: TestServer):
    store = open_store()
    before = fill(store)
    lose(server)
    archive = counting(store)
    assert run(store, rescue).adopted == len(before)
    assert archive.count("get", "/modules/") == 0
    assert verified(store)
    for id, module in before.items():
        assert same(module, store.get(id)), id


@pytest.mark.parametrize("damage", ["absent", "torn", "no gzip", "no json", "foreign"])
def test_rescue_is_complete_whatever_the_manifest_is(open_store: Open, server: TestServer, tmp_path: Path, damage: str):
    store = open_store()
    before = fill(store, 12)
    for file in files(tmp_path):
        data = file.read_bytes()
        match damage:
            case "absent":
                file.unlink()
            case "torn":
                file.write_bytes(data[: len(data) // 2])
            case "no gzip":
                file.write_bytes(b"\0" * len(data))
            case "no json":
                file.write_bytes(gzip.compress(b'{"key": "m/1/@", "id": 3}\n'))
            case "foreign":
                file.write_bytes(gzip.compress(gzip.decompress(data).replace(b'"id":"m/1"', b'"id":"m/2"')))
    lose(server)
    assert run(store, rescue).adopted == len(before)
    assert verified(store)
    for id, module in before.items():
        assert same(module, store.get(id)), id


def test_rescue_finds_objects_of_writers_without_a_manifest_and_lists_them(
    open_store: Open, server: TestServer, tmp_path: Path
):
    store, old = open_store(), open_store(storage_tiers__cold__manifest=False)
    store.put("a", "listed", durability="archived")
    old.put("b", "not listed", durability="archived", keywords=["k"], meta={"a": 1})
    old.put("a", "newer, not listed", durability="archived")
    lose(server)
    archive = counting(store)
    run(store, rescue)
    assert archive.count("get", "/modules/") == 2
    found = store.get("a"), store.get("b")
    assert found[0] and found[1] and (found[0].text, found[1].text) == ("newer, not listed", "not listed")
    assert_lists_all(store, tmp_path)
    lose(server)
    archive.requests.clear()
    run(store, rescue)
    assert archive.count("get", "/modules/") == 0
    assert (again := store.get("b")) and (again.keywords, again.meta) == (("k",), {"a": 1})


def test_a_row_whose_object_is_gone_is_not_adopted(open_store: Open, server: TestServer, tmp_path: Path):
    store = open_store()
    store.put("a", "1", durability="archived")
    store.put("b", "1", durability="archived")
    shutil.rmtree(tmp_path / "cold/t/modules/a")
    lose(server)
    assert run(store, rescue).adopted == 1
    assert store.get("a") is None


def overwrite(store: Store, n: int = 20) -> None:
    for text in ("one", "two"):
        store.put_many([Item(f"m/{i}", f"{text} {i}") for i in range(n)])
        store.archive_now()


def test_sweep_of_the_manifest_deletes_what_is_dominated_without_a_listing(open_store: Open, tmp_path: Path):
    store = open_store()
    overwrite(store)
    archive = counting(store)
    assert run(store, sweep_listed) == 20
    assert archive.count("list", "/modules") == archive.count("get", "/modules/") == 0
    assert len(objects(tmp_path)) == 20 and not list((tmp_path / "cold").rglob("*one*"))
    assert len({p.parent for p in (tmp_path / "cold").rglob("*.meta.json")}) == 20  # the other sidecars went too
    assert len(list((tmp_path / "cold").rglob("*.meta.json"))) == 20
    assert_lists_all(store, tmp_path)


def test_sweep_with_nothing_to_do_reads_one_listing(open_store: Open):
    store = open_store()
    overwrite(store)
    run(store, sweep_listed)
    archive = counting(store)
    assert run(store, sweep_listed) == 0
    assert all(verb == "list" for verb, _ in archive.requests)
    assert len(archive.requests) <= 4  # the manifest and the epochs, until each ends


def test_sweep_keeps_what_a_record_depends_on(open_store: Open, server: TestServer, tmp_path: Path):
    """A greater object alone dominates nothing: its write may never be applied."""
    store = open_store()
    store.put("a", "applied", durability="archived")
    with server.client() as raw:
        kept = raw.dump("distier:{t}:module:a")
    store.put("a", "not applied", durability="archived")
    with server.client() as raw:
        raw.restore("distier:{t}:module:a", 0, kept, replace=True)
    assert run(store, sweep_listed) == 0
    assert len(objects(tmp_path)) == 2 and (module := store.get("a")) and module.text == "applied"


def test_sweep_deletes_nothing_below_a_version_that_is_not_listed(open_store: Open, tmp_path: Path):
    """The archive may have lost it: then the older ones are all that is left."""
    store, old = open_store(), open_store(storage_tiers__cold__manifest=False)
    for i in range(2):
        store.put("a", f"listed {i}", durability="archived")
    old.put("a", "not listed", durability="archived")
    assert run(store, sweep_listed) == 0 and len(objects(tmp_path)) == 3
    assert run(store, sweep) == 4 and len(objects(tmp_path)) == 1  # a LIST shows it


def test_sweep_deletes_nothing_for_rows_that_name_another_module(open_store: Open, tmp_path: Path):
    store = open_store()
    store.put("b", "kept", durability="archived")
    for i in range(2):
        store.put("a", f"{i}", durability="archived")  # later versions than that of b
    for file in files(tmp_path):
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b'"id":"b"', b'"id":"a"')))
    (only,) = [row for row in rows(store) if row.key.startswith("b/")]
    doubled = only._replace(key=only.key.replace("/@0", "/@1"))
    files(tmp_path)[0].write_bytes(names.pack_rows([only, doubled]))
    run(store, sweep_listed)
    assert any(key.startswith("t/modules/b/") for key in objects(tmp_path))
    assert (module := store.get("b")) and module.text == "kept"


def test_old_tombstone_is_buried_once_nothing_else_is_left(open_store: Open, server: TestServer, tmp_path: Path):
    store = open_store(worker__tombstone_grace="1s")
    store.put("a", "text", durability="archived")
    store.delete("a", durability="archived")
    assert run(store, sweep_listed) == 1

    def buried() -> bool:
        with server.client() as raw:
            raw.delete("distier:{t}:module:a")  # as its TTL does
        run(store, sweep_listed)
        return not objects(tmp_path)

    poll(buried, what="the tombstone goes")
    run(store, sweep_listed)
    assert rows(store) == []


def test_compaction_merges_small_files_and_drops_nothing(open_store: Open, tmp_path: Path):
    store = open_store()
    for i in range(40):
        store.put(f"m/{i % 30}", f"text {i}", durability="archived")
    before = rows(store)
    shard = store.space.keys.shards[0]
    assert run(store, lambda space: compact(space, shard)) == 40
    assert len(files(tmp_path)) == 1
    assert rows(store) == before and len(before) == 40
    assert run(store, lambda space: compact(space, shard)) == 0


def test_worker_compacts_when_enough_versions_came(open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifest_plans, "VERSIONS_A_LOOK", 8)
    store = open_store()
    shard, archive = store.space.keys.shards[0], counting(store)
    for i in range(40):
        store.put(f"m/{i}", f"text {i}", durability="archived")
    assert run(store, lambda space: manifest_plans.compact_if_due(space, shard)) == 40
    archive.requests.clear()
    assert run(store, lambda space: manifest_plans.compact_if_due(space, shard)) == 0
    assert archive.requests == []


def test_a_compactor_whose_input_was_merged_meanwhile_gives_up(open_store: Open, tmp_path: Path):
    """Otherwise it would list a version again that was swept."""
    store = open_store()
    for i in range(40):
        store.put(f"m/{i}", f"text {i}", durability="archived")
    shard, rival = store.space.keys.shards[0], open_store()
    archive = counting(store)
    merged: list[int] = []

    class Late(Counting):
        def __getattr__(self, name: str) -> Any:
            if name == "list" and archive.count("get") >= 40 and not merged:
                merged.append(rival.run(compact(rival.space, shard), deadline_s=60))
            return super().__getattr__(name)

    store._driver.archive = Late(archive)
    assert run(store, lambda space: compact(space, shard)) == 0
    assert merged == [40]
    assert len(files(tmp_path)) == 1


def test_reader_lists_again_when_a_compactor_was_quicker(open_store: Open):
    store, rival = open_store(), open_store()
    for i in range(40):
        store.put(f"m/{i}", f"text {i}", durability="archived")
    shard, done = store.space.keys.shards[0], list[int]()
    archive = store._driver.archive

    class Late:
        def __getattr__(self, name: str) -> Any:
            if name == "get" and not done:
                done.append(1)
                rival.run(compact(rival.space, shard), deadline_s=60)
            return getattr(archive, name)

    store._driver.archive = Late()
    assert len(rows(store)) == 40


def test_an_old_archive_gains_a_manifest_by_its_first_sweep(open_store: Open, tmp_path: Path):
    old = open_store(storage_tiers__cold__manifest=False)
    overwrite(old)
    old.put("a", "x", keywords=["k"], meta={"a": 1}, durability="archived")
    store = open_store()
    archive = counting(store)
    assert run(store, sweep_in_turn) == 40  # with their sidecars
    assert archive.count("list", "/modules") and archive.count("get", "/modules/") == 0  # the records describe them
    assert_lists_all(store, tmp_path)
    with_list = archive.count("list", "/modules")
    run(store, sweep_listed)
    assert archive.count("list", "/modules") == with_list


def test_rebuild_works_from_the_objects_alone(open_store: Open, server: TestServer, tmp_path: Path):
    store = open_store()
    before = fill(store, 10)
    want = rows(store)
    shutil.rmtree(tmp_path / "cold/t/manifest")
    lose(server)
    assert run(store, lambda space: rebuild(space, records=False)) == len(want)
    assert [row.key for row in rows(store)] == [row.key for row in want]
    archive = counting(store)
    assert run(store, rescue).adopted == len(before)
    assert archive.count("get", "/modules/") == 0
    for id, module in before.items():
        assert same(module, store.get(id)), id


def test_rows_move_to_their_shard_when_the_number_of_shards_changes(
    open_store: Open, server: TestServer, tmp_path: Path
):
    store = open_store()
    fill(store, 20)
    store.close()
    lose(server)
    wide = open_store(shards=3)
    run(wide, rescue)
    run(wide, sweep_listed)
    run(wide, sweep_listed)
    assert_lists_all(wide, tmp_path)
    for file in files(tmp_path):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            assert wide.space.shard(json.loads(line)["id"]).index == int(file.parent.name)


def test_a_large_run_has_several_parts(open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "PART_BYTES", 20_000)
    store = open_store()
    overwrite(store, 2000)
    run(store, sweep)
    assert len(files(tmp_path, "run")) > 1
    assert_lists_all(store, tmp_path)
    monkeypatch.undo()
    archive = counting(store)
    assert run(store, sweep_listed) == 0 and archive.count("get") == 0  # its parts are one run


def test_cli_rebuilds_the_manifest_without_redis(
    open_store: Open,
    server: TestServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    store = open_store(storage_tiers__cold__manifest=False)
    before = fill(store, 5)
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))
    nowhere = ["--url", "redis://127.0.0.1:9", "--namespace", "t"]
    assert cli(["manifest", "rebuild", *nowhere, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["versions"] == len(objects(tmp_path)) >= len(before)
    wide = open_store()
    assert_lists_all(wide, tmp_path)


def test_compactors_do_not_delay_a_reader(open_store: Open, tmp_path: Path) -> None:
    """It keeps what it has read. With eight listings at most, a worker on an overloaded machine once gave up."""
    store = open_store()
    for i in range(6):
        store.put(f"m{i}", f"text {i}", durability="archived")
    before = rows(store)
    busy = Busy(store._driver.archive, tmp_path, 20)
    store._driver.archive = busy
    assert rows(store) == before and len(before) == 6 and not busy.times
    assert busy.count("get", "/row-") == 6, "what is still there is read once"
