"""Archives on file systems that change names (case, Unicode form, dots) or that cannot store all of them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import Item, Store, connect
from distier.client import archive_of, make_space
from distier.config import load_config
from distier.doctor.check import examine
from distier.errors import ArchiveUnavailable, ConfigError, Invalid
from distier.plans.fleet.sweep import sweep
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.rescue import rescue
from distier.stores.directory import DirectoryArchive
from tests import filesystems
from tests.integration.faulty_s3 import FaultyS3
from tests.servers import TestServer

PAIRS = {
    "docs/readme": "lower", "Docs/README": "upper", "docs/README": "mixed", "DOCS/readme": "other",
    "a/SKILL.md": "skill", "caf\u00e9": "composed", "cafe\u0301": "decomposed", "CAF\u00c9": "capitals", "x%7e/Y": "percent",
}  # fmt: skip


@pytest.fixture(scope="session")
def server(valkey_server: TestServer) -> TestServer:
    """The faults are those of a file system, so one kind of server is enough."""
    return valkey_server


@pytest.fixture
def settings(server: TestServer, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    return {
        "redis__url": redis_url, "storage_tiers__cold__directory": tmp_path / "cold", "counter": "estimate",
        "near__enabled": False, "deadline": "20s", "storage_tiers__cold__compression_level": 0,
    }  # fmt: skip


@pytest.fixture
def opened(settings: dict[str, Any]) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open_one(**more: Any) -> Store:
        stores.append(connect({}, **(settings | more)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


def wipe(store: Store, server: TestServer) -> None:
    with server.client() as redis:
        redis.flushall()


def texts(store: Store) -> dict[str, str | None]:
    return {id: module.text if module else None for id, module in store.get_many(PAIRS).items()}


@pytest.mark.parametrize("fold", [filesystems.by_case, filesystems.by_form, filesystems.by_both])
def test_ids_that_a_folding_file_system_equates_stay_apart(
    opened: Callable[..., Store], server: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: Any
):
    """Versions, a sweep, a loss of Redis and a rescue: each id returns its own content, and fsck finds no fault."""
    filesystems.folding(monkeypatch, tmp_path / "cold", fold)
    store = opened()
    for round_ in "ab":
        for id, text in PAIRS.items():
            store.put(id, f"{text} {round_}", durability="archived")
    store.delete("docs/README", durability="archived")
    store.run(sweep(store.space))
    wipe(store, server)
    wanted = {id: f"{text} b" for id, text in PAIRS.items()} | {"docs/README": None}
    assert texts(store) == wanted
    wipe(store, server)
    assert store.run(rescue(store.space), deadline_s=60).modules == len(PAIRS) - 1
    assert texts(store) == wanted
    found = store.run(fsck(store.space, checksums=1), deadline_s=60)
    assert not found.count("fault") and not found.count("lost"), found.listed


@pytest.mark.parametrize("fold", [filesystems.by_case, filesystems.by_form, filesystems.by_dots])
def test_keys_that_a_folding_file_system_equates_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fold: Any):
    """Only the archive is used, with keys that distier does not create itself."""
    filesystems.folding(monkeypatch, tmp_path / "cold", fold)
    archive = DirectoryArchive(tmp_path / "cold")
    keys = ["n/A", "n/a", "n/\u00e9", "n/e\u0301", "n/B%~1", "n/b%~0", "n/b", "n/%~~62", "N/a"]
    for key in keys:
        archive.put(key, key.encode(), content_type="text/plain", metadata={})
    assert [one.key for one in archive.list("")] == sorted(keys, key=str.encode)
    assert [one.key for one in archive.list("n/B")] == ["n/B%~1"]
    assert [one.key for one in archive.list("", start_after="n/a")] == [
        k for k in sorted(keys, key=str.encode) if k > "n/a"
    ]
    for key in keys:
        found = archive.get(key, max_bytes=100)
        assert found is not None and found.data == key.encode()
    archive.delete([keys[0]])
    assert archive.get("n/A", max_bytes=9) is None and archive.get("n/a", max_bytes=9) is not None
    assert archive.get("n/E", max_bytes=9) is None
    archive.check()


def test_archive_written_on_a_folding_file_system_is_readable_elsewhere(tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        filesystems.folding(patch, tmp_path / "cold", filesystems.by_case)
        DirectoryArchive(tmp_path / "cold").put("n/A", b"A", content_type="text/plain", metadata={})
    (tmp_path / "cold").rename(tmp_path / "moved")
    archive = DirectoryArchive(tmp_path / "moved")
    found = archive.get("n/A", max_bytes=9)
    assert found is not None and [one.key for one in archive.list("n/")] == ["n/A"]


def test_archive_moved_to_a_folding_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = DirectoryArchive(tmp_path / "cold")
    archive.put("n/A", b"A", content_type="text/plain", metadata={})
    filesystems.folding(monkeypatch, tmp_path / "cold", filesystems.by_case)
    with pytest.raises(ConfigError, match="ignores the case of names"):
        DirectoryArchive(tmp_path / "cold")
    archive.delete(["n/A"])
    DirectoryArchive(tmp_path / "cold")


def test_read_only_archive_directory_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = DirectoryArchive(tmp_path / "cold")
    archive.put("n/A", b"A", content_type="text/plain", metadata={})
    real = os.open

    def read_only(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return real(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    again = DirectoryArchive(tmp_path / "cold")
    assert again.get("n/A", max_bytes=9) is not None and again.limits.take_all


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.EACCES, errno.ENOSYS])
@pytest.mark.parametrize("files_too", [False, True])
def test_file_system_without_fsync_still_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, files_too: bool
):
    real = os.fsync

    def fsync(fd: int) -> None:
        if files_too or stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    archive = DirectoryArchive(tmp_path / "cold")
    archive.put("n/a", b"A", content_type="text/plain", metadata={})
    assert archive.get("n/a", max_bytes=9) is not None
    archive.delete(["n/a"])
    assert archive.get("n/a", max_bytes=9) is None
    config = load_config({}, redis__url="redis://127.0.0.1:1/0", storage_tiers__cold__directory=tmp_path / "cold")
    found = {
        f.check: f for f in examine(config, lambda: "redis://127.0.0.1:1/0", lambda: archive_of(config), make_space)
    }
    assert found["archive"].status == "ok" and found["sync"].status == "warn" and "power cut" in found["sync"].found


def test_failing_fsync_raises_archive_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = DirectoryArchive(tmp_path / "cold")
    for number in (errno.EIO, errno.ENOSPC):

        def fsync(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(ArchiveUnavailable):
            archive.put("n/a", b"A", content_type="text/plain", metadata={})


def test_foreign_files_next_to_ours_are_not_taken_for_versions(
    opened: Callable[..., Store], server: TestServer, tmp_path: Path
):
    store = opened()
    for id in ("a", "b/c"):
        store.put(id, id, durability="archived", content_type="text/markdown")
    for path in list((tmp_path / "cold").rglob("@*.md.xz")):
        later = path.name.replace("@0000", "@0009")
        stem = later.partition(".")[0]
        foreign = [
            f"{later}~", f".{later}.swp", f"{stem}.md (1).xz", f"{stem}.md.sync-conflict-1.xz", f"{stem}.MD.xz", ".DS_Store",
            f"{stem}.md.xz.bak", f"._{later}", f"{stem}.md", f"{path.name.partition('.')[0]}.tmp.xz", f"{stem}.deleted~",
        ]  # fmt: skip
        for name in foreign:
            (path.parent / name).write_bytes(b"not ours")
        (path.parent / "@eaDir").mkdir()
        (path.parent / "@eaDir" / f"{later}@SynoEAStream").write_bytes(b"not ours")
        (path.parent / "@eaDir" / "SYNO").write_bytes(b"not ours")
    (tmp_path / "cold" / store.space.namespace / "identity" / ".DS_Store").write_bytes(b"")
    (tmp_path / "cold" / store.space.namespace / "epochs" / "0" / "@00000009-0123abcd (1)").write_bytes(b"")
    for rescued in (False, True):
        wipe(store, server)
        if rescued:
            report = store.run(rescue(store.space), deadline_s=60)
            assert (report.modules, report.unreadable, report.foreign) == (2, {}, [])
        store = opened()
        assert [store.get(id).text for id in ("a", "b/c")] == ["a", "b/c"]  # type: ignore[union-attr]
    store.run(sweep(store.space))
    assert len(list((tmp_path / "cold").rglob(".DS_Store"))) == 3
    assert not store.run(fsck(store.space, checksums=1), deadline_s=60).remaining


# -- ids that can never be archived -----------------------------------------------------------------------------------


def refused(store: Store, id: str) -> str:
    """Check that each way to put refuses the id and writes nothing; return the message."""
    for durability in ("redis", "archived"):
        with pytest.raises(Invalid, match="could never be archived"):
            store.put(id, b"x", durability=durability)
    bad, good = store.put_many([Item(id, b"x"), Item("good", b"x")])
    assert isinstance(bad, Invalid) and not isinstance(good, Exception)
    assert store.get(id) is None and store.archive_now() >= 0
    assert store.stats().dirty_count == 0
    return str(bad)


@pytest.mark.parametrize("prefix_chars", [400, 800, 950])
def test_id_whose_key_would_be_too_long_is_refused(opened: Callable[..., Store], s3: FaultyS3, prefix_chars: int):
    prefix = ("p" * 99 + "/") * (prefix_chars // 100) + "p" * (prefix_chars % 100)
    cold = s3.settings() | {"storage_tiers__cold__url": f"s3://bucket/{prefix}", "storage_tiers__cold__directory": None}
    store = opened(**cold)
    left = int(refused(store, "\u00fc" * 128).split("bytes, and ")[1].split(" ")[0])
    for id in filter(None, ["a" * left, "B" * left]):
        store.put(id, b"x", durability="archived")
        store.put(id, b"y", content_type="application/jsonl")
    assert store.archive_now() == min(left, 1) * 2
    if left < 256:
        refused(store, "a" * (left + 1))


@pytest.mark.parametrize(("name_bytes", "signs"), [(143, ""), (120, ":"), (255, ':<>|"')])
def test_id_that_the_file_system_cannot_store_is_refused(
    opened: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name_bytes: int, signs: str
):
    filesystems.refusing(monkeypatch, tmp_path / "cold", name_bytes=name_bytes, signs=signs)
    store = opened()
    if name_bytes < 201:
        text = refused(store, "d/" + "a" * (name_bytes + 1))
        assert str(name_bytes) in text
        refused(store, "\u00fc" * (name_bytes // 6 + 1))
        store.put("d/" + "a" * name_bytes + "/e", b"x", durability="archived")
    for sign in signs.replace('"', ""):
        assert sign in refused(store, f"skills{sign}pdf")
    store.put("\u00fc" * (name_bytes // 6), b"x", durability="archived")
    store.put("skills/pdf!", b"x", durability="archived")
    assert store.archive_now() == 0


def test_names_that_would_lose_their_last_dot_are_refused(
    opened: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    filesystems.folding(monkeypatch, tmp_path / "cold", filesystems.by_dots)
    store = opened()
    refused(store, "etc./x")
    refused(store, "etc.")
    store.put("etc.d/x", b"x", durability="archived")


def test_doctor_reports_which_ids_can_be_archived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filesystems.refusing(monkeypatch, tmp_path / "cold", name_bytes=143)
    config = load_config({}, redis__url="redis://127.0.0.1:1/0", storage_tiers__cold__directory=tmp_path / "cold")
    found = {
        f.check: f for f in examine(config, lambda: "redis://127.0.0.1:1/0", lambda: archive_of(config), make_space)
    }
    assert found["names"].status == "warn" and "143" in found["names"].found
    assert found["archive"].status == "ok"
