"""Writing an export (`export.py`) into the archive of a namespace that has none yet.

The namespace may have another name than the exported one. Claims of epochs and the archive's name are written last: until then
nobody can open the namespace on a part of the archive, and an import that was stopped is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from distier.domain import archived as names
from distier.domain.dictionary import name_in_key
from distier.domain.objects import Listed
from distier.domain.packs import parse_content, parse_index
from distier.effects import ArchiveList, ArchivePut, Parallel, Plan, collect
from distier.errors import Invalid
from distier.plans.common.namespace import Namespace

FOLDERS = ("modules", "packs", "dictionaries", "epochs", "identity")
LAST = ("epochs", "identity")
_NAME = re.compile(r"[!-~]+")
_CLAIM = re.compile(r"\d+/@\d{8}-[0-9a-f]{8}(-[0-9a-f]+)?")
_TYPES = {".xz": names.CONTENT_TYPE, ".json": "application/json", ".gz": "application/gzip"}


class Imported(NamedTuple):
    """One object of an export, with its key in the archive of this namespace."""

    key: str
    data: bytes
    last: bool


def place(space: Namespace, name: str) -> Imported | None:
    """Return where an object of an export goes, without its data; None for a name that no export has."""
    _, _, path = name.partition("/")
    folder, _, below = path.partition("/")
    if folder not in FOLDERS or not _NAME.fullmatch(name) or ".." in name.split("/"):
        return None
    key = f"{space.namespace}/{path}"
    known = {
        "modules": names.parse_key(key) is not None,
        "packs": bool(parse_content(space.namespace, key) or parse_index(space.namespace, Listed(key, 0, 0))),
        "dictionaries": name_in_key(space.namespace, key) is not None,
        "epochs": _CLAIM.fullmatch(below) is not None,
        "identity": bool(below) and "/" not in below,
    }
    return Imported(key, b"", folder in LAST) if known[folder] else None


def check_unused(space: Namespace) -> Plan[None]:
    """Raise `Invalid` if the namespace has been used with this archive."""
    for folder in LAST:
        if (yield from ArchiveList(f"{space.namespace}/{folder}/", limit=1)):
            raise Invalid(
                f"the archive already belongs to namespace {space.namespace!r}: an import would mix two histories; import into "
                "another namespace (--namespace), or into an empty archive"
            )


def write_objects(space: Namespace, objects: Sequence[Imported]) -> Plan[int]:
    """Write some objects at once. Returns how many. Raises the first failure after having tried each."""

    def write(one: Imported) -> Plan[None]:
        suffix = one.key[one.key.rfind(".") :]
        yield from ArchivePut(one.key, one.data, _TYPES.get(suffix, "application/octet-stream"), {})

    for result in (yield Parallel([write(one) for one in objects])) if objects else ():
        collect(result)
    return len(objects)
