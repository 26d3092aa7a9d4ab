"""The archive in a directory: the same keys as in S3, as files that `xz` can open.

A file gets its final name by `link(2)` from a complete, synced temporary file. So a name never shows a torn object and
never changes: the first content of a name stays. When `put` returns, the name is durable. For this, each `put` also syncs
the directories from the file up to the root, because another process may have created one of them and died before it
synced.

Every operation walks from the root by descriptors, one component at a time, without following symlinks. So no key leads
out of the root, even if something replaces a directory at the same time. Empty directories are removed; a `put` that was
about to use one starts over.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from distier.domain.archived import Limits
from distier.domain.objects import Fetched, Listed
from distier.errors import ArchiveUnavailable, ConfigError, Corrupt, Invalid

from .archive import check_key, check_limit, probe
from .filenames import Names, probe_names
from .syncing import GroupSync, sync

_TMP = ".tmp"
_NAMES = ".names"
_OWN = (_TMP, _NAMES)
_NAMES_TEXT = b"""The names in this archive are for file systems that ignore case, where README and readme are one file.
A name that ends in %~ and hexadecimal digits has capitals. The digits are a bitmap of them; bit 0 is the first
character: readme.md%~3f is README.md. Do not remove this file.
"""
_DIR_MODE = 0o700
_FILE_MODE = 0o600
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in the archive must not block a reader. The flag has no effect on files.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOKS_MAX = 100
# A temporary file of this age belongs to a process that died: writing one object takes less than an hour.
_TMP_AGE_S_MAX = 3600
# How often a put starts over because its directory was removed. Each time another process deleted something.
_WALKS_MAX = 1000
_LASTING = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
}
# File systems without hard links (FAT, some FUSE ones) report one of these.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class DirectoryArchive:
    """Objects as files below `path`. Metadata is not kept.

    Args:
        path: The directory. It is created if necessary; it and its contents are accessible to the owner only.

    Raises:
        ConfigError: The directory cannot be used.
    """

    keeps_metadata = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self.name = str(self._path)
        try:
            self._path.mkdir(mode=_DIR_MODE, parents=True, exist_ok=True)
            (self._path / _TMP).mkdir(mode=_DIR_MODE, exist_ok=True)
            found = self._path.stat()
        except OSError as e:
            raise ConfigError(f"{self.name} cannot be used as the archive's directory: {e.strerror}") from e
        self._group = GroupSync()
        self._identity = (found.st_dev, found.st_ino)
        self._names, self.limits = Names(), Limits()
        with self._root("be opened") as root:
            _remove_old_temps(root)
            self._names, self.limits = self._probe_names(root)

    def __repr__(self) -> str:
        return f"DirectoryArchive({self.name!r})"

    def _probe_names(self, root: int) -> tuple[Names, Limits]:
        with _opened(_TMP, _OPEN_DIR, root) as tmp:
            found = probe_names(tmp, len(os.fsencode(self.name)))
        names = Names(_is_marked(root), found.folds_form)
        if found.folds_case and not names.case:
            entries = _listed(root, names, b"", b"", b"")
            with closing(entries):
                capital = next((one.key for one in entries if one.key != one.key.lower()), None)
            if capital is not None:
                raise ConfigError(
                    f"{self.name}: its file system ignores the case of names, but the archive was not written for that "
                    f"({capital!r}): distier would read and sweep modules as other ones. Move the archive to a "
                    "case-sensitive file system or to S3, or use an empty directory"
                )
            names = names._replace(case=True)
            _mark(root)
        return names, names.limits(found.limits)

    def _stored(self, key: str) -> list[str]:
        return [self._names.stored(part) for part in _parts(key)]

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Archive.put`. If a key is put with two contents, the first one stays."""
        parts = self._stored(key)
        with self._root(f"put {key}") as root, _opened(_TMP, _OPEN_DIR, root) as tmp:
            temp = secrets.token_hex(16)
            try:
                with _written(tmp, temp, data) as file:
                    self._group.sync([file])
                for _ in range(_WALKS_MAX):
                    if self._publish(root, parts, tmp, temp):
                        return
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temp, dir_fd=tmp)
        raise ArchiveUnavailable(f"{self.name}: cannot put {key} now: other processes keep removing its directory")

    def _publish(self, root: int, parts: Sequence[str], tmp: int, temp: str) -> bool:
        """Give the temporary file its name. Returns False if a directory on the path was removed, so that `put` starts over."""
        fds = [os.dup(root)]
        try:
            for part in parts[:-1]:
                with suppress(FileExistsError):
                    os.mkdir(part, _DIR_MODE, dir_fd=fds[-1])
                fds.append(os.open(part, _OPEN_DIR, dir_fd=fds[-1]))
            _link(tmp, temp, fds[-1], parts[-1])
            self._group.sync(fds[::-1])
        except FileNotFoundError:
            os.stat(temp, dir_fd=tmp)  # raises if the temporary file is gone, because starting over would not help
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """See `Archive.get`."""
        *parents, leaf = self._stored(key)
        with self._root(f"get {key}") as root:
            try:
                with _walk(root, parents) as parent, _opened(leaf, _OPEN_FILE, parent) as file:
                    found = os.fstat(file)
                    if stat.S_ISDIR(found.st_mode):
                        return None
                    if not stat.S_ISREG(found.st_mode):
                        raise Invalid(f"{key} in {self.name} is not a regular file, so distier did not write it")
                    return Fetched(self._read(key, file, max_bytes), {})
            except FileNotFoundError:
                return None

    def _read(self, key: str, file: int, max_bytes: int) -> bytes:
        with open(file, "rb", closefd=False, buffering=0) as reader:
            size_bytes = os.fstat(file).st_size
            data = reader.read(size_bytes + 1) if size_bytes <= max_bytes else None
        if data is None or len(data) > max_bytes:
            raise Corrupt(f"{key} in {self.name} has {size_bytes} bytes, more than {max_bytes}")
        return data

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """See `Archive.list`. Reads only the necessary directories, one at a time."""
        check_limit(limit)
        base, _, start = prefix.rpartition("/")
        parents = base.split("/") if base else []
        if "\0" in prefix or any(part in ("", ".", "..") for part in parents) or prefix.startswith("/"):
            return []  # no key starts with this
        with self._root(f"list {prefix}") as root:
            try:
                with _walk(root, [self._names.stored(part) for part in parents]) as fd:
                    below = b"".join(os.fsencode(part) + b"/" for part in parents)
                    found = _listed(fd, self._names, below, below + os.fsencode(start), start_after.encode())
                    with closing(found):
                        return list(itertools.islice(found, limit))
            except FileNotFoundError:
                return []

    def delete(self, keys: Sequence[str]) -> None:
        """See `Archive.delete`."""
        paths = sorted(self._stored(key) for key in keys)
        with self._root(f"delete {len(paths)} objects") as root:
            for parents, group in itertools.groupby(paths, key=lambda parts: parts[:-1]):
                with suppress(FileNotFoundError), _walk(root, parents) as parent:
                    for parts in group:
                        with suppress(FileNotFoundError):
                            os.unlink(parts[-1], dir_fd=parent)
                    sync(parent)
                _remove_empty(root, parents)

    def check(self) -> None:
        """See `Archive.check`."""
        probe(self)

    def syncs(self) -> bool:
        """Return whether the file system can sync. If not, a power cut may lose objects that were put recently."""
        with self._root("sync") as root, _opened(_TMP, _OPEN_DIR, root) as tmp:
            name = secrets.token_hex(16)
            fd = os.open(name, _CREATE, _FILE_MODE, dir_fd=tmp)
            try:
                return sync(fd) and sync(tmp) and sync(root)
            finally:
                os.close(fd)
                os.unlink(name, dir_fd=tmp)

    def close(self) -> None:
        """Do nothing. No descriptor is kept between calls, which also makes forks harmless."""

    @contextmanager
    def _root(self, step: str) -> Iterator[int]:
        """Open the root for one operation, and translate the operating system's errors.

        The descriptor is not kept between operations: it would still work after the directory is gone from its path. An
        unmounted disk leaves an empty directory there, in which every module would look deleted.
        """
        try:
            with _opened(self.name, _OPEN_DIR & ~os.O_NOFOLLOW) as root:
                found = os.fstat(root)
                if (found.st_dev, found.st_ino) != self._identity:
                    raise ArchiveUnavailable(
                        f"{self.name} is now a different directory: mount the right one, or reopen the store"
                    )
                yield root
        except OSError as e:
            text = f"{self.name}: cannot {step}: {e.strerror}"
            raise (ConfigError if e.errno in _LASTING else ArchiveUnavailable)(text) from e


def _parts(key: str) -> list[str]:
    """Return the path components of a key.

    Raises:
        Invalid: The key is not a plain relative path, or uses a reserved name.
    """
    parts = check_key(key).split("/")
    if parts[0] in _OWN:
        raise Invalid(f"archive key {key!r} uses a name that is reserved for the archive: {', '.join(_OWN)}")
    return parts


def _is_marked(root: int) -> bool:
    """Return whether names in this archive are stored without capitals."""
    try:
        os.stat(_NAMES, dir_fd=root, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _mark(root: int) -> None:
    """Mark the archive before its first name is stored without capitals. Another process may be faster."""
    with suppress(FileExistsError), _written(root, _NAMES, _NAMES_TEXT) as file:
        sync(file)
    sync(root)


@contextmanager
def _opened(name: str, flags: int, dir_fd: int | None = None) -> Iterator[int]:
    fd = os.open(name, flags, _FILE_MODE, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _enter(parent: int, name: str) -> int:
    """Open a directory. A regular file of that name means that no object is below it, as in S3."""
    try:
        return os.open(name, _OPEN_DIR, dir_fd=parent)
    except NotADirectoryError as e:
        if stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise FileNotFoundError(errno.ENOENT, f"{name} is a file") from e
        raise  # a symlink: it may lead anywhere


@contextmanager
def _walk(root: int, parts: Sequence[str]) -> Iterator[int]:
    """Open the directory at `parts`.

    Raises:
        FileNotFoundError: There is none.
    """
    fd = os.dup(root)
    try:
        for part in parts:
            below = _enter(fd, part)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _written(tmp: int, name: str, data: bytes) -> Iterator[int]:
    """Create a file with this content. It is not synced yet."""
    with _opened(name, _CREATE, tmp) as fd:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        yield fd


def _link(tmp: int, temp: str, parent: int, leaf: str) -> None:
    """Move a file like rename(2), but keep an existing file of that name."""
    try:
        os.link(temp, leaf, src_dir_fd=tmp, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        if stat.S_ISDIR(os.stat(leaf, dir_fd=parent, follow_symlinks=False).st_mode):
            raise IsADirectoryError(errno.EISDIR, f"{leaf} is a directory") from None
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
        # Two writers of one name may both see it free; the last one wins. This is harmless: they write the same bytes.
        try:
            os.stat(leaf, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(temp, leaf, src_dir_fd=tmp, dst_dir_fd=parent)


def _listed(fd: int, names: Names, below: bytes, prefix: bytes, after: bytes) -> Generator[Listed, None, None]:
    """Yield the objects below a directory in the order of their keys.

    A `/` after each directory's name makes names sort as whole keys do: `a-b/` < `a/` < `a0`.

    Args:
        fd: The directory.
        names: How the archive stores names.
        below: The start of all keys in the directory.
        prefix: Only keys with this prefix.
        after: Only keys greater than this.
    """
    for key, listed in _settled(fd, names, below):
        if not key.startswith(prefix):
            continue
        if not key.endswith(b"/"):
            if key > after and listed:
                yield listed
        elif key > after or after.startswith(key):  # otherwise all keys in it are less than `after`
            try:
                inner = _enter(fd, names.stored(os.fsdecode(key[len(below) : -1])))
            except FileNotFoundError:
                continue  # removed in the meantime
            try:
                yield from _listed(inner, names, key, prefix, after)
            finally:
                os.close(inner)


def _settled(fd: int, names: Names, below: bytes) -> list[tuple[bytes, Listed | None]]:
    """Return the keys of one directory in order, with the attributes of files.

    The directory is read repeatedly until no file appeared or disappeared during a pass, because readdir(3) is not a
    snapshot. If a version is put and the version that it supersedes is swept at the same time, a single pass may show
    neither, although one of them existed at every moment. The module would then seem not to exist.
    """
    keys = _named(fd, names, below)  # some network file systems show a name twice
    for _ in range(_LOOKS_MAX):
        found = [(key, None if key.endswith(b"/") else _stat(fd, names, key, key[len(below) :])) for key in keys]
        again = _named(fd, names, below)
        if [key for key in again if not key.endswith(b"/")] == [key for key in keys if not key.endswith(b"/")]:
            return found
        keys = again
    raise ArchiveUnavailable(
        f"the directory of {below.decode(errors='replace')!r} changes too fast to be listed; retry"
    )


def _named(fd: int, names: Names, below: bytes) -> list[bytes]:
    """Return the keys of one directory in order, decoded and without duplicates."""
    found = set(_keys(fd, below))
    if names.case or names.ascii:

        def key(raw: bytes) -> bytes:
            name = raw[len(below) :].rstrip(b"/")
            return below + os.fsencode(names.part(os.fsdecode(name))) + raw[len(below) + len(name) :]

        found = {key(raw) for raw in found}
    return sorted(found)


def _keys(fd: int, below: bytes) -> Iterator[bytes]:
    """Yield the stored names of one directory, with a `/` after those of directories. Symlinks and other types are skipped."""
    with os.scandir(fd) as entries:
        for entry in entries:
            if not below and entry.name in _OWN:
                continue
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield below + name + b"/"
            elif entry.is_file(follow_symlinks=False):
                yield below + name


def _stat(fd: int, names: Names, key: bytes, part: bytes) -> Listed | None:
    """Return a file's attributes. None if it was removed, or if its name is not UTF-8 and therefore not a key."""
    try:
        found = os.stat(names.stored(os.fsdecode(part)), dir_fd=fd, follow_symlinks=False)
        return Listed(key.decode(), found.st_size, found.st_mtime_ns // 1_000_000)
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _remove_empty(root: int, parts: Sequence[str]) -> None:
    """Remove the directory at `parts` and those above it as long as they are empty.

    rmdir(2) refuses to remove others, so this is safe while other processes use the archive.
    """
    for depth in range(len(parts), 0, -1):
        try:
            with _walk(root, parts[: depth - 1]) as parent:
                os.rmdir(parts[depth - 1], dir_fd=parent)
        except FileNotFoundError:
            continue  # another process removed it: try the one above
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return


def _remove_old_temps(root: int) -> None:
    """Remove the temporary files of writers that died. A slow writer finds its file missing and retries."""
    oldest_s = time.time() - _TMP_AGE_S_MAX
    with _opened(_TMP, _OPEN_DIR, root) as tmp, os.scandir(tmp) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest_s:
                    os.unlink(entry.name, dir_fd=tmp)
