"""Writing one module. A write is one script, whose reply says where the module landed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Landed, Tier
from distier.domain.order import Order
from distier.domain.outcome import Refusal
from distier.effects import Count, Plan, RunScript
from distier.errors import Conflict, DistierError, Full, Recovering, Unavailable
from distier.lua import Move, Over, Put, Refused, Replayed
from distier.lua import put as put_script
from distier.plans.common.content import make_frame
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.turn import Turn
from distier.plans.put.durable import Fenced, archive_version, is_settled, list_newer_epochs, reserve_position
from distier.plans.put.prepare import Item, Prepared, level_of, need_replica, prepare
from distier.plans.put.refused import FENCED_MAX, conflict, unknown, unsettled, unsure
from distier.plans.recovery.adopt import verify
from distier.plans.tier.keep import is_refused
from distier.plans.tier.ledger import enlarge_quota
from distier.plans.tier.room import with_room


def put(space: Namespace, item: Item) -> Plan[Landed]:
    """Write a version. Raises `Invalid`, `Conflict`, `Full`, `Unavailable`."""
    prepared = yield from prepare(space, item)
    if prepared.replicas:
        yield from need_replica(space.shard(prepared.id))
    if level_of(space, item.durability) == "archived":
        return (yield from put_archived(space, prepared))
    return (yield from put_prepared(space, prepared))


def put_prepared(space: Namespace, p: Prepared, turn: Turn | None = None) -> Plan[Landed]:
    """Write into hot, with the evictions that it needs, or into warm where hot cannot take it."""
    shard = space.shard(p.id)
    put = partial(_put, shard, p, "hot", p.content, "")
    reply = yield from with_room(space, shard, put, own=p.id, ahead=p.ahead)
    return (yield from landed(space, shard, p, reply, turn))


def _put(shard: Shard, p: Prepared, tier: Tier, body: bytes, kind: str, moves: Sequence[Move]) -> RunScript[Any]:
    position = p.position
    expected = f"{p.expected}/{p.given_up}" if p.given_up else p.expected
    fields = (*p.fields, "archived_bytes", position.size_bytes) if position else p.fields
    call = put_script(
        shard, p.id, p.write_id, tier=tier, expected=expected, tokens=p.tokens, size_bytes=len(p.content), body=body,
        codec=kind, fields=fields, moves=moves, reserved=position and (position.epoch, position.ver),
        archived_bytes=position.size_bytes if position else 0, sending=p.sending,
    )  # fmt: skip
    call.replicas = p.replicas
    return call


def landed(space: Namespace, shard: Shard, p: Prepared, reply: Any, turn: Turn | None = None) -> Plan[Landed]:
    """Return what the reply to a put into hot means.

    The put continues in warm where hot has no room, and in cold where warm has none either and the version is in the
    archive.
    """
    tier: Tier = "hot"
    reason = None
    if is_refused(reply, Refusal.UNVERIFIED):
        yield from verify(Located(space, shard, p.id))
        return (yield from put_prepared(space, p, turn))
    if is_refused(reply, Refusal.TOO_LARGE) and (yield from enlarge_quota(space, shard, p.tokens, len(p.content))):
        reply = yield from attempt(space, shard, p, "hot", p.content, "")
    if _has_no_room(reply):
        tier, reason = "warm", _why(reply, "hot")
        kind, frame = yield from make_frame(space, p.content, p.write_id)
        reply = yield from attempt(space, shard, p, "warm", frame, kind)
    if _has_no_room(reply) and p.position:
        tier, reason = "cold", f"{reason}, {_why(reply, 'warm')}"
        reply = yield from _put(shard, p, "cold", b"", "", ())
    elif is_refused(reply, Refusal.TOO_LARGE):
        return (yield from put_archived(space, p))  # larger than Redis may hold, but the archive takes it
    if is_refused(reply, Refusal.BUSY):
        turn = turn or Turn(space, p.id)
        return (yield from put_prepared(space, replace(p, given_up=(yield from turn.wait(reply.version))), turn))
    if isinstance(reply, Put):
        yield Count("puts")
        space.process.note_version(shard, reply.epoch, reply.ver)
        yield Count("moves.evicted", reply.evicted)
        version = Order(reply.epoch, reply.ver, p.write_id)
        return Landed(p.id, tier, version, p.tokens, len(p.content), reply.evicted, reason, False, p.transform)
    if isinstance(reply, Replayed):
        where: Tier = "warm" if reply.tier == "warm" else "cold" if reply.tier == "cold" else "hot"
        version = Order(reply.epoch, reply.ver, p.write_id)
        return Landed(p.id, where, version, p.tokens, len(p.content), 0, None, True, p.transform)
    if is_refused(reply, Refusal.SUPERSEDED) and p.position and not p.expected:
        # It still held its position, so an unconditional write superseded it, and it took effect just before that.
        version = Order(p.position.epoch, p.position.ver, p.write_id)
        reason = f"superseded by version {reply.version}"
        return Landed(p.id, "cold", version, p.tokens, len(p.content), 0, reason, False, p.transform)
    raise _refusal(p, reply)


def attempt(space: Namespace, shard: Shard, p: Prepared, tier: Tier, body: bytes, kind: str) -> Plan[Any]:
    """Write into this tier, with the evictions that it needs.

    A version that is in the archive already needs no room in Redis: returns None where room depends on an archive that does
    not reply.
    """
    nowhere_else = tier == "warm" and p.position is None

    put = partial(_put, shard, p, tier, body, kind)
    try:
        return (yield from with_room(space, shard, put, last_resort=nowhere_else, own=p.id, ahead=p.ahead))
    except Full as e:
        if p.position is None:
            raise (Unavailable(unsettled(p.id)) if p.sending.lost else e) from e
        return None


def _has_no_room(reply: object) -> bool:
    return reply is None or isinstance(reply, Over) or is_refused(reply, Refusal.TOO_LARGE)


def _why(reply: object, tier: str) -> str:
    return f"too large for {tier}" if isinstance(reply, Refused) else f"no room in {tier}"


def _refusal(p: Prepared, reply: object) -> DistierError:
    match reply:
        case Refused(Refusal.CONFLICT, version):
            return conflict(p.id, version, p.expected)
        case Refused(Refusal.SUPERSEDED, version):
            return conflict(p.id, version, p.expected)
        case Refused(Refusal.FENCED):
            return Fenced(f"the shard of module {p.id!r} began a new epoch during the write; try again")
        case Refused(Refusal.UNHELD):
            return Recovering(unsure(p.id))
        case Refused(Refusal.UNKNOWN, version):
            return Unavailable(unknown(p.id, version))
        case _ if p.sending.lost:
            return Unavailable(unsettled(p.id))
        case _:
            return Full(
                f"no room for module {p.id!r}: what is hot is pinned, or other writers were quicker, and warm is "
                "full too; nothing was changed. Raise the budgets, or end some pins"
            )


def put_archived(space: Namespace, p: Prepared) -> Plan[Landed]:
    """Write a version into the archive before it is acknowledged: reserve a position, PUT, look for a newer epoch, apply.

    No failure of Redis can lose it after that, and none can bring back an older version. A call that stops on the way is a
    write of unknown outcome: its object may be adopted after a loss of Redis, or is dominated later. The object of a refused
    write is never deleted, since somebody may have adopted it (`is_settled`), and never put again before it is proven that
    nobody has (`reserve_position`).
    """
    at, first = space.locate(p.id), None
    shard = at.shard
    for _ in range(FENCED_MAX):
        reserved = yield from reserve_position(at, p.expected, p.write_id, first)
        if isinstance(reserved, Replayed):
            version = Order(reserved.epoch, reserved.ver, p.write_id)
            return Landed(p.id, "cold", version, p.tokens, len(p.content), 0, "recovered", True, p.transform)
        position = yield from archive_version(space, p, reserved)
        if (yield from list_newer_epochs(space, shard, position)):
            space.process.epochs.pop(shard, None)
            first = first or position
            continue
        try:
            return (yield from _apply(space, shard, replace(p, position=position)))
        except Fenced:
            first = first or position
        except Conflict as e:
            if not (yield from is_settled(at, position)):
                raise Recovering(unsure(p.id)) from e
            raise
    raise Recovering(f"the shard of module {p.id!r} keeps changing its primary; retry")


def _apply(space: Namespace, shard: Shard, p: Prepared) -> Plan[Landed]:
    """Apply an archived version. Raises `Fenced`, `Conflict`, and `Unavailable` where the outcome stays open."""
    assert p.position is not None
    try:
        reply = yield from attempt(space, shard, p, "hot", p.content, "")
        return (yield from landed(space, shard, p, reply))
    except Full as e:
        raise Unavailable(
            f"module {p.id!r} is in the archive as {p.position.epoch}-{p.position.ver}, but Redis is full and could not "
            "record it: it may appear later. Put it again when there is room (`distier doctor`)"
        ) from e
