"""The checker of histories: what the calls on one module may return.

A history is a list of calls, each with the times between which it took effect and with its result. It is checked in two ways:

    explained   Linearizability: an order of the calls explains every result. For few calls without a loss between them.
    History     The promises of docs/PROTOCOL.md, each by itself, also over failovers that may lose writes. For thousands of
                calls.

`may_return` is the rule for one read, which a test can apply to each read at once if it knows all versions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Version = tuple[int, int]  # (epoch, version number)
NONE: Version = (0, 0)
NEVER = float("inf")
SEEN = "seen"
"""The level of a version that is known because it was read."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a history, from `began` to `ended` (NEVER: not known).

    kind      the result
    read      the call found `value` (None: nothing)
    put       the call wrote `value`
    cas       the call replaced `expected` by `value`
    conflict  the call found something other than `expected`
    delete    the call deleted the module
    nothing   the call found nothing to delete

    With `known` False the call did what `kind` says, or nothing at all; an unknown delete may have found nothing.

    `History` also uses these:

    version   the version that the call wrote or found; None if it found nothing or its outcome is unknown
    epoch     the epoch of the shard during the whole call; None if that is not known
    level     the durability of a write
    zombie    whether the process was connected to an old primary
    process   a name for messages
    """

    kind: str
    began: float
    ended: float
    value: Any = None
    expected: Any = None
    known: bool = True
    version: Version | None = None
    epoch: int | None = None
    level: str = SEEN
    zombie: bool = False
    process: str = ""


def may_return(found: Version | None, need: Version, is_deleted: Callable[[], bool]) -> bool:
    """Return whether a read that begins when `need` exists may return this version (None: it found nothing).

    `is_deleted` returns whether a delete may have taken effect after `need`.
    """
    return found >= need if found is not None else need == NONE or is_deleted()


# -- linearizability ---------------------------------------------------------------------------------------------------
#
# The algorithm is that of Wing and Gong (1993), with the memory of Lowe (2017). It takes any call that no other completed call
# precedes, applies it to a copy of the module, and continues; it backtracks if a result does not fit. A call of unknown outcome
# (its process died, or it raised `Unavailable`) may take effect at any moment after it began, also long after it ended, or
# never. The state is the write that the module has its content from, or None if the module does not exist.


def after(call: Call, state: Any) -> tuple[bool, Any]:
    """Return whether the call may have this result in this state, and the state after it."""
    match call.kind:
        case "read":
            return state == call.value, state
        case "put":
            return True, call.value
        case "cas":
            return state == call.expected, call.value
        case "conflict":
            return state != call.expected, state
        case "delete":
            return state is not None, None
        case "nothing":
            return state is None, state
    raise AssertionError(call.kind)


def explained(calls: Sequence[Call]) -> bool:
    """Return whether an order of these calls explains all of their results."""
    must = sum(1 << i for i, call in enumerate(calls) if call.known)
    seen: set[tuple[int, Any]] = set()
    todo: list[tuple[int, Any]] = [(0, None)]
    while todo:
        done, state = todo.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [(i, call) for i, call in enumerate(calls) if not done >> i & 1]
        first_end = min(call.ended for _, call in left if call.known)
        for i, call in left:
            if call.began <= first_end:
                fits, new = after(call, state)
                if fits:
                    todo.append((done | 1 << i, new))
    return False


# -- promises ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promises:
    """What a test's environment leaves of the promises.

    survives  the levels of the versions that no failover loses; with `SEEN`, no version is ever lost, also if it was only read
    ordered   the levels of the writes that come after every version acknowledged before they began
    """

    survives: frozenset[str]
    ordered: frozenset[str] = frozenset()


class InOrder:
    """Calls in the order in which they ended."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._left = deque(sorted(calls, key=lambda call: call.ended))

    def ended_before(self, time: float) -> Iterator[Call]:
        """Yield the next calls that ended before this time. The times must grow."""
        while self._left and self._left[0].ended < time:
            yield self._left.popleft()


@dataclass
class Floor:
    """The greatest of some versions, and when the last of their writes began: a delete before that explains no miss."""

    version: Version = NONE
    put_at: float = 0
    call: Call | None = None

    def rise(self, call: Call, put_at: float) -> None:
        assert call.version is not None
        if call.version > self.version:
            self.version, self.call = call.version, call
        self.put_at = max(self.put_at, put_at)


@dataclass
class History:
    """The calls on one module, by any number of processes. These rules must hold:

    survives   a read that began after a version of a surviving level was acknowledged returns this version or a later one, or
               nothing if a delete explains that; reads of zombies are exempt
    epochs     within one epoch the same holds for all writes and reads of every level: so an acknowledged write of another
               level may be missing only under a greater epoch than its own; versions of the new epoch that zombies find in the
               archive are exempt
    order      a write of an ordered level comes after every version that was acknowledged before it began
    deletes    a version from before a delete of a surviving level (in the same epoch: any delete) is not read after it
    contents   contents were put, before they were read, and one version has one content for ever
    """

    promises: Promises
    puts: list[Call] = field(default_factory=list)  # also those of unknown outcome
    reads: list[Call] = field(default_factory=list)
    deletes: list[Call] = field(default_factory=list)
    contents: dict[Version, Any] = field(default_factory=dict)
    lost: dict[Call, int | None] = field(default_factory=dict)
    """Acknowledged writes that a later read shows to be lost, and the epoch of that read. `faults` finds them."""
    _mixed: list[str] = field(default_factory=list)
    _put_at: dict[Version, float] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Add a call of the kind `put`, `read` or `delete`, in any order."""
        {"put": self.puts, "read": self.reads, "delete": self.deletes}[call.kind].append(call)
        if call.version is None:
            return
        content = self.contents.setdefault(call.version, call.value)
        if content != call.value:
            self._mixed.append(f"{call.version} is {content} and {call.value}")
        if call.kind == "put":
            self._put_at[call.version] = call.began

    def faults(self, id: str) -> Iterator[str]:
        """Yield each broken rule, in words."""
        for fault in (*self._mixed, *self._foreign(), *self._losses(), *self._order(), *self._resurrections()):
            yield f"{id!r}: {fault}"

    def _known(self) -> list[Call]:
        """Return the calls that show a version."""
        return [call for call in (*self.puts, *self.reads) if call.version]

    def _foreign(self) -> Iterator[str]:
        put_at: dict[Any, float] = {}
        for put in self.puts:
            put_at[put.value] = min(put.began, put_at.get(put.value, NEVER))
        for read in self.reads:
            if read.version and put_at.get(read.value, NEVER) > read.ended:
                yield f"torn or foreign: {read.value} was never put before {read}"

    def _losses(self) -> Iterator[str]:
        known = InOrder(self._known())
        survivors, epochs = Floor(), dict[int | None, Floor]()
        open_acks: list[Call] = []
        for read in sorted(self.reads, key=lambda r: r.began):
            for ack in known.ended_before(read.began):
                assert ack.version is not None
                put_at = self._put_at.get(ack.version, 0)
                if ack.level in self.promises.survives:
                    survivors.rise(ack, put_at)
                # Zombies may find versions of the new epoch in the archive, and overwrite them on their own server.
                if ack.epoch is None or ack.version[0] <= ack.epoch:
                    epochs.setdefault(ack.epoch, Floor()).rise(ack, put_at)
                if ack.kind == "put":
                    open_acks.append(ack)
            if not read.zombie and not self._may_follow(read, survivors.version, survivors.put_at):
                yield f"ACK LOST: {survivors.call}, then {read}"
            same = epochs.get(read.epoch) if read.epoch is not None else None
            if same and not self._may_follow(read, same.version, same.put_at):
                yield f"STALE within an epoch: {same.call}, then {read}"
            if not read.zombie:
                self.lost |= {
                    ack: read.epoch for ack in open_acks if ack not in self.lost and self._shows_loss(read, ack)
                }
                top = read.version or NONE
                open_acks = [a for a in open_acks if a not in self.lost and (a.version or NONE) > top]

    def _shows_loss(self, read: Call, ack: Call) -> bool:
        return ack.version is not None and not self._may_follow(read, ack.version, self._put_at[ack.version])

    def _may_follow(self, read: Call, need: Version, put_at: float) -> bool:
        """Return whether this read may follow the acknowledgement of a version whose write began at `put_at`."""

        def is_deleted() -> bool:
            if read.zombie and any(d.epoch is None or (read.epoch or 0) < d.epoch for d in self.deletes):
                return True  # a zombie may find a tombstone of the new epoch in the archive
            return any(d.began < read.ended and d.ended > put_at for d in self.deletes)

        return may_return(read.version, need, is_deleted)

    def _order(self) -> Iterator[str]:
        known, floor = InOrder(c for c in self._known() if c.kind == "put"), Floor()
        for put in sorted(self.puts, key=lambda p: p.began):
            if put.version is None or put.level not in self.promises.ordered:
                continue
            for ack in known.ended_before(put.began):
                floor.rise(ack, ack.began)
            if put.version <= floor.version:
                yield f"ORDER: {put} began after {floor.call} was acknowledged"

    def _resurrections(self) -> Iterator[str]:
        there: dict[Version, float] = {}  # the time by which each version is known to have existed
        for call in self._known():
            assert call.version is not None
            there[call.version] = min(call.ended, there.get(call.version, NEVER))
        deletes = InOrder(self.deletes)
        surviving: float = 0  # when the latest delete that survives began, and the latest one of each epoch
        latest: dict[int | None, float] = {}
        for read in sorted(self.reads, key=lambda r: r.began):
            for delete in deletes.ended_before(read.began):
                latest[delete.epoch] = max(latest.get(delete.epoch, 0), delete.began)
                if delete.level in self.promises.survives:
                    surviving = max(surviving, delete.began)
            if read.version is None:
                continue
            since = there[read.version]
            if not read.zombie and since < surviving:
                yield f"RESURRECTED after a delete: {read}"
            if read.epoch is not None and since < latest.get(read.epoch, 0):
                yield f"RESURRECTED within an epoch: {read}"
