"""The LMDB environment that the stores of a process share."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb

from distier.stores.local.directory import boot_id

LAYOUT = 1
PATIENCE_S = 0.05
"""Seconds that a writer waits for another one. Not keeping a copy costs less than a waiting caller."""
RETRY_S = 10.0
"""Seconds until the next attempt after the file could not be opened, for example because the disk is full."""
FIRST_PAGES_BYTES = 2 * 4096
READERS_MAX = 1024
LOCK_FILE_BYTES = READERS_MAX * 64 + 4096
U64 = struct.Struct(">Q")


class Environment:
    """The open file and its locks. Each use of the file holds `lock`; each change also holds `writing`."""

    def __init__(self, inner: Path, map_bytes: int) -> None:
        self.inner = inner
        self.map_bytes = map_bytes
        self.lock: Any = threading.RLock()
        self.users = 0
        self.recent: set[bytes] = set()
        self.changes: dict[bytes, bool] = {}
        self.rebuilt = 0
        self._writers: Any = threading.RLock()
        self._lock_fd: int | None = None
        self.reader: Any = None
        """Begins a read transaction. None while the file is not open or is suspected to be damaged."""
        self._env: Any = None
        self._file: tuple[int, ...] | None = None
        self._suspect = False
        self._retry_s = 0.0
        self._closed = False

    def is_interrupted(self) -> bool:
        """Return whether this is a signal handler or a finalizer that interrupted this thread's own use of the file.

        It must then not touch the file: LMDB has only one write transaction, and the file must not be changed or closed
        during a read transaction.
        """
        return bool(self.lock._is_owned() or self._writers._is_owned())

    # ---- one writer at a time, among all processes

    @contextmanager
    def writing(self, patience_s: float = PATIENCE_S) -> Iterator[bool]:
        """Acquire the lock for writing. Yields whether that succeeded within `patience_s` seconds.

        No other thread or process writes or replaces the file while the lock is held.
        """
        if self.is_interrupted():
            yield False
            return
        end_s = time.monotonic() + patience_s
        if not self._writers.acquire(timeout=patience_s):
            yield False
            return
        try:
            if not self._flock(end_s):
                yield False
                return
            try:
                yield True
            finally:
                if self._lock_fd is not None:  # None: a signal handler closed it, or this is a forked child
                    fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        finally:
            self._writers.release()

    def _flock(self, end_s: float) -> bool:
        if self._closed:  # this thread is late and must not open the file again, next to a newer environment
            return False
        try:
            if self._lock_fd is None:
                path = self.inner / "writer.lock"
                self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            while True:
                try:
                    fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    if time.monotonic() >= end_s:
                        return False
                    time.sleep(0.0005)
        except OSError:
            return False

    # ---- opening

    def opened(self) -> bool:
        """Open the file if necessary, and reopen it if it was replaced or is suspected to be damaged.

        The caller holds `writing` and `lock`. Returns whether the file is open.
        """
        if self._env is not None and (self._suspect or self._file != self._identity()):
            self._close(wipe=self._suspect)
        if self._env is None and time.monotonic() >= self._retry_s:
            try:
                self._open()
            except (lmdb.Error, OSError):
                self._close()
                self._retry_s = time.monotonic() + RETRY_S
        return self._env is not None

    def _open(self) -> None:
        boot, marker = boot_id(), self.inner / "boot"
        with suppress(OSError):
            if boot and marker.read_text("ascii", "replace") != boot:
                self._wipe()
        if not marker.exists():
            self._wipe()
        try:
            self._map(boot)
        except (lmdb.Error, OSError) as e:
            if getattr(e, "errno", None) == errno.ENOSPC or "No space" in str(e):
                raise
            self._close(wipe=True)
            self._map(boot)
        marker.write_text(boot, "ascii")
        marker.chmod(0o600)

    def _map(self, boot: str) -> None:
        for name in ("data.mdb", "lock.mdb"):
            with suppress(FileNotFoundError):
                (self.inner / name).chmod(0o600)
        self._allocate_lock_file()
        # No spare transactions: see `store.py`. No readahead, because reads are of single copies. Pages are cleared first
        # (`meminit`, the default); otherwise the file would contain bytes of this process's memory.
        self._env = env = lmdb.open(
            str(self.inner), map_size=self.map_bytes, max_dbs=4, max_readers=READERS_MAX, max_spare_txns=0, mode=0o600,
            sync=not boot, metasync=not boot, readahead=False,
        )  # fmt: skip
        needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if (self.inner / "data.mdb").stat().st_size < min(needed_bytes, 1 << 62) and env.info()["last_txnid"]:
            raise lmdb.CorruptedError("the file is shorter than its last page")
        env.reader_check()
        self.copies = env.open_db(b"copies")
        self.order = env.open_db(b"order")
        self.sums = env.open_db(b"sums")
        with env.begin(write=True) as txn:
            layout = txn.get(b"layout", db=self.sums)
            if layout not in (None, U64.pack(LAYOUT)):
                raise lmdb.VersionMismatchError("another layout")
            txn.put(b"layout", U64.pack(LAYOUT), db=self.sums)
        self.lengthen()
        self._file, self._suspect = self._identity(), False
        self.reader = env.begin

    def _allocate_lock_file(self) -> None:
        """Allocate all blocks of LMDB's reader table.

        LMDB creates the table as a sparse file and writes it through a memory map, which raises SIGBUS on a full disk. With
        allocated blocks, the failure is an `ENOSPC` here. Do not call this while the file is open in this process: closing
        it would release LMDB's locks.
        """
        fd = os.open(self.inner / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
        finally:
            os.close(fd)

    def lengthen(self) -> None:
        """Extend the file to its full length, so that `_map` can distinguish it from a truncated one.

        LMDB may leave its last pages unwritten if they were freed in the same transaction.
        """
        needed_bytes = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        path = self.inner / "data.mdb"
        if path.stat().st_size < needed_bytes:
            os.truncate(path, needed_bytes)

    def _identity(self) -> tuple[int, ...] | None:
        """Return the identity of both files. With another reader table, writers would not see the readers of this process."""
        try:
            data, lock = ((self.inner / name).stat() for name in ("data.mdb", "lock.mdb"))
        except OSError:
            return None
        return data.st_dev, data.st_ino, lock.st_ino

    def begin(self) -> Any:
        """Begin a write transaction. The caller holds `writing` and `lock`."""
        return self._env.begin(write=True)

    @property
    def is_open(self) -> bool:
        return self._env is not None

    def info(self) -> Any:
        return self._env.info()

    def distrust(self, error: lmdb.Error) -> None:
        """React to an error of LMDB: the next writer reopens the file, or replaces it."""
        if isinstance(error, lmdb.ReadersFullError):
            with suppress(lmdb.Error):
                self._env.reader_check()
        elif isinstance(error, lmdb.MapResizedError):  # a process with a larger budget has extended the map
            self._close()
        else:
            self._suspect, self.reader = True, None

    def is_whole(self) -> bool:
        """Return whether the file is still the same and not shorter than its last page."""
        try:
            size_bytes = (self.inner / "data.mdb").stat().st_size
        except OSError:
            return False
        if size_bytes < FIRST_PAGES_BYTES or self._file != self._identity():
            return False  # `info` would read the first two pages, which may be gone
        return bool(size_bytes >= (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def _wipe(self) -> None:
        for name in ("data.mdb", "lock.mdb", "boot"):
            with suppress(FileNotFoundError):
                (self.inner / name).unlink()
        self.recent.clear()

    def _close(self, *, wipe: bool = False) -> None:
        env, self._env, self._file, self.reader = self._env, None, None, None
        if env is not None:
            env.close()
        if wipe:
            self._wipe()
            self._suspect = False
            self.rebuilt += 1

    def close(self) -> None:
        with self._writers, self.lock:
            self._closed = True
            self._close()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
                self._lock_fd = None

    # ---- fork

    def before_fork(self) -> None:
        self._writers.acquire()
        self.lock.acquire()

    def after_fork(self) -> None:
        self.lock.release()
        self._writers.release()

    def after_fork_in_child(self) -> None:
        self._close()  # LMDB releases only slots of this process, and it has none
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # the child would share a lock on it with its parent
            self._lock_fd = None
        self.recent.clear()
        self.changes.clear()
        self.after_fork()


_ENVIRONMENTS: dict[tuple[int, int], Environment] = {}
_REGISTRY = threading.RLock()


def _before_fork() -> None:
    _REGISTRY.acquire()
    for environment in _ENVIRONMENTS.values():
        environment.before_fork()


def _after_fork_in_parent() -> None:
    for environment in _ENVIRONMENTS.values():
        environment.after_fork()
    _REGISTRY.release()


def _after_fork_in_child() -> None:
    for environment in _ENVIRONMENTS.values():
        environment.after_fork_in_child()
    _REGISTRY.release()


def shared(inner: Path, map_bytes: int) -> Environment:
    found = inner.stat()
    with _REGISTRY:
        environment = _ENVIRONMENTS.setdefault((found.st_dev, found.st_ino), Environment(inner, map_bytes))
        environment.users += 1
        return environment


def leave(environment: Environment) -> None:
    with _REGISTRY:
        environment.users -= 1
        if environment.users:
            return
        for key in [k for k, e in _ENVIRONMENTS.items() if e is environment]:
            del _ENVIRONMENTS[key]
    environment.close()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
