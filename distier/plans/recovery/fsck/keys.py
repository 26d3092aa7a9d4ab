"""The keys of a shard: what they are, leases without an end, members of sets without a record."""

from __future__ import annotations

from collections.abc import Sequence

from distier.domain.ids import check_id, decode_id
from distier.domain.keys import Shard
from distier.domain.schema import KEYSPACE
from distier.effects import Command, Parallel, Pipeline, Plan, collect
from distier.errors import DistierError, Invalid
from distier.lua import Mended, mend, reindex
from distier.plans.common.commands import chunks, unparsed
from distier.plans.common.namespace import Located
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.fsck.contents import check_contents, check_object, drop_copy
from distier.plans.recovery.fsck.findings import Run, each
from distier.plans.recovery.walk import Position

BATCH = 64
PARALLEL = 8


def check_keys(run: Run, shard: Shard) -> Plan[None]:
    """Check every key of the shard: what it is, and whether it fits what it belongs to."""
    cursor = 0
    chunks_named = yield from _named_chunks(shard)
    while True:
        after, keys = yield from Command(shard, ("SCAN", cursor, "MATCH", shard.root + "*", "COUNT", 1000), unparsed)
        ids: dict[str, list[str]] = {"module": [], "warm": []}
        timed: list[bytes] = []
        for key in set(keys):
            kind, id = _what_is(shard, key)
            if kind in ids:
                ids[kind].append(id)
            elif kind == "lease":
                timed.append(key)
            elif kind == "ids":
                yield from _check_chunk(run, shard, key, chunks_named)
            elif kind != "known":
                run.found("foreign-key", key=_shown(key))
        yield from _check_modules(run, shard, ids["module"])
        yield from _mend_missing(run, shard, ids["warm"])  # other frames are checked with their records
        yield from _check_leases(run, shard, timed)
        yield from run.report()
        cursor = int(after)
        if not cursor:
            return


def _shown(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


_NAMES = [kind.pattern.removeprefix("distier:{t}:").partition(":") for kind in KEYSPACE]
_FIXED = frozenset(name for name, colon, _ in _NAMES if not colon)
_OPEN = frozenset(name for name, colon, _ in _NAMES if colon)


def _what_is(shard: Shard, key: bytes) -> tuple[str, str]:
    """Return the kind of a key by its name, and the id in it.

    The kinds are `module`, `warm`, `lease` (a key that always has a TTL), `ids` (a chunk of the index), `known` (other keys of
    the table) and `foreign`.
    """
    try:
        kind, colon, rest = key.decode()[len(shard.root) :].partition(":")
        if colon and kind in ("module", "warm"):
            return kind, decode_id(rest)
        if colon and kind in ("lease", "done"):  # `done:<tok>` is of older versions
            return "lease", ""
        if colon and kind == "ids":
            return kind, ""
        if kind in (_OPEN if colon else _FIXED):
            return "known", ""
    except (UnicodeDecodeError, Invalid):
        pass
    return "foreign", ""


def _check_leases(run: Run, shard: Shard, keys: Sequence[bytes]) -> Plan[None]:
    calls: list[Command[int]] = [Command(shard, ("PTTL", key), int) for key in keys]
    for key, left in zip(keys, (yield from Pipeline(calls)), strict=True):
        if collect(left) == -1:  # SET ... PX sets both at once, so a lease always has one
            if run.repair:
                yield from Command(shard, ("PEXPIRE", key, 120_000), int)
            run.found("lease-no-ttl", key=_shown(key), repaired=run.repair)


def _named_chunks(shard: Shard) -> Plan[set[str]]:
    """Return the keys of the chunks that the index of ids names."""
    firsts = yield from Command(shard, ("ZRANGE", shard.ids, 0, -1), unparsed)
    ids = [text for text in map(_member, firsts) if text is not None]
    return {shard.chunk(""), *(shard.chunk(id) for id in ids)}


def _check_chunk(run: Run, shard: Shard, key: bytes, named: set[str]) -> Plan[None]:
    if key.decode() in named or key.decode() in (yield from _named_chunks(shard)):  # it may have been made meanwhile
        return
    if run.repair:
        yield from Command(shard, ("UNLINK", key), int)
    run.found("stray-chunk", key=_shown(key), repaired=run.repair)


def check_sets(run: Run, shard: Shard) -> Plan[None]:
    """Check the sets for members without a record."""
    for zset in (shard.hot, shard.warm, shard.dirty, shard.uses, shard.pins, shard.ranks("hot"), shard.ranks("warm")):
        cursor = 0
        while True:
            after, flat = yield from Command(shard, ("ZSCAN", zset, cursor, "COUNT", 1000), unparsed)
            ids = [text for text in map(_member, flat[::2]) if text is not None]
            yield from _mend_missing(run, shard, ids)
            cursor = int(after)
            if not cursor:
                break
    for chunk in (yield from _named_chunks(shard)):
        members = yield from Command(shard, ("ZRANGE", chunk, 0, -1), unparsed)
        yield from _mend_missing(run, shard, [text for text in map(_member, members) if text is not None])


def _member(member: bytes) -> str | None:
    try:
        return check_id(member.decode())
    except (UnicodeDecodeError, Invalid):
        return None


def _mend_missing(run: Run, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    calls = [Command(shard, ("EXISTS", shard.module(id)), int) for id in ids]
    missing = [id for id, there in zip(ids, (yield from Pipeline(calls)), strict=True) if not collect(there)]
    yield from _mend(run, shard, missing)


def _mend(run: Run, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    for part in chunks(ids, BATCH):
        for script in (mend, reindex):
            for mended in (yield from script(shard, part, repair=run.repair)):
                yield from _tell_mended(run, shard, mended)


def _check_modules(run: Run, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    run.findings.records += len(ids)
    yield from _mend(run, shard, ids)
    calls = [
        Command(shard, ("HMGET", shard.module(id), "epoch", "ver", "tok", "clean", "tier"), _archived_position)
        for id in ids
    ]
    suspects = []
    for id, reply in zip(ids, (yield from Pipeline(calls)), strict=True):
        position = None if isinstance(reply, DistierError) else reply
        if position is not None and not run.is_archived(id, position):
            suspects.append(id)
    sampled = [id for id in ids if run.share and run.is_sampled(id)]
    plans: list[Plan[None]] = [each(run, id, check_object(run, shard, id)) for id in suspects]
    plans += [each(run, id, check_contents(run, shard, id)) for id in sampled]
    for few in chunks(plans, PARALLEL):
        for result in (yield from Parallel(few)):
            collect(result)


def _archived_position(reply: Sequence[bytes | None]) -> Position | None:
    """Return the position at which the archive should have a clean version with content."""
    epoch, ver, write_id, clean, tier = reply
    if clean != b"1" or tier not in (b"hot", b"warm", b"cold") or not (epoch and ver):
        return None
    return (int(epoch), int(ver), (write_id or b"").decode()[:8]) if epoch.isdigit() and ver.isdigit() else None


def _tell_mended(run: Run, shard: Shard, mended: Mended) -> Plan[None]:
    for word in mended.found:
        repaired = word in mended.repaired
        if repaired and word == "malformed":
            yield from each(run, mended.id, verify(Located(run.space, shard, mended.id)))
        if word == "hot-content" and run.repair:
            repaired = yield from drop_copy(shard, mended.id)
        run.found(word, mended.id, shard.module(mended.id), repaired=repaired)
