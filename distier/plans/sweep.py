"""The sweep: what the archive holds and nobody needs.

    dominated objects      at once: a greater version of the module is there
    tombstones             after `worker.tombstone_grace`, where nothing else is left of the module
    sidecars alone         after the same time: their content never came
    epoch markers          all but the newest few of each shard

The greatest content of a module is never deleted, and what is listed decides; so it is safe to stop anywhere, to run
twice, and beside anything else. It asks Redis for one thing: **a version that a record rests on stays**, though a greater
one is there. A durable put is in the archive before it is applied. It may still be refused (`Conflict`), and then its
writer takes the object back: without this rule the record would be left with nothing. (The road not taken: to let
dominated objects rest for a time would need clocks that agree, and would double the archive of a busy namespace.)

A tombstone keeps older versions from coming back: an upload that is still under way, or a Redis that is restored from
an old snapshot. It may go when neither can be: **assumed** is that no process sleeps in the middle of an upload, and that
no snapshot or replica of Redis is put to work again, for longer than the grace period (7 days). What can be checked is:
no record is left, in a shard that has its epoch. A record that is older than the tombstone takes it over first, and the
tombstone stays for another round.
"""

from __future__ import annotations

from collections.abc import Sequence

from distier.domain import archived as names
from distier.domain.keys import Shard
from distier.effects import ArchiveDelete, ArchiveList, Count, Now, Plan
from distier.lua import state

from .listing import NOWHERE, Group, Place, Walk, places_of
from .records import chunks
from .recover import epochs_prefix, verify
from .space import Space

EPOCHS_KEPT = 8


def sweep(space: Space) -> Plan[int]:
    """Delete what nobody needs from the archive; how many objects. Raises `Unavailable`."""
    now_ms = yield Now()
    walk, deleted = Walk(space), 0
    for shard in space.keys.shards:
        yield from state(shard)  # is this the Redis that the records are in?
    while not walk.done:
        groups = yield from walk.step()
        deleted += yield from _delete((yield from unneeded(space, groups, now_ms)))
    for shard in space.keys.shards:
        deleted += yield from _delete((yield from _old_epochs(space, shard)))
    return deleted


def unneeded(space: Space, groups: Sequence[Group], now_ms: int) -> Plan[list[str]]:
    """The keys among the objects of these modules that may be deleted now."""
    old_ms = now_ms - space.config.worker.tombstone_grace_ms
    wanted = [g for g in groups if names.dominated(g.objects) or _is_buried(g, old_ms) or _old_sidecars(g, old_ms)]
    if not wanted:
        return []
    keys: list[str] = []
    for group, place in zip(wanted, (yield from places_of(space, [g.id for g in wanted])), strict=True):
        keys += [key for key in names.dominated(group.objects) if _place(group, key) != place]
        keys += _old_sidecars(group, old_ms)
        if _is_buried(group, old_ms):
            keys += yield from _bury(space, group, place)
    return keys


def _place(group: Group, key: str) -> Place:
    return next(o.order for o in group.objects if o.key == key)


def _is_buried(group: Group, old_ms: int) -> bool:
    """Whether all that is left of the module is an old tombstone."""
    newest = group.newest
    return (
        newest is not None
        and newest.kind == "deleted"
        and all(o.order == newest.order for o in group.objects)
        and group.modified_ms[newest.key] < old_ms
    )


def _old_sidecars(group: Group, old_ms: int) -> list[str]:
    return [key for key in group.lone_sidecars if group.modified_ms[key] < old_ms]


def _bury(space: Space, group: Group, place: Place | None) -> Plan[list[str]]:
    newest = group.newest
    assert newest is not None
    if place is None:
        yield Count("archive.buried")
        return [o.key for o in group.objects]
    if NOWHERE < place < newest.order:  # an older record came back: it must learn of its end first
        yield from verify(space, space.shard(group.id), group.id)
    return []


def _old_epochs(space: Space, shard: Shard) -> Plan[list[str]]:
    """Markers below the newest few. The greatest stays, and a claimer whose own marker is gone claims again, so nobody
    misses one: writers look for any marker above their own."""
    prefix, keys = epochs_prefix(space, shard), list[str]()
    while True:
        page = yield from ArchiveList(prefix, start_after=keys[-1] if keys else "")
        if not page:
            return keys[:-EPOCHS_KEPT]
        keys += [entry.key for entry in page]


def _delete(keys: Sequence[str]) -> Plan[int]:
    for part in chunks(keys, 1000):
        yield from ArchiveDelete(part)
    yield from Count("archive.swept", len(keys))
    return len(keys)
