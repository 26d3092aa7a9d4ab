"""Bringing predicted modules one step nearer: from the archive to warm, and from Redis into the process.

Nobody waits for it, and it counts as no use. It changes no order: a warm copy is admitted like that of a reader, with the
probability of the prediction for a use (`install.lua`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distier.domain.keys import Shard
from distier.domain.module import Module, Record, parse_record
from distier.effects import Cancelled, Command, Count, LocalGet, NewToken, Parallel, Pipeline, Plan, collect
from distier.errors import DistierError
from distier.plans.common.clock import has_expired
from distier.plans.common.commands import fields_command, version_command
from distier.plans.common.content import by_bytes, open_frames
from distier.plans.common.leases import give_back, lease_command, patience_ms
from distier.plans.common.namespace import Namespace
from distier.plans.get.one import as_placed, is_still
from distier.plans.recovery.adopt import known_of, settle_records
from distier.plans.tier.keep import keep_warm
from distier.plans.tier.load import fetch_unless_moved
from distier.policy.predict import Prediction


@dataclass
class Brought:
    """What was found: `modules` with content, ids that are `there` already, so that nothing was done, and ids whose object was
    `fetched`. `refused` modules are cold, and there was no budget for them."""

    modules: dict[str, Module] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)
    refused: int = 0


def bring(space: Namespace, predictions: Sequence[Prediction], *, near: bool, reads: int) -> Plan[Brought]:
    """Bring predicted modules nearer.

    Args:
        predictions: the most probable first.
        near: return the contents, for the cache of this process.
        reads: the most objects to read from the archive.
    """
    found = Brought()
    wanted = list(predictions)
    if not near:
        wanted = yield from _below_redis(space, wanted, found)
    if not wanted:
        return found
    ids = [p.id for p in wanted]
    states, known = space.process.epochs, known_of(space, ids)
    replies = yield from Pipeline([fields_command(space.shard(id), id) for id in ids])
    records = [parse_record(id, collect(reply)) for id, reply in zip(ids, replies, strict=True)]
    settled = yield from settle_records(space, ids, records, known, states)
    warm: list[tuple[Shard, Record]] = []
    cold: set[str] = set()
    for id, record in zip(ids, settled, strict=True):
        if record is None:
            found.there.add(id)
        elif record.content is not None:
            found.modules[id] = record.hot_module()
        elif record.tier == "warm" or not record.clean:
            warm.append((space.shard(id), record))
        else:
            cold.add(id)
    for part in by_bytes(warm) if near else ():
        for (_, record), content in zip(part, (yield from open_frames(space, part)), strict=True):
            if content is not None:
                found.modules[record.id] = record.module(content, "warm")
            elif record.clean:  # its frame has expired
                cold.add(record.id)
    found.refused = max(0, len(cold) - reads)
    fetches = [
        _fetch(space, space.shard(record.id), record, prediction.probability, found, near=near)
        for prediction, record in zip(wanted, settled, strict=True)
        if record is not None and record.id in cold
    ]
    for result in (yield Parallel(fetches[:reads])) if fetches[:reads] else ():
        if isinstance(result, DistierError):
            yield Count("predict.failed")
    return found


def look_again(space: Namespace, suspects: Mapping[str, Module]) -> Plan[dict[str, Module]]:
    """Return those suspects of the near cache whose records still have their versions: a fetch leaves a warm copy, and the push
    for that makes a suspect of what it brought. A round trip here spares the session one."""
    states, known = space.process.epochs, known_of(space, list(suspects))
    replies = yield from Pipeline([version_command(space.shard(id), id) for id in suspects])
    if states is not space.process.epochs:
        return {}
    found = {}
    for (id, suspect), reply in zip(suspects.items(), replies, strict=True):
        before = known[space.shard(id)]
        if before is None or isinstance(reply, DistierError) or not is_still(suspect, reply, before):
            continue
        if not (yield from has_expired(space, space.shard(id), suspect.expires_ms)):
            found[id] = as_placed(suspect, reply)
    return found


def _below_redis(space: Namespace, wanted: Sequence[Prediction], found: Brought) -> Plan[list[Prediction]]:
    """Return the predictions whose modules are cold. Others are as near as they can be without a near cache."""
    calls: list[Command[bytes | None]] = []
    for prediction in wanted:
        shard = space.shard(prediction.id)
        calls.append(Command(shard, ("HGET", shard.module(prediction.id), "tier"), lambda tier: tier))
    rest = []
    for prediction, tier in zip(wanted, (yield from Pipeline(calls)) if calls else (), strict=True):
        if collect(tier) == b"cold":
            rest.append(prediction)
        else:
            found.there.add(prediction.id)
    return rest


def _fetch(
    space: Namespace, shard: Shard, record: Record, probability: float, found: Brought, *, near: bool
) -> Plan[None]:
    """Fetch a cold version and leave a warm copy, unless another process is fetching it."""
    content = (yield from LocalGet(record)) if space.node is not None else None
    if content is not None:
        found.modules[record.id] = record.module(content, "warm")
        return
    uses = space.process.warm.get(record.id, 0.0) + probability
    if not near and space.process.bar(shard, "warm").refuses(uses, record.size_bytes):
        found.there.add(record.id)  # warm would not take it, and nobody else wants it
        return
    lease, me = shard.lease(record.id), (yield from NewToken())
    try:
        (holder,) = yield from Pipeline([lease_command(shard, lease, me, patience_ms(space))])
        if isinstance(holder, DistierError) or holder is not None:
            found.there.add(record.id)  # the other process leaves a copy; without leases, no fetch is worth its risk
            return
        content = yield from fetch_unless_moved(space, shard, record)
        if content is not None:
            found.fetched.add(record.id)
            yield Count("predict.fetched")
            found.modules[record.id] = record.module(content, "cold")
            yield from keep_warm(space, shard, record, content, me, 0, likely=probability)
            return
    except (DistierError, Cancelled):
        yield from give_back(shard, lease, me)
        raise
    yield from give_back(shard, lease, me)
