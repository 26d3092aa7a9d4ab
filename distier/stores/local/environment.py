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
"""How long a writer waits for another one. A copy that is not kept costs less than a caller that waits."""
RETRY_S = 10.0
"""After a failure to open: the disk is full, or gone."""
FIRST_PAGES_BYTES = 2 * 4096
READERS_MAX = 1024
LOCK_FILE_BYTES = READERS_MAX * 64 + 4096
U64 = struct.Struct(">Q")


class Environment:
    """The open file, and who may use it when. `lock` is held over each use of it, `writing` over each change as well."""

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
        """Begins a transaction that reads; None while the file is not open or not to be trusted."""
        self._env: Any = None
        self._file: tuple[int, ...] | None = None
        self._suspect = False
        self._retry_s = 0.0
        self._closed = False

    def is_interrupted(self) -> bool:
        """Whether this is a signal handler or a finaliser in the middle of this very thread's use of the file: LMDB has one
        transaction that writes, and the file must not be changed or closed under one that reads."""
        return bool(self.lock._is_owned() or self._writers._is_owned())

    # ---- writers take turns, in this process and in others

    @contextmanager
    def writing(self, patience_s: float = PATIENCE_S) -> Iterator[bool]:
        """Whether the turn came in time. While it lasts nobody else writes or replaces the file."""
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
                if self._lock_fd is not None:  # closed by a signal handler, or this is its child
                    fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        finally:
            self._writers.release()

    def _flock(self, end_s: float) -> bool:
        if self._closed:  # a thread that was late: it must not open the file beside its next user
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
        """Whether the file is open, in a turn of `writing` and under `lock`; opens it if it is not, anew where it was replaced
        or is not to be trusted."""
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
        # No spare transactions: see the top. No readahead: reads are of single copies. And pages are cleared first
        # (`meminit`): else bytes of this process's memory would lie in the file.
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
        """LMDB makes its table of readers a sparse file and writes it through memory: on a full disk that is SIGBUS. With all
        its blocks there it is `ENOSPC`, here. Not while it is open in this process: to close it would end LMDB's locks."""
        fd = os.open(self.inner / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, LOCK_FILE_BYTES)
        finally:
            os.close(fd)

    def lengthen(self) -> None:
        """LMDB may leave its last pages unwritten where they were freed in the same transaction. A file of the full length is
        one that `_map` can tell from a truncated one."""
        needed_bytes = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        path = self.inner / "data.mdb"
        if path.stat().st_size < needed_bytes:
            os.truncate(path, needed_bytes)

    def _identity(self) -> tuple[int, ...] | None:
        """Both files: with another table of readers, writers would not see who reads here."""
        try:
            data, lock = ((self.inner / name).stat() for name in ("data.mdb", "lock.mdb"))
        except OSError:
            return None
        return data.st_dev, data.st_ino, lock.st_ino

    def begin(self) -> Any:
        """A transaction that writes, in a turn of `writing` and under `lock`."""
        return self._env.begin(write=True)

    @property
    def is_open(self) -> bool:
        return self._env is not None

    def info(self) -> Any:
        return self._env.info()

    def distrust(self, error: lmdb.Error) -> None:
        """After an error of LMDB: the next writer opens the file anew, or makes another one."""
        if isinstance(error, lmdb.ReadersFullError):
            with suppress(lmdb.Error):
                self._env.reader_check()
        elif isinstance(error, lmdb.MapResizedError):  # a process with a larger budget has made it grow
            self._close()
        else:
            self._suspect, self.reader = True, None

    def is_whole(self) -> bool:
        """Whether the file is where it was and no shorter than what is mapped."""
        try:
            size_bytes = (self.inner / "data.mdb").stat().st_size
        except OSError:
            return False
        if size_bytes < FIRST_PAGES_BYTES or self._file != self._identity():
            return False  # not even the first two pages may be touched, where `info` looks
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
        self._close()  # touches the slots of this process only: it has none
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # a lock taken over it would be the parent's too
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
