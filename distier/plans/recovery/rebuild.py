"""Rebuilding the manifest from a LIST of all objects: what has no row gets one, and rows without an object are dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distier.domain import archived as names
from distier.domain import manifest as files
from distier.domain.manifest import Row, row_of
from distier.domain.module import Record
from distier.effects import ArchiveDelete, ArchivePut, Count, NewToken, Parallel, Pipeline, Plan, collect
from distier.errors import Corrupt, DistierError
from distier.plans.common.commands import chunks, record_command
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.describe import describe, row_of_adoption
from distier.plans.recovery.manifest import Manifest, Replacing, is_pending, list_manifest, open_manifest
from distier.plans.recovery.walk import ArchiveWalk, Group, Skipped

BATCH = 512
Delete = Callable[[Sequence[Group]], Plan[set[str]]]
"""Deletes what nobody needs of some modules, and returns the keys of what it deleted."""


def rebuild(space: Namespace, delete: Delete | None = None, *, records: bool = True) -> Plan[int]:
    """List the whole archive and rebuild the manifest from it. Returns how many objects were deleted, or without `delete`
    how many versions are listed now.

    Rows come from the present manifest, else from the records that are clean at that version, else from the objects
    themselves. `records`: whether there is a Redis to ask. The manifest is read before the objects are listed, so a row whose
    object is missing then is of an object that was deleted.
    """
    writes = space.config.storage_tiers.cold.manifest
    known = (yield from open_manifest(space)) if writes else Manifest(space)
    inputs = [*known.files, *known.damaged]
    run = {shard: Replacing(space, shard.index, inputs) for shard in space.keys.shards}
    walk, skipped, deleted, listed = ArchiveWalk(space), Skipped(), 0, 0
    while not walk.done:
        for groups in chunks((yield from walk.step()), BATCH):
            gone = (yield from delete(groups)) if delete else set[str]()
            deleted += len(gone)
            if not writes:
                continue
            for group, rows in (yield from _rows(space, groups, gone, known, skipped, records=records)):
                listed += len(rows)
                yield from run[space.shard(group.id)].add(rows, pending=is_pending(space, rows))
    if writes:
        yield from _end(space, list(run.values()), inputs)
    return deleted if delete else listed


def _end(space: Namespace, runs: Sequence[Replacing], inputs: Sequence[str]) -> Plan[None]:
    for run in runs:
        if not (yield from run.write()):
            return  # another compactor has replaced files: the next rebuild writes the manifest
    for some in chunks(inputs, 1000):
        yield from ArchiveDelete(some)
    old = [e.key for e in (yield from list_manifest(space)) if files.is_marker(space.namespace, e.key, "full")]
    key = files.marker_key(space.namespace, "full", (yield from NewToken()))
    yield from ArchivePut(key, b"", "application/octet-stream", {})
    if old:
        yield from ArchiveDelete(old)


def _rows(
    space: Namespace, groups: Sequence[Group], gone: set[str], known: Manifest, skipped: Skipped, *, records: bool
) -> Plan[list[tuple[Group, list[Row]]]]:
    """Return the rows of what is left of these modules."""
    prefix = names.modules_prefix(space.namespace)
    found: list[tuple[Group, list[Row]]] = []
    missing: list[tuple[list[Row], Group, names.VersionObject]] = []
    for group in groups:
        have = {prefix + row.key: row for row in known.of(group.directory) if row.pack is None}
        left = [o for o in group.objects if o.kind != "meta" and o.key not in gone and not o.pack]
        rows = [*group.copies, *(have[o.key] for o in left if o.key in have)]
        missing += [(rows, group, o) for o in left if o.key not in have]
        if left or rows:
            found.append((group, rows))
    if missing:
        mine = (yield from _records(space, [group.id for _, group, _ in missing])) if records else [None] * len(missing)
        plans: list[Plan[None]] = []
        for (rows, group, object), record in zip(missing, mine, strict=True):
            if record is not None and record.clean and names.object_key(space.namespace, record) == object.key:
                rows.append(row_of(space.namespace, record, object.key, group.sizes[object.key]))
            else:
                plans.append(_describe(space, group, object, rows, skipped))
        for some in chunks(plans, 64):
            for result in (yield from Parallel(some)):
                collect(result)
    for _, rows in found:
        rows.sort(key=lambda row: (row.key, row.place))
    return [(group, rows) for group, rows in found if rows]


def _records(space: Namespace, ids: Sequence[str]) -> Plan[list[Record | None]]:
    replies = yield from Pipeline([record_command(space.shard(id), id) for id in ids])
    return [None if isinstance(reply, Corrupt) else collect(reply) for reply in replies]


def _describe(
    space: Namespace, group: Group, object: names.VersionObject, rows: list[Row], skipped: Skipped
) -> Plan[None]:
    """Describe a version by its object. One that cannot be read gets no row, and is as good without."""
    try:
        found = yield from describe(space, group, object)
        skipped.went_well()
    except DistierError as e:
        skipped.add(object.key, e)
        yield Count("manifest.undescribed")
        return
    if found.kind != "none":
        rows.append(row_of_adoption(space, object, found))
