"""Packs: what moves into them, that everything is read from them, and what replaces and deletes them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distier import Item, Store
from distier.cli import run as cli
from distier.config.cold import ColdConfig
from distier.domain.packs import Pack, parse_pack, read_members
from distier.errors import ArchiveUnavailable, Corrupt
from distier.plans.fleet import packing
from distier.plans.fleet.packing import Packed, pack_all, pack_if_due
from distier.plans.fleet.sweep import sweep, sweep_listed
from distier.plans.recovery import packs as packs_plans
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.fsck.findings import Finding
from distier.plans.recovery.rebuild import rebuild
from distier.plans.recovery.rescue import rescue
from distier.worker import Worker
from tests.integration.test_archive_cli import NOWHERE
from tests.integration.test_manifest import counting, objects, rows, run
from tests.integration.test_rescue import lose
from tests.integration.world import Open
from tests.servers import TestServer

ODD = [
    "a",
    "a/b",
    "ü/é",
    "@odd/@",
    "x" * 230,
    f"{'d' * 90}/{'e' * 90}/f.md",
    "skills/pdf/SKILL.md",
    "skills/pdf/forms.md",
]
CONTENTS = {
    id: f"# {id}\nwhat an agent reads about it\n".encode() for id in [*ODD, *(f"many/{i:02}.md" for i in range(30))]
}


def fill(store: Store, contents: dict[str, bytes] = CONTENTS) -> None:
    store.put_many([Item(id, content, keywords=["k", "ü"], meta={"n": 1}) for id, content in contents.items()])
    store.archive_now()
    for id in contents:
        store.demote(id, to="cold")


def pack(store: Store, *, everything: bool = True) -> Packed:
    done: Packed = run(store, lambda space: pack_all(space, min_age_ms=-(10**15), everything=everything))
    assert not done.skipped
    return done


def files(tmp_path: Path, pattern: str) -> list[Path]:
    return sorted((tmp_path / "cold/t/packs").rglob(pattern))


def members(tmp_path: Path) -> dict[str, bytes]:
    return {name: content for path in files(tmp_path, "*.tar.xz") for name, content in read_members(path.read_bytes())}


def forget_packs(store: Store) -> None:
    store.space.process.packs._values = {}
    store.space.process.indexes._values = {}


def assert_reads(store: Store, contents: dict[str, bytes] = CONTENTS) -> None:
    for id, content in contents.items():
        module = store.get(id)
        assert module is not None and module.content == content, id
        assert module.keywords == ("k", "ü") and module.meta == {"n": 1}
        store.demote(id, to="cold")


def test_everything_moves_into_a_pack_and_is_read_from_it(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    before = sum(path.stat().st_size for path in (tmp_path / "cold/t/modules").rglob("@*.xz"))
    done = pack(store)
    assert (done.members, done.objects, done.packs) == (len(CONTENTS), len(CONTENTS), 1)
    assert objects(tmp_path) == set()
    assert not list((tmp_path / "cold/t/modules").rglob("@*"))  # sidecars go too
    assert 3 * done.packed_bytes < before
    archive = counting(store)
    assert_reads(store)
    assert archive.count("get") == 1, "one GET for all members"
    assert archive.count("list") == 0
    placement = store.where("a")
    assert placement is not None and placement.archived_key == f"t/packs/{files(tmp_path, '*.tar.xz')[0].name}"
    assert run(store, rebuild) == len(CONTENTS)
    assert {row.id for row in rows(store)} == CONTENTS.keys()


def test_tar_and_xz_open_a_pack(open_store: Open, tmp_path: Path) -> None:
    if shutil.which("tar") is None or shutil.which("xz") is None:
        pytest.skip("there is no tar, or no xz")
    store = open_store()
    fill(store)
    pack(store)
    (path,) = files(tmp_path, "*.tar.xz")
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "xJf", path, "-C", out], check=True, timeout=60)
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("@*") if p.is_file()}
    assert found == members(tmp_path)
    assert sorted(found.values()) == sorted(CONTENTS.values())


def test_after_a_loss_a_rescue_and_single_reads_find_what_is_packed(
    open_store: Open, server: TestServer, tmp_path: Path
) -> None:
    store = open_store()
    fill(store)
    pack(store)
    store.put("single", b"not packed", keywords=["k", "ü"], meta={"n": 1}, durability="archived")
    contents = {**CONTENTS, "single": b"not packed"}
    lose(server)
    fresh = open_store()
    assert_reads(fresh, contents)  # each is adopted by a listing
    assert fresh.get("many/99.md") is None
    lose(server)
    again = open_store()
    report = run(again, rescue)
    assert (report.modules, report.adopted, report.unreadable) == (len(contents), len(contents), {})
    archive = counting(again)
    assert_reads(again, contents)
    assert archive.count("list") == 0, "the records name their packs"
    (bytes_of_a,) = (row.archived_bytes for row in rows(again) if row.id == "a" and row.pack)
    assert again.where("a").archived_bytes == bytes_of_a  # type: ignore[union-attr]


def test_new_versions_and_deleted_modules_leave_their_packs(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    pack(store)
    store.put("a", b"a new a", durability="archived")
    store.delete("many/07.md", durability="archived")
    run(store, sweep)
    assert CONTENTS["many/07.md"] in members(tmp_path).values()
    done = pack(store)
    assert (done.replaced, done.members) == (1, len(CONTENTS) - 1)
    assert sorted(members(tmp_path).values()) == sorted({**CONTENTS, "a": b"a new a", "many/07.md": b""}.values())[1:]
    assert len(files(tmp_path, "*.tar.xz")) == len(files(tmp_path, "*.jsonl.gz")) == 1
    assert store.get("a").content == b"a new a" and store.get("many/07.md") is None  # type: ignore[union-attr]
    run(store, sweep_listed)
    assert not [row for row in rows(store) if row.pack and str(row.pack) not in names_of(tmp_path)]
    assert_reads(store, {id: content for id, content in CONTENTS.items() if id not in ("a", "many/07.md")})


def names_of(tmp_path: Path) -> set[str]:
    root = tmp_path / "cold/t/packs"
    return {path.relative_to(root).as_posix().removesuffix(".tar.xz") for path in files(tmp_path, "*.tar.xz")}


def test_older_versions_are_read_from_packs(open_store: Open, tmp_path: Path) -> None:
    store = open_store(storage_tiers__cold__keep_versions=3)
    for i in range(4):
        for id in ("a", "b"):
            store.put(id, f"{id} {i} " * 40, durability="archived")
    run(store, sweep)
    done = pack(store)
    assert done.members == 6 and objects(tmp_path) == set()
    history = store.history("a")
    assert [e.current for e in history] == [True, False, False]
    assert [store.get("a", version=e.version).text for e in history] == [f"a {i} " * 40 for i in (3, 2, 1)]  # type: ignore[union-attr]
    store.rollback("a", history[2].version)
    assert store.get("a").text == "a 1 " * 40  # type: ignore[union-attr]
    store.archive_now()
    pack(store)
    run(store, sweep)
    assert [e.updated_ms for e in store.history("a")[1:3]] == [e.updated_ms for e in history[:2]]
    assert len(store.history("b")) == 3


def test_record_that_does_not_name_its_pack_yet_is_mended_by_a_read(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    before = {id: store.where(id).archived_key for id in ("a", "a/b")}  # type: ignore[union-attr]
    pack(store)
    client = store._driver.redis
    shard = store.space.keys.shards[0]
    client.exchange(shard, [("HDEL", shard.module(id), "archived_key") for id in before], 10.0)
    assert {id: store.where(id).archived_key for id in before} == before  # type: ignore[union-attr]
    assert store.get("a").content == CONTENTS["a"]  # type: ignore[union-attr]
    assert store.stats().counters["archive.found_elsewhere"] == 1
    assert store.where("a").archived_key.endswith(".tar.xz")  # type: ignore[union-attr]
    found = store.get_many(["a", "a/b"])
    assert found["a/b"].content == CONTENTS["a/b"]  # type: ignore[union-attr]
    assert store.stats().counters["archive.found_elsewhere"] == 2


def test_damaged_index_is_made_again_from_the_pack(open_store: Open, server: TestServer, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    pack(store)
    (index,) = files(tmp_path, "*.jsonl.gz")
    index.write_bytes(index.read_bytes()[:-9])
    lose(server)
    shutil.rmtree(tmp_path / "cold/t/manifest")
    fresh = open_store()
    report = run(fresh, rescue)
    assert report.adopted == len(CONTENTS) and not report.unreadable
    for id, content in CONTENTS.items():
        module = fresh.get(id)
        assert module is not None and module.content == content and module.tokens > 0
    assert fresh.stats().counters["packs.damaged"] >= 1


def test_what_cannot_be_proven_is_no_miss(open_store: Open, server: TestServer, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    pack(store)
    (index,), (content,) = files(tmp_path, "*.jsonl.gz"), files(tmp_path, "*.tar.xz")
    index.write_bytes(b"no gzip")
    content.write_bytes(b"no xz")
    lose(server)
    fresh = open_store()
    for id in ("a", "not there"):
        with pytest.raises(ArchiveUnavailable, match="damaged"):
            fresh.get(id)
    with pytest.raises(ArchiveUnavailable, match="damaged"):
        run(fresh, rescue)


def checked(store: Store, *, repair: bool = False, checksums: float = 0) -> dict[str, int]:
    """Return what fsck finds, by kind."""
    found: Counter[str] = Counter()

    def note(one: object) -> None:
        if isinstance(one, Finding):
            found[one.kind] += 1

    store.run(fsck(store.space, repair=repair, checksums=checksums), deadline_s=60, on_progress=note)
    return dict(found)


def test_pack_that_is_gone_is_reported_and_what_redis_has_is_archived_again(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    pack(store)
    store.promote("a")
    (content,) = files(tmp_path, "*.tar.xz")
    content.unlink()
    forget_packs(store)
    with pytest.raises(Corrupt, match="no object"):
        store.get("a/b")
    kinds = checked(store, repair=True)
    assert kinds == {"object-gone": 1, "lost-object": len(CONTENTS) - 1}
    store.archive_now()
    forget_packs(store)
    store.demote("a", to="cold")
    assert store.get("a").content == CONTENTS["a"]  # type: ignore[union-attr]


def test_object_that_was_archived_again_outlives_a_pack_that_is_gone(
    open_store: Open, server: TestServer, tmp_path: Path
) -> None:
    store = open_store()
    fill(store)
    pack(store)
    (content,) = files(tmp_path, "*.tar.xz")
    store.promote("a")
    content.unlink()
    forget_packs(store)
    assert checked(store, repair=True)["object-gone"] == 1
    store.archive_now()
    store.demote("a", to="cold")
    for step in (sweep, sweep_listed, lambda space: pack_all(space, min_age_ms=-(10**15), everything=True), sweep):
        run(store, step)
        assert store.get("a").content == CONTENTS["a"]  # type: ignore[union-attr]
        store.demote("a", to="cold")
    lose(server)
    for fresh in (open_store(), open_store()):
        assert fresh.get("a").content == CONTENTS["a"]  # type: ignore[union-attr]
        fresh.demote("a", to="cold")
        run(fresh, rescue)


def test_pack_stays_while_the_later_one_has_no_content(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    pack(store)
    (index,) = files(tmp_path, "*.jsonl.gz")
    later = Pack("", 9, "0123abcd")
    lines = [json.loads(line) | {"pack": str(later)} for line in gzip.decompress(index.read_bytes()).splitlines()]
    later_index = index.with_name(index.name.replace(index.name.partition(".")[0], str(later)))
    later_index.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    for step in (sweep, lambda space: pack_all(space, min_age_ms=-(10**15), everything=True), sweep):
        run(store, step)
        assert index.exists()
        forget_packs(store)
        assert_reads(store)


def test_fsck_finds_nothing_in_a_packed_namespace(open_store: Open) -> None:
    store = open_store()
    fill(store)
    pack(store)
    assert checked(store, checksums=1) == {}


def test_small_packs_are_joined_and_large_ones_stay(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    for part in range(3):
        fill(store, {f"p{part}/{i}.md": f"{part} {i} words ".encode() * 30 for i in range(5)})
        assert pack(store, everything=False).packs == 0, "too little for a pack"
        assert pack(store).packs == 1
    assert len(files(tmp_path, "*.tar.xz")) == 1
    pack_names = [parse_pack(name) for name in names_of(tmp_path)]
    assert [p.directory for p in pack_names if p] == [""]
    for part in range(3):
        for i in range(5):
            assert store.get(f"p{part}/{i}.md").content == f"{part} {i} words ".encode() * 30  # type: ignore[union-attr]


def test_large_and_young_contents_stay_objects(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    large = os.urandom(300_000)
    fill(store, {"large": large, "b": b"b" * 100, "c": b"c" * 100})
    assert run(store, lambda space: pack_all(space, min_age_ms=3_600_000, everything=True)).members == 0
    assert pack(store).members == 2
    assert [key for key in objects(tmp_path) if "large" in key]
    assert store.get("large").content == large  # type: ignore[union-attr]


def test_packs_are_about_as_large_as_their_target(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PACK_BYTES", 20_000)
    monkeypatch.setattr(packing, "PACK_BYTES_MIN", 10_000)
    monkeypatch.setattr(packing, "REGION_BYTES", 40_000)
    store = open_store()
    contents = {f"d{i % 7}/{i:03}/SKILL.md": os.urandom(500).hex().encode() for i in range(100)}
    fill(store, contents)
    done = pack(store, everything=False)
    assert done.packs == len(files(tmp_path, "*.tar.xz")) == 5
    assert done.members == 100
    assert_reads(store, contents)


def test_listing_of_many_packs_asks_for_each_directory(
    open_store: Open, server: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs_plans, "KEYS_A_PAGE", 3)
    monkeypatch.setattr(packing, "PACK_BYTES", 2_000)
    monkeypatch.setattr(packing, "PACK_BYTES_MIN", 1_000)
    monkeypatch.setattr(packing, "REGION_BYTES", 4_000)
    store = open_store()
    contents = {f"d{i % 3}/e/{i:03}.md": os.urandom(100).hex().encode() for i in range(100)}
    fill(store, contents)
    assert pack(store).packs >= 9
    lose(server)
    fresh = open_store()
    assert_reads(fresh, contents)
    assert fresh.get("d1/e/none.md") is None
    lose(server)
    assert run(open_store(), rescue).adopted == 100


def test_worker_packs_once_a_day_and_not_what_glacier_has(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ColdConfig, "pack_after_ms", property(lambda cold: -(10**15)))
    monkeypatch.setattr(packing, "PACK_BYTES_MIN", 1)
    store = open_store()
    fill(store)
    done = run(store, pack_if_due)
    assert done is not None and done.members == len(CONTENTS)
    assert run(store, pack_if_due) is None
    assert store.stats().counters["packs.members"] == len(CONTENTS)
    for settings in ({"packs": False}, {"manifest": False}):
        other = open_store(**{f"storage_tiers__cold__{name}": value for name, value in settings.items()})
        monkeypatch.setattr(packing, "EVERY_MS", -1)
        assert run(other, pack_if_due) is None
    assert run(store, pack_if_due) is not None


def test_worker_reports_what_it_packed(open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ColdConfig, "pack_after_ms", property(lambda cold: -(10**15)))
    monkeypatch.setattr(packing, "PACK_BYTES_MIN", 1)
    store = open_store()
    fill(store)
    worker = Worker(store)
    assert worker.run_once(), worker.report.last_failure
    assert worker.report.did["packed"] == len(CONTENTS)
    assert objects(tmp_path) == set()
    assert_reads(store)


def test_sweep_deletes_packs_without_an_index_and_superseded_ones(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    pack(store)
    (content,), (index,) = files(tmp_path, "*.tar.xz"), files(tmp_path, "*.jsonl.gz")
    young, old = (content.with_name(f"@{n:08d}-0123abcd.tar.xz") for n in (7, 8))
    for path in (young, old):
        path.write_bytes(content.read_bytes())
    os.utime(old, (time.time() - 30 * 24 * 3600,) * 2)
    # the same pack once more, of a rival: all its members are in a later one
    rival = Pack("", 0, "0123abcd")
    lines = [json.loads(line) | {"pack": str(rival)} for line in gzip.decompress(index.read_bytes()).splitlines()]
    rival_index = index.with_name(index.name.replace(index.name.partition(".")[0], str(rival)))
    rival_index.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    content.with_name(f"{rival}.tar.xz").write_bytes(content.read_bytes())
    run(store, sweep)
    assert files(tmp_path, "*.tar.xz") == sorted([content, young])
    assert files(tmp_path, "*.jsonl.gz") == [index]
    assert_reads(store)


def test_objects_that_are_in_a_pack_too_are_swept(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    fill(store)
    saved = tmp_path / "saved"
    shutil.copytree(tmp_path / "cold/t/modules", saved)
    pack(store)
    shutil.copytree(saved, tmp_path / "cold/t/modules", dirs_exist_ok=True)  # as if the packer had died
    assert len(objects(tmp_path)) == len(CONTENTS)
    run(store, sweep)
    assert objects(tmp_path) == set()
    assert {row.id for row in rows(store) if row.pack} == CONTENTS.keys()
    assert_reads(store)


def test_archive_commands_read_packs_without_redis(
    open_store: Open, redis_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    fill(store)
    run(store, sweep)
    pack(store)

    def out(*words: str, directory: Path = tmp_path / "cold") -> str:
        monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(directory))
        assert cli([*words, *NOWHERE]) == 0, capfd.readouterr()
        return capfd.readouterr().out

    assert set(out("archive", "ls", "many/").split()) == {id for id in CONTENTS if id.startswith("many/")}
    assert out("archive", "cat", "a/b") == CONTENTS["a/b"].decode()
    out("archive", "restore", str(tmp_path / "out"), "skills/")
    assert (tmp_path / "out/skills/pdf/SKILL.md").read_bytes() == CONTENTS["skills/pdf/SKILL.md"]
    for words in ((str(tmp_path / "all.tar"),), (str(tmp_path / "some.tar"), "--prefix", "many/")):
        assert cli(["archive", "export", *words, "--url", redis_url, "--namespace", "t"]) == 0, capfd.readouterr()
    capfd.readouterr()
    for name, wanted in (("all", CONTENTS), ("some", {id: c for id, c in CONTENTS.items() if id.startswith("many/")})):
        copy = tmp_path / name
        copy.mkdir()
        subprocess.run(["tar", "xf", tmp_path / f"{name}.tar", "-C", copy], check=True, timeout=60)
        for id, content in wanted.items():
            assert out("archive", "cat", id, directory=copy).encode() == content


def test_other_shards_are_packed_and_read_too(open_store: Open, tmp_path: Path) -> None:
    store = open_store(shards=4)
    fill(store)
    done = pack(store)
    assert done.members == len(CONTENTS) and done.packs <= 4
    assert_reads(store)


@pytest.mark.parametrize("fault", ["put", "delete", "list", "get"])
def test_archive_that_fails_in_the_middle_loses_nothing(
    open_store: Open, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    fill(store)
    archive = store._driver.archive
    real: Callable[..., Any] = getattr(archive, fault)
    for at in range(1, 5):
        calls = 0

        def broken(*args: Any, at: int = at, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise ArchiveUnavailable("injected")
            return real(*args, **kwargs)

        setattr(archive, fault, broken)
        try:
            run(store, lambda space: pack_all(space, min_age_ms=-(10**15), everything=True))
        except ArchiveUnavailable:
            pass
        finally:
            setattr(archive, fault, real)
        forget_packs(store)
        assert_reads(store)
    pack(store)
    run(store, sweep)
    assert objects(tmp_path) == set()
    assert_reads(store)
