"""Where a module is, without using or moving it."""

from __future__ import annotations

from dataclasses import replace

from distier.domain import archived as names
from distier.domain.module import TIERS, Placement, Record, Tier, parse_record
from distier.effects import Command, LocalHas, Pipeline, Plan, collect
from distier.errors import Corrupt, Recovering
from distier.lua import Seen
from distier.lua import where as where_script
from distier.plans.common.namespace import Located, Namespace
from distier.plans.get.one import REREADS_MAX
from distier.plans.recovery.adopt import newest_record
from distier.plans.recovery.epochs import shard_state
from distier.plans.tier.peers import holders_of, holds_command, read_nodes


def exists(space: Namespace, id: str) -> Plan[bool]:
    """Return whether there is such a module."""
    shard, states = space.shard(id), space.process.epochs
    known = states.get(shard)
    command = ("HMGET", shard.module(id), "tier", "seen")
    tier, seen = yield from Command(shard, command, lambda reply: (reply[0], int(reply[1] or 0)))
    if tier is not None and known and states is space.process.epochs and max(seen, known.verified) >= known.epoch:
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
            return None if record.deleted else _placement(space, seen, record)
        if (yield from newest_record(Located(space, shard, id))) is None:
            return None
        yield from shard_state(space, shard)
    raise Recovering(f"the shard of module {id!r} keeps changing its primary; retry")


def _placement(space: Namespace, seen: Seen, record: Record) -> Placement:
    tier: Tier = "cold" if record.tier == "warm" and record.clean and seen.pttl_ms == -2 else _tier(record)
    stored = {"hot": record.size_bytes, "warm": record.frame_bytes, "cold": record.archived_bytes}[tier]
    archived_key = names.object_key(space.namespace, record) if record.clean else None
    return Placement(
        record.id, tier, record.order, record.tokens, record.size_bytes, stored, record.clean, archived_key,
        record.archived_bytes if record.clean else None, seen.uses, seen.last_use_ms, seen.due_ms,
        seen.pttl_ms if seen.pttl_ms >= 0 else None, seen.dirty_since_ms, seen.pinned_until_ms,
        record.created_ms, record.updated_ms, record.content_type, record.sha256,
    )  # fmt: skip


def _tier(record: Record) -> Tier:
    for tier in TIERS:
        if record.tier == tier:
            return tier
    raise Corrupt(f"the record of module {record.id!r} has the unknown tier {record.tier!r}; run `distier fsck`")


def where(space: Namespace, id: str) -> Plan[Placement | None]:
    """Return where the module is, with the live nodes that hold a copy; None if it does not exist."""
    found = yield from where_in_redis(space, id)
    if found is None or not found.clean:
        return found
    names = [node for node in (yield from read_nodes(space)) if node != space.node]
    shard = space.shard(id)
    replies = (yield from Pipeline([holds_command(shard, node, id) for node in names])) if names else []
    nodes = holders_of(names, [collect(reply) for reply in replies])
    if space.node is not None and (yield from LocalHas(id, found.version.write_id)):
        nodes.append(space.node)
    return replace(found, nodes=tuple(sorted(nodes)))
