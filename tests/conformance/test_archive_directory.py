"""The directory archive with difficult file systems and killed processes."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distier.errors import ArchiveUnavailable, ConfigError, DistierError, Invalid
from distier.stores import directory, syncing
from distier.stores.directory import DirectoryArchive

KEY = "team/modules/a/b/@00000001-00000000000001-0123abcd.md.xz"


def put(archive, key=KEY, data=b"content"):
    archive.put(key, data, content_type="application/x-xz", metadata={})


def content(archive, key=KEY, max_bytes=100_000):
    found = archive.get(key, max_bytes=max_bytes)
    return None if found is None else found.data


def test_second_put_keeps_the_first_content(tmp_path):
    archive = DirectoryArchive(tmp_path)
    put(archive, data=b"first")
    put(archive, data=b"second")
    assert content(archive) == b"first"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_files_and_directories_are_owner_only(tmp_path):
    root = tmp_path / "new"
    put(DirectoryArchive(root))
    for path in [root, *root.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_empty_directories_are_removed(tmp_path):
    archive = DirectoryArchive(tmp_path)
    put(archive)
    put(archive, "team/modules/c")
    archive.delete([KEY])
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".tmp", "c", "modules", "team"]
    archive.delete(["team/modules/c"])
    assert [p.name for p in tmp_path.rglob("*")] == [".tmp"]


def test_put_while_others_remove_its_directory(tmp_path):
    """Each thread can read its own object from the end of its put until its delete, whatever the others remove."""
    archive = DirectoryArchive(tmp_path)

    def churn(name: str) -> int:
        key = f"team/modules/deep/er/{name}"
        for _ in range(150):
            put(archive, key)
            assert archive.get(key, max_bytes=10) is not None
            assert key in [one.key for one in archive.list("team/")]
            archive.delete([key])
        return 150

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(churn, "abcdef")) == 900
    assert [p.name for p in tmp_path.rglob("*")] == [".tmp"]


def test_put_restarts_if_its_directory_is_removed_before_the_link(tmp_path, monkeypatch):
    archive = DirectoryArchive(tmp_path)
    link = os.link
    removed: list[int] = []

    def link_late(*args, **options):
        if len(removed) < 3:
            shutil.rmtree(tmp_path / "team")
            removed.append(1)
        link(*args, **options)

    monkeypatch.setattr(os, "link", link_late)
    put(archive)
    assert content(archive) == b"content"
    assert len(removed) == 3


def test_file_system_without_hard_links_is_supported(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    archive = DirectoryArchive(tmp_path)
    put(archive, data=b"first")
    put(archive, data=b"second")
    assert content(archive) == b"first"
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.mark.parametrize("target", ["outside", "team/inside"])
def test_symlinks_are_not_followed(tmp_path, target):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "x").write_bytes(b"secret")
    archive = DirectoryArchive(root)
    put(archive, "team/inside/x")
    (root / "linked").symlink_to(outside if target == "outside" else root / target)
    (root / "team" / "leaf").symlink_to(outside / "x")
    calls = [
        lambda: archive.get("linked/x", max_bytes=10),
        lambda: archive.get("team/leaf", max_bytes=10),
        lambda: put(archive, "linked/y"),
        lambda: archive.delete(["linked/x"]),
    ]
    for call in calls:
        with pytest.raises(ConfigError):
            call()
    assert [one.key for one in archive.list("")] == ["team/inside/x"]
    assert [p.name for p in outside.iterdir()] == ["x"]


def test_missing_or_replaced_root_is_an_error(tmp_path):
    root = tmp_path / "root"
    archive = DirectoryArchive(root)
    put(archive)
    root.rename(tmp_path / "away")
    for make_another in (False, True):
        if make_another:
            (root / ".tmp").mkdir(parents=True)
        for call in (lambda: archive.get(KEY, max_bytes=10), lambda: archive.list(""), lambda: put(archive)):
            with pytest.raises(ArchiveUnavailable):
                call()


def test_foreign_files_are_not_objects(tmp_path):
    archive = DirectoryArchive(tmp_path)
    put(archive, "team/x")
    os.mkfifo(tmp_path / "team" / "fifo")
    (tmp_path / os.fsdecode(b"team/\xff\xfe")).write_bytes(b"")
    with pytest.raises(Invalid):
        archive.get("team/fifo", max_bytes=10)  # does not hang
    with pytest.raises(DistierError):
        put(archive, "team/x/below")
    with pytest.raises(Invalid):
        put(archive, ".tmp/x")
    assert [one.key for one in archive.list("")] == ["team/x"]


def test_full_or_broken_disk_is_unavailable(tmp_path, monkeypatch):
    archive = DirectoryArchive(tmp_path)
    for number in (28, 5, 122):  # ENOSPC, EIO, EDQUOT

        def fail(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            with pytest.raises(ArchiveUnavailable, match=os.strerror(number)):
                put(archive)
    assert archive.list("") == []
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_directory_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="file/x"):
        DirectoryArchive(tmp_path / "file" / "x")


def test_only_old_temporary_files_are_removed(tmp_path):
    DirectoryArchive(tmp_path)
    for name, age_s in (("old", 2 * directory._TMP_AGE_S_MAX), ("new", 0)):
        path = tmp_path / ".tmp" / name
        path.write_bytes(b"")
        at = path.stat().st_mtime - age_s
        os.utime(path, (at, at))
    archive = DirectoryArchive(tmp_path)
    assert [p.name for p in (tmp_path / ".tmp").iterdir()] == ["new"]
    assert archive.list("") == []


def test_listing_reads_only_the_necessary_directories(tmp_path, monkeypatch):
    archive = DirectoryArchive(tmp_path)
    for i in range(20):
        put(archive, f"team/modules/m{i:02d}/x")
    read = []
    keys = directory._keys

    def spy(fd, below):
        read.append(below)
        return keys(fd, below)

    monkeypatch.setattr(directory, "_keys", spy)
    assert len(archive.list("team/modules/m", start_after="team/modules/m07/x", limit=2)) == 2
    assert list(dict.fromkeys(read)) == [b"team/modules/", *(f"team/modules/m{i:02d}/".encode() for i in (7, 8, 9))]


def test_put_syncs_the_file_and_every_directory_above(tmp_path, monkeypatch):
    archive = DirectoryArchive(tmp_path)
    put(archive)  # all directories exist now: another process may have created them and died before it synced them
    synced, fsync = [], os.fsync

    def spy(fd):
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(syncing, "_SYNCFS", None)  # one syncfs would sync all of them
    put(archive, KEY + "0")
    chain = [tmp_path / KEY, *(tmp_path / KEY).parents]
    wanted = [p.stat().st_ino for p in [Path(f"{chain[0]}0"), *chain[1 : chain.index(tmp_path) + 1]]]
    assert synced == wanted  # the file first: a name must not outlive its content


WRITER = """
import sys
from distier.stores.directory import DirectoryArchive
archive = DirectoryArchive(sys.argv[1])
for i in range(10**6):
    key = f"team/modules/m{i % 7}/{sys.argv[2]}-{i}"
    archive.put(key, i.to_bytes(4) * 20_000, content_type="x", metadata={})
    print(key, flush=True)
"""


def test_kill_9_during_puts_leaves_no_torn_object(tmp_path):
    acknowledged = []
    for round_ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(round_)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(3 + 7 * round_):
                acknowledged.append(writer.stdout.readline().strip())
            writer.send_signal(signal.SIGKILL)
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    archive = DirectoryArchive(tmp_path)
    listed = {one.key: one.size_bytes for one in archive.list("", limit=10**6)}
    assert set(acknowledged) <= set(listed)
    for key, size_bytes in listed.items():
        number = int(key.rpartition("-")[2])
        assert size_bytes == 80_000
        assert content(archive, key) == number.to_bytes(4) * 20_000
