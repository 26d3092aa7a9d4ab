"""The judge of a run: which versions a module's readers and writers may see.

It knows every write of a run, with each position that the write took, from the moment when it took it. It also knows the
acknowledged versions:

    floor    on one server: the greatest version that it acknowledged. A replica has the floor of the time of its copy.
    durable  everywhere: acknowledged after it was in the archive (`durability="archived"`), or acknowledged, and in the
             archive when a primary began its incarnation

A read may return any version that is not older than both were when the read first touched its server, with exactly the
bytes of that write. It may return `None` if such a version is a delete, or if nothing was acknowledged yet. A read that
begins after a refusal (`Conflict`, `Full`) must never see the refused write. A write that failed otherwise, or whose process
died, may be seen or not, for ever. A write that was seen must not be refused later.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from distier.domain import archived as names
from distier.domain.manifest import read_rows
from distier.domain.order import parse_version
from distier.stores.memory import MemoryArchive
from tests.history import NEVER, NONE, Call, Version, explained, may_return

Position = Version
_parse_key = lru_cache(1 << 16)(names.parse_key)


class Violation(AssertionError):
    """An invariant does not hold, or a read returned a forbidden result."""


@dataclass(slots=True, eq=False)
class Op:
    """One call of one process: its request, the positions that it took, and its outcome."""

    kind: str
    id: str
    durable: bool = False
    content: bytes | None = None  # of a put
    positions: list[Position] = field(default_factory=list)
    fate: str = "running"  # acked, refused, unknown, done
    applied_on: Server | None = None
    needs: dict[int, Position] = field(default_factory=dict)  # of a read: by server, at the first touch
    refused_before: frozenset[int] = frozenset()
    error: str = ""
    began_at: float = NEVER  # at its first effect
    ended_at: float = NEVER
    found: Position | None = None  # of a read: the version that it returned
    expected: Position | None = None  # of a compare-and-set: the version that it expected
    compares: bool = False
    expires: bool = False  # of a put: its version expires at once

    @property
    def writes(self) -> bool:
        return self.kind.startswith(("put", "delete", "cas"))


@dataclass(slots=True, eq=False)
class Server:
    """The data of one server: a logical database, its incarnation, and the versions that it acknowledged.

    `opened` means that it has an epoch for this incarnation.
    """

    database: int
    incarnation: str
    number: int
    floor: dict[str, Position] = field(default_factory=dict)
    records: dict[str, Seen] = field(default_factory=dict)
    opened: bool = False

    def copied(self) -> Server:
        return replace(self, floor=dict(self.floor), records=dict(self.records))


@lru_cache(4096)
def _listed_in(data: bytes) -> frozenset[tuple[str, Position]]:
    rows = read_rows(data)
    return frozenset((row.id, parse_version(row.known["version"])) for row in rows)


@dataclass(slots=True)
class Seen:
    """A record as the last audit saw it. `trusted` means that readers use it without a comparison with the archive."""

    tier: str
    position: Position
    clean: bool
    copy: bool
    trusted: bool


class Judge:
    """All writes of one run, and the checks of them."""

    def __init__(self, ids: tuple[str, ...], namespace: str, archive: MemoryArchive) -> None:
        self.ids = ids
        self.archive = archive
        self.durable: dict[str, Position] = dict.fromkeys(ids, NONE)
        self.versions: dict[tuple[str, Position], Op] = {}
        self.refused: set[int] = set()  # id() of the operations
        self.seen: set[int] = set()  # the same for operations whose versions were read
        self.ops: list[Op] = []
        self.tick = 0
        self.losses: list[tuple[int, str]] = []
        self._directories = {names.module_directory(namespace, i).rstrip("/"): i for i in ids}
        self.objects: dict[str, dict[Position, str]] = {i: {} for i in ids}
        self.packed: set[tuple[str, Position]] = set()
        """The versions that only packs have."""
        self.listed: set[tuple[str, Position]] = set()
        """The versions that the archive's manifest names."""

    def copied(self) -> Judge:
        """Return a copy, for operations that are over."""
        other = copy(self)
        other.become(self)
        return other

    def become(self, other: Judge) -> None:
        self.durable, self.versions, self.ops = dict(other.durable), dict(other.versions), list(other.ops)
        self.tick = other.tick
        self.objects = {i: dict(objects) for i, objects in other.objects.items()}
        self.listed, self.packed = set(other.listed), set(other.packed)

    # -- events ------------------------------------------------------------------------------------------------------

    def took(self, op: Op, position: Position) -> None:
        other = self.versions.setdefault((op.id, position), op)
        if other is not op:
            raise Violation(f"J4 order: {position} of {op.id} was given to two writes")
        if position not in op.positions:
            op.positions.append(position)

    def touched(self, op: Op, server: Server, primary: bool) -> None:
        """Note a reader's first contact with a server."""
        if server.number not in op.needs:
            floor = server.floor.get(op.id, NONE)
            op.needs[server.number] = max(floor, self.durable[op.id]) if primary else floor

    def began(self, op: Op) -> None:
        op.refused_before = frozenset(self.refused)
        self.ops.append(op)

    def acked(self, op: Op, position: Position) -> None:
        op.fate = "acked"
        if self.versions.get((op.id, position)) is not op:
            raise Violation(f"J4 order: {op.kind} of {op.id} was acknowledged as {position}, which it never took")
        server = op.applied_on
        if server:
            server.floor[op.id] = max(server.floor.get(op.id, NONE), position)
        if op.durable:
            self.durable[op.id] = max(self.durable[op.id], position)

    def found_nothing(self, op: Op, server: Server) -> None:
        """A durable delete said that there is nothing: that is as durable as the archived tombstone that it found."""
        record = server.records.get(op.id)
        if record is not None and record.tier == "deleted" and record.position in self.objects[op.id]:
            self.durable[op.id] = max(self.durable[op.id], record.position)

    def refuse(self, op: Op) -> None:
        op.fate = "refused"
        self.refused.add(id(op))
        if id(op) in self.seen:
            raise Violation(f"read: {op.kind} of {op.id} was refused ({op.error}), but has been read")

    def new_incarnation(self, server: Server, floor: dict[str, Position]) -> None:
        """Begin an incarnation with the data of `floor`. Acknowledged versions that are in the archive by now count too."""
        server.floor = dict(floor)
        for i in self.ids:
            for position in self.objects[i]:
                op = self.versions.get((i, position))
                if op and op.fate == "acked":
                    server.floor[i] = max(server.floor.get(i, NONE), position)

    # -- checks ------------------------------------------------------------------------------------------------------

    def archive_changed(self) -> None:
        """J1: every version that was acknowledged as durable has an object that is as great or greater."""
        for objects in self.objects.values():
            objects.clear()
        self.listed.clear()
        self.packed.clear()
        for key, object in list(self.archive._objects.items()):
            if key.endswith(".jsonl.gz") and "/manifest/" in key:
                self.listed |= _listed_in(object.data)
            elif key.endswith(".jsonl.gz") and key.partition(".")[0] + ".tar.xz" in self.archive._objects:
                self.packed |= {(i, position) for i, position in _listed_in(object.data) if i in self.objects}
            found = _parse_key(key)
            if found and found.kind != "meta" and found.directory in self._directories:
                self.objects[self._directories[found.directory]][(found.order.epoch, found.order.ver)] = found.kind
        self.packed -= {(i, position) for i, objects in self.objects.items() for position in objects}
        for i, position in self.packed:
            self.objects[i][position] = "content"
        for i in self.ids:
            self.check_durable(i)

    def check_durable(self, i: str) -> None:
        need = self.durable[i]
        if need > NONE and max(self.objects[i], default=NONE) < need:
            raise Violation(f"J1 durable: {need} of {i} was acknowledged; the archive has {sorted(self.objects[i])}")

    def audited(self, server: Server, primary: bool, reply: list[Any]) -> None:
        """Check J2, J3 and J5 with the reply of the audit script."""
        if reply[0]:
            raise Violation(f"J5 accounts: {reply[0].decode()}")
        epoch, verified = int(reply[1]), int(reply[2])
        server.opened = epoch > 0
        for n, i in enumerate(self.ids):
            tier, e, v, clean, seen, copy = reply[3 + 6 * n : 9 + 6 * n]
            trusted = epoch > 0 and max(int(seen) if tier != b"none" else 0, verified) >= epoch
            record = Seen(tier.decode(), (int(e), int(v)), clean == b"1", copy == b"1", trusted)
            server.records[i] = record
            if record.tier not in ("none", "deleted") and (i, record.position) not in self.versions:
                raise Violation(f"J4 order: the record of {i} is {record.position}, which no call wrote")
            self.check_record(server, primary, i, record)

    def check_record(self, server: Server, primary: bool, i: str, record: Seen) -> None:
        objects = self.objects[i]
        rests = record.clean and not record.copy and record.tier not in ("none", "deleted")
        if rests and max(objects, default=NONE) < record.position:
            raise Violation(
                f"J3 readable: {record.position} of {i} is {record.tier} and has no copy; {sorted(objects)}"
            )
        self._check_listed(i, record)
        need = max(server.floor.get(i, NONE), self.durable[i] if primary else NONE)
        if record.trusted and record.tier == "none" and need > NONE and not self._deleted_since(i, need):
            raise Violation(f"J2 fresh: {i} has no record, but {need} was acknowledged")
        if record.trusted and record.tier != "none" and record.position < need:
            raise Violation(f"J2 fresh: the record of {i} is {record.position}, but {need} was acknowledged")

    def _check_listed(self, i: str, record: Seen) -> None:
        """J6: a clean version is in the manifest, unless a reader adopted the object of a dead writer."""
        op = self.versions.get((i, record.position))
        if (
            op is None
            or not record.clean
            or record.tier == "none"
            or self.losses
            or (op.durable and op.fate != "acked")
        ):
            return
        if (i, record.position) not in self.listed:
            raise Violation(f"J6 listed: {record.position} of {i} is clean and not in the manifest")

    def check_copies(self, server: Server, primary: bool) -> None:
        for i, record in server.records.items():
            self.check_record(server, primary, i, record)

    def _deleted_since(self, i: str, need: Position, refused_before: frozenset[int] = frozenset()) -> bool:
        return any(
            j == i and position >= need and (op.content is None or op.expires) and id(op) not in refused_before
            for (j, position), op in self.versions.items()
        )

    def read(self, op: Op, found: Any) -> None:
        """Judge a read that has ended: `found` is its result, a module or None."""
        need = min(op.needs.values(), default=NONE)
        position = found and (found.version.epoch, found.version.ver)
        if not may_return(position, need, lambda: self._deleted_since(op.id, need, op.refused_before)):
            is_there = f"{position} of {op.id} was read" if found else f"{op.id} is missing"
            raise Violation(f"read: {is_there}, but {need} was acknowledged before the read")
        if position is None:
            return
        written = self.versions.get((op.id, position))
        if written is None or written.content is None:
            raise Violation(f"read: {position} of {op.id} was read, which no call wrote")
        self.seen.add(id(written))
        if written.expires:
            raise Violation(f"read: {position} of {op.id} was read, but had expired")
        if found.content != written.content:
            raise Violation(f"read: {position} of {op.id} has the bytes {found.content!r}, not {written.content!r}")
        if id(written) in op.refused_before & self.refused:
            raise Violation(f"read: {position} of {op.id} was read, but that write was refused ({written.error})")

    # -- linearizability ---------------------------------------------------------------------------------------------

    def next_tick(self) -> int:
        self.tick += 1
        return self.tick

    def lost(self, how: str) -> None:
        """Note that a server begins an incarnation, or continues, without a version that it acknowledged."""
        self.losses.append((self.tick, how))

    def check_linear(self) -> None:
        """Check that an order of the calls explains all results, up to the first loss that the calls need not survive.

        Such a loss is a loss of data if not all writes were durable, and an old primary that keeps running next to the new one.
        """
        durable = all(op.durable for op in self.ops if op.writes)
        cuts = ("failover",) if durable else ("failover", "promote", "loss", "flush")
        cut = next((at + 0.5 for at, how in self.losses if how in cuts), NEVER)
        for i in self.ids:
            calls = [call for op in self.ops if op.id == i and op.began_at < cut for call in self._call(op, cut)]
            if not explained(calls):
                raise Violation(f"linear: no order of these calls of {i} explains their results: {calls}")

    def _call(self, op: Op, cut: float) -> Iterator[Call]:
        ended = op.ended_at if op.ended_at < cut else NEVER
        known = op.fate in ("acked", "done", "refused") and ended < NEVER

        def call(kind: str, value: Any = None, expected: Position | None = None) -> Call:
            return Call(kind, op.began_at, ended, value, expected and self._write_of(op.id, expected), known)

        wrote = None if op.kind.startswith("delete") or op.expires else id(op)
        if not op.writes:
            missing = op.error.startswith("NotFound") and not op.kind.startswith("delete")
            if known and (op.kind == "get" or missing):
                yield call("read", op.found and self._write_of(op.id, op.found))
        elif op.fate == "refused" and known:
            if op.compares and op.error.startswith("Conflict"):
                yield call("conflict", None, op.expected)
        elif op.kind == "delete-expired":
            if op.fate != "done":  # it deletes what is hidden already, so it must have found nothing else there
                yield call("nothing")
        elif op.kind.startswith(("cas", "delete-if")):
            if op.fate == "done":  # a conditional delete that found nothing to compare with
                yield call("read")
            elif op.compares:
                yield call("cas", wrote, op.expected)
        elif op.kind.startswith("delete"):
            yield call("nothing" if op.fate == "done" else "delete")
        else:
            yield call("put", wrote)

    def _write_of(self, i: str, position: Position) -> int:
        return id(self.versions[(i, position)])

    def visible_top(self, i: str) -> Position:
        return max(self.objects[i], default=NONE)
