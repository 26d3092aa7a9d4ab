"""What a driver gathers in its process: counters, uses, and the nodes that answer."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from distier.domain.keys import Shard
from distier.drive.hints import Off
from distier.effects import Effect, LocalDelete, LocalHas, Peers, PeerSilent, RunScript
from distier.lua import touch

if TYPE_CHECKING:
    from distier.stores.local import LocalStore  # LMDB is loaded only when it is used


OFFLOAD_BYTES = 128 * 1024
"""A computation over less data takes less time than handing it to a thread."""
# A fork may happen while another thread holds one of these locks. In the child nobody would ever release it.
_LOCKED: weakref.WeakSet[Counters | UseBuffer] = weakref.WeakSet()


def _unlock() -> None:
    for locked in list(_LOCKED):
        locked.after_fork_in_child()


os.register_at_fork(after_in_child=_unlock)
TURN_S = 0.2
"""How long to wait for one of these locks. Nobody holds one for that long, unless it was interrupted while it held the lock."""


class Counters:
    """This process's own counters, by name.

    They are thread-safe, and a signal handler or finaliser may use them in the middle of any line of this class. `add` first
    appends a note in one operation, and the holder of the lock sums the notes up. A holder that is interrupted sums up the
    notes that came meanwhile.
    """

    NOTES_MAX = 512
    trace: Callable[[str], AbstractContextManager[object]] | None = None
    """Returns what surrounds a call of the store, by the name of its plan; None if no hook wants that."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._notes: deque[tuple[str, int]] = deque()
        self._lock: Any = threading.RLock()
        _LOCKED.add(self)

    def add(self, name: str, n: int = 1) -> None:
        self._notes.append((name, n))
        if len(self._notes) >= self.NOTES_MAX:
            self._sum_up()

    def snapshot(self) -> dict[str, int]:
        self._sum_up()
        return {name: n for name, n in self._counts.copy().items() if n}

    def _sum_up(self) -> None:
        # The same object to the end: a signal handler may fork meanwhile, and the child has a new lock.
        lock = self._lock
        if lock._is_owned():
            return
        try:
            if lock.acquire(timeout=TURN_S):
                while self._notes:
                    name, n = self._notes.popleft()
                    self._counts[name] = self._counts.get(name, 0) + n
        finally:
            if lock._is_owned():  # also after an exception that came just after `acquire`
                lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()


class PeerTable:
    """Other nodes with copies on their disks: those that the last heartbeat found, without those that did not answer lately.

    Its values are replaced as a whole, so threads need no lock.
    """

    SILENT_S = 10.0

    def __init__(self) -> None:
        self._nodes: tuple[str, ...] = ()
        self._silent_until_s: dict[str, float] = {}

    def found(self, nodes: Sequence[str]) -> None:
        self._nodes = tuple(nodes)
        self._silent_until_s = {n: s for n, s in self._silent_until_s.items() if n in nodes}

    def ready(self, now_s: float) -> tuple[str, ...]:
        if not self._silent_until_s:
            return self._nodes
        return tuple(n for n in self._nodes if self._silent_until_s.get(n, 0.0) <= now_s)

    def silent(self, node: str, now_s: float) -> None:
        self._silent_until_s = self._silent_until_s | {node: now_s + self.SILENT_S}


class UseBuffer:
    """Uses that were noted in this process and not sent yet. Thread-safe.

    They are due after `AGE_S` seconds, or when there are `PENDING_MAX` modules, and are sent in batches of `BATCH` modules. So
    recency in Redis is late by up to that much, and uses are lost with a process that dies. A shard is not due at `BATCH`
    modules already: a client that reads a thousand modules in a loop would send a thousand uses in every round, and like this
    it sends their sums once a second.
    """

    BATCH = 256
    NOTES_MAX = 256
    PENDING_MAX = 4096
    AGE_S = 1.0

    def __init__(self) -> None:
        self._pending: dict[Shard, dict[str, int]] = {}
        self._since: dict[Shard, float] = {}
        self._notes: deque[tuple[Shard, Sequence[str] | Mapping[str, int], float]] = deque()
        self._oldest_s = float("-inf")  # when the oldest pending use was noted, or earlier
        self._lock: Any = threading.RLock()
        _LOCKED.add(self)

    def note(
        self, shard: Shard, id: str | Sequence[str], now_s: float, *, flush: bool
    ) -> RunScript[dict[str, float]] | None:
        """Count one use of a module, or one use of each of several.

        Returns:
            The script call for the shard's batch, with this use in it, if the batch is due; with `flush`, the call for these
            modules alone; otherwise None. A signal handler or finaliser that interrupts this method gets None, and the next
            batch contains its use.
        """
        ids = (id,) if isinstance(id, str) else id
        notes = self._notes
        notes.append((shard, ids, now_s))
        if not flush and ids is not id and now_s - self._oldest_s < self.AGE_S and len(notes) < self.NOTES_MAX:
            return None  # nothing is due yet
        lock = self._lock
        if lock._is_owned():
            return None
        try:
            if not lock.acquire(timeout=TURN_S):
                return None
            self._gather()
            self._oldest_s = min(self._since.values(), default=now_s)
            if self._is_due(shard, now_s):
                return self._take(shard)
            return self._take(shard, ids) if flush else None
        finally:
            if lock._is_owned():
                lock.release()

    def note_many(self, shard: Shard, uses: Mapping[str, int], now_s: float) -> None:
        """Count uses by id. The next batches that are due contain them."""
        self._notes.append((shard, uses, now_s))

    def due(self, now_s: float) -> Sequence[RunScript[dict[str, float]]]:
        """Return the script calls for all batches that are due."""
        return self._calls(lambda shard: self._is_due(shard, now_s))

    def drain(self) -> Sequence[RunScript[dict[str, float]]]:
        """Return the script calls for all pending uses."""
        return self._calls(lambda shard: True)

    def _calls(self, which: Callable[[Shard], bool]) -> Sequence[RunScript[dict[str, float]]]:
        lock = self._lock
        if lock._is_owned():
            return ()
        try:
            if not lock.acquire(timeout=TURN_S):
                return ()
            self._gather()
            return [call for shard in list(self._pending) if which(shard) for call in self._take_all(shard)]
        finally:
            if lock._is_owned():
                lock.release()

    def _gather(self) -> None:
        while self._notes:
            shard, ids, now_s = self._notes.popleft()
            self._since.setdefault(shard, now_s)
            uses = self._pending.setdefault(shard, {})
            for id in ids:
                n = ids[id] if isinstance(ids, Mapping) else 1
                uses[id] = uses.pop(id, 0) + n  # moves the id to the end, where batches are taken from

    def after_fork_in_child(self) -> None:
        """Forget the pending uses of the parent, which sends them itself."""
        self._pending, self._since, self._notes = {}, {}, deque()
        self._lock = threading.RLock()

    def _is_due(self, shard: Shard, now_s: float) -> bool:
        pending = self._pending.get(shard, ())
        # `get`: a signal handler may fork in here, and the child goes on with this frame after its hook has emptied `_since`.
        since_s = self._since.get(shard, now_s)
        return len(pending) >= self.PENDING_MAX or (bool(pending) and now_s - since_s >= self.AGE_S)

    def _take(self, shard: Shard, ids: Sequence[str] = ()) -> RunScript[dict[str, float]] | None:
        """Take the last `BATCH` modules, or the first of `ids`: a script over more would block the server for too long."""
        uses = self._pending.get(shard)
        if not uses:
            return None
        if ids:
            batch = [(id, uses.pop(id)) for id in ids[: self.BATCH] if id in uses]
        else:
            batch = [uses.popitem() for _ in range(min(self.BATCH, len(uses)))]
        if not uses:
            self._pending.pop(shard, None)
            self._since.pop(shard, None)
        return touch(shard, batch)

    def _take_all(self, shard: Shard) -> Iterator[RunScript[dict[str, float]]]:
        while call := self._take(shard):
            yield call


class Process:
    """The part that both drivers have in common: what they keep for the process, and the effects that need no waiting."""

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.uses = UseBuffer()
        self.local: LocalStore | None = None
        self.peers = PeerTable()
        self.off: dict[Shard, Off] = {}

    def use_local(self, local: LocalStore | None) -> None:
        """Perform the effects of the node's disk on `local`, and close it with this driver."""
        self.local = local
        if local is not None:
            local.count = self.counters.add

    def at_once(self, effect: Effect[Any]) -> Any:
        """Perform an effect on the node's disk, or on the table of other nodes."""
        match effect:
            case LocalHas(id, write_id):
                return self.local is not None and self.local.has(id, write_id)
            case LocalDelete(id):
                return self.local is not None and self.local.delete(id)
            case Peers():
                return self.peers.ready(time.monotonic())
            case PeerSilent(node):
                return self.peers.silent(node, time.monotonic())
            case _:
                raise AssertionError(f"unknown effect {effect!r}")
