"""Copying a namespace's archive into one stream. Unpacked, it is an archive in a directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.manifest import Row
from distier.domain.objects import Fetched
from distier.domain.packs import member_name, packs_prefix
from distier.effects import ArchiveGet, ArchiveList, Offload, Plan, Progress
from distier.errors import Corrupt, DistierError
from distier.plans.common.content import UNPACKING
from distier.plans.common.namespace import Namespace
from distier.plans.common.objects import members_of
from distier.plans.recovery.walk import PAGE, ArchiveWalk, Group, Skipped


@dataclass(slots=True)
class Exported:
    """One object for the stream. The caller writes it before the plan continues, so one object at a time is in memory."""

    key: str
    data: bytes = field(repr=False)
    modified_ms: int


def export(space: Namespace, skipped: Skipped, *, prefix: str = "") -> Plan[int]:
    """Report every object of the namespace as `Exported`: versions, packs, tombstones, sidecars, epochs, dictionaries
    and the archive's name.

    What a bucket keeps as metadata becomes a sidecar, because a directory keeps no metadata. Contents are compared with their
    SHA-256. `skipped` gets what could not be read, is damaged, or was swept while the export ran.

    Args:
        space: The namespace.
        skipped: What is missing in the stream, with the reason.
        prefix: Only modules whose ids begin with it, and no dictionaries. Their versions in packs are reported as objects of
            their own.

    Returns:
        The number of objects.
    """
    count = 0
    # Not with a prefix: a dictionary has text of other modules.
    for folder in ("epochs", "identity", *(() if prefix else ("dictionaries",))):
        count += yield from _export_folder(f"{space.namespace}/{folder}/", skipped)
    walk = ArchiveWalk(space, late=True)
    while not walk.done:
        for group in (yield from walk.step()):
            if group.id.startswith(prefix):
                count += yield from _export_module(group, skipped)
                if prefix:
                    for row in group.rows.values():
                        count += yield from _export_member(space, row, skipped)
        for directory, why in walk.unreadable.items():
            skipped.add(directory, Corrupt(why))
        walk.unreadable.clear()
    if not prefix:  # after the objects: what was packed meanwhile is in a pack now
        count += yield from _export_folder(packs_prefix(space.namespace), skipped)
    return count


def _export_folder(prefix: str, skipped: Skipped) -> Plan[int]:
    count, after = 0, ""
    while page := (yield from ArchiveList(prefix, start_after=after, limit=PAGE)):
        for entry in page:
            count += yield from _export(entry.key, entry.size_bytes, entry.modified_ms, skipped, lone=False)
        after = page[-1].key
    return count


def _export_member(space: Namespace, row: Row, skipped: Skipped) -> Plan[int]:
    """Report a version in a pack as an object of its own, with a sidecar."""
    assert row.pack is not None
    key = names.modules_prefix(space.namespace) + row.key
    try:
        content = ((yield from members_of(space, row.pack)) or {}).get(member_name(row.key))
        if content is None or hashlib.sha256(content).hexdigest() != row.known.get("sha256"):
            raise Corrupt(f"pack {row.pack} was replaced, or its {row.key} does not match its SHA-256; export again")
    except DistierError as e:
        skipped.add(key, e)
        return 0
    skipped.went_well()
    found = content
    level = space.config.storage_tiers.cold.compression_level
    body = yield from Offload(len(found) * 8, lambda: codec.compress_xz(found, level=level), "compressing (xz)")
    yield Progress(Exported(key, body, row.updated_ms))
    described = {name: value for name, value in row.described().items() if name not in ("pack", "archived_bytes")}
    sidecar = json.dumps(described, ensure_ascii=False, indent=1).encode() + b"\n"
    yield Progress(Exported(names.sidecar_key(key), sidecar, row.updated_ms))
    return 2


def _export_module(group: Group, skipped: Skipped) -> Plan[int]:
    described, count = {o.order for o in group.objects if o.kind == "meta"}, 0
    for found in group.objects:
        if found.pack:
            continue
        size_bytes, modified_ms = group.sizes[found.key], group.modified_ms[found.key]
        lone = found.kind != "meta" and found.order not in described
        count += yield from _export(found.key, size_bytes, modified_ms, skipped, lone=lone)
    return count


def _export(key: str, size_bytes: int, modified_ms: int, skipped: Skipped, *, lone: bool) -> Plan[int]:
    """Report one object; with `lone`, also a sidecar with its metadata."""
    try:
        got = yield from ArchiveGet(key, max_bytes=size_bytes)
        if got is None:
            raise Corrupt(
                f"{key} was listed, and deleted before it was read: a newer version replaced it; export again"
            )
        yield from _check(key, got)
    except DistierError as e:
        skipped.add(key, e)
        return 0
    skipped.went_well()
    yield Progress(Exported(key, got.data, modified_ms))
    described = {name: value for name, value in got.metadata.items() if name.startswith("distier-")}
    if not lone or not described:
        return 1
    yield Progress(Exported(names.sidecar_key(key), names.pack_sidecar(described), modified_ms))
    return 2


def _check(key: str, got: Fetched) -> Plan[None]:
    sha256, size = got.metadata.get("distier-sha256"), got.metadata.get("distier-bytes", "")
    if sha256 is None or not size.isdigit() or not key.endswith(".xz"):
        return
    n = int(size)

    def digest() -> str:
        return hashlib.sha256(codec.decompress_xz(got.data, max_bytes=n)).hexdigest()

    if (yield from Offload(n * 4, digest, UNPACKING)) != sha256:
        raise Corrupt(f"{key} does not match its SHA-256; run `distier fsck --checksums 1`")
