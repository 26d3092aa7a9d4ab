"""Writing modules to files: `get -o FILE`, and `get --prefix`, the inverse of `put DIR`."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from distier.errors import DistierError, Invalid

from . import output

if TYPE_CHECKING:
    from distier.client import Store

    from .session import Session

BATCH = 50


def write_file(path: Path, content: bytes) -> None:
    """Write a file through a temporary file and a rename, so that a full disk does not destroy the old content.

    A symbolic link is followed. A target that is not a regular file (a terminal, a pipe) is written directly.

    Raises:
        OSError: The file cannot be written.
    """
    is_device = False
    try:
        is_device = path.absolute().is_relative_to("/dev") or path.absolute().is_relative_to("/proc")
        path = path if is_device else path.resolve()
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = 0
    if mode and (is_device or not stat.S_ISREG(mode)):
        path.write_bytes(content)
        return
    if mode and not os.access(path, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(path))
    temporary = path.with_name(f".{path.name[:40]}.{os.urandom(6).hex()}.part")
    if mode and not os.access(path.parent, os.W_OK):  # the file is writable, its directory is not
        path.write_bytes(content)
        return
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode:
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def tree_of(store: Store, prefix: str, to: Path | None) -> tuple[list[str], str, Path]:
    """Return the ids below a prefix, the prefix with a trailing slash, and the directory to write to."""
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    root = to if to is not None else Path(*[part for part in prefix.split("/") if part not in ("", ".", "..")])
    return sorted(store.list(prefix)), prefix, root


def save_tree(session: Session, store: Store, ids: list[str], prefix: str, root: Path) -> None:
    """Write each module to a file in `root`, named by its id without `prefix`. Failures are reported for each module."""
    written = 0
    for at in range(0, len(ids), BATCH):
        for id in ids[at : at + BATCH]:
            try:
                module = store.get(id)
                if module is not None:  # None: it was deleted in the meantime
                    save(root, id, id.removeprefix(prefix), module.content)
                    written += 1
            except DistierError as e:
                session.failed(e)
    output.say(f"{output.counted(written, 'file')} in {root}")


def path_of(root: Path, id: str, inside: str) -> Path:
    """Return the file of a module below `root`. Raises `Invalid` if the rest of the id, `inside`, is not a relative path."""
    parts = inside.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Invalid(f"module {id!r} cannot be written to a file: its id is not a relative path")
    return root.joinpath(*parts)


def save(root: Path, id: str, inside: str, content: bytes) -> None:
    """Write one file. An id that is not a path below `root` raises `Invalid`: any writer of the namespace chooses ids."""
    path = path_of(root, id, inside)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.parent.resolve().is_relative_to(root.resolve()):
            raise Invalid(f"module {id!r} was not written: {path} contains a symbolic link")
        write_file(path, content)
    except OSError as e:
        raise Invalid(f"module {id!r} cannot be written to {path}: {e.strerror}") from None
