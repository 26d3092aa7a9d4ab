"""The archive as a tree: one folder at a time, in bounded work."""

from __future__ import annotations

from dataclasses import dataclass

from distier.domain.objects import Listed
from distier.effects import ArchiveList, Plan
from distier.errors import Invalid
from distier.plans.common.namespace import Namespace

REQUESTS_MAX = 20
"""How many listings one page of a folder may take."""
KEYS = 500
_LAST = "\x7f"
"""Sorts after every character that a key of distier has: such keys are printable ASCII."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Part of a folder: names of folders below (they end in `/`), its own objects, and the key to continue after."""

    path: str
    folders: tuple[str, ...]
    objects: tuple[Listed, ...]
    after: str | None


def list_folder(space: Namespace, path: str, after: str = "", limit: int = 200) -> Plan[Folder]:
    """Return the folders and objects directly below `path`, a path within the namespace that ends in `/`, or is empty.

    An archive lists objects at any depth. So a listing that stays in one folder below for a whole page jumps to its end: one
    request for each large folder, and none for its contents. It makes at most `REQUESTS_MAX` requests.

    Raises:
        Invalid: `path` is not a folder's path.
        ArchiveUnavailable: the archive did not answer.
    """
    if path and (not path.endswith("/") or any(part in ("", ".", "..") for part in path[:-1].split("/"))):
        raise Invalid(f"{path[:60]!r} is not the path of a folder")
    root = f"{space.namespace}/{path}"
    folders: dict[str, None] = {}
    objects: list[Listed] = []
    last = f"{space.namespace}/{after}" if after else ""
    for _ in range(REQUESTS_MAX):
        page = yield from ArchiveList(root, start_after=last, limit=KEYS)
        for entry in page:
            name, below, _ = entry.key[len(root) :].partition("/")
            if below:
                folders[f"{name}/"] = None
                last = f"{root}{name}/{_LAST}"
            else:
                objects.append(entry)
                last = entry.key
            if len(folders) + len(objects) >= limit:
                return Folder(path, tuple(folders), tuple(objects), last[len(space.namespace) + 1 :])
        if len(page) < KEYS:
            return Folder(path, tuple(folders), tuple(objects), None)
    return Folder(path, tuple(folders), tuple(objects), last[len(space.namespace) + 1 :])
