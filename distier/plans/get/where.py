"""Where a module is, without using or moving it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distier.domain import archived as names
from distier.domain.module import Placement, Record, Tier, parse_record
from distier.effects import Command, LocalHas, Parallel, Pipeline, Plan, collect
from distier.errors import Recovering
from distier.lua import Seen
from distier.lua import where as where_script
from distier.plans.common.clock import has_expired
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Located, Namespace
from distier.plans.get.one import REREADS_MAX
from distier.plans.recovery.adopt import known_of, newest_record, settle_records
from distier.plans.recovery.epochs import shard_state
from distier.plans.tier.peers import holders_of, holds_command, read_nodes


def exists(space: Namespace, id: str) -> Plan[bool]:
    """Return whether there is such a module."""
    shard, states = space.shard(id), space.process.epochs
    known = states.get(shard)
    command = ("HMGET", shard.module(id), "tier", "seen", "ttl")
    tier, seen, ttl = yield from Command(shard, command, lambda reply: (reply[0], int(reply[1] or 0), reply[2]))
    proven = known and states is space.process.epochs and max(seen, known.verified) >= known.epoch
    if tier is not None and ttl is None and proven:
        return bool(tier != b"deleted")
    return (yield from newest_record(Located(space, shard, id))) is not None


def where_in_redis(space: Namespace, id: str) -> Plan[Placement | None]:
    """Return where the module is, as one script sees it; None if it does not exist."""
    shard = space.shard(id)
    for _ in range(REREADS_MAX):
        states = space.process.epochs
        known = states.get(shard)
        seen = yield from where_script(shard, id)
        record = parse_record(id, seen.fields) if seen else None
        proven = record and known and states is space.process.epochs and max(record.seen, known.verified) >= known.epoch
        if seen and record and proven:
            gone = record.deleted or (record.ttl_ms and (yield from has_expired(space, shard, record.expires_ms)))
            return None if gone else _placement(space, seen, record)
        if (yield from newest_record(Located(space, shard, id))) is None:
            return None
        yield from shard_state(space, shard)
    raise Recovering(f"the shard of module {id!r} keeps changing its primary; retry")


def _placement(space: Namespace, seen: Seen, record: Record) -> Placement:
    tier: Tier = "cold" if record.tier == "warm" and record.clean and seen.pttl_ms == -2 else record.live_tier()
    stored = {"hot": record.size_bytes, "warm": record.frame_bytes, "cold": record.archived_bytes}[tier]
    archived_key = names.object_key(space.namespace, record) if record.clean else None
    return Placement(
        record.id, tier, record.order, record.tokens, record.size_bytes, stored, record.clean, archived_key,
        record.archived_bytes if record.clean else None, seen.uses, seen.last_use_ms, seen.due_ms,
        seen.pttl_ms if seen.pttl_ms >= 0 else None, seen.dirty_since_ms, seen.pinned_until_ms,
        record.created_ms, record.updated_ms, record.content_type, record.sha256,
        expires_ms=record.ttl_ms and record.expires_ms,
    )  # fmt: skip


def where(space: Namespace, id: str) -> Plan[Placement | None]:
    """Return where the module is, with the live nodes that hold a copy; None if it does not exist."""
    found = yield from where_in_redis(space, id)
    if found is None or not found.clean:
        return found
    return (yield from _with_nodes(space, [found]))[0]


def where_many(space: Namespace, ids: Sequence[str]) -> Plan[dict[str, Placement | None]]:
    """Return `where` of many modules by id: a round trip per 500, and one more for the copies on nodes' disks."""
    found: dict[str, Placement | None] = dict.fromkeys(ids)
    for chunk in chunks(list(found), 500):
        states, known = space.process.epochs, known_of(space, chunk)
        replies = yield from Pipeline([where_script(space.shard(id), id) for id in chunk])
        seen = [collect(reply) for reply in replies]
        records = [parse_record(id, one.fields) if one else None for id, one in zip(chunk, seen, strict=True)]
        settled = yield from settle_records(space, chunk, records, known, states)
        placements, changed = [], []
        for id, one, record, now in zip(chunk, seen, records, settled, strict=True):
            if one and record is not None and now is record:
                placements.append(_placement(space, one, record))
            elif now is not None:
                changed.append(id)  # the archive had a newer version, so the script's view is of the one before
        for again in (yield Parallel([where_in_redis(space, id) for id in changed])) if changed else ():
            placed = collect(again)
            placements += [placed] if placed is not None else []
        found |= {placed.id: placed for placed in (yield from _with_nodes(space, placements))}
    return found


def _with_nodes(space: Namespace, placements: Sequence[Placement]) -> Plan[list[Placement]]:
    """Return the placements with the nodes whose disks hold copies. Only clean versions have some."""
    clean = [placed for placed in placements if placed.clean]
    if not clean:
        return list(placements)
    names = [node for node in (yield from read_nodes(space)) if node != space.node]
    calls = [holds_command(space.shard(placed.id), node, placed.id) for placed in clean for node in names]
    replies = [collect(reply) for reply in (yield from Pipeline(calls))] if calls else []
    nodes: dict[str, list[str]] = {}
    for i, placed in enumerate(clean):
        nodes[placed.id] = holders_of(names, replies[i * len(names) : (i + 1) * len(names)])
        if space.node is not None and (yield from LocalHas(placed.id, placed.version.write_id)):
            nodes[placed.id].append(space.node)
    return [replace(placed, nodes=tuple(sorted(nodes.get(placed.id, ())))) for placed in placements]
