"""The sweep deletes what nobody needs from the archive.

    dominated objects      at once: `cold.keep_versions` greater versions of the module are there
    tombstones             after `worker.tombstone_grace`, where nothing else is left of the module
    sidecars alone         after the same time: their content never came
    doubles                objects whose versions are in packs too, in a sweep with a LIST
    packs without index    after the same time: their packer died
    epoch markers          of each shard, all but the greatest of each of the newest incarnations of its server

A version is dominated where it comes before one that is **committed**: a clean record says so, and the listing has it. A
merely greater object does not suffice. A durable write is in the archive before it is applied, and it may never be applied
(refused, or its writer died): readers still need the object of the record, also where the record has moved on to a version
that is not archived yet. So the last committed version of a module is never deleted. The sweep may stop anywhere, run twice,
and run next to anything else, also on an old primary. (Rejected: letting dominated objects rest for a time. That would need
clocks that agree, and would double the archive of a busy namespace.)

A sweep has two forms. `sweep` lists the whole archive: it finds every object, also those that no row of the manifest names,
and rebuilds the manifest from what it listed. `sweep_listed` reads the manifest alone, and only that of shards where it shows
more than one version of a module, or a tombstone. The worker lists the archive once a week, and reads the manifest each time.
A row that is missing delays a deletion; it never causes one, because the record is asked, and the rows must have its version.

A tombstone keeps older versions from coming back: an upload that is still under way, or a Redis that is restored from an old
snapshot. It may go when neither is possible. **Assumed** is that no process sleeps in the middle of an upload, and that no
snapshot or replica of Redis returns to work, for longer than the grace period (7 days). Checked is that no record is left,
in a shard that has its epoch. A record that is older than the tombstone takes it over first, and the tombstone stays for
another round.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from distier.domain import archived as names
from distier.domain.archived import modules_prefix
from distier.domain.keys import Shard
from distier.domain.manifest import File, Row, grouped, is_marker, merged
from distier.effects import ArchiveDelete, ArchiveList, Command, Count, Now, Pipeline, Plan, collect
from distier.errors import Corrupt, DistierError, Invalid
from distier.lua import state
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.describe import id_of
from distier.plans.recovery.epochs import epochs_prefix
from distier.plans.recovery.manifest import (
    Replacing,
    files_of,
    get_files,
    is_pending,
    list_manifest,
    list_rows,
    step_of,
)
from distier.plans.recovery.packs import announce, list_contents, list_packs, open_packs, refer_to_packs
from distier.plans.recovery.rebuild import rebuild
from distier.plans.recovery.walk import NO_POSITION, Group, Position, Skipped, list_module

if TYPE_CHECKING:
    from distier.domain.objects import Listed


INCARNATIONS_KEPT = 8
YOUNG_MS = 20 * 60_000
LISTING_AFTER_MS = 7 * 24 * 3_600_000
"""How long the worker relies on the manifest until it lists the whole archive again."""


def sweep(space: Namespace, skipped: Skipped | None = None) -> Plan[int]:
    """Delete what nobody needs from the archive. Returns the number of objects.

    An object that cannot be deleted or read (a lock, a missing right) is kept and noted in `skipped`, and does not affect
    the others. Raises `Unavailable`.
    """
    now_ms = yield Now()
    skipped = skipped or Skipped()
    for shard in space.keys.shards:
        yield from state(shard)  # is this the Redis that the records are in?

    whole = {str(index.pack) for index in (yield from list_packs(space)) if index.whole}

    def delete(groups: Sequence[Group]) -> Plan[set[str]]:
        keys = yield from unneeded(space, groups, now_ms, skipped)
        gone = yield from delete_keys(keys, skipped)
        packed = [g.rows[key] for g in groups for key in g.doubles if str(g.rows[key].pack) in whole]
        doubles = [modules_prefix(space.namespace) + row.key for row in packed]
        yield from refer_to_packs(space, packed)
        yield from delete_keys(
            [*doubles, *map(names.sidecar_key, doubles)], skipped
        )  # their rows stay: those of the packs
        return gone

    deleted = yield from rebuild(space, delete)
    deleted += yield from delete_each((yield from _packs_without_index(space, now_ms)), skipped)
    deleted += yield from _delete_superseded(space, skipped)
    return (yield from _end(space, now_ms, deleted, skipped))


def sweep_listed(space: Namespace, skipped: Skipped | None = None) -> Plan[int]:
    """Do the same for what the manifest shows, without a LIST of the objects."""
    now_ms = yield Now()
    skipped = skipped or Skipped()
    for shard in space.keys.shards:
        yield from state(shard)
    files = files_of(space, (yield from list_manifest(space)))
    deleted = 0
    # First the directories of shards that there are no more: their rows belong to another shard.
    for index in sorted({file.shard for file in files}, key=lambda index: (index < space.config.shards, index)):
        mine = [file for file in files if file.shard == index]
        if needs_sweep(mine) or index >= space.config.shards:
            deleted += yield from _sweep_directory(space, index, mine, now_ms, skipped)
    return (yield from _end(space, now_ms, deleted, skipped))


def sweep_due(space: Namespace) -> Plan[int]:
    """Sweep by the manifest, or with a LIST where there was none for `LISTING_AFTER_MS`."""
    if not space.config.storage_tiers.cold.manifest:
        return (yield from sweep(space))
    now_ms = yield Now()
    listed_ms = [
        entry.modified_ms
        for entry in (yield from list_manifest(space))
        if is_marker(space.namespace, entry.key, "full") and entry.modified_ms <= now_ms + YOUNG_MS
    ]
    if max(listed_ms, default=0) < now_ms - LISTING_AFTER_MS:
        return (yield from sweep(space))
    return (yield from sweep_listed(space))


def needs_sweep(files: Sequence[File]) -> bool:
    """Return whether the files of a shard may show more than one version of a module, or a tombstone."""
    return any(file.kind != "run" or file.pending for file in files) or len({file.unique for file in files}) > 1


def _sweep_directory(space: Namespace, index: int, files: Sequence[File], now_ms: int, skipped: Skipped) -> Plan[int]:
    found = yield from get_files(space, [file.key for file in files])
    if found is None or not found.files:
        return 0  # another compactor is at work: the next sweep finds its run
    # Listed after the files were read. The rows of a pack that is gone are of no use: what replaced it has rows of its own.
    listed = yield from list_packs(space)
    packs, whole = {str(index.pack) for index in listed}, {str(index.pack) for index in listed if index.whole}
    run = Replacing(space, index, list(found.files))
    moved: dict[Shard, list[Row]] = {}
    groups, deleted = found.groups(), 0
    while some := (yield from step_of(groups)):
        gone = yield from _delete_listed(space, some, now_ms, skipped)
        deleted += len(gone)
        for rows in some:
            left = [row for row in rows if row.pack or modules_prefix(space.namespace) + row.key not in gone]
            left = without_doubles([row for row in left if row.pack is None or str(row.pack) in packs], whole)
            if not left:
                continue
            if (shard := space.shard(left[0].id)).index != index:
                moved.setdefault(shard, []).extend(left)
            else:
                yield from run.add(left, pending=is_pending(space, left))
    for shard, rows in moved.items():
        yield from list_rows(space, shard, rows)
    yield from run.end()
    return deleted


def _delete_listed(space: Namespace, groups: Sequence[Sequence[Row]], now_ms: int, skipped: Skipped) -> Plan[set[str]]:
    """Delete what nobody needs of these modules. Returns the keys of the objects that are gone."""
    old_ms = now_ms - space.config.worker.tombstone_grace_ms
    wanted: list[Group] = []
    gone: set[str] = set()
    for rows in groups:
        group = group_of(space, rows)
        if group is None or not is_pending(space, rows):
            continue
        if rows[-1].deleted and len(rows) == 1 and (rows[-1].updated_ms < old_ms or not rows[-1].updated_ms):
            # A tombstone goes only where a LIST shows that nothing else is left. The LIST also knows its age.
            group = yield from list_module(space, group.id)
        if not group.objects:
            gone.update(modules_prefix(space.namespace) + row.key for row in rows)
        else:
            wanted.append(group)
    keys = yield from unneeded(space, wanted, now_ms, skipped)
    sidecars = [names.sidecar_key(key) for key in keys if key.endswith(".xz")]
    done = yield from delete_keys([*keys, *sidecars], skipped)
    return gone | done.difference(sidecars)


def without_doubles(rows: Sequence[Row], whole: Collection[str]) -> list[Row]:
    """Return the rows without those of objects whose versions are in `whole` packs too."""
    packed = {row.key for row in rows if row.pack and str(row.pack) in whole}
    return [row for row in rows if row.pack or row.key not in packed]


def group_of(space: Namespace, rows: Sequence[Row]) -> Group | None:
    """Return the module as a LIST shows it; None for rows that are not those of one module, which nothing is deleted for."""
    group: Group | None = None
    for row in sorted(rows, key=lambda row: row.place):
        found = row.object(space.namespace)
        if found is None or id_of(space, found) != row.id:
            return None
        group = group or Group(found.directory, row.id)
        if found.pack:
            group.add_packed(space.namespace, [row])
        else:
            group.objects.append(found)
            group.sizes[found.key], group.modified_ms[found.key] = row.archived_bytes, row.updated_ms
    return group


def _end(space: Namespace, now_ms: int, deleted: int, skipped: Skipped) -> Plan[int]:
    for shard in space.keys.shards:
        deleted += yield from delete_each((yield from _old_epochs(space, shard, now_ms)), skipped)
    yield from Count("archive.swept", deleted)
    yield from Count("archive.kept", len(skipped.why))
    return deleted


def unneeded(space: Namespace, groups: Sequence[Group], now_ms: int, skipped: Skipped) -> Plan[list[str]]:
    """Return the keys among the objects of these modules that may be deleted now. Modules that cannot be compared are noted
    in `skipped`."""
    return (yield from unneeded_versions(space, groups, now_ms, skipped))[0]


def unneeded_versions(
    space: Namespace, groups: Sequence[Group], now_ms: int, skipped: Skipped
) -> Plan[tuple[list[str], list[str]]]:
    """Return the same, and the keys of versions in packs that nobody needs any more."""
    old_ms = now_ms - space.config.worker.tombstone_grace_ms
    keep = space.config.storage_tiers.cold.keep_versions
    wanted = [g for g in groups if _has_surplus(g, keep, old_ms) or _is_buried(g, old_ms) or _old_sidecars(g, old_ms)]
    if not wanted:
        return [], []
    keys: list[str] = []
    for group, (position, clean) in zip(wanted, (yield from _records(space, wanted)), strict=True):
        keys += _old_sidecars(group, old_ms)
        if _is_buried(group, old_ms):
            keys += yield from _bury(space, group, position, skipped)
        elif position is None:
            yield from _verify(space, group.id, skipped)  # objects that are adopted now are swept in the next round
        elif clean:
            keys += _below(group, position, keep, old_ms)
    in_packs = {o.key for group in wanted for o in group.objects if o.pack}
    return [key for key in keys if key not in in_packs], [key for key in keys if key in in_packs]


def _below(group: Group, position: Position, keep: int, old_ms: int) -> list[str]:
    """Return the objects before a committed version that are not kept, if the listing has that version or a later one."""
    newest = group.newest
    if newest is None or newest.order < position:
        return []
    kept = _kept(group, position, keep, old_ms)
    return [o.key for o in group.objects if o.order < position and o.order not in kept]


def _kept(group: Group, position: Position, keep: int, old_ms: int) -> set[Position]:
    """Return the versions before `position` that `cold.keep_versions` keeps: contents only, and none of a module that was
    deleted longer ago than the grace period."""
    newest = group.newest
    if newest is not None and newest.kind == "deleted" and group.modified_ms[newest.key] < old_ms:
        return set()
    before = sorted({o.order[:] for o in group.objects if o.kind == "content" and o.order < position})
    return set(before[1 - keep :]) if keep > 1 else set()


def _has_surplus(group: Group, keep: int, old_ms: int) -> bool:
    """Return whether the module has objects before its newest version that are not kept."""
    newest = group.newest
    return newest is not None and bool(_below(group, newest.order[:], keep, old_ms))


def _records(space: Namespace, groups: Sequence[Group]) -> Plan[list[tuple[Position | None, bool]]]:
    """Return the position of each module's record (None: no record), and whether that version is archived."""

    def parse(reply: list[bytes | None]) -> tuple[Position | None, bool]:
        epoch, ver, write_id, clean = reply
        if epoch is None and ver is None and write_id is None and clean is None:
            return None, False
        if not (epoch and ver and epoch.isdigit() and ver.isdigit()):
            return NO_POSITION, False
        return (int(epoch), int(ver), (write_id or b"").decode()[:8]), clean == b"1"

    calls: list[Command[tuple[Position | None, bool]]] = []
    for group in groups:
        shard = space.shard(group.id)
        calls.append(Command(shard, ("HMGET", shard.module(group.id), "epoch", "ver", "tok", "clean"), parse))
    replies = yield from Pipeline(calls)  # a damaged or foreign record does not affect the others: fsck reports it
    return [(NO_POSITION, False) if isinstance(reply, Corrupt) else collect(reply) for reply in replies]


def _is_buried(group: Group, old_ms: int) -> bool:
    """Return whether an old tombstone is all that is left of the module."""
    newest = group.newest
    return (
        newest is not None
        and newest.kind == "deleted"
        and all(o.order == newest.order for o in group.objects)
        and group.modified_ms[newest.key] < old_ms
    )


def _old_sidecars(group: Group, old_ms: int) -> list[str]:
    return [key for key in group.lone_sidecars if group.modified_ms[key] < old_ms]


def _verify(space: Namespace, id: str, skipped: Skipped) -> Plan[None]:
    try:
        yield from verify(space.locate(id))
        skipped.went_well()
    except DistierError as e:
        skipped.add(id, e)


def _bury(space: Namespace, group: Group, position: Position | None, skipped: Skipped) -> Plan[list[str]]:
    newest = group.newest
    assert newest is not None
    if position is None:
        yield Count("archive.buried")
        return [o.key for o in group.objects]
    if NO_POSITION < position < newest.order:  # an older record came back: it must take over the tombstone first
        yield from _verify(space, group.id, skipped)
    return []


def _packs_without_index(space: Namespace, now_ms: int) -> Plan[list[str]]:
    """Return old packs that have no index. Their packer died, or it was replaced: nobody knows them."""
    old_ms = now_ms - space.config.worker.tombstone_grace_ms
    contents = yield from list_contents(space)
    # Listed after the packs: an index that comes later is that of a pack which is not old.
    known = {index.pack for index in (yield from list_packs(space))}
    return [entry.key for pack, entry in contents if pack not in known and entry.modified_ms < old_ms]


def _delete_superseded(space: Namespace, skipped: Skipped) -> Plan[int]:
    """Delete packs whose members are all in later packs: a packer died before it did, or two packed the same.

    The packer of a later pack may be between its index and its rows, or dead, so its rows are written here.
    """
    found = {index: data for index, data in (yield from open_packs(space)).items() if index.whole}
    needed: set[str] = set()
    later: dict[str, list[Row]] = {}
    for rows in grouped(merged({index.key: data for index, data in found.items()})):
        last = {row.key: row for row in rows}
        for row in rows:
            if row is last[row.key]:
                needed.add(str(row.pack))
            else:
                later.setdefault(str(row.pack), []).append(last[row.key])
    deleted = 0
    for index in found:
        if str(index.pack) in needed:
            continue
        rows = later.get(str(index.pack), [])
        there = {str(other.pack) for other in (yield from list_packs(space)) if other.whole}
        if not there.issuperset(str(row.pack) for row in rows):
            continue  # the later ones were replaced meanwhile: rows of theirs would come too late
        yield from announce(space, rows)
        deleted += yield from delete_each([index.key], skipped)  # first: a pack exists while its index does
        deleted += yield from delete_each([index.pack.key(space.namespace)], skipped)
    return deleted


def _old_epochs(space: Namespace, shard: Shard, now_ms: int) -> Plan[list[str]]:
    """Return the epoch markers that no writer and no claimer looks for any more.

    Of each of the newest incarnations of the server the greatest stays. Young ones stay too, because a claimer counts those
    of its number.
    """
    listed: list[Listed] = []
    prefix = epochs_prefix(space, shard)
    while True:
        page = yield from ArchiveList(prefix, start_after=listed[-1].key if listed else "")
        if not page:
            break
        listed += page
    incarnations: set[str] = set()
    keys = []
    for entry in reversed(listed):
        incarnation = entry.key.removeprefix(prefix)[18:] or entry.key  # `00000001-0123abcd-<incarnation>`
        if (
            incarnation in incarnations or len(incarnations) >= INCARNATIONS_KEPT
        ) and entry.modified_ms < now_ms - YOUNG_MS:
            keys.append(entry.key)
        incarnations.add(incarnation)
    return keys


def delete_each(keys: Sequence[str], skipped: Skipped) -> Plan[int]:
    """Delete objects in batches. Returns how many were deleted."""
    return len((yield from delete_keys(keys, skipped)))


def delete_keys(keys: Sequence[str], skipped: Skipped) -> Plan[set[str]]:
    """Delete objects in batches. Where a batch is refused, its objects are deleted one by one, to know which was. Returns
    the keys of those that were deleted."""
    gone: set[str] = set()
    for part in chunks(keys, 1000):
        try:
            yield from ArchiveDelete(part)
            gone.update(part)
        except Invalid:
            for key in part:
                try:
                    yield from ArchiveDelete([key])
                    gone.add(key)
                except Invalid as e:
                    skipped.add(key, e)
    return gone
