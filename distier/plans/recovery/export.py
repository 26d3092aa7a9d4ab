"""Copying a namespace's archive into one stream. Unpacked, it is an archive in a directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.objects import Fetched
from distier.effects import ArchiveGet, ArchiveList, Offload, Plan, Progress
from distier.errors import Corrupt, DistierError
from distier.plans.common.content import UNPACKING
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.walk import PAGE, ArchiveWalk, Group, Skipped


@dataclass(slots=True)
class Exported:
    """One object for the stream. The caller writes it before the plan continues, so one object at a time is in memory."""

    key: str
    data: bytes = field(repr=False)
    modified_ms: int


def export(space: Namespace, skipped: Skipped, *, prefix: str = "") -> Plan[int]:
    """Report every object of the namespace as `Exported`: versions, tombstones, sidecars, epochs and the archive's name.

    What a bucket keeps as metadata becomes a sidecar, because a directory keeps no metadata. Contents are compared with their
    SHA-256. `skipped` gets what could not be read, is damaged, or was swept while the export ran.

    Args:
        space: The namespace.
        skipped: What is missing in the stream, with the reason.
        prefix: Only modules whose ids begin with it.

    Returns:
        The number of objects.
    """
    count = 0
    for folder in ("epochs", "identity"):
        after = ""
        while page := (yield from ArchiveList(f"{space.namespace}/{folder}/", start_after=after, limit=PAGE)):
            for entry in page:
                count += yield from _export(entry.key, entry.size_bytes, entry.modified_ms, skipped, lone=False)
            after = page[-1].key
    walk = ArchiveWalk(space)
    while not walk.done:
        for group in (yield from walk.step()):
            if group.id.startswith(prefix):
                count += yield from _export_module(group, skipped)
        for directory, why in walk.unreadable.items():
            skipped.add(directory, Corrupt(why))
        walk.unreadable.clear()
    return count


def _export_module(group: Group, skipped: Skipped) -> Plan[int]:
    described, count = {o.order for o in group.objects if o.kind == "meta"}, 0
    for found in group.objects:
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
