"""The description of an archived version: from its sidecar, else from its metadata, else from its bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.content_types import extension_for, type_for_extension
from distier.domain.manifest import Row, row_of_description
from distier.domain.order import make_write_id
from distier.domain.packs import parse_pack
from distier.effects import ArchiveGet, Arg, Count, Offload, Plan
from distier.errors import Corrupt, Invalid
from distier.lua import Adoption
from distier.plans.common.content import UNPACKING, count_tokens
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.walk import Group

SIDECAR_MAX_BYTES = 1024 * 1024
_FIELDS = {
    "sha256": "sha256", "type": "type", "counter": "counter", "keywords": "keywords", "meta": "meta",
    "transform": "transform", "outline": "outline", "created": "created", "updated": "updated",
    "ttl": "ttl",
}  # fmt: skip


class Vanished(Corrupt):
    """A listed object is no longer there: a newer version came and the sweep was quick, or the archive is damaged. Another
    listing tells which."""


def describe(space: Namespace, group: Group, found: names.VersionObject) -> Plan[Adoption]:
    """Return a version of a module as `adopt` takes it, of kind `none` where its description names another module.

    Such an object is foreign, whatever put it there: a copy by hand, or a store to which two names are one. Raises
    `ArchiveUnavailable`, and `Corrupt` where only damaged bytes could tell.
    """
    id, order, sidecar, size_bytes = group.id, found.order, group.sidecar_of(found), group.sizes[found.key]
    if found.pack:
        adoption = adoption_of(space, group.rows[found.key])
        if adoption is None:
            raise Corrupt(f"the index of pack {found.pack} does not describe {found.key!r}; run `distier fsck`")
        return adoption
    if found.kind == "deleted":
        if _is_foreign(id, (yield from _told_with(id, found)).known):
            return (yield from _foreign(id))
        return Adoption(id, order.epoch, order.ver, make_write_id(order.write_id, id), "deleted")
    known = (yield from _from_sidecar(sidecar)) if sidecar else None
    if not _is_foreign(id, known) and not _tells(known, found):
        known = yield from _from_object(space, id, found)
    if _is_foreign(id, known):
        return (yield from _foreign(id))
    assert known is not None
    return _adoption(id, found, known, size_bytes)


def adoption_of(space: Namespace, row: Row) -> Adoption | None:
    """Return the version of a row of the manifest as `adopt` takes it; None where the row is not complete."""
    found, known = row.object(space.namespace), row.described()
    if found is None or id_of(space, found) != row.id:
        return None
    if found.kind == "deleted":
        return Adoption(
            row.id, found.order.epoch, found.order.ver, make_write_id(found.order.write_id, row.id), "deleted"
        )
    return _adoption(row.id, found, known, row.archived_bytes) if _tells(known, found) else None


def id_of(space: Namespace, found: names.VersionObject) -> str | None:
    try:
        return names.id_of(space.namespace, found.directory)
    except Invalid:
        return None


def row_of_adoption(space: Namespace, found: names.VersionObject, adoption: Adoption) -> Row:
    """Return the row of a version that was described by its object."""
    known = {str(name): _text(value) for name, value in zip(adoption.fields[::2], adoption.fields[1::2], strict=True)}
    known.pop("archived_key", None)
    known |= {"version": f"{adoption.epoch}-{adoption.ver}", "tok": adoption.write_id}
    if adoption.kind == "content":
        known |= {"tokens": str(adoption.tokens), "bytes": str(adoption.size_bytes)}
    return row_of_description(space.namespace, found.key, adoption.id, known, adoption.archived_bytes)


def _text(value: Arg) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _adoption(id: str, found: names.VersionObject, known: Mapping[str, str], size_bytes: int) -> Adoption:
    order = found.order
    fields: list[Arg] = []
    if pack := parse_pack(found.pack):
        fields += ["archived_key", pack.reference(id)]
    elif found.extension != extension_for(known.get("type", "")):
        fields += ["archived_key", found.key]
    for name, field in _FIELDS.items():
        if known.get(name):
            fields += [field, known[name]]
    write_id = known["tok"] if known.get("tok", "").startswith(order.write_id) else make_write_id(order.write_id, id)
    numbers = int(known["tokens"]), int(known["bytes"]), size_bytes
    return Adoption(id, order.epoch, order.ver, write_id, "content", *numbers, fields=tuple(fields))


def _is_foreign(id: str, known: Mapping[str, str] | None) -> bool:
    return known is not None and known.get("id", id) != id


def _foreign(id: str) -> Plan[Adoption]:
    yield Count("archive.foreign")
    return Adoption(id)


def _tells(known: Mapping[str, str] | None, found: names.VersionObject) -> bool:
    """Return whether a description is complete and of this very version."""
    return (
        known is not None
        and known.get("tok", "")[:8] == found.order.write_id
        and re.fullmatch("[0-9a-f]{64}", known.get("sha256", "")) is not None
        and all(re.fullmatch("[0-9]{1,15}", known.get(name, "")) for name in ("bytes", "tokens"))
    )


def _from_sidecar(key: str) -> Plan[Mapping[str, str] | None]:
    try:
        got = yield from ArchiveGet(key, max_bytes=SIDECAR_MAX_BYTES)
        known = json.loads(got.data) if got else None
    except (Corrupt, ValueError, RecursionError):
        return None  # the object itself is enough
    if not isinstance(known, dict):
        return None
    return {str(name): str(value) for name, value in known.items()}


class _Told(NamedTuple):
    """An object, and its description in its metadata."""

    data: bytes
    known: Mapping[str, str]


def _told_with(id: str, found: names.VersionObject, max_bytes: int = SIDECAR_MAX_BYTES) -> Plan[_Told]:
    got = yield from ArchiveGet(found.key, max_bytes=max_bytes)
    if got is None:
        raise Vanished(f"the archive lists {found.key!r} of module {id!r} but does not have it; run `distier fsck`")
    prefix = "distier-"
    return _Told(
        got.data, {n.removeprefix(prefix): unquote(v) for n, v in got.metadata.items() if n.startswith(prefix)}
    )


def _from_object(space: Namespace, id: str, found: names.VersionObject) -> Plan[Mapping[str, str]]:
    """Describe a version by the metadata of its object; where that was dropped, by its content."""
    data, known = yield from _told_with(id, found, 2 * space.config.max_module_bytes + 4096)
    if _tells(known, found) or _is_foreign(id, known):
        return known
    content = yield from Offload(
        len(data) * 8, lambda: codec.decompress_xz(data, max_bytes=space.config.max_module_bytes), UNPACKING
    )
    tokens = yield from count_tokens(space, content)
    return {
        "tok": found.order.write_id,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": str(len(content)),
        "tokens": str(tokens),
        "counter": space.counter.name,
        "type": type_for_extension(found.extension),
    }
