"""Writing many modules: while there is room, several of a shard in one script."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.domain.module import Landed
from distier.domain.order import WRITE_ID_RANDOM_CHARS, Order
from distier.effects import Count, NewToken, Offload, Parallel, Pipeline, Plan, Sending, collect
from distier.errors import Corrupt, DeadlineExceeded, DistierError
from distier.lua import Over, Put, Write
from distier.lua import put_many as put_many_script
from distier.plans.common.content import COUNTING
from distier.plans.common.namespace import Namespace
from distier.plans.put.one import landed, put, put_prepared
from distier.plans.put.prepare import LARGE_BYTES, Item, Prepared, length_of, made_ready, made_ready_in_steps
from distier.policy.eviction.victims import Need

PIPELINE_MAX_BYTES = 8 * 1024 * 1024
BATCH_MAX = 512
SCRIPT_MAX_MODULES = 64
SCRIPT_MAX_BYTES = 1024 * 1024


def put_many(space: Namespace, items: Sequence[Item]) -> Plan[list[Landed | DistierError]]:
    """Write modules. Returns a result per item, in order: where it landed, or its error.

    While there is room, several modules of a shard are written in one script. Those that need evictions follow one by one,
    and those with a higher durability than `redis` go in parallel. A later item with the same id wins, as in a loop over
    `put`.
    """
    results: list[Landed | DistierError] = []
    for batch in _batches(items):
        slow = [i for i, item in enumerate(batch) if (item.durability or space.config.durability) != "redis"]
        done: list[Any] = yield from _prepare_many(space, batch, set(slow))
        for i, result in zip(slow, (yield from Parallel([put(space, batch[i]) for i in slow])), strict=True):
            done[i] = result
        ready = {p.id: i for i, p in enumerate(done) if isinstance(p, Prepared)}
        yield from _put_ready(space, [done[i] for i in ready.values()], ready, done)
        results += done
    return results


def _prepare_many(space: Namespace, batch: Sequence[Item], but: set[int]) -> Plan[list[Prepared | DistierError | None]]:
    """`prepare` all items but those in `but` (None there); errors are values. One random token makes all write ids."""
    seed = yield from NewToken()
    sendings: dict[Shard, Sending] = {}  # the items of a shard are sent together
    lengths = [length_of(item) for item in batch]

    random = hashlib.shake_128(seed.encode()).hexdigest(WRITE_ID_RANDOM_CHARS // 2 * len(batch))

    def signs(i: int) -> tuple[str, Sending]:
        shard = space.shard(check_id(batch[i].id))
        sending = sendings.get(shard) or sendings.setdefault(shard, Sending(space.process.since(shard)))
        return random[i * WRITE_ID_RANDOM_CHARS : (i + 1) * WRITE_ID_RANDOM_CHARS], sending

    def small() -> list[Prepared | DistierError | None]:
        made = list[Prepared | DistierError | None]()
        for i, item in enumerate(batch):
            try:
                made.append(None if i in but or lengths[i] > LARGE_BYTES else made_ready(space, item, *signs(i)))
            except DistierError as e:
                made.append(e)
        return made

    size_bytes = sum(length for length in lengths if length <= LARGE_BYTES)
    try:
        done = yield from Offload(size_bytes, small, COUNTING)
    except DeadlineExceeded as e:  # the results of earlier batches are returned all the same
        return [None if i in but else e for i in range(len(batch))]
    for i, length in enumerate(lengths):
        if i not in but and length > LARGE_BYTES:
            try:
                done[i] = yield from made_ready_in_steps(space, batch[i], *signs(i))
            except DistierError as e:
                done[i] = e
    return done


def _put_ready(space: Namespace, ready: Sequence[Prepared], at: Mapping[str, int], done: list[Any]) -> Plan[None]:
    """Write prepared items. Puts the results into `done`, at the position that `at` has for the id."""
    parts = _parts(space, ready)
    calls = [put_many_script(shard, [_write(p) for p in part], part[0].sending) for shard, part in parts]
    landed = 0
    for k, replies in enumerate((yield from Pipeline(calls))):
        shard, part = parts[k]
        # A key of a foreign type fails the whole script, which then did nothing: write each item by itself.
        alone = isinstance(replies, Corrupt) and len(part) > 1
        for i, reply in enumerate(replies if isinstance(replies, list) else [replies] * len(part)):
            p = part[i]
            if isinstance(reply, Put):
                version = Order(reply.epoch, reply.ver, p.write_id)
                landed += 1
                space.process.versions[shard] = (reply.epoch, reply.ver)
                done[at[p.id]] = Landed(p.id, "hot", version, p.tokens, len(p.content), 0, None, False, p.transform)
            else:
                p = replace(p, ahead=_behind(shard, part[i + 1 :], parts[k + 1 :]))
                done[at[p.id]] = yield from _finish(space, p, None if alone else reply)
    yield Count("puts", landed)


def _parts(space: Namespace, ready: Sequence[Prepared]) -> list[tuple[Shard, list[Prepared]]]:
    """Split items into parts for one script each. A script blocks its server for about 30 us a module and 1 ms a MiB."""
    parts: list[tuple[Shard, list[Prepared]]] = []
    room: dict[Shard, tuple[list[Prepared], int]] = {}
    for p in ready:
        shard = space.shard(p.id)
        part, free_bytes = room.get(shard, ([], -1))
        if len(p.content) > free_bytes or len(part) >= SCRIPT_MAX_MODULES:
            part, free_bytes = [], SCRIPT_MAX_BYTES
            parts.append((shard, part))
        part.append(p)
        room[shard] = part, free_bytes - len(p.content)
    return parts


def _behind(shard: Shard, part: Sequence[Prepared], parts: Sequence[tuple[Shard, Sequence[Prepared]]]) -> Need:
    """Return the modules and bytes that the same call still puts into the shard."""
    rest = [p for of, some in [(shard, part), *parts] if of == shard for p in some]
    return Need(len(rest), sum([len(p.content) for p in rest]))


def _write(p: Prepared) -> Write:
    fields = (*p.fields, "content", p.content)
    return Write(p.id, p.write_id, "hot", p.expected, "", "", 0, p.tokens, len(p.content), b"", fields)


def _finish(space: Namespace, p: Prepared, reply: Any) -> Plan[Landed | DistierError]:
    """Continue the long way from the reply to a put into hot, or start it where there is none."""
    try:
        if reply is None or isinstance(reply, Over):
            return (yield from put_prepared(space, p))
        return (yield from landed(space, space.shard(p.id), p, collect(reply)))
    except DistierError as e:
        return e


def _batches(items: Sequence[Item]) -> list[list[Item]]:
    """Split items into batches of at most 512 and about 8 MiB, with no id twice in one: pipelined calls have no order."""
    batches: list[list[Item]] = []
    ids: set[str] = set()
    size_bytes = 0
    for item in items:
        length = length_of(item)
        full = not batches or len(ids) >= BATCH_MAX or size_bytes + length > PIPELINE_MAX_BYTES
        if full or item.id in ids:
            batches.append([])
            ids, size_bytes = set(), 0
        batches[-1].append(item)
        ids.add(item.id)
        size_bytes += length
    return batches
