"""Rescue: all records are rebuilt from the archive alone, after Redis was lost.

One listing of the namespace is compared with the records, in batches. The manifest describes what is listed, so only objects
without a row are read; they get one before they are adopted. Versions that Redis lacks, or has older, are adopted
as cold; nothing is ever made older. It is safe to stop anywhere and rerun: the comparison skips what was adopted. Reads are
correct meanwhile (`adopt.py`). At the end each shard is marked `verified`, and reads need no look into the archive any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distier.domain.keys import Shard
from distier.domain.manifest import Row
from distier.effects import Offload, Parallel, Plan, Progress, collect
from distier.errors import Corrupt, DistierError, Recovering
from distier.lua import Adoption, Refused, adopt
from distier.lua import state as shard_state
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.adopt import newest_listed, newest_of
from distier.plans.recovery.describe import Vanished, adoption_of, row_of_adoption
from distier.plans.recovery.manifest import WHAT, Manifest, list_rows, open_manifest
from distier.plans.recovery.walk import ArchiveWalk, Group, Skipped, positions_of

BATCH = 512
TOGETHER = 32


class RescuedInPart(Corrupt):
    """Some modules could not be read. A read of one of them looks again; the others need a look, too, until all can be read."""


@dataclass
class Rescued:
    """The result of a rescue.

    `adopted`: modules whose records were made or replaced. `known`: those that Redis had already. `unreadable`: ids (or
    directories) whose newest version cannot be read, with the reason. `damaged`: how many of them are damaged; the archive
    does not return the others. `foreign`: ids under which all objects name another module.
    """

    objects: int = 0
    modules: int = 0
    adopted: int = 0
    known: int = 0
    deleted: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    damaged: int = 0
    foreign: list[str] = field(default_factory=list)

    def failed(self, id: str, error: DistierError) -> None:
        self.unreadable[id] = str(error)
        self.damaged += isinstance(error, Corrupt)


def rescue(space: Namespace, *, dry_run: bool = False) -> Plan[Rescued]:
    """Rebuild the records of the namespace. It reports the numbers so far as progress, after each batch.

    Modules that cannot be read are reported, and keep the namespace from being marked verified. Raises `Unavailable`.
    """
    report, walk = Rescued(), ArchiveWalk(space, late=True)
    epochs = {}
    for shard in space.keys.shards:
        epochs[shard] = (yield from shard_state(shard)).epoch
    manifest = (yield from open_manifest(space)) if space.config.storage_tiers.cold.manifest else Manifest(space)
    while not walk.done:
        for batch in chunks((yield from walk.step()), BATCH):
            yield from _reconcile(space, epochs, batch, manifest, report, dry_run=dry_run)
            report.objects = walk.objects
            yield Progress(report)
        report.unreadable |= walk.unreadable
    report.objects = walk.objects
    report.damaged += len(walk.unreadable)
    if not dry_run and not report.unreadable:
        for shard, epoch in epochs.items():
            yield from _adopt(space, shard, epoch, [], whole=True)
    return report


def _reconcile(
    space: Namespace,
    epochs: dict[Shard, int],
    groups: Sequence[Group],
    manifest: Manifest,
    report: Rescued,
    *,
    dry_run: bool,
) -> Plan[None]:
    listed = yield from Offload(len(groups) * 2048, lambda: _rows(groups, manifest), WHAT)
    wanted = yield from _not_known(space, [g for g in groups if g.newest], report)
    if dry_run:
        report.adopted += len(wanted)
        return
    found: dict[Shard, list[Adoption]] = {}
    missing: dict[Shard, list[Row]] = {}
    unlisted: list[Group] = []
    for group in wanted:
        adoption = _adoption(space, group, listed.get(group.id))
        if adoption is None:
            unlisted.append(group)
        else:
            found.setdefault(space.shard(group.id), []).append(adoption)
    wanted = unlisted
    newest = {group.id: group.newest for group in wanted}
    for results in (yield from Parallel([_describe(space, part) for part in chunks(wanted, TOGETHER)])):
        for id, result in collect(results):
            if isinstance(result, DistierError):
                report.failed(id, result)
            elif result.kind == "none":
                report.foreign.append(id)
            else:
                found.setdefault(space.shard(id), []).append(result)
                if (object := newest[id]) is not None and (object.order.epoch, object.order.ver) == (
                    result.epoch,
                    result.ver,
                ):
                    missing.setdefault(space.shard(id), []).append(row_of_adoption(space, object, result))
    for shard, rows in missing.items():
        yield from list_rows(space, shard, rows)
    for shard, adoptions in found.items():
        for part in chunks(adoptions, 200):
            report.adopted += yield from _adopt_each(space, shard, epochs[shard], part, report)


def _rows(groups: Sequence[Group], manifest: Manifest) -> dict[str, Row]:
    """Return the rows of the newest objects of these modules, by id."""
    found: dict[str, Row] = {}
    for group in groups:
        rows, newest = manifest.of(group.directory), group.newest
        for row in (*rows, *group.rows.values()):
            if newest is not None and newest.key.endswith(row.key) and newest.pack == str(row.pack or ""):
                found[group.id] = row
    return found


def _adoption(space: Namespace, group: Group, row: Row | None) -> Adoption | None:
    """Return what a row says of the newest object; None where it says too little, or there is none."""
    newest, adoption = group.newest, adoption_of(space, row) if row is not None else None
    if newest is None or adoption is None:
        return None
    return adoption._replace(archived_bytes=group.sizes[newest.key])


def _describe(space: Namespace, groups: Sequence[Group]) -> Plan[list[tuple[str, Adoption | DistierError]]]:
    """Describe some modules, one after the other: a thread for each would cost more than it saves."""
    found: list[tuple[str, Adoption | DistierError]] = []
    skipped = Skipped()
    for group in groups:
        try:
            found.append((group.id, (yield from _newest(space, group))))
            skipped.went_well()
        except DistierError as e:
            skipped.add(group.id, e)
            found.append((group.id, e))
    return found


def _newest(space: Namespace, group: Group) -> Plan[Adoption]:
    try:
        return (yield from newest_of(space, group))
    except Vanished:  # swept since the listing
        return (yield from newest_listed(space, group.id))


def _not_known(space: Namespace, groups: Sequence[Group], report: Rescued) -> Plan[list[Group]]:
    """Return the modules of which Redis has no version as great as the archive's."""
    wanted = []
    for group, position in zip(groups, (yield from positions_of(space, [g.id for g in groups])), strict=True):
        newest = group.newest
        assert newest is not None
        report.modules += newest.kind == "content"
        report.deleted += newest.kind == "deleted"
        if position is None or newest.order > position:
            wanted.append(group)
        else:
            report.known += 1
    return wanted


def _adopt_each(space: Namespace, shard: Shard, epoch: int, found: Sequence[Adoption], report: Rescued) -> Plan[int]:
    """Adopt modules together; where a key of one has a foreign type, report that one, and adopt the others one by one."""
    try:
        return (yield from _adopt(space, shard, epoch, found))
    except Corrupt as e:
        if len(found) == 1:
            report.failed(found[0].id, e)
            return 0
    adopted = 0
    for one in found:
        adopted += yield from _adopt_each(space, shard, epoch, [one], report)
    return adopted


def _adopt(space: Namespace, shard: Shard, epoch: int, found: Sequence[Adoption], *, whole: bool = False) -> Plan[int]:
    reply = yield from adopt(shard, epoch, found, whole=whole)
    space.process.epochs.pop(shard, None)
    if isinstance(reply, Refused):
        raise Recovering("Redis was lost again during the rescue; run it again")
    return reply.adopted


def rescue_if_needed(space: Namespace) -> Plan[int | None]:
    """Rescue if a shard has not been verified in its epoch. Returns how many were adopted, None if there was nothing to do.

    The worker that has the lease of the first shard does it.
    """
    needed = False
    for shard in space.keys.shards:
        known = yield from shard_state(shard)
        needed = needed or known.verified < known.epoch
    if not needed:
        return None
    report = yield from rescue(space)
    if report.unreadable:
        id, why = next(iter(report.unreadable.items()))
        raise RescuedInPart(
            f"{len(report.unreadable)} modules could not be read from the archive, such as {id!r} ({why}); the others "
            "were adopted. `distier rescue` lists them"
        )
    return report.adopted
