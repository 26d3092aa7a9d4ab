"""stores/syncing.py: many files are synced as one group, and each caller returns only when its own files are on disk."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distier.stores import syncing
from distier.stores.syncing import GroupSync
from tests.servers import poll


class Disk:
    """Replaces fsync(2): notes the synced files, waits for `go`, and fails for some files."""

    def __init__(self) -> None:
        self.synced: list[int] = []
        self.refused: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def fsync(self, fd: int) -> None:
        self.entered.set()
        assert self.go.wait(30)
        inode = os.fstat(fd).st_ino
        if inode in self.refused:
            raise OSError(errno.EIO, "the disk is broken")
        self.synced.append(inode)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(syncing, "_SYNCFS", None)
    return disk


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    fds = [os.open(tmp_path / str(i), os.O_CREAT | os.O_RDWR) for i in range(8)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


def test_waiting_files_are_synced_in_one_group(disk: Disk, files: list[int], directory: int) -> None:
    group = GroupSync()
    disk.go.clear()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(group.sync, [files[0], directory])
        assert disk.entered.wait(30)  # the first caller leads the group, and the disk is slow
        others = [threads.submit(group.sync, [fd, directory]) for fd in files[1:]]
        poll(lambda: len(group._queue) == 7, what="seven waiting calls")
        disk.go.set()
        for done in (first, *others):
            done.result(30)
    folder = os.fstat(directory).st_ino
    assert sorted(i for i in disk.synced if i != folder) == sorted(inodes(files))
    assert disk.synced.count(folder) == 2, "once for each of two groups"


def test_sync_error_is_raised_only_for_its_file(disk: Disk, files: list[int], directory: int) -> None:
    group = GroupSync()
    disk.refused = {os.fstat(files[3]).st_ino}
    disk.go.clear()
    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(group.sync, [fd, directory]) for fd in files]
        poll(lambda: len(group._queue) == 7, what="seven waiting calls")
        disk.go.set()
        assert [isinstance(d.exception(30), OSError) for d in done] == [i == 3 for i in range(8)]


def test_syncfs_is_used_if_it_is_cheaper(disk: Disk, files: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    group, whole = GroupSync(), list[int]()
    group.sync(files[:1])  # now the time of one fsync is known
    group._fsync_s = 1.0

    def syncfs(fd: int) -> int:
        whole.append(fd)
        return 0

    monkeypatch.setattr(syncing, "_SYNCFS", syncfs)
    group.sync(files)
    assert len(whole) == 1 and len(disk.synced) == 1
    monkeypatch.setattr(syncing, "_SYNCFS", lambda fd: -1)
    group.sync(files)
    assert len(disk.synced) == 1 + len(files), "if it fails, each file is synced to get its own error"


def test_signal_handler_can_sync_during_a_sync(disk: Disk, files: list[int]) -> None:
    group, signals, handled = GroupSync(), [signal.SIGUSR1], list[bool]()

    def handler(number: int, frame: object) -> None:
        group.sync(files[1:2])
        handled.append(True)

    real = os.fsync

    def interrupted(fd: int) -> None:
        while signals:
            signal.raise_signal(signals.pop())
        real(fd)

    before = signal.signal(signal.SIGUSR1, handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        group.sync(files[:1])
    signal.signal(signal.SIGUSR1, before)
    assert handled and set(disk.synced) == set(inodes(files[:2]))


def test_interrupted_leader_leaves_the_group_to_the_next(disk: Disk, files: list[int]) -> None:
    group = GroupSync()
    real, interrupts = os.fsync, [True]

    def fsync(fd: int) -> None:
        if interrupts:
            interrupts.clear()
            disk.go.wait(30)
            raise KeyboardInterrupt
        real(fd)

    disk.go.clear()
    with ThreadPoolExecutor(2) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        led = threads.submit(group.sync, files[:1])
        poll(lambda: not interrupts, what="the first one leads")
        waits = threads.submit(group.sync, files[1:2])
        poll(lambda: len(group._queue) == 1, what="one waiting call")
        disk.go.set()
        assert isinstance(led.exception(30), KeyboardInterrupt)
        waits.result(30)
    assert os.fstat(files[1]).st_ino in disk.synced


def test_child_of_a_fork_waits_for_no_group(disk: Disk, files: list[int]) -> None:
    group = GroupSync()
    disk.go.clear()
    with ThreadPoolExecutor(1) as threads:
        leads = threads.submit(group.sync, files[:1])
        assert disk.entered.wait(30)
        pid = os.fork()
        if pid == 0:
            disk.go.set()
            group.sync(files[1:2])
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        disk.go.set()
        leads.result(30)
