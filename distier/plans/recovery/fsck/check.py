"""fsck: does everything in Redis and in the archive fit together? It also repairs what does not.

It runs next to working agents, so one look is never the proof: what plain reads, SCANs and LISTs make suspect is looked at
again before it is reported. Inside one shard that is one script (`mend`, `redirty`, `account`), which sees one moment and
repairs in it. Between Redis and the archive it is a fresh LIST and GET, and the write id of the record, which every repair
compares.

    note     does no harm: garbage that the sweep takes, keys that distier never wrote
    fault    something is wrong, and the content is safe; most are repaired
    lost     a version, or the only copy of it, is gone or damaged: no repair brings it back

Nothing here deletes the greatest object of a module. A damaged object cannot be replaced (objects are never overwritten).
Where Redis still has the content, it is put again as a new version, and the damaged one is then dominated and swept.

It needs 8 bytes of memory for each object of the archive, about 100 for each record of one shard at a time (for the
accounts), and one page of everything else.

The accounts are compared while others write: `usage` changes all the time, and a SCAN sees no single moment. But whatever
changes an account emits an event. So each record is counted once, at any moment; records that had an event since the scan
began are counted again in the script that compares, which replies only if no other one had an event meanwhile. (Rejected: a
script over all records. It is exact too, and blocks the shard for a second per million.) An account is set only where two
such recounts agree, and never where more changed during the scan than the event stream keeps.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from distier.domain import archived as names
from distier.domain.keys import Shard
from distier.effects import Command, NewToken, Now, Pipeline, Plan, collect
from distier.errors import Corrupt, DistierError, Invalid
from distier.lua import Opened
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Located, Namespace
from distier.plans.fleet.sweep import delete_each, unneeded
from distier.plans.recovery.adopt import verify
from distier.plans.recovery.describe import describe
from distier.plans.recovery.epochs import ask_state
from distier.plans.recovery.fsck.accounts import check_accounts
from distier.plans.recovery.fsck.findings import Findings, Run, each
from distier.plans.recovery.fsck.keys import check_keys, check_sets
from distier.plans.recovery.packs import list_contents
from distier.plans.recovery.walk import ArchiveWalk, Group, Position, Skipped, list_module

SETTLED_MS = 20 * 60_000
"""An object this old belongs to no write that is under way: calls take 2 minutes at most, and S3 refuses clients whose clock
is off by more than 15."""


def fsck(
    space: Namespace,
    *,
    repair: bool = False,
    checksums: float = 0,
) -> Plan[Findings]:
    """Check a namespace.

    It reports each `Finding`, and now and then the `Findings` so far, as progress. `checksums`: the fraction of modules whose
    copies and objects are read and compared with their SHA-256 (1: all). Raises `Unavailable`, `Invalid`.
    """
    if not 0 <= checksums <= 1:
        raise Invalid(f"checksums must be a fraction from 0 to 1, not {checksums!r}")
    salt = yield NewToken()
    run = Run(space, repair, checksums, salt.encode(), (yield Now()))
    try:
        yield from _check_archive(run)
        for shard in space.keys.shards:
            yield from check_keys(run, shard)
            yield from check_sets(run, shard)
            yield from check_accounts(run, shard)
    except DistierError:
        yield from run.report()  # what was found before the failure
        raise
    yield from run.report()
    return run.findings


def _check_archive(run: Run) -> Plan[None]:
    states: dict[Shard, Opened] = {}
    for shard in run.space.keys.shards:
        states[shard] = yield from ask_state(run.space, shard)
    walk, present = ArchiveWalk(run.space), array("q")
    packs = {"", *(str(pack) for pack, _ in (yield from list_contents(run.space)))}
    while not walk.done:
        groups = yield from walk.step()
        for group in groups:
            there = [o for o in group.objects if o.kind == "content" and o.pack in packs]
            present.extend(hash((group.id, *o.order)) for o in there)
        for part in chunks(groups, 512):
            yield from _check_groups(run, states, part)
        for key in walk.foreign:
            run.found("foreign-object", key=key)
        walk.foreign.clear()
        run.findings.objects = walk.objects
        yield from run.report()
    for directory, why in walk.unreadable.items():
        run.found("unreadable-name", key=directory, detail=why)
    run.present = array("q", sorted(present))


def _check_groups(run: Run, states: Mapping[Shard, Opened], groups: Sequence[Group]) -> Plan[None]:
    space, calls = run.space, list[Command[Any]]()
    for group in groups:
        shard = space.shard(group.id)
        calls.append(
            Command(shard, ("HMGET", shard.module(group.id), "epoch", "ver", "tok", "seen"), _position_and_seen)
        )
    for group, reply in zip(groups, (yield from Pipeline(calls)), strict=True):
        if isinstance(reply, Corrupt):
            continue  # a foreign type: reported with the records
        position, seen = collect(reply)
        for key in group.lone_sidecars:
            if group.modified_ms[key] < run.now_ms - SETTLED_MS:
                run.found("lone-sidecar", group.id, key)
        newest = group.newest
        known = states[space.shard(group.id)]
        if newest is not None and (position is None or position < newest.order):
            reconciled = max(seen, known.verified) >= known.epoch
            yield from each(run, group.id, _unknown(run, group, newest, position, reconciled=reconciled))
    unread, kept = Skipped(), Skipped()
    keys = yield from unneeded(space, groups, run.now_ms, unread)
    if run.repair:
        yield from delete_each(keys, kept)
    for key in keys:
        run.found("unneeded-objects", key=key, repaired=run.repair and key not in kept.why)
    for key, why in kept.why.items():
        run.found("unreadable-object", key=key, detail=str(why))
    for id, why in unread.why.items():
        if id not in run.skipped.why:
            run.found("unreadable-object", id, detail=str(why))


def _position_and_seen(reply: Sequence[bytes | None]) -> tuple[Position | None, int]:
    epoch, ver, write_id, seen = reply
    if epoch is None or ver is None or not (epoch.isdigit() and ver.isdigit()):
        return None, 0
    return (int(epoch), int(ver), (write_id or b"").decode()[:8]), int(seen) if seen and seen.isdigit() else 0


def _unknown(
    run: Run, group: Group, newest: names.VersionObject, position: Position | None, *, reconciled: bool
) -> Plan[None]:
    """Check an object that is greater than the record, or has none: a tombstone, a write under way, or an orphan."""
    if newest.kind == "deleted" and reconciled and position is None:
        return  # its record has expired
    if reconciled and group.modified_ms[newest.key] >= run.now_ms - SETTLED_MS:
        return
    space, shard = run.space, run.space.shard(group.id)
    listed = yield from list_module(space, group.id)
    command = Command(shard, ("HMGET", shard.module(group.id), "epoch", "ver", "tok", "seen"), _position_and_seen)
    position, _ = yield from command
    still = listed.newest
    if still is None or still.order != newest.order or (position is not None and position >= newest.order):
        return
    found = yield from describe(space, listed, still)
    if found.kind == "none":
        run.found("foreign-object", group.id, newest.key, "its description names another module")
        return
    if run.repair:
        yield from verify(Located(space, shard, group.id))
        position, _ = yield from command
    adopted = run.repair and position is not None and position >= newest.order
    run.found("orphan-object" if reconciled else "not-reconciled", group.id, newest.key, repaired=adopted)
