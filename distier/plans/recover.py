"""Epochs: what a shard does after its Redis restarted, failed over, or lost its memory.

Every mutating script compares the server's replication id with the one that the shard's epoch was installed for. A
restart, a promotion and a total loss change it; the script then answers `RECOVERING`, and the client

    claims      a new epoch: it writes `<ns>/epochs/<shard>/@<number>-<tok8>-<life>` into the archive, above the greatest there,
                and lists again: if another claim has the same number, neither is used (whoever lists last sees both,
                so at most one goes on; no conditional PUT is needed);
    installs    it, in the life of the server for which it was claimed, never an epoch that it only found. If Redis was emptied
                since it looked, a greater epoch may have been installed meanwhile, and forgotten: then it begins again.

From then on everything written comes after everything written before, and a write of the old epoch that is still on its
way to the archive finds the new one there and is not acknowledged (see `write.put_archived`).

What Redis kept may be older than what the archive has (it lost its last second). So a record that was last `seen` in an
older epoch is compared with the archive before it is served: one LIST of its versions. `rescue` does that for all of
them in one listing and marks the shard `verified`; total loss is the same path with no records at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from distier.domain import archived as names
from distier.domain.keys import Keyspace, Shard
from distier.domain.module import Record
from distier.effects import (
    HINT_S,
    ArchiveList,
    ArchivePut,
    Command,
    Count,
    NewToken,
    Parallel,
    Pipeline,
    Plan,
    RunScript,
    Sleep,
    collect,
)
from distier.errors import (
    ArchiveUnavailable,
    ConfigError,
    DistierError,
    Invalid,
    NotFound,
    Recovering,
    RedisUnavailable,
)
from distier.lua import Adopted, Adoption, Opened, Unclaimed, adopt, look, open_shard, state

from .describe import Vanished, describe_object
from .records import chunks, record_command
from .space import Space


class WrongArchive(ConfigError):
    """The archive is not the one that the namespace is in (`identity.py`)."""


CLAIMS_MAX = 24
CLAIM_PATIENCE_S = 2.0
STAND_BACK_FIRST_S = 0.005
STAND_BACK_MAX_S = 0.25
REREADS_MAX = 8
RELISTS_MAX = 4
LIFE_CHARS = 16
MARKERS_A_PAGE = 1000

Known = Mapping[Shard, Opened | None]
"""What a process knew of some shards before it read."""


def check_shape(space: Space) -> Plan[None]:
    """Raises `Invalid` where the namespace was made with one shard and now has several, or the other way round: their keys
    have other tags, so that the scripts do not meet. (Also the first word to a server: is anybody there?)"""
    for count in (1, 2):
        other = Keyspace(space.namespace, count).shards[0]
        shards = yield from Command(other, ("HGET", other.epoch, "shards"), lambda reply: reply)
        if shards is not None and int(shards) != space.config.shards:
            raise Invalid(
                f"namespace {space.namespace!r} was made with shards {int(shards)}; this client says "
                f"{space.config.shards}. It is fixed when a namespace is created: correct the configuration, or use "
                "another namespace"
            )


def open_space(space: Space) -> Plan[list[Opened]]:
    """Open every shard: one look at all of them, then those that need an epoch beside each other. Raises `Invalid` where the
    namespace has another shape than configured."""
    shards = space.keys.shards
    if len(shards) == 1:
        return [(yield from recover(space, shards[0]))]
    states = space.states
    calls = [open_shard(shard, space.limits_of(shard)) for shard in shards]
    for call in calls:
        call.hint = HINT_S
    replies = yield from Pipeline(calls)
    looks = [None if isinstance(r, RedisUnavailable) else collect(r) for r in replies]
    states.update({shard: look for shard, look in zip(shards, looks, strict=True) if isinstance(look, Opened)})
    closed = [shard for shard, look in zip(shards, looks, strict=True) if not isinstance(look, Opened)]
    found = dict(zip(closed, (yield from Parallel([recover(space, shard) for shard in closed])), strict=True))
    return [look if isinstance(look, Opened) else collect(found[s]) for s, look in zip(shards, looks, strict=True)]


def find_space(space: Space) -> Plan[bool]:
    """Whether every shard of the namespace is open, which is all that a reader needs to know; nothing is written. False where
    one has to be opened: its server began a new life, or lost it. Raises `NotFound` where neither Redis nor the archive has
    such a namespace."""
    shards, states = space.keys.shards, space.states
    looks = [collect(reply) for reply in (yield from Pipeline([look(shard) for shard in shards]))]
    states.update({shard: found for shard, found in zip(shards, looks, strict=True) if found})
    if all(looks):
        return True
    marks = [Command(shard, ("EXISTS", shard.epoch), int) for shard in shards]
    if any(collect(reply) for reply in (yield from Pipeline(marks))):
        return False
    unknown = ""
    try:
        if (yield from ArchiveList(f"{space.namespace}/", limit=1)):
            return False
    except ArchiveUnavailable as e:
        unknown = f" in Redis, and the archive does not say ({e})"
    raise NotFound(f"there is no namespace {space.namespace!r}{unknown or ': the first put makes it'}")


def recover(space: Space, shard: Shard) -> Plan[Opened]:
    """The shard's epoch; a new one where it has none for this life of the server. Of all calls of a process that find none, one
    claims: each claim takes several requests to the archive, and claims that meet are worth nothing."""
    epoch, replid, empty, opening = 0, "", False, (yield from NewToken())
    turn, attempt = _Turn(space, shard), 0
    try:
        while attempt < CLAIMS_MAX:
            states = space.states
            call = open_shard(shard, space.limits_of(shard), epoch=epoch, replid=replid, empty=empty, opening=opening)
            reply = yield from _opened(shard, call, first=not attempt)
            if isinstance(reply, Opened):
                if epoch:
                    yield from Count("epochs.installed")
                states[shard] = reply
                return reply
            if not (yield from turn.come()):
                epoch = 0
                continue
            if attempt:
                yield from stand_back(attempt)
            attempt += 1
            if not reply.opening:  # Redis was emptied since the look: what was claimed before that is worth nothing
                epoch, empty, opening = 0, False, (yield from NewToken())
                continue
            replid, opening = reply.replid, reply.opening
            claim = yield from _claim(space, shard, replid, reply.epoch)
            epoch, empty = claim or (0, False)
    finally:
        turn.end()
    raise Recovering(f"shard {shard.index} of namespace {shard.namespace!r} changes hands too often; try again")


def _opened(shard: Shard, call: RunScript[Opened | Unclaimed], *, first: bool) -> Plan[Opened | Unclaimed]:
    """What `open_shard` answers. Where the server refuses writes, or keeps them waiting, reading goes on: who finds the shard
    open needs to write nothing."""
    try:
        return (yield from replace(call, hint=HINT_S if first else 0.0))
    except RedisUnavailable as e:
        found = yield from look(shard)
        if found is None and (not first or refuses_writes(e)):
            raise
    return found or (yield from call)


class _Turn:
    """The turn of one of several calls of a process to claim. One that takes longer than `CLAIM_PATIENCE_S` is passed: it may
    be of the same thread as the one that waits, which is a signal handler."""

    def __init__(self, space: Space, shard: Shard) -> None:
        self._claiming, self._shard = space.claiming, shard
        self._before: object = None
        self._waited_s, self._waits = 0.0, 0

    def come(self) -> Plan[bool]:
        """Whether it has; if not, this call has waited for a moment, and is to look again."""
        holder = self._claiming.get(self._shard, self)
        if holder is not self:
            if holder is not self._before:
                self._before, self._waited_s = holder, 0.0
            if self._waited_s < CLAIM_PATIENCE_S:
                self._waits += 1
                self._waited_s += yield from stand_back(self._waits)
                return False
        self._claiming[self._shard] = self
        return True

    def end(self) -> None:
        if self._claiming.get(self._shard) is self:
            del self._claiming[self._shard]


def refuses_writes(error: DistierError) -> bool:
    """Whether the server answers, and takes no writes: its disk is full, or it has fewer replicas than it wants."""
    return str(error.__cause__).startswith(("MISCONF", "NOREPLICAS"))


def stand_back(attempt: int, max_s: float = STAND_BACK_MAX_S) -> Plan[float]:
    """All clients of a server that came back claim at once. Those whose claims met wait for a moment of their own: then one
    of them is alone, and the others find its epoch installed. Returns how long it was, in seconds."""
    chance = int((yield from NewToken())[:4], 16) / 65536
    seconds: float = chance * min(STAND_BACK_FIRST_S * 2 ** min(attempt, 16), max_s)
    yield Sleep(seconds)
    return seconds


class Claim(NamedTuple):
    epoch: int
    empty: bool


def _claim(space: Space, shard: Shard, replid: str, last: int) -> Plan[Claim | None]:
    """An epoch that nobody else has, greater than all in the archive; and whether the archive holds no module. None where
    somebody else claimed the same number. `last` is the shard's epoch in an earlier life, 0 where it has none: an archive in
    which that was never claimed is another one."""
    life = f"-{replid[:LIFE_CHARS]}" if replid else ""
    # Above those of all shards: after a total loss the namespace may come back with another number of them.
    known = [n for n, _ in (yield from _epochs_below(f"{space.namespace}/epochs/", ""))]
    if last > max(known, default=0):
        raise _wrong(space, last)
    epoch, tok = max(known, default=0) + 1, (yield from NewToken())
    key = f"{epochs_prefix(space, shard)}{epoch:08d}-{tok[:8]}{life}"
    yield from ArchivePut(key, b"", "application/octet-stream", {})
    if (yield from list_epochs(space, shard, epoch - 1)).count(epoch) != 1:
        return None
    modules = yield from ArchiveList(names.modules_prefix(space.namespace), limit=1)
    return Claim(epoch, not modules)


def epochs_prefix(space: Space, shard: Shard) -> str:
    return f"{space.namespace}/epochs/{shard.index}/@"


def list_epochs(space: Space, shard: Shard, above: int, *, but_of: str = "") -> Plan[list[int]]:
    """The numbers of the epochs above `above` that have been claimed, each as often as it was; without those that were
    claimed for the life `but_of` of a server.

    When many clients meet a new life at once, several claim an epoch for it, and one is installed. The others stay in the
    archive and mean nothing: in its own life a server refuses a write of another epoch by itself. Taken for newer lives,
    they would fence all durable writes until the next restart.

    With `but_of`, `above` is the epoch that this life is in: raises `WrongArchive` where it was never claimed here.
    """
    prefix = epochs_prefix(space, shard)
    if not but_of:
        return [n for n, _ in (yield from _epochs_below(prefix, f"{prefix}{above:08d}~" if above else ""))]
    found = yield from _epochs_below(prefix, f"{prefix}{above - 1:08d}~" if above > 1 else "")
    if not found:
        raise _wrong(space, above)
    return [n for n, life in found if n > above and life != but_of[:LIFE_CHARS]]


def _wrong(space: Space, epoch: int) -> WrongArchive:
    return WrongArchive(
        f"this is not the archive of namespace {space.namespace!r}: epoch {epoch} was never claimed in it; is its disk not "
        "mounted, or its url another one? `distier doctor` looks"
    )


def _epochs_below(prefix: str, after: str) -> Plan[list[tuple[int, str]]]:
    """Numbers and lives of claimed epochs."""
    found = list[tuple[int, str]]()
    while True:
        page = yield from ArchiveList(prefix, start_after=after, limit=MARKERS_A_PAGE)
        for entry in page:
            match = re.fullmatch(r"@(\d{8})-[0-9a-f]{8}(?:-([0-9a-f]+))?", entry.key.rpartition("/")[2])
            if match:
                found.append((int(match[1]), match[2] or ""))
        if len(page) < MARKERS_A_PAGE:
            return found
        after = page[-1].key


def shard_state(space: Space, shard: Shard) -> Plan[Opened]:
    """The shard's epoch as this process knows it; asked for where it has no connection that it was asked over."""
    return space.states.get(shard) or (yield from ask_state(space, shard))


def ask_state(space: Space, shard: Shard) -> Plan[Opened]:
    """The shard's epoch, asked for and noted: in the mapping from before the question, since the reply may come from a life of
    the server that has been given up meanwhile."""
    states = space.states
    found = states[shard] = yield from state(shard)
    return found


def read_record(space: Space, shard: Shard, id: str) -> Plan[tuple[Record | None, Opened | None]]:
    """A record, and what proves it: what this process knew of the shard before it read, if that still held afterwards.

    What proves a read must be known before the read. Between a record and a later look at the shard, a rescue may adopt the
    module and mark the shard verified; that mark says nothing about a record, or its absence, from before."""
    states = space.states
    known = states.get(shard)
    record = yield from record_command(shard, id)
    return record, known if states is space.states else None


def newest_record(space: Space, shard: Shard, id: str) -> Plan[Record | None]:
    """The record of a module that exists, known to be the newest version; None for a proven miss."""
    record, known = yield from read_record(space, shard, id)
    return (yield from settle_record(space, shard, id, record, known))


def newest_version(space: Space, shard: Shard, id: str) -> Plan[Record | None]:
    """The same, with the tombstone of one that was deleted, while there is one."""
    record, known = yield from read_record(space, shard, id)
    return (yield from settle_record(space, shard, id, record, known, tombstones=True))


def settle_record(
    space: Space, shard: Shard, id: str, record: Record | None, known: Opened | None, *, tombstones: bool = False
) -> Plan[Record | None]:
    """`record` if it is known to be the newest version, else what there is after a look into the archive. `known` is what
    `read_record` returned with it. None for a proven miss, and for a deleted module unless `tombstones` are wanted.

    A hit is as good as its connection: a new one makes the process ask for the shard's epoch again. A miss is
    confirmed by a script, because FLUSHALL leaves connections alone.
    """
    for _ in range(REREADS_MAX):
        now = known
        if record is None or known is None:
            now = yield from ask_state(space, shard)
        assert now is not None
        if _is_proven(record, known, now):
            return None if record is None or (record.deleted and not tombstones) else record
        if now.verified < now.epoch:
            yield from verify(space, shard, id)
        record, known = yield from read_record(space, shard, id)
    raise Recovering(f"the shard of module {id!r} changes hands too often; try again")


def _is_proven(record: Record | None, known: Opened | None, now: Opened) -> bool:
    """Whether `record`, or that there is none, is the newest version. `known` is the shard's state from before it was read,
    `now` one from after it (the same one where nobody had to ask). A record proves itself by the epoch that it was last `seen`
    in."""
    if known is not None and known.epoch == now.epoch and min(known.verified, now.verified) >= now.epoch:
        return True
    return record is not None and record.seen >= now.epoch


def newest_records(space: Space, ids: Sequence[str]) -> Plan[list[Record | None]]:
    """`newest_record` of many ids: a round trip per 500, one more where any is missing, and a look into the archive for
    those that need it."""
    found: list[Record | None] = []
    for chunk in chunks(ids, 500):
        states, known = space.states, known_of(space, chunk)
        replies = yield from Pipeline([record_command(space.shard(id), id) for id in chunk])
        found += yield from settle_records(space, chunk, [collect(r) for r in replies], known, states)
    return found


def known_of(space: Space, ids: Sequence[str]) -> Known:
    """What this process knows of the shards of these ids: to be asked for before their records are read."""
    return {shard: space.states.get(shard) for shard in {space.shard(id) for id in ids}}


def settle_records(
    space: Space, ids: Sequence[str], records: Sequence[Record | None], known: Known, states: Mapping[Shard, Opened]
) -> Plan[list[Record | None]]:
    """`settle_record` of many records. `known` is what `known_of` returned before they were read, `states` the mapping that it
    was taken from."""
    if states is not space.states:
        known = dict.fromkeys(known)
    settled = list(records)
    now = yield from _look_again(space, [id for id, r in zip(ids, records, strict=True) if r is None])
    doubtful = []
    for i, (id, record) in enumerate(zip(ids, records, strict=True)):
        shard = space.shard(id)
        before = known[shard]
        after = before if record is not None else now[shard]
        if after is None or not _is_proven(record, before, after):
            doubtful.append(i)
        elif record is not None and record.deleted:
            settled[i] = None
    plans = [settle_record(space, (s := space.shard(ids[i])), ids[i], records[i], known[s]) for i in doubtful]
    for i, result in zip(doubtful, (yield from Parallel(plans)), strict=True):
        settled[i] = collect(result)
    return settled


def _look_again(space: Space, ids: Sequence[str]) -> Plan[dict[Shard, Opened]]:
    """The states of the shards of these ids, after nothing was found there."""
    shards, states = list({space.shard(id) for id in ids}), space.states
    replies = yield from Pipeline([state(shard) for shard in shards])
    found = {shard: collect(reply) for shard, reply in zip(shards, replies, strict=True)}
    states.update(found)
    return found


def verify(space: Space, shard: Shard, id: str) -> Plan[None]:
    """Compare one module with the archive: a greater version there takes the place of the record."""
    states = space.states
    known = yield from shard_state(space, shard)
    yield from Count("recover.verified")
    found = yield from newest_listed(space, id)
    reply = yield from adopt(shard, known.epoch, [found])
    if isinstance(reply, Adopted):
        states[shard] = Opened(known.epoch, reply.verified)
    else:
        states.pop(shard, None)


def newest_listed(space: Space, id: str) -> Plan[Adoption]:
    """What the archive says of the newest version of a module. Raises `Corrupt` where it lists what it does not have, time
    and again: once may be a sweep between the listing and the look."""
    for _ in range(RELISTS_MAX):
        try:
            return (yield from _list_newest(space, id))
        except Vanished:
            yield from Count("recover.relisted")
    return (yield from _list_newest(space, id))


def _list_newest(space: Space, id: str) -> Plan[Adoption]:
    prefix, after = names.version_prefix(space.namespace, id), ""
    objects: list[names.VersionObject] = []
    sizes: dict[str, int] = {}
    while True:
        page = yield from ArchiveList(prefix, start_after=after)
        if not page:
            break
        objects += [found for found in (names.parse_key(entry.key) for entry in page) if found and found.is_in(prefix)]
        sizes |= {entry.key: entry.size_bytes for entry in page}
        after = page[-1].key
    return (yield from newest_of(space, id, objects, sizes))


def newest_of(space: Space, id: str, objects: Sequence[names.VersionObject], sizes: dict[str, int]) -> Plan[Adoption]:
    """What the greatest version among a module's objects says of it; those that name another module are passed over."""
    for newest in sorted([o for o in objects if o.kind != "meta"], key=lambda o: o.rank, reverse=True):
        sidecar = next((o.key for o in objects if o.kind == "meta" and o.order == newest.order), None)
        found = yield from describe_object(space, id, newest, sidecar, sizes[newest.key])
        if found.kind != "none":
            return found
    return Adoption(id)
