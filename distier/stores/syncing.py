"""Making files last, many at a time: group commit, as databases do it for their logs (DeWitt et al. 1984).

Whoever wants descriptors on disk joins a queue. One of those who wait *leads*: it takes all that the queue has, syncs each file
and each directory once, wakes the others, and hands the lead on. So while the disk is busy with one group the next one gathers,
and its size follows the disk's slowness by itself.

A group is synced by one `fsync` a file, or by one `syncfs` for all of them, whichever took less time lately for as many:
`syncfs` writes what others have dirty on that file system as well, which on a busy disk may be gigabytes. It is used from Linux
5.8 on, where it reports what could not be written.

The lead is a lock that nobody waits for, and that a thread which has it may take again: a signal handler or a finaliser that
writes in the middle of a sync leads a group of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

# File systems that cannot sync a directory (some network and FUSE ones), or not this one (no right to read it), answer one of
# these; a few say so of files as well. Whoever has such a disk wants its archive on it all the same, and `doctor` tells what is
# then not promised.
_NO_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
}
LOOK_S = 0.5
"""Whoever waits looks from time to time whether anybody leads: in a child that was forked meanwhile nobody does."""
SYNCFS_MIN = 4
"""For fewer files than this `syncfs` is not tried."""
WEIGHT = 0.2
FADE = 0.98
"""What `syncfs` is thought to take fades with each group that goes without it: it is tried again."""
REPORTING = (5, 8)


def sync(fd: int) -> bool:
    """fsync(2); False where this file system has none for it. A disk that fails is another matter, and raises."""
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in _NO_SYNC:
            raise
        return False
    return True


def _find_syncfs() -> Any:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if os.uname().sysname != "Linux" or not release or (int(release[1]), int(release[2])) < REPORTING:
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


_SYNCFS = _find_syncfs()


class _Waiting:
    """Descriptors that somebody wants on disk. `woken`: they are there, or `error` says why not, or it is its turn to lead."""

    __slots__ = ("done", "error", "fds", "woken")

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = fds
        self.woken = threading.Event()
        self.done = False
        self.error: OSError | None = None


class GroupSync:
    """Thread-safe, and safe over fork: a child starts with an empty queue."""

    def __init__(self) -> None:
        self.start_anew()
        _ALL.add(self)

    def start_anew(self) -> None:
        self._lead = threading.RLock()
        self._queue: deque[_Waiting] = deque()
        self._fsync_s = 0.0
        self._syncfs_s = 0.0

    def sync(self, fds: Sequence[int]) -> None:
        """Return when all that these descriptors (of one file system) have is on disk. Raises `OSError`."""
        mine = _Waiting(fds)
        self._queue.append(mine)
        while not mine.done:
            lead = (
                self._lead
            )  # the same one to the end: a signal handler may fork in between, and the child has a new one
            if lead.acquire(blocking=False):
                self._sync_group(mine, lead)
            else:
                mine.woken.wait(LOOK_S)
                mine.woken.clear()
        if mine.error is not None:
            raise mine.error

    def _sync_group(self, mine: _Waiting, lead: Any) -> None:
        group = [] if mine.done else [mine]
        try:
            while self._queue:
                waiting = self._queue.popleft()
                if waiting is not mine:
                    group.append(waiting)
            failed = self._sync_all({_identity(fd): fd for waiting in group for fd in waiting.fds})
            for waiting in group:
                waiting.error = next((e for fd in waiting.fds if (e := failed.get(_identity(fd)))), None)
                waiting.done = True
        finally:
            lead.release()
            for waiting in group:
                if not waiting.done and waiting is not mine:  # interrupted: somebody else does it
                    self._queue.append(waiting)
                waiting.woken.set()
            for waiting in list(self._queue)[:1]:
                waiting.woken.set()

    def _sync_all(self, fds: dict[tuple[int, int], int]) -> dict[tuple[int, int], OSError]:
        """Why some of them are not on disk."""
        begun_s, n = time.monotonic(), len(fds)
        if _SYNCFS is not None and n >= SYNCFS_MIN and self._fsync_s and self._syncfs_s < n * self._fsync_s:
            failed = _sync_file_system(fds)
            self._syncfs_s += (time.monotonic() - begun_s - self._syncfs_s) * WEIGHT
        else:
            failed = _sync_each(fds.items())
            took_s = (time.monotonic() - begun_s) / max(n, 1)
            self._fsync_s = self._fsync_s + (took_s - self._fsync_s) * WEIGHT if self._fsync_s else took_s
            self._syncfs_s *= FADE
        return failed


_ALL: weakref.WeakSet[GroupSync] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for group in list(_ALL):
        group.start_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _sync_each(fds: Iterable[tuple[tuple[int, int], int]]) -> dict[tuple[int, int], OSError]:
    failed = {}
    for identity, fd in fds:
        try:
            sync(fd)
        except OSError as e:
            failed[identity] = e
    return failed


def _sync_file_system(fds: dict[tuple[int, int], int]) -> dict[tuple[int, int], OSError]:
    if _SYNCFS(next(iter(fds.values()))) == 0:
        return {}
    return _sync_each(fds.items())  # each tells its own error
