"""fsck: does all that Redis and the archive hold fit together; and put right what does not.

It runs beside working agents, so a look is never the proof: what plain reads, SCANs and LISTs make suspect is looked at
again before it is told. Inside one shard that is one script (`mend`, `redirty`, `account`), which sees one moment and
repairs in it; between Redis and the archive it is a fresh LIST and GET and the tok of the record, which every repair checks.

    note     does no harm: garbage that the sweep takes, keys that distier never wrote
    fault    something is wrong, and the content is safe; most are repaired
    lost     a version, or the only copy of it, is gone or damaged: no repair brings it back

Nothing here deletes the greatest object of a module. A damaged object cannot be replaced (objects are never overwritten):
where Redis still has the content, it is put again as a new version, and the damaged one is then dominated and swept.

What it needs: 8 bytes of memory for each object of the archive, about 100 for each record of one shard at a time (for the
accounts), and one page of everything else.

The accounts are compared while others write: `usage` changes all the time, and a SCAN sees no single moment. But whatever
changes an account emits an event. So each record is counted once, at any moment; those that had an event since the scan
began are counted again in the script that compares, which answers only if no other one had an event meanwhile. (The road
not taken: a script over all records is exact too, and blocks the shard for a second per million.) An account is set only
where two such recounts say the same, and never where more changed during the scan than the event stream keeps.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.ids import check_id, decode_id
from distier.domain.keys import KEYSPACE, Shard
from distier.domain.module import Record
from distier.domain.order import Order
from distier.effects import (
    ArchiveGet,
    ArchiveList,
    Command,
    NewToken,
    Now,
    Offload,
    Parallel,
    Pipeline,
    Plan,
    collect,
)
from distier.errors import Conflict, Corrupt, DistierError, Invalid
from distier.lua import Applied, Mended, Move, Moving, Opened, account, adopt, demote, mend, redirty, reindex

from .describe import describe_object
from .listing import Group, Place, Skipped, Walk
from .maintain import COUNTED, contribution
from .records import UNPACKING, check_content, chunks, content_of, frame_command, is_current, record_command
from .recover import ask_state, verify
from .space import Space
from .sweep import delete_each, unneeded
from .write import Item, put

SETTLED_MS = 20 * 60_000
"""An object this old belongs to no write that is still under way: calls take 2 minutes at most, and S3 refuses clients whose
clock is off by more than 15."""
BATCH = 64
PARALLEL = 8
CHANGED_MAX = 10_000
RECOUNTS_MAX = 30
EXAMPLES_MAX = 1000

Level = Literal["note", "fault", "lost"]


class Kind(NamedTuple):
    level: Level
    what: str
    repair: str


_INDEX = "the set named in it does not agree with the record"
KINDS: Mapping[str, Kind] = {
    "lost": Kind("lost", "not archived yet, and its only copy is gone or cut off", ""),
    "lost-object": Kind("lost", "its archived object is gone, and there is no copy and no other version", ""),
    "lost-version": Kind(
        "lost", "its archived object is gone, and only an older version is there", "goes back to that"
    ),
    "lost-copy": Kind("lost", "not archived yet, and its only copy does not match its SHA-256", ""),
    "damaged-object": Kind("lost", "its archived object is damaged, and Redis has no copy", ""),
    "object-gone": Kind("fault", "its archived object is gone; the content is in Redis", "archived again"),
    "object-behind": Kind("fault", "its archived object is gone; a greater version is there", "adopts that"),
    "object-healed": Kind("fault", "its archived object is damaged; Redis has the content", "put as a new version"),
    "copy-damaged": Kind("fault", "the copy in Redis is damaged; the archive has it", "drops the copy"),
    "malformed": Kind(
        "fault", "the record lacks what every record has", "dropped if empty, then the archive's adopted"
    ),
    "foreign-type": Kind("fault", "a key of a module has another Redis type: something else writes here", ""),
    "hot-content": Kind(
        "fault", "hot, and its content is missing or has a wrong length", "demoted: the archive has it"
    ),
    "content-stray": Kind("fault", "not hot, and its record holds content", "drops that"),
    "frame-orphan": Kind("fault", "a warm copy that no warm record speaks of", "dropped"),
    "frame-length": Kind("fault", "the warm copy has a wrong length; the archive has it", "dropped"),
    "frame-ttl": Kind("fault", "not archived yet, and its warm copy would expire", "PERSIST"),
    "frame-no-ttl": Kind("fault", "archived, and its warm copy never expires", "gets its TTL"),
    "record-ttl": Kind("fault", "the record of a living module would expire", "PERSIST"),
    "tombstone-no-ttl": Kind("fault", "an archived tombstone that never expires", "gets its TTL"),
    **{f"missing-{s}": Kind("fault", _INDEX, "added to it") for s in ("hot", "warm", "dirty")},
    **{f"stray-{s}": Kind("fault", _INDEX, "taken out of it") for s in ("hot", "warm", "dirty", "uses", "pins")},
    "accounts": Kind("fault", "the sums in `usage` differ from a recount", "set to the recount"),
    "accounts-unknown": Kind("note", "too much changes: the accounts could not be compared", ""),
    "lease-no-ttl": Kind("fault", "a lease that never ends", "gets a TTL"),
    "unreadable-object": Kind("fault", "the archive lists an object and does not give it, or refuses to delete it", ""),
    "orphan-object": Kind("fault", "an object that no record knows of", "adopted"),
    "unreadable-name": Kind("fault", "the archive has objects whose directory is no module id", ""),
    "wrong-type": Kind("note", f"its object is not served as {names.CONTENT_TYPE}", ""),
    "not-reconciled": Kind("note", "Redis was lost and this is not adopted yet; reads do it", "adopted"),
    "unneeded-objects": Kind("note", "objects that nobody needs any more", "swept"),
    "lone-sidecar": Kind("note", "a description without its content", ""),
    "foreign-object": Kind("note", "an object that distier never named", ""),
    "foreign-key": Kind("note", "a key in this namespace that distier never wrote", ""),
}
"""What can be found. `what` is said of a module, `repair` is what `repair=True` does about it; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `id` is the module, where it is one; `key` a Redis key or archive key; `detail` what
    distinguishes it. `repaired`: it was put right in this run."""

    kind: str
    id: str = ""
    key: str = ""
    detail: str = ""
    repaired: bool = False

    @property
    def level(self) -> Level:
        return KINDS[self.kind].level

    @property
    def what(self) -> str:
        return KINDS[self.kind].what

    @property
    def repair(self) -> str:
        return KINDS[self.kind].repair


@dataclass
class Findings:
    """What fsck saw, in numbers: `found` and `repaired` by kind; `listed` holds the first thousand findings."""

    objects: int = 0
    records: int = 0
    contents: int = 0
    found: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    listed: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.found[finding.kind] = self.found.get(finding.kind, 0) + 1
        if finding.repaired:
            self.repaired[finding.kind] = self.repaired.get(finding.kind, 0) + 1
        if len(self.listed) < EXAMPLES_MAX:
            self.listed.append(finding)

    def count(self, level: Level) -> int:
        """How many findings of a level there were."""
        return sum(n for kind, n in self.found.items() if KINDS[kind].level == level)

    @property
    def remaining(self) -> int:
        """Faults that are still there."""
        return self.count("fault") - sum(n for kind, n in self.repaired.items() if KINDS[kind].level == "fault")


Tell = Callable[[Finding], None]


@dataclass
class _Run:
    space: Space
    tell: Tell
    progress: Callable[[Findings], None]
    repair: bool
    share: float
    salt: bytes
    now_ms: int
    findings: Findings = field(default_factory=Findings)
    skipped: Skipped = field(default_factory=Skipped)
    present: array[int] = field(default_factory=lambda: array("q"))
    """Hashes of (id, place) of every content object, sorted after the walk through the archive."""

    def found(self, kind: str, id: str = "", key: str = "", detail: str = "", *, repaired: bool = False) -> None:
        finding = Finding(kind, id, key, detail, repaired)
        self.findings.add(finding)
        self.tell(finding)

    def is_archived(self, id: str, place: Place) -> bool:
        wanted = hash((id, *place))
        at = bisect_left(self.present, wanted)
        return at < len(self.present) and self.present[at] == wanted

    def is_sampled(self, id: str) -> bool:
        """A share of the modules, another one in each run."""
        digest = hashlib.blake2b(self.salt + id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64


def fsck(
    space: Space,
    tell: Tell = lambda _: None,
    *,
    repair: bool = False,
    checksums: float = 0,
    progress: Callable[[Findings], None] = lambda _: None,
) -> Plan[Findings]:
    """Check a namespace. `tell` gets each finding, `progress` the numbers so far, now and then. `checksums`: the share of
    modules whose copies and objects are read and compared with their SHA-256 (1: all). Raises `Unavailable`, `Invalid`."""
    if not 0 <= checksums <= 1:
        raise Invalid(f"checksums is a share from 0 to 1, not {checksums!r}")
    salt = yield NewToken()
    run = _Run(space, tell, progress, repair, checksums, salt.encode(), (yield Now()))
    yield from _check_archive(run)
    for shard in space.keys.shards:
        yield from _check_keys(run, shard)
        yield from _check_sets(run, shard)
        yield from _check_accounts(run, shard)
    return run.findings


# -- the archive -----------------------------------------------------------------------------------------------------


def _check_archive(run: _Run) -> Plan[None]:
    states: dict[Shard, Opened] = {}
    for shard in run.space.keys.shards:
        states[shard] = yield from ask_state(run.space, shard)
    walk, present = Walk(run.space), array("q")
    while not walk.done:
        groups = yield from walk.step()
        for group in groups:
            present.extend(hash((group.id, *o.order)) for o in group.objects if o.kind == "content")
        for part in chunks(groups, 512):
            yield from _check_groups(run, states, part)
        for key in walk.foreign:
            run.found("foreign-object", key=key)
        walk.foreign.clear()
        run.findings.objects = walk.objects
        run.progress(run.findings)
    for directory, why in walk.unreadable.items():
        run.found("unreadable-name", key=directory, detail=why)
    run.present = array("q", sorted(present))


def _check_groups(run: _Run, states: Mapping[Shard, Opened], groups: Sequence[Group]) -> Plan[None]:
    space, calls = run.space, list[Command[Any]]()
    for group in groups:
        shard = space.shard(group.id)
        calls.append(Command(shard, ("HMGET", shard.module(group.id), "epoch", "ver", "tok", "seen"), _place_and_seen))
    for group, reply in zip(groups, (yield from Pipeline(calls)), strict=True):
        if isinstance(reply, Corrupt):
            continue  # a foreign type: told with the records
        place, seen = collect(reply)
        for key in group.lone_sidecars:
            if group.modified_ms[key] < run.now_ms - SETTLED_MS:
                run.found("lone-sidecar", group.id, key)
        newest = group.newest
        known = states[space.shard(group.id)]
        if newest is not None and (place is None or place < newest.order):
            reconciled = max(seen, known.verified) >= known.epoch
            yield from _each(run, group.id, _unknown(run, group, newest, place, reconciled=reconciled))
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


def _each(run: _Run, id: str, plan: Plan[None]) -> Plan[None]:
    """What is done with one module. An object that the archive does not give is told, and keeps nothing else."""
    try:
        yield from plan
        run.skipped.went_well()
    except DistierError as e:
        run.skipped.add(id, e)
        run.found("unreadable-object", id, detail=str(e))


def _place_and_seen(reply: Sequence[bytes | None]) -> tuple[Place | None, int]:
    epoch, ver, tok, seen = reply
    if epoch is None or ver is None or not (epoch.isdigit() and ver.isdigit()):
        return None, 0
    return (int(epoch), int(ver), (tok or b"").decode()[:8]), int(seen) if seen and seen.isdigit() else 0


def _unknown(
    run: _Run, group: Group, newest: names.VersionObject, place: Place | None, *, reconciled: bool
) -> Plan[None]:
    """An object that is greater than the record, or has none: a tombstone, a write under way, or an orphan."""
    if newest.kind == "deleted" and reconciled and place is None:
        return  # its record has expired
    if reconciled and group.modified_ms[newest.key] >= run.now_ms - SETTLED_MS:
        return
    space, shard = run.space, run.space.shard(group.id)
    listed = yield from _versions(space, group.id)
    command = Command(shard, ("HMGET", shard.module(group.id), "epoch", "ver", "tok", "seen"), _place_and_seen)
    place, _ = yield from command
    still = max((o.order for o in listed if o.kind != "meta"), default=None)
    if still != newest.order or (place is not None and place >= newest.order):
        return
    sidecar = next((o.key for o in listed if o.kind == "meta" and o.order == newest.order), None)
    found = yield from describe_object(space, group.id, newest, sidecar, group.sizes[newest.key])
    if found.kind == "none":
        run.found("foreign-object", group.id, newest.key, "what is said beside it names another module")
        return
    if run.repair:
        yield from verify(space, shard, group.id)
        place, _ = yield from command
    adopted = run.repair and place is not None and place >= newest.order
    run.found("orphan-object" if reconciled else "not-reconciled", group.id, newest.key, repaired=adopted)


def _versions(space: Space, id: str) -> Plan[list[names.VersionObject]]:
    prefix, after, found = names.version_prefix(space.namespace, id), "", list[names.VersionObject]()
    while True:
        page = yield from ArchiveList(prefix, start_after=after)
        if not page:
            return found
        found += [o for o in (names.parse_key(entry.key) for entry in page) if o and o.is_in(prefix)]
        after = page[-1].key


# -- keys and records ------------------------------------------------------------------------------------------------


def _check_keys(run: _Run, shard: Shard) -> Plan[None]:
    """Every key of the shard: what it is, and whether what it belongs to fits together."""
    cursor = 0
    while True:
        after, keys = yield from Command(shard, ("SCAN", cursor, "MATCH", shard.root + "*", "COUNT", 1000), _same)
        ids: dict[str, list[str]] = {"module": [], "warm": []}
        timed: list[bytes] = []
        for key in set(keys):
            kind, id = _what_is(shard, key)
            if kind in ids:
                ids[kind].append(id)
            elif kind == "lease":
                timed.append(key)
            elif kind != "known":
                run.found("foreign-key", key=_shown(key))
        yield from _check_modules(run, shard, ids["module"])
        yield from _mend_missing(run, shard, ids["warm"])  # other frames are looked at with their records
        yield from _check_leases(run, shard, timed)
        run.progress(run.findings)
        cursor = int(after)
        if not cursor:
            return


def _same(reply: Any) -> Any:
    return reply


def _shown(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


_NAMES = [kind.pattern.removeprefix("distier:{t}:").partition(":") for kind in KEYSPACE]
_FIXED = frozenset(name for name, colon, _ in _NAMES if not colon)
_OPEN = frozenset(name for name, colon, _ in _NAMES if colon)


def _what_is(shard: Shard, key: bytes) -> tuple[str, str]:
    """The kind of a key by its name, and the id in it: `module`, `warm`, `lease` (what has a TTL from the start), `known`
    (other keys of the table), `foreign`."""
    try:
        kind, colon, rest = key.decode()[len(shard.root) :].partition(":")
        if colon and kind in ("module", "warm"):
            return kind, decode_id(rest)
        if colon and kind in ("lease", "done"):  # `done:<tok>` is of older versions
            return "lease", ""
        if kind in (_OPEN if colon else _FIXED):
            return "known", ""
    except (UnicodeDecodeError, Invalid):
        pass
    return "foreign", ""


def _check_leases(run: _Run, shard: Shard, keys: Sequence[bytes]) -> Plan[None]:
    calls: list[Command[int]] = [Command(shard, ("PTTL", key), int) for key in keys]
    for key, left in zip(keys, (yield from Pipeline(calls)), strict=True):
        if collect(left) == -1:  # SET ... PX makes both at once, so there is no moment without
            if run.repair:
                yield from Command(shard, ("PEXPIRE", key, 120_000), int)
            run.found("lease-no-ttl", key=_shown(key), repaired=run.repair)


def _check_sets(run: _Run, shard: Shard) -> Plan[None]:
    """Members of the sets that have no record."""
    for zset in (shard.hot, shard.warm, shard.dirty, shard.uses, shard.pins):
        cursor = 0
        while True:
            after, flat = yield from Command(shard, ("ZSCAN", zset, cursor, "COUNT", 1000), _same)
            ids = [text for text in map(_member, flat[::2]) if text is not None]
            yield from _mend_missing(run, shard, ids)
            cursor = int(after)
            if not cursor:
                break


def _member(member: bytes) -> str | None:
    try:
        return check_id(member.decode())
    except (UnicodeDecodeError, Invalid):
        return None


def _mend_missing(run: _Run, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    calls = [Command(shard, ("EXISTS", shard.module(id)), int) for id in ids]
    missing = [id for id, there in zip(ids, (yield from Pipeline(calls)), strict=True) if not collect(there)]
    yield from _mend(run, shard, missing)


def _mend(run: _Run, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    for part in chunks(ids, BATCH):
        for script in (mend, reindex):
            for mended in (yield from script(shard, part, repair=run.repair)):
                yield from _tell_mended(run, shard, mended)


def _check_modules(run: _Run, shard: Shard, ids: Sequence[str]) -> Plan[None]:
    run.findings.records += len(ids)
    yield from _mend(run, shard, ids)
    calls = [
        Command(shard, ("HMGET", shard.module(id), "epoch", "ver", "tok", "clean", "tier"), _archived_place)
        for id in ids
    ]
    suspects = []
    for id, reply in zip(ids, (yield from Pipeline(calls)), strict=True):
        place = None if isinstance(reply, DistierError) else reply
        if place is not None and not run.is_archived(id, place):
            suspects.append(id)
    sampled = [id for id in ids if run.share and run.is_sampled(id)]
    plans: list[Plan[None]] = [_each(run, id, _check_object(run, shard, id)) for id in suspects]
    plans += [_each(run, id, _check_contents(run, shard, id)) for id in sampled]
    for few in chunks(plans, PARALLEL):
        for result in (yield from Parallel(few)):
            collect(result)


def _archived_place(reply: Sequence[bytes | None]) -> Place | None:
    """Where a clean version with content should be in the archive."""
    epoch, ver, tok, clean, tier = reply
    if clean != b"1" or tier not in (b"hot", b"warm", b"cold") or not (epoch and ver):
        return None
    return (int(epoch), int(ver), (tok or b"").decode()[:8]) if epoch.isdigit() and ver.isdigit() else None


def _tell_mended(run: _Run, shard: Shard, mended: Mended) -> Plan[None]:
    for word in mended.found:
        repaired = word in mended.repaired
        if repaired and word == "malformed":
            yield from _each(run, mended.id, verify(run.space, shard, mended.id))
        if word == "hot-content" and run.repair:
            repaired = yield from _drop_copy(shard, mended.id)
        run.found(word, mended.id, shard.module(mended.id), repaired=repaired)


def _drop_copy(shard: Shard, id: str) -> Plan[bool]:
    """Take a clean version down to cold, whatever its copy here is."""
    tok, clean = yield from Command(shard, ("HMGET", shard.module(id), "tok", "clean"), _same)
    if clean != b"1":
        return False
    words = yield from demote(shard, "repair", [Move(id, tok.decode(), "cold")])
    return words == ("moved",)


# -- content ---------------------------------------------------------------------------------------------------------


def _check_object(run: _Run, shard: Shard, id: str) -> Plan[None]:
    """A clean record whose object was not in the listing: it came later, or it is gone."""
    record = yield from _clean_record(shard, id)
    if record is None:
        return
    present = [o for o in (yield from _versions(run.space, id)) if o.kind != "meta"]
    if any(o.kind == "content" and o.order == _short(record.order) for o in present):
        return
    key = names.object_key(run.space.namespace, record)
    if (yield from ArchiveGet(key, max_bytes=2 * run.space.config.max_module_bytes + 4096)) is not None:
        return
    again = yield from _clean_record(shard, id)
    if again is None or again.order != record.order:
        return
    newest = max(present, key=lambda o: o.order, default=None)
    if newest is not None and newest.order > _short(record.order):
        if run.repair:
            yield from verify(run.space, shard, id)
        run.found("object-behind", id, key, repaired=run.repair)
        return
    if again.tier != "cold":
        reply = (yield from redirty(shard, id, record.order.tok)) if run.repair else None
        if isinstance(reply, Applied) or (not run.repair and (yield from _has_copy(shard, again))):
            run.found("object-gone", id, key, repaired=run.repair)
            return
    yield from _tell_lost(run, shard, again, key, newest)


def _short(order: Order) -> Order:
    return Order(order.epoch, order.ver, order.tok[:8])


def _clean_record(shard: Shard, id: str) -> Plan[Record | None]:
    try:
        record = yield from record_command(shard, id)
    except Corrupt:
        return None  # told as malformed
    return record if record is not None and record.clean and not record.deleted else None


def _has_copy(shard: Shard, record: Record) -> Plan[bool]:
    if record.tier == "hot":
        return record.content is not None and len(record.content) == record.size_bytes
    return (yield from Command(shard, ("EXISTS", shard.frame(record.id)), bool))


def _tell_lost(run: _Run, shard: Shard, record: Record, key: str, older: names.VersionObject | None) -> Plan[None]:
    if older is None or older.kind == "deleted":
        run.found("lost-object", record.id, key, str(record.order))
        return
    went = False
    if run.repair:
        went = yield from _go_back(run.space, shard, record, older)
    run.found("lost-version", record.id, key, f"{record.order}, there is {older.order}", repaired=went)


def _go_back(space: Space, shard: Shard, record: Record, older: names.VersionObject) -> Plan[bool]:
    if record.tier != "cold":  # its copy has just gone: the worker accounts for that first
        return False
    known = yield from ask_state(space, shard)
    sidecars = [o.key for o in (yield from _versions(space, record.id)) if o.kind == "meta" and o.order == older.order]
    got = yield from ArchiveGet(older.key, max_bytes=2 * space.config.max_module_bytes + 4096)
    if got is None:
        return False
    found = yield from describe_object(space, record.id, older, next(iter(sidecars), None), len(got.data))
    reply = yield from adopt(shard, known.epoch, [found._replace(instead=record.order.tok)])
    return getattr(reply, "adopted", 0) == 1


def _check_contents(run: _Run, shard: Shard, id: str) -> Plan[None]:
    """The copies of one module against its SHA-256: what Redis holds, and the object."""
    replies = yield from Pipeline([record_command(shard, id), frame_command(shard, id)])
    record, frame = replies
    if isinstance(record, Corrupt) or isinstance(frame, Corrupt):
        return  # told as malformed
    record, frame = collect(record), collect(frame)
    if record is None or record.deleted:
        return
    run.findings.contents += 1
    content = None
    try:
        content = yield from content_of(record, frame)
    except Corrupt as e:
        if not (yield from is_current(shard, record)):
            return  # it moved on between the two reads
        if not record.clean:
            run.found("lost-copy", id, detail=str(e))
            return
        dropped = run.repair and (yield from _drop_copy(shard, id))
        run.found("copy-damaged", id, detail=str(e), repaired=dropped)
    if record.clean:
        yield from _check_archived(run, shard, record, content)


def _check_archived(run: _Run, shard: Shard, record: Record, content: bytes | None) -> Plan[None]:
    key = names.object_key(run.space.namespace, record)
    try:
        got = yield from ArchiveGet(key, max_bytes=record.size_bytes + record.size_bytes // 2 + 4096)
        if got is None:
            return  # that is looked for elsewhere
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


def _put_again(space: Space, record: Record, content: bytes) -> Plan[bool]:
    module = record.module(content, "hot")
    item = Item(
        record.id, content, record.content_type, module.keywords, module.meta, record.tokens, record.order, "redis"
    )
    try:
        yield from put(space, item)
    except Conflict:
        return False  # somebody else has put a newer version
    return True


# -- accounts --------------------------------------------------------------------------------------------------------


@dataclass
class _Recount:
    """Records, each counted at some moment of a scan, so that any of them can be taken out again."""

    since: str
    seen: set[int] = field(default_factory=set)
    marks: array[int] = field(default_factory=lambda: array("q"))
    values: list[array[int]] = field(default_factory=lambda: [array("q") for _ in COUNTED])

    def add(self, key: bytes, reply: Sequence[bytes | None]) -> None:
        mark = hash(key)
        if reply[0] is None or mark in self.seen:
            return
        self.seen.add(mark)
        self.marks.append(mark)
        tier = _TIERS.index(reply[0]) if reply[0] in _TIERS else -1
        numbers = [tier, *(int(n) if n and n.isdigit() else 0 for n in reply[1:])]
        for column, number in zip(self.values, numbers, strict=True):
            column.append(number)

    def sums(self, without: set[int]) -> dict[str, int]:
        total: dict[str, int] = {}
        for mark, tier, *numbers in zip(self.marks, *self.values, strict=True):
            if mark in without or tier < 0:
                continue
            for name, n in contribution([_TIERS[tier], *(b"%d" % n for n in numbers)]).items():
                total[name] = total.get(name, 0) + n
        return {name: n for name, n in total.items() if n}


_TIERS = (b"hot", b"warm", b"cold", b"deleted")


def _check_accounts(run: _Run, shard: Shard) -> Plan[None]:
    before: dict[str, int] | None = None
    for _ in range(2):
        counted = yield from _recount(shard)
        off = yield from _compare(shard, counted, repair=False)
        if off is None:
            run.found("accounts-unknown", key=shard.usage)
            return
        if not off or before not in (None, off):
            return
        if before is None:
            before = off
    repaired = False
    if run.repair:
        repaired = (yield from _compare(shard, counted, repair=True)) == before
    for name, n in sorted((before or {}).items()):
        run.found("accounts", key=shard.usage, detail=f"{name} is {n:+d} off", repaired=repaired)


def _recount(shard: Shard) -> Plan[_Recount]:
    counted, cursor = _Recount((yield from _last_event(shard))), 0
    while True:
        words = ("SCAN", cursor, "MATCH", shard.module_pattern(""), "COUNT", 1000)
        after, keys = yield from Command(shard, words, _same)
        calls: list[Command[Any]] = [Command(shard, ("HMGET", key, *COUNTED), _same) for key in keys]
        for key, reply in zip(keys, (yield from Pipeline(calls)), strict=True):
            if not isinstance(reply, Corrupt):  # a foreign type, told as such
                counted.add(key, collect(reply))
        cursor = int(after)
        if not cursor:
            return counted


def _last_event(shard: Shard) -> Plan[str]:
    words = ("XREVRANGE", shard.events, "+", "-", "COUNT", 1)
    return (yield from Command(shard, words, lambda r: r[0][0].decode() if r else "0-0"))


def _compare(shard: Shard, counted: _Recount, *, repair: bool) -> Plan[dict[str, int] | None]:
    """How far the accounts are off; None where that cannot be said, because too much has changed."""
    for _ in range(RECOUNTS_MAX):
        changed = yield from _changed(shard, counted.since)
        if changed is None:
            return None
        last, ids = changed
        sums = counted.sums({hash(shard.module(id).encode()) for id in ids})
        reply = yield from account(shard, sums, sorted(ids), last, repair=repair)
        if not isinstance(reply, Moving):
            return reply
    return None


def _changed(shard: Shard, since: str) -> Plan[tuple[str, set[str]] | None]:
    """The last event, and the modules that had any after `since`; None where the stream has been trimmed since."""
    ids: set[str] = set()
    last, n = since, 0
    while True:
        page = yield from Command(shard, ("XRANGE", shard.events, f"({last}", "+", "COUNT", 1000), _same)
        for event, flat in page or ():
            last, n = event.decode(), n + 1
            ids |= set(_event_id(flat))
        if len(page or ()) < 1000:
            break
    words = ("XRANGE", shard.events, "-", "+", "COUNT", 1)
    first = yield from Command(shard, words, lambda r: r[0][0].decode() if r else "0-0")
    whole = n == 0 or _order(first) <= _order(since) or (since == "0-0" and n < 1000)
    return (last, ids - {""}) if whole and len(ids) <= CHANGED_MAX else None


def _event_id(flat: Sequence[bytes] | Mapping[bytes, bytes]) -> Iterator[str]:
    pairs = flat.items() if isinstance(flat, Mapping) else zip(flat[::2], flat[1::2], strict=True)
    for name, value in pairs:
        if name == b"id":
            yield value.decode()


def _order(stream_id: str) -> tuple[int, int]:
    ms, _, n = stream_id.partition("-")
    return int(ms), int(n or 0)
