"""Finding the newest version of a module: the record where it is proven, else what the archive lists, adopted first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.effects import Count, Parallel, Pipeline, Plan, collect
from distier.errors import NotFound, Recovering
from distier.lua import Adopted, Adoption, Opened, adopt, state
from distier.plans.common.clock import has_expired
from distier.plans.common.commands import chunks, record_command
from distier.plans.common.namespace import Located, Namespace
from distier.plans.recovery.describe import Vanished, describe
from distier.plans.recovery.epochs import ask_state, shard_state
from distier.plans.recovery.walk import Group, list_module

REREADS_MAX = 8
RELISTS_MAX = 4
Known = Mapping[Shard, Opened | None]
"""What a process knew of some shards before a read."""


def read_record(at: Located) -> Plan[tuple[Record | None, Opened | None]]:
    """Read a record, together with what proves it: what this process knew of the shard before the read, if that still held
    after it.

    A proof must be known before the read. Between the read and a later look at the shard, a rescue may adopt the module and
    mark the shard verified; that mark says nothing about an earlier record, or its absence.
    """
    space, shard, id = at
    states = space.process.epochs
    known = states.get(shard)
    record = yield from record_command(shard, id)
    return record, known if states is space.process.epochs else None


def newest_record(at: Located) -> Plan[Record | None]:
    """Return the record of a module that exists, known to be the newest version; None for a proven miss."""
    record, known = yield from read_record(at)
    return (yield from settle_record(at, record, known))


def newest_version(at: Located) -> Plan[Record | None]:
    """Return the same, also of a module that has expired, or the tombstone of a deleted one while there is one."""
    record, known = yield from read_record(at)
    return (yield from settle_record(at, record, known, tombstones=True))


def need_record(space: Namespace, id: str) -> Plan[Record]:
    """Return the newest record. Raises `NotFound`."""
    record = yield from newest_record(space.locate(id))
    if record is None:
        raise NotFound(f"there is no module {id!r} in namespace {space.namespace!r}")
    return record


def settle_record(
    at: Located, record: Record | None, known: Opened | None, *, tombstones: bool = False
) -> Plan[Record | None]:
    """Return `record` if it is known to be the newest version, else what a look into the archive finds.

    `known` is what `read_record` returned with it. None is a proven miss; unless `tombstones` are wanted, also a module that
    was deleted or has expired.

    A hit is as good as its connection: a new one makes the process ask for the shard's epoch again. A miss is confirmed by a
    script, because FLUSHALL leaves connections alone.
    """
    space, shard, id = at
    for _ in range(REREADS_MAX):
        now = known
        if record is None or known is None:
            now = yield from ask_state(space, shard)
        assert now is not None
        if _is_proven(record, known, now):
            if record is None or tombstones:
                return record
            if record.ttl_ms is not None and (yield from has_expired(space, shard, record.expires_ms)):
                return None
            return None if record.deleted else record
        if now.verified < now.epoch:
            yield from verify(at)
        record, known = yield from read_record(at)
    raise Recovering(f"the shard of module {id!r} keeps changing its primary; retry")


def _is_proven(record: Record | None, known: Opened | None, now: Opened) -> bool:
    """Return whether `record`, or its absence, is the newest version.

    `known` is the shard's state from before it was read, `now` one from after it (the same one where it was not read again).
    A record proves itself by the epoch that it was last `seen` in.
    """
    if known is not None and known.epoch == now.epoch and min(known.verified, now.verified) >= now.epoch:
        return True
    return record is not None and record.seen >= now.epoch


def newest_records(space: Namespace, ids: Sequence[str]) -> Plan[list[Record | None]]:
    """Return `newest_record` of many ids: a round trip per 500, one more where any is missing, and a look into the archive
    for those that need it."""
    found: list[Record | None] = []
    for chunk in chunks(ids, 500):
        states, known = space.process.epochs, known_of(space, chunk)
        replies = yield from Pipeline([record_command(space.shard(id), id) for id in chunk])
        found += yield from settle_records(space, chunk, [collect(r) for r in replies], known, states)
    return found


def known_of(space: Namespace, ids: Sequence[str]) -> Known:
    """Return what this process knows of the shards of these ids, before their records are read."""
    return {shard: space.process.epochs.get(shard) for shard in {space.shard(id) for id in ids}}


def settle_records(
    space: Namespace, ids: Sequence[str], records: Sequence[Record | None], known: Known, states: Mapping[Shard, Opened]
) -> Plan[list[Record | None]]:
    """Return `settle_record` of many records. `known` is what `known_of` returned before they were read, `states` the
    mapping that it was taken from."""
    if states is not space.process.epochs:
        known = dict.fromkeys(known)
    settled = list(records)
    now = yield from _look_again(space, [id for id, r in zip(ids, records, strict=True) if r is None])
    doubtful = []
    for i, (id, record) in enumerate(zip(ids, records, strict=True)):
        shard = space.shard(id)
        before = known[shard]
        after = before if record is not None else now[shard]
        if after is None or not _is_proven(record, before, after):
            doubtful.append(i)
        elif record is not None and (
            record.deleted or (record.ttl_ms is not None and (yield from has_expired(space, shard, record.expires_ms)))
        ):
            settled[i] = None
    plans = [settle_record((at := space.locate(ids[i])), records[i], known[at.shard]) for i in doubtful]
    for i, result in zip(doubtful, (yield from Parallel(plans)), strict=True):
        settled[i] = collect(result)
    return settled


def _look_again(space: Namespace, ids: Sequence[str]) -> Plan[dict[Shard, Opened]]:
    """Read the states of the shards of these ids, after nothing was found there."""
    shards, states = list({space.shard(id) for id in ids}), space.process.epochs
    replies = yield from Pipeline([state(shard) for shard in shards])
    found = {shard: collect(reply) for shard, reply in zip(shards, replies, strict=True)}
    states.update(found)
    return found


def verify(at: Located, given_up: str = "") -> Plan[str]:
    """Compare one module with the archive: a greater version there replaces the record.

    Returns the holder of a position that prevented this, empty for none. `given_up` is a holder to ignore.
    """
    space, shard, id = at
    states = space.process.epochs
    known = yield from shard_state(space, shard)
    yield from Count("recover.verified")
    found = yield from newest_listed(space, id)
    reply = yield from adopt(shard, known.epoch, [found], given_up=given_up)
    if isinstance(reply, Adopted):
        states[shard] = Opened(known.epoch, reply.verified)
        return reply.holder
    states.pop(shard, None)
    return ""


def newest_listed(space: Namespace, id: str) -> Plan[Adoption]:
    """Return what the archive has of the newest version of a module.

    Raises `Corrupt` where it repeatedly lists what it does not have: once may be a sweep between the listing and the read.
    """
    for _ in range(RELISTS_MAX):
        try:
            return (yield from newest_of(space, (yield from list_module(space, id))))
        except Vanished:
            yield from Count("recover.relisted")
    return (yield from newest_of(space, (yield from list_module(space, id))))


def newest_of(space: Namespace, group: Group) -> Plan[Adoption]:
    """Return what the greatest version of a listed module is. Objects that name another module are skipped."""
    for newest in sorted([o for o in group.objects if o.kind != "meta"], key=lambda o: o.rank, reverse=True):
        found = yield from describe(space, group, newest)
        if found.kind != "none":
            return found
    return Adoption(group.id)
