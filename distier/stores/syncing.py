"""Syncs many files at a time: group commit, as databases do it for their logs (DeWitt et al. 1984).

Each caller puts its descriptors into a queue. One of the waiting callers is the *leader*: it takes the whole queue, syncs
each file and directory once, wakes the other callers, and passes the lead on. While the disk is busy with one group, the
next one gathers, so the size of groups adapts to the speed of the disk.

A group is synced by one `fsync` per file or by one `syncfs` for all, whichever was recently faster for that many files.
`syncfs` also writes the dirty data of other programs on that file system, which on a busy disk may be gigabytes. It is
used from Linux 5.8 on, which reports write errors of `syncfs`.

The lead is a re-entrant lock that no caller waits for. A signal handler or a finalizer that writes in the middle of a sync
therefore leads its own group.
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

# File systems that cannot sync directories (some network and FUSE ones), or not this one (no permission to read it), report
# one of these errors; some report them for files too. An archive there still works; `doctor` reports the missing guarantee.
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
"""Interval in seconds at which waiting callers check for a leader. After a fork, a child has none."""
SYNCFS_MIN = 4
"""Minimum number of files for `syncfs`."""
WEIGHT = 0.2
FADE = 0.98
"""Factor for the estimated time of `syncfs` after each group without it, so that it is tried again some time."""
REPORTING = (5, 8)


def sync(fd: int) -> bool:
    """Call fsync(2). Returns False if the file system does not support it for this file.

    Raises:
        OSError: The disk failed.
    """
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
    """The descriptors of one caller. `woken` is set when they are synced or have failed with `error`, or when it may lead."""

    __slots__ = ("done", "error", "fds", "woken")

    def __init__(self, fds: Sequence[int]) -> None:
        self.fds = fds
        self.woken = threading.Event()
        self.done = False
        self.error: OSError | None = None


class GroupSync:
    """Syncs the files of all threads in groups. It is thread-safe and fork-safe: a child starts with an empty queue."""

    def __init__(self) -> None:
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        self._lead = threading.RLock()
        self._queue: deque[_Waiting] = deque()
        self._fsync_s = 0.0
        self._syncfs_s = 0.0

    def sync(self, fds: Sequence[int]) -> None:
        """Return when the data of these descriptors is on disk. All must be on one file system.

        Raises:
            OSError: A descriptor could not be synced.
        """
        mine = _Waiting(fds)
        self._queue.append(mine)
        while not mine.done:
            lead = (
                self._lead
            )  # release this same one: a signal handler may fork in between, and the child has a new one
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
                if not waiting.done and waiting is not mine:  # interrupted: another caller does it
                    self._queue.append(waiting)
                waiting.woken.set()
            for waiting in list(self._queue)[:1]:
                waiting.woken.set()

    def _sync_all(self, fds: dict[tuple[int, int], int]) -> dict[tuple[int, int], OSError]:
        """Sync all files. Returns the errors of those that failed."""
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
        group.reset()


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
    return _sync_each(fds.items())  # fsync reports the error of each file
