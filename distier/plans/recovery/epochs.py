"""Epochs: what a shard does after its Redis restarted, failed over, or lost its memory.

Every mutating script compares the server's replication id with the one that the shard's epoch was installed for. A restart,
a promotion and a total loss change it. The script then replies `RECOVERING`, and the client

    claims      a new epoch. It writes `<ns>/epochs/<shard>/@<number>-<write id>-<incarnation>` into the archive, above the
                greatest there, and lists again. If another claim has the same number, neither is used: the client that
                lists last sees both, so at most one continues, and no conditional PUT is needed;
    installs    it, in the incarnation of the server for which it was claimed, never an epoch that it only found. If Redis was
                emptied since the look, a greater epoch may have been installed and forgotten: then the client starts again.

From then on everything written comes after everything written before. A write of the old epoch that is still on its way to
the archive finds the new one there and is not acknowledged (`put.put_archived`).

Redis may have kept an older state than the archive, because it lost its last second. So a record that was last `seen` in an
older epoch is compared with the archive before it is served, by one LIST of its versions. `rescue` does that for all records
in one listing and marks the shard `verified`. A total loss takes the same path, with no records at all.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from distier.domain.keys import Keyspace, Shard
from distier.domain.schema import LAYOUT
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
from distier.lua import Opened, Unclaimed, look, open_shard, state
from distier.plans.common.backoff import Patience, back_off
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.migrate import migrate
from distier.plans.recovery.packs import has_modules


class WrongArchive(ConfigError):
    """The archive is not the one of the namespace (`identity.py`)."""


CLAIMS_MAX = 24
CLAIM_PATIENCE_S = 2.0
INCARNATION_CHARS = 16
MARKERS_A_PAGE = 1000


def check_shape(space: Namespace) -> Plan[None]:
    """Raise `Invalid` where the namespace was made with one shard and now has several, or the other way round.

    Their keys have other tags, so the scripts would not see each other's data. It is also the first command to a server. A
    namespace of an embedded server is migrated to the present layout: all its processes are on one machine, and most likely
    use one installation. For a shared namespace, the operator decides when older clients end (`distier migrate`).
    """
    for count in (1, 2):
        other = Keyspace(space.namespace, count).shards[0]
        look = ("HMGET", other.epoch, "shards", "layout", "migrating")
        shards, layout, migrating = yield from Command(other, look, lambda reply: reply)
        if shards is not None and int(shards) != space.config.shards:
            raise Invalid(
                f"namespace {space.namespace!r} was made with shards={int(shards)}; this client is configured for "
                f"shards={space.config.shards}. The number is fixed when a namespace is created: correct the configuration, "
                "or use another namespace"
            )
        if space.config.embedded and shards is not None and (int(layout or 0) < LAYOUT or migrating):
            for shard in space.keys.shards:
                yield from migrate(shard)


def open_space(space: Namespace) -> Plan[list[Opened]]:
    """Open every shard: one look at all of them, then those that need an epoch, in parallel. Raises `Invalid` where the
    namespace was made with another number of shards."""
    shards = space.keys.shards
    if len(shards) == 1:
        return [(yield from recover(space, shards[0]))]
    states = space.process.epochs
    calls = [open_shard(shard, space.limits_of(shard), eviction=space.eviction) for shard in shards]
    for call in calls:
        call.hint = HINT_S
    replies = yield from Pipeline(calls)
    looks = [None if isinstance(r, RedisUnavailable) else collect(r) for r in replies]
    opened = {shard: look for shard, look in zip(shards, looks, strict=True) if isinstance(look, Opened)}
    states.update(opened)
    space.process.dictionary.update({shard: found.dictionary for shard, found in opened.items()})
    closed = [shard for shard, look in zip(shards, looks, strict=True) if not isinstance(look, Opened)]
    found = dict(zip(closed, (yield from Parallel([recover(space, shard) for shard in closed])), strict=True))
    return [look if isinstance(look, Opened) else collect(found[s]) for s, look in zip(shards, looks, strict=True)]


def find_space(space: Namespace) -> Plan[bool]:
    """Return whether every shard of the namespace is open, which is all that a reader needs. Nothing is written.

    False where a shard has to be opened, because its server began a new incarnation or lost it. Raises `NotFound` where
    neither Redis nor the archive has such a namespace.
    """
    shards, states = space.keys.shards, space.process.epochs
    looks = [collect(reply) for reply in (yield from Pipeline([look(shard) for shard in shards]))]
    known = {shard: found for shard, found in zip(shards, looks, strict=True) if found}
    states.update(known)
    space.process.dictionary.update({shard: found.dictionary for shard, found in known.items()})
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


def recover(space: Namespace, shard: Shard) -> Plan[Opened]:
    """Return the shard's epoch, a new one where it has none for this incarnation of the server.

    Of all calls of a process that find none, one claims: each claim takes several requests to the archive, and two claims
    that meet are both worth nothing.
    """
    epoch, replid, empty, opening = 0, "", False, (yield from NewToken())
    turn, attempt = _Turn(space, shard), 0
    try:
        while attempt < CLAIMS_MAX:
            states = space.process.epochs
            call = open_shard(
                shard, space.limits_of(shard), eviction=space.eviction, epoch=epoch, replid=replid, empty=empty,
                opening=opening,
            )  # fmt: skip
            reply = yield from _opened(shard, call, first=not attempt)
            if isinstance(reply, Opened):
                if epoch:
                    yield from Count("epochs.installed")
                states[shard] = reply
                space.process.dictionary[shard] = reply.dictionary
                return reply
            if not (yield from turn.come()):
                epoch = 0
                continue
            if attempt:
                yield from back_off(attempt)
            attempt += 1
            if not reply.opening:  # Redis was emptied since the look, so earlier claims are worth nothing
                epoch, empty, opening = 0, False, (yield from NewToken())
                continue
            replid, opening = reply.replid, reply.opening
            claim = yield from _claim(space, shard, replid, reply.epoch)
            epoch, empty = claim or (0, False)
    finally:
        turn.end()
    raise Recovering(f"shard {shard.index} of namespace {shard.namespace!r} keeps changing its primary; retry")


def _opened(shard: Shard, call: RunScript[Opened | Unclaimed], *, first: bool) -> Plan[Opened | Unclaimed]:
    """Return the reply of `open_shard`. Where the server refuses or delays writes, reads continue: a call that finds the
    shard open has nothing to write."""
    try:
        return (yield from replace(call, hint=HINT_S if first else 0.0))
    except RedisUnavailable as e:
        found = yield from look(shard)
        if found is None and (not first or refuses_writes(e)):
            raise
    return found or (yield from call)


class _Turn:
    """The turn of one of several calls of a process to claim an epoch.

    A call that takes longer than `CLAIM_PATIENCE_S` is passed: it may belong to the same thread as the waiting one, which is
    then a signal handler.
    """

    def __init__(self, space: Namespace, shard: Shard) -> None:
        self._claiming, self._shard = space.process.claiming, shard
        self._patience = Patience(CLAIM_PATIENCE_S)

    def come(self) -> Plan[bool]:
        """Return whether it is this call's turn. If not, the call has waited for a moment, and has to look again."""
        holder = self._claiming.get(self._shard, self)
        if holder is not self and not self._patience.is_over(holder):
            yield from self._patience.wait()
            return False
        self._claiming[self._shard] = self
        return True

    def end(self) -> None:
        if self._claiming.get(self._shard) is self:
            del self._claiming[self._shard]


def refuses_writes(error: DistierError) -> bool:
    """Return whether the server replies but takes no writes: its disk is full, or it has fewer replicas than it wants."""
    return str(error.__cause__).startswith(("MISCONF", "NOREPLICAS"))


class Claim(NamedTuple):
    """An epoch that was claimed, and whether the archive holds no module."""

    epoch: int
    empty: bool


def _claim(space: Namespace, shard: Shard, replid: str, last: int) -> Plan[Claim | None]:
    """Claim an epoch that nobody else has, greater than all in the archive. Returns None where another client claimed the
    same number.

    `last` is the shard's epoch in an earlier incarnation, 0 where it has none. An archive in which that was never claimed is
    another one.
    """
    incarnation = f"-{replid[:INCARNATION_CHARS]}" if replid else ""
    # Above those of all shards: after a total loss the namespace may return with another number of them.
    known = [n for n, _ in (yield from _epochs_below(f"{space.namespace}/epochs/", ""))]
    if last > max(known, default=0):
        raise _wrong(space, last)
    epoch, write_id = max(known, default=0) + 1, (yield from NewToken())
    key = f"{epochs_prefix(space, shard)}{epoch:08d}-{write_id[:8]}{incarnation}"
    yield from ArchivePut(key, b"", "application/octet-stream", {})
    if (yield from list_epochs(space, shard, epoch - 1)).count(epoch) != 1:
        return None
    return Claim(epoch, not (yield from has_modules(space)))


def epochs_prefix(space: Namespace, shard: Shard) -> str:
    """The prefix of a shard's claims in the archive."""
    return f"{space.namespace}/epochs/{shard.index}/@"


def list_epochs(space: Namespace, shard: Shard, above: int, *, but_of: str = "") -> Plan[list[int]]:
    """List the numbers of the epochs above `above` that were claimed, each as often as it was.

    Those that were claimed for the incarnation `but_of` of a server are left out. When many clients meet a new incarnation
    at once, several claim an epoch for it, and one is installed. The other claims stay in the archive and mean nothing: in
    its own incarnation a server refuses a write of another epoch by itself. Taken for newer incarnations, they would fence
    all durable writes until the next restart.

    With `but_of`, `above` is the epoch of this incarnation. Raises `WrongArchive` where it was never claimed here.
    """
    prefix = epochs_prefix(space, shard)
    if not but_of:
        return [n for n, _ in (yield from _epochs_below(prefix, f"{prefix}{above:08d}~" if above else ""))]
    found = yield from _epochs_below(prefix, f"{prefix}{above - 1:08d}~" if above > 1 else "")
    if not found:
        raise _wrong(space, above)
    return [n for n, incarnation in found if n > above and incarnation != but_of[:INCARNATION_CHARS]]


def _wrong(space: Namespace, epoch: int) -> WrongArchive:
    return WrongArchive(
        f"this is not the archive of namespace {space.namespace!r}: epoch {epoch} was never claimed in it; is its disk not "
        "mounted, or its url another one? `distier doctor` looks"
    )


def _epochs_below(prefix: str, after: str) -> Plan[list[tuple[int, str]]]:
    """List the numbers and incarnations of claimed epochs."""
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


def shard_state(space: Namespace, shard: Shard) -> Plan[Opened]:
    """Return the shard's epoch as this process knows it, or ask for it if this connection was not asked yet."""
    return space.process.epochs.get(shard) or (yield from ask_state(space, shard))


def ask_state(space: Namespace, shard: Shard) -> Plan[Opened]:
    """Ask for the shard's epoch and note it.

    It goes into the mapping from before the question, since the reply may come from an incarnation of the server that was
    given up meanwhile.
    """
    states = space.process.epochs
    found = states[shard] = yield from state(shard)
    space.process.dictionary[shard] = found.dictionary
    return found
