"""The sweep deletes what nobody needs from the archive.

    dominated objects      at once: a greater version of the module is there
    tombstones             after `worker.tombstone_grace`, where nothing else is left of the module
    sidecars alone         after the same time: their content never came
    epoch markers          of each shard, all but the greatest of each of the newest incarnations of its server

A version is dominated where it comes before one that is **committed**: a clean record says so, and the listing has it. A
merely greater object does not suffice. A durable write is in the archive before it is applied, and it may never be applied
(refused, or its writer died): readers still need the object of the record, also where the record has moved on to a version
that is not archived yet. So the last committed version of a module is never deleted. The sweep may stop anywhere, run twice,
and run next to anything else, also on an old primary. (Rejected: letting dominated objects rest for a time. That would need
clocks that agree, and would double the archive of a busy namespace.)

A tombstone keeps older versions from coming back: an upload that is still under way, or a Redis that is restored from an old
snapshot. It may go when neither is possible. **Assumed** is that no process sleeps in the middle of an upload, and that no
snapshot or replica of Redis returns to work, for longer than the grace period (7 days). Checked is that no record is left,
in a shard that has its epoch. A record that is older than the tombstone takes it over first, and the tombstone stays for
another round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distier.domain import archived as names
from distier.domain.keys import Shard
from distier.effects import ArchiveDelete, ArchiveList, Command, Count, Now, Pipeline, Plan, collect
from distier.errors import Corrupt, DistierError, Invalid
from distier.lua import state
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.epochs import epochs_prefix
from distier.plans.recovery.walk import NO_POSITION, ArchiveWalk, Group, Position, Skipped

if TYPE_CHECKING:
    from distier.domain.objects import Listed


INCARNATIONS_KEPT = 8
YOUNG_MS = 20 * 60_000


def sweep(space: Namespace, skipped: Skipped | None = None) -> Plan[int]:
    """Delete what nobody needs from the archive. Returns the number of objects.

    An object that cannot be deleted or read (a lock, a missing right) is kept and noted in `skipped`, and does not affect
    the others. Raises `Unavailable`.
    """
    now_ms = yield Now()
    walk, deleted = ArchiveWalk(space), 0
    skipped = skipped or Skipped()
    for shard in space.keys.shards:
        yield from state(shard)  # is this the Redis that the records are in?
    while not walk.done:
        groups = yield from walk.step()
        deleted += yield from delete_each((yield from unneeded(space, groups, now_ms, skipped)), skipped)
    for shard in space.keys.shards:
        deleted += yield from delete_each((yield from _old_epochs(space, shard, now_ms)), skipped)
    yield from Count("archive.swept", deleted)
    yield from Count("archive.kept", len(skipped.why))
    return deleted


def unneeded(space: Namespace, groups: Sequence[Group], now_ms: int, skipped: Skipped) -> Plan[list[str]]:
    """Return the keys among the objects of these modules that may be deleted now. Modules that cannot be compared are noted
    in `skipped`."""
    old_ms = now_ms - space.config.worker.tombstone_grace_ms
    wanted = [g for g in groups if names.dominated(g.objects) or _is_buried(g, old_ms) or _old_sidecars(g, old_ms)]
    if not wanted:
        return []
    keys: list[str] = []
    for group, (position, clean) in zip(wanted, (yield from _records(space, wanted)), strict=True):
        keys += _old_sidecars(group, old_ms)
        if _is_buried(group, old_ms):
            keys += yield from _bury(space, group, position, skipped)
        elif position is None:
            yield from _verify(space, group.id, skipped)  # objects that are adopted now are swept in the next round
        elif clean:
            keys += _below(group, position)
    return keys


def _below(group: Group, position: Position) -> list[str]:
    """Return the objects before a committed version, if the listing has that version or a later one."""
    newest = group.newest
    return [o.key for o in group.objects if o.order < position] if newest and newest.order >= position else []


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
    """Delete objects in batches. Where a batch is refused, its objects are deleted one by one, to know which was. Returns
    how many were deleted."""
    gone = 0
    for part in chunks(keys, 1000):
        try:
            yield from ArchiveDelete(part)
            gone += len(part)
        except Invalid:
            for key in part:
                try:
                    yield from ArchiveDelete([key])
                    gone += 1
                except Invalid as e:
                    skipped.add(key, e)
    return gone
