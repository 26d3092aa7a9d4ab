"""Writing files: `get -o FILE`, and `get --prefix` as the inverse of `put DIR`."""

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
    """Write beside, then rename: a full disk must not cost what was there. A link's target is written, and what is no regular
    file (a terminal, a pipe) directly. Raises `OSError`."""
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
    beside = path.with_name(f".{path.name[:40]}.{os.urandom(6).hex()}.part")
    if mode and not os.access(path.parent, os.W_OK):  # the file may be changed, its directory not
        path.write_bytes(content)
        return
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode:
            beside.chmod(stat.S_IMODE(mode))
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def tree_of(store: Store, prefix: str, to: Path | None) -> tuple[list[str], str, Path]:
    """The modules below a prefix, the prefix with its slash, and the directory for them."""
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    root = to if to is not None else Path(*[part for part in prefix.split("/") if part not in ("", ".", "..")])
    return sorted(store.list(prefix)), prefix, root


def save_tree(session: Session, store: Store, ids: list[str], prefix: str, root: Path) -> None:
    """Write each module as a file in `root`, without `prefix`. What cannot be a file is told, and the others go on."""
    written = 0
    for at in range(0, len(ids), BATCH):
        for id in ids[at : at + BATCH]:
            try:
                module = store.get(id)
                if module is not None:  # else it was deleted meanwhile
                    _save(root, id, id.removeprefix(prefix), module.content)
                    written += 1
            except DistierError as e:
                session.failed(e)
    output.say(f"{output.counted(written, 'file')} in {root}")


def _save(root: Path, id: str, inside: str, content: bytes) -> None:
    """Raises `Invalid` for an id that is no path below `root`: it comes from whoever may write modules."""
    parts = inside.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Invalid(f"module {id!r} cannot be a file: its id is no path")
    path = root.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.parent.resolve().is_relative_to(root.resolve()):
            raise Invalid(f"module {id!r} is not written: {path} leads through a symbolic link")
        write_file(path, content)
    except OSError as e:
        raise Invalid(f"module {id!r} cannot be written to {path}: {e.strerror}") from None
