"""What makes a directory and the modules of a prefix equal: a three-way merge of whole files.

Each side is compared with what both had after the last synchronization, as `git merge` and rsync-like tools with a state file
(Pierce and Vouillon, "What's in Unison?", 2004) do. A side that has not changed follows the other one. If both have changed,
nothing is done unless the caller prefers a side, because either choice loses something.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Side = Literal["store", "disk"]


class Synced(NamedTuple):
    """A content by its SHA-256, and the version of its module: what both sides had, or what the store has now."""

    sha256: str
    version: str


class Action(NamedTuple):
    """One step. `write` and `remove` change the directory, `put` and `delete` the store; `note` only records what both have.

    `version` is the module's version, as the step expects it; empty if there is no module. `sha256` is that of the file;
    empty if there is none.
    """

    kind: Literal["write", "remove", "put", "delete", "note", "forget", "conflict"]
    id: str
    version: str
    sha256: str


def merge(
    base: Mapping[str, Synced], store: Mapping[str, Synced], disk: Mapping[str, str], prefer: Side | None = None
) -> list[Action]:
    """Return what makes both sides equal, in the order of ids.

    Args:
        base: What both sides had, by id.
        store: The modules, by id.
        disk: The SHA-256 of the files, by id.
        prefer: The side that wins if both have changed.
    """
    actions = []
    for id in sorted(base.keys() | store.keys() | disk.keys()):
        was, module, sha256 = base.get(id), store.get(id), disk.get(id, "")
        version = module.version if module else ""
        kind = _kind(was, module, sha256, prefer)
        if kind != "nothing":
            actions.append(Action(kind, id, version, sha256))
    return actions


def _kind(
    was: Synced | None, module: Synced | None, sha256: str, prefer: Side | None
) -> Literal["write", "remove", "put", "delete", "note", "forget", "conflict", "nothing"]:
    store_changed = (module.version if module else "") != (was.version if was else "")
    disk_changed = sha256 != (was.sha256 if was else "")
    if not store_changed and not disk_changed:
        return "nothing"
    if not module and not sha256:
        return "forget"
    if module and module.sha256 == sha256:
        return "note"
    if store_changed and disk_changed:
        if prefer is None:
            return "conflict"
        disk_changed = prefer == "disk"
    if disk_changed:
        return "put" if sha256 else "delete"
    return "write" if module else "remove"
