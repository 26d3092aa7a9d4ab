"""Reading many modules in few round trips: hot ones, then this node's disk, then frames, then the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from distier.domain.keys import Shard
from distier.domain.module import Module, Record, parse_hot, parse_record
from distier.domain.outcome import Outcome
from distier.effects import Count, LocalPut, Parallel, Pipeline, Plan, collect
from distier.plans.common.clock import has_expired
from distier.plans.common.commands import chunks, fields_command, version_command
from distier.plans.common.content import by_bytes, open_frames
from distier.plans.common.namespace import Located, Namespace
from distier.plans.get.one import as_placed, fields_to_hot, is_still, read_below, read_local
from distier.plans.get.uses import is_promotable, use_many
from distier.plans.recovery.adopt import settle_records
from distier.plans.tier.keep import keep, to_hot

NO_SUSPECTS: Mapping[str, Module] = MappingProxyType({})


def get_many(
    space: Namespace, ids: Sequence[str], suspects: Mapping[str, Module] = NO_SUSPECTS
) -> Plan[dict[str, Module | None]]:
    """Return modules by id, None for misses.

    `suspects` are versions that the process has from earlier reads. Each is a result if the record still has that version.

    Hot modules take one round trip per 500. Warm ones take one per 500 or 8 MiB after that, and one more where their uses
    are due. Cold ones follow in parallel. Raises what any of them raises: a fault is not a miss.
    """
    found: dict[str, Module | None] = dict.fromkeys(ids)
    below: list[tuple[Shard, Record]] = []
    for chunk in chunks(list(found), 500):
        if suspects:
            chunk = yield from _revalidate_many(space, chunk, suspects, found)
        below += yield from _read_hot(space, chunk, found)
    if space.node is not None:
        below = yield from _read_local_many(space, below, found)
    below = yield from _read_warm_many(space, below, found)
    modules = yield from Parallel([read_below(Located(space, shard, record.id), record) for shard, record in below])
    for (_, record), module in zip(below, modules, strict=True):
        found[record.id] = collect(module)
    return found


def _revalidate_many(
    space: Namespace, ids: Sequence[str], suspects: Mapping[str, Module], found: dict[str, Module | None]
) -> Plan[Sequence[str]]:
    """Put the suspects whose records still have their versions into `found`. Returns the other ids."""
    some = [id for id in ids if id in suspects]
    states, known = space.process.epochs, {space.shard(id): space.process.epochs.get(space.shard(id)) for id in some}
    replies = (yield from Pipeline([version_command(space.shard(id), id) for id in some])) if some else []
    if states is not space.process.epochs:
        return ids
    hot: dict[Shard, list[str]] = {}
    below: dict[Shard, list[str]] = {}
    fields_of: dict[str, Mapping[bytes, bytes]] = {}
    expired: list[str] = []
    for id, reply in zip(some, replies, strict=True):
        fields, suspect, shard = collect(reply), suspects[id], space.shard(id)
        before = known[shard]
        if before is not None and is_still(suspect, fields, before):
            if suspect.expires_ms is not None and (yield from has_expired(space, shard, suspect.expires_ms)):
                yield Count("misses")
                expired.append(id)
                continue
            found[id] = placed = as_placed(suspect, fields)
            (hot if placed.tier == "hot" else below).setdefault(shard, []).append(id)
            fields_of[id] = fields
    yield Count("hits.revalidated", len(fields_of))
    yield from use_many(space, hot)
    counts = yield from use_many(space, below, below_hot=True)
    promoted = []
    for id, count in counts.items():
        module = found.get(id)
        if is_promotable(space, id, count) and module is not None and id in fields_of:
            promoted.append(keep(fields_to_hot(space, space.shard(id), module, fields_of[id])))
    for result in (yield Parallel(promoted)) if promoted else ():
        collect(result)
    return [id for id in ids if id not in fields_of and id not in expired]


def _read_local_many(
    space: Namespace, below: list[tuple[Shard, Record]], found: dict[str, Module | None]
) -> Plan[list[tuple[Shard, Record]]]:
    """Put the modules that this node's disk has into `found`. Returns the others."""
    rest = []
    for shard, record in below:
        module = (yield from read_local(space, shard, record)) if record.clean else None
        if module is None:
            rest.append((shard, record))
        else:
            found[record.id] = module
    return rest


def _read_warm_many(
    space: Namespace, below: list[tuple[Shard, Record]], found: dict[str, Module | None]
) -> Plan[list[tuple[Shard, Record]]]:
    """Put the modules that have a frame in Redis into `found`. Returns the others, and those that moved meanwhile."""
    rest = [(shard, record) for shard, record in below if record.tier != "warm"]
    promoted: list[Plan[Outcome]] = []
    for part in by_bytes([(shard, record) for shard, record in below if record.tier == "warm"]):
        get: dict[Shard, list[tuple[Record, bytes]]] = {}
        for (shard, record), content in zip(part, (yield from open_frames(space, part)), strict=True):
            if content is None:  # the long way finds out why
                rest.append((shard, record))
                continue
            found[record.id] = record.module(content, "warm")
            get.setdefault(shard, []).append((record, content))
            if space.node is not None and record.clean:
                yield from LocalPut(record, content)
        yield Count("hits.warm", sum(map(len, get.values())))
        used = {shard: [record.id for record, _ in some] for shard, some in get.items()}
        counts = yield from use_many(space, used, below_hot=True)
        promoted += [
            keep(to_hot(space, shard, record, content, "uses"))
            for shard, some in get.items()
            for record, content in some
            if is_promotable(space, record.id, counts.get(record.id, 0.0))
        ]
    for result in (yield Parallel(promoted)):  # at the end: promotions may evict frames that are still to be read
        collect(result)
    return rest


def _read_hot(
    space: Namespace, ids: Sequence[str], found: dict[str, Module | None]
) -> Plan[list[tuple[Shard, Record]]]:
    """Put the hot modules into `found`. Returns the records of those that are further down."""
    shards = [space.shard(id) for id in ids]
    used: dict[Shard, list[str]] = {shard: [] for shard in shards}
    states, known = space.process.epochs, {shard: space.process.epochs.get(shard) for shard in used}
    replies = yield from Pipeline([fields_command(shard, id) for shard, id in zip(shards, ids, strict=True)])
    same = states is space.process.epochs
    rest: dict[str, Record | None] = {}
    for id, shard, reply in zip(ids, shards, replies, strict=True):
        fields, before = collect(reply), known[shard]
        module = parse_hot(id, fields, before.epoch, before.verified) if same and before else None
        if module is not None:
            found[id] = module
            used[shard].append(id)
        else:
            rest[id] = parse_record(id, fields)
    below = []
    settled = yield from settle_records(space, list(rest), list(rest.values()), known, states)
    for id, record in zip(rest, settled, strict=True):
        if record is None:
            yield Count("misses")
        elif record.content is not None:
            found[id] = record.hot_module()
            used[space.shard(id)].append(id)
        else:
            below.append((space.shard(id), record))
    yield Count("hits.hot", sum(map(len, used.values())))
    yield from use_many(space, used)
    return below
