"""The copies of a module, compared with its checksum: frames, objects, and the replacement of a lost one."""

from __future__ import annotations

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.order import Order
from distier.domain.outcome import Outcome
from distier.domain.packs import parse_reference
from distier.effects import ArchiveGet, Command, Offload, Pipeline, Plan, collect
from distier.errors import Conflict, Corrupt
from distier.lua import Applied, Move, adopt, demote, redirty
from distier.plans.common.clock import ttl_left
from distier.plans.common.commands import frame_command, record_command, unparsed
from distier.plans.common.content import UNPACKING, check_content, content_of, is_current
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.objects import read_archived
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.describe import Vanished, describe
from distier.plans.recovery.epochs import ask_state
from distier.plans.recovery.fsck.findings import Run
from distier.plans.recovery.walk import Group, list_module
from distier.plans.tier.load import look_for


def drop_copy(shard: Shard, id: str) -> Plan[bool]:
    """Take a clean version down to cold, whatever its copy here is."""
    write_id, clean = yield from Command(shard, ("HMGET", shard.module(id), "tok", "clean"), unparsed)
    if clean != b"1":
        return False
    outcomes = yield from demote(shard, "repair", [Move(id, write_id.decode(), "cold")])
    return outcomes == (Outcome.MOVED,)


def check_object(run: Run, shard: Shard, id: str) -> Plan[None]:
    """Check a clean record whose object was not in the listing: the object came later, or it is gone."""
    record = yield from _clean_record(shard, id)
    if record is None:
        return
    listed = yield from list_module(run.space, id)
    present = [o for o in listed.objects if o.kind != "meta"]
    mine = [o for o in present if o.kind == "content" and o.order == _short(record.order)]
    if any(not o.pack for o in mine):  # whether a pack has it, only a look into the pack tells
        return
    key = names.object_key(run.space.namespace, record)
    if (yield from _is_there(run.space, shard, record)):
        return
    again = yield from _clean_record(shard, id)
    if again is None or again.order != record.order:
        return
    newest = max((o for o in present if o not in mine), key=lambda o: o.order, default=None)
    if newest is not None and newest.order > _short(record.order):
        repaired = run.repair and not (yield from verify(Located(run.space, shard, id)))
        run.found("object-behind", id, key, repaired=repaired)
        return
    if again.tier == "warm" and again.codec.startswith(codec.WITH_DICTIONARY):
        renewed = yield from _put_frame_again(run, shard, again)
        if renewed is not None:
            run.found("object-gone", id, key, repaired=renewed)
            return
    elif again.tier != "cold":
        reply = (yield from redirty(shard, id, record.order.write_id)) if run.repair else None
        if isinstance(reply, Applied) or (not run.repair and (yield from _has_copy(shard, again))):
            run.found("object-gone", id, key, repaired=run.repair)
            return
    yield from _tell_lost(run, shard, again, key, listed, newest)


def _put_frame_again(run: Run, shard: Shard, record: Record) -> Plan[bool | None]:
    """Put the content of a frame that needs a dictionary as a new version. Returns whether that was done; None if the frame is
    gone or damaged.

    Such a frame is not made the only copy of its version (`redirty`), because the dictionary may be dropped.
    """
    frame = yield from frame_command(shard, record.id)
    try:
        content = yield from content_of(run.space, shard, record, frame)
    except Corrupt:
        content = None
    if content is None:
        return None
    return run.repair and (yield from _put_again(run.space, record, content))


def _is_there(space: Namespace, shard: Shard, record: Record) -> Plan[bool]:
    try:
        content = yield from read_archived(space, record)
        return content is not None or (yield from look_for(space, shard, record)) is not None
    except Corrupt:
        return True  # it is damaged: the checksums show that


def _short(order: Order) -> Order:
    return Order(order.epoch, order.ver, order.write_id[:8])


def _clean_record(shard: Shard, id: str) -> Plan[Record | None]:
    try:
        record = yield from record_command(shard, id)
    except Corrupt:
        return None  # reported as malformed
    return record if record is not None and record.clean and not record.deleted else None


def _has_copy(shard: Shard, record: Record) -> Plan[bool]:
    if record.tier == "hot":
        return record.content is not None and len(record.content) == record.size_bytes
    return (yield from Command(shard, ("EXISTS", shard.frame(record.id)), bool))


def _tell_lost(
    run: Run, shard: Shard, record: Record, key: str, listed: Group, older: names.VersionObject | None
) -> Plan[None]:
    if older is None or older.kind == "deleted":
        run.found("lost-object", record.id, key, str(record.order))
        return
    went = False
    if run.repair:
        went = yield from _go_back(run.space, shard, record, listed, older)
    run.found("lost-version", record.id, key, f"{record.order}, there is {older.order}", repaired=went)


def _go_back(space: Namespace, shard: Shard, record: Record, listed: Group, older: names.VersionObject) -> Plan[bool]:
    if record.tier != "cold":  # its copy has just expired: the worker accounts for that first
        return False
    known = yield from ask_state(space, shard)
    try:
        found = yield from describe(space, listed, older)
    except Vanished:
        return False
    reply = yield from adopt(shard, known.epoch, [found._replace(instead=record.order.write_id)])
    return getattr(reply, "adopted", 0) == 1


def check_contents(run: Run, shard: Shard, id: str) -> Plan[None]:
    """Compare the copies of one module with its SHA-256: those in Redis, and the object."""
    replies = yield from Pipeline([record_command(shard, id), frame_command(shard, id)])
    record, frame = replies
    if isinstance(record, Corrupt) or isinstance(frame, Corrupt):
        return  # reported as malformed
    record, frame = collect(record), collect(frame)
    if record is None or record.deleted:
        return
    run.findings.contents += 1
    content = None
    try:
        content = yield from content_of(run.space, shard, record, frame)
    except Corrupt as e:
        if not (yield from is_current(shard, record)):
            return  # it moved on between the two reads
        if not record.clean:
            run.found("lost-copy", id, detail=str(e))
            return
        dropped = run.repair and (yield from drop_copy(shard, id))
        run.found("copy-damaged", id, detail=str(e), repaired=dropped)
    if record.clean:
        yield from _check_archived(run, shard, record, content)


def _check_archived(run: Run, shard: Shard, record: Record, content: bytes | None) -> Plan[None]:
    key = names.object_key(run.space.namespace, record)
    try:
        if parse_reference(record.id, record.archived_key):
            yield from read_archived(run.space, record)
            return
        got = yield from ArchiveGet(key, max_bytes=record.size_bytes + record.size_bytes // 2 + 4096)
        if got is None:
            return  # `check_object` looks for it
        if got.content_type not in (None, names.CONTENT_TYPE):
            run.found("wrong-type", record.id, key, got.content_type or "")
        size_bytes, data = record.size_bytes, got.data
        opened = yield from Offload(size_bytes * 4, lambda: codec.decompress_xz(data, max_bytes=size_bytes), UNPACKING)
        check_content(record, opened, "archived")
    except Corrupt as e:
        again = yield from _clean_record(shard, record.id)
        if again is None or again.order != record.order:
            return
        if content is None:
            run.found("damaged-object", record.id, key, str(e))
            return
        renewed = run.repair and (yield from _put_again(run.space, record, content))
        run.found("object-healed", record.id, key, str(e), repaired=renewed)


def _put_again(space: Namespace, record: Record, content: bytes) -> Plan[bool]:
    module = record.module(content, "hot")
    ttl = yield from ttl_left(space, record.id, record.expires_ms)
    item = Item(
        record.id, content, record.content_type, module.keywords, module.meta, record.tokens, record.order, "redis", ttl
    )
    try:
        yield from put(space, item)
    except Conflict:
        return False  # another client has put a newer version
    return True
