"""File systems that treat names differently from that of this machine, by wrapping the functions of `os` that take a name."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMED = ("open", "mkdir", "stat", "lstat", "link", "unlink", "rename", "rmdir", "chmod", "utime", "access")
Fold = Callable[[str], str]


def _where(under: Path, name: str, dir_fd: int | None) -> str | None:
    """Return the directory of a name below `under`, otherwise None."""
    base = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None and not os.path.isabs(name) else os.getcwd()
    path = os.path.normpath(os.path.join(base, name))
    return os.path.dirname(path) if path.startswith(f"{under}/") else None


def install(patch: pytest.MonkeyPatch, under: Path, change: Callable[[str, str], str]) -> None:
    """Change names below `under` from now on: `change(directory, name)` returns the actual name, or raises `OSError`."""

    def wrap(function: Any) -> Any:
        def meant(name: Any, dir_fd: int | None) -> Any:
            if not isinstance(name, str | bytes | os.PathLike):
                return name  # a descriptor
            text = os.fsdecode(name)
            directory = _where(under, text, dir_fd)
            if directory is None:
                return name
            head, tail = os.path.split(text)
            return os.path.join(head, change(directory, tail)) if tail not in ("", ".", "..") else name

        def wrapped(name: Any, *rest: Any, **options: Any) -> Any:
            name = meant(name, options.get("dir_fd", options.get("src_dir_fd")))
            if function.__name__ in ("link", "rename"):
                rest = (meant(rest[0], options.get("dst_dir_fd")), *rest[1:])
            return function(name, *rest, **options)

        return wrapped

    for name in NAMED:
        patch.setattr(os, name, wrap(getattr(os, name)))


def folding(patch: pytest.MonkeyPatch, under: Path, fold: Fold) -> None:
    """Take names that `fold` makes equal for one name; the first spelling stays, as on a Mac."""

    def change(directory: str, name: str) -> str:
        try:
            there = os.listdir(directory)
        except OSError:
            return name
        return name if name in there else next((one for one in there if fold(one) == fold(name)), name)

    install(patch, under, change)


def by_case(name: str) -> str:
    return name.casefold()


def by_form(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def by_both(name: str) -> str:
    return unicodedata.normalize("NFD", name).casefold()


def by_dots(name: str) -> str:
    return name.rstrip(". ") or name


def refusing(patch: pytest.MonkeyPatch, under: Path, *, name_bytes: int = 255, signs: str = "") -> None:
    """Refuse names longer than `name_bytes` and names with one of `signs`, limits that nothing reports beforehand."""

    def change(_: str, name: str) -> str:
        if len(os.fsencode(name)) > name_bytes:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        if set(name) & set(signs):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        return name

    install(patch, under, change)
