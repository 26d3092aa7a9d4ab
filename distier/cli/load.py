"""`distier put DIR`: every file of a tree as a module."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from distier.client import Store
from distier.domain.ids import check_id
from distier.errors import DistierError, Invalid
from distier.plans.write import Item

from . import output
from .session import Session

BATCH = 50
BATCH_MAX_BYTES = 4 * 1024 * 1024


def put_tree(
    session: Session, store: Store, root: Path, prefix: str, exclude: list[str], described: dict[str, Any]
) -> None:
    """Put every file below `root`. What cannot be put is told, and the others go on."""
    paths = list(walk(root, exclude, output.say))
    landed: Counter[str] = Counter()
    size_bytes = tokens = 0
    for batch in _progress(_batches(session, root, paths, prefix, described), len(paths)):
        for item, result in zip(batch, store.put_many(batch), strict=True):
            if isinstance(result, DistierError):
                session.failed(result)
                continue
            landed[result.tier] += 1
            size_bytes += len(item.content)
            tokens += result.tokens
            if session.json:
                output.emit(output.row(result))
    output.say(
        f"{output.counted(landed.total(), 'module')}, {output.counted(tokens, 'token')}, {output.size(size_bytes)}: "
        + (", ".join(f"{n} {tier}" for tier, n in sorted(landed.items())) or "nothing was put")
    )


def walk(root: Path, exclude: list[str], say: Any) -> Iterator[Path]:
    """The regular files below `root`, sorted, without what matches a glob of `exclude` (by its path in the tree, its
    name, or a directory above it). Symbolic links are skipped: a tree must not pull in what lies outside of it."""

    def out(path: Path) -> bool:
        inside = path.relative_to(root).as_posix()
        return any(fnmatchcase(inside, glob) or fnmatchcase(path.name, glob.rstrip("/")) for glob in exclude)

    def unreadable(error: OSError) -> None:
        say(f"distier: skipped {error.filename}: {error.strerror}")

    for directory, names, files in os.walk(root, onerror=unreadable):
        here = Path(directory)
        names[:] = sorted(name for name in names if not out(here / name))
        for path in (here / name for name in sorted([*files, *names])):
            if out(path):
                continue
            if path.is_symlink():
                say(f"distier: skipped {path}: a symbolic link")
            elif path.is_file():
                yield path
            elif not path.is_dir():
                say(f"distier: skipped {path}: not a regular file")


def _batches(
    session: Session, root: Path, paths: list[Path], prefix: str, described: dict[str, Any]
) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size_bytes = 0
    for path in paths:
        try:
            id = check_id(prefix + _id(path.relative_to(root)))
            content = path.read_bytes()
        except OSError as e:
            output.say(f"distier: skipped {path}: {e.strerror}")
            continue
        except Invalid as e:
            session.failed(e)
            continue
        if batch and (len(batch) >= BATCH or size_bytes + len(content) > BATCH_MAX_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(Item(id, content, **described))
        size_bytes += len(content)
    if batch:
        yield batch


def _id(path: Path) -> str:
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise Invalid(f"the file name {os.fsencode(path)!r} is no UTF-8, as an id must be: rename it") from None
    return path.as_posix()


def _progress(batches: Iterable[list[Item]], count: int) -> Iterator[list[Item]]:
    """The batches, with a bar on stderr while somebody is looking."""
    if not sys.stderr.isatty() or count <= BATCH:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("putting", total=count)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))
