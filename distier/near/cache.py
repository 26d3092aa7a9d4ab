"""The data structure of the near cache: its modules, when it may serve them, and the order of eviction."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distier.domain.module import Module, pack_json

NEVER = float("-inf")
ENTRY_BYTES = 1024
"""Memory per module besides its content, keywords, outline and meta: its Python objects and the cache's entries, in bytes."""


def _none_left(_: Module) -> float:
    return 0.0


class Ticket:
    """The permission of the current reads of `id` to fill the cache. It is void once the cache no longer lists it."""

    __slots__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id


class NearCache:
    """Modules within three budgets, with LRU eviction. It has no I/O and no threads.

    A module here is *fresh*, so that `get` returns it, or a *suspect*: its record was written since, perhaps only because the
    module moved to another tier. A suspect is never served. `suspect` hands it to a read, which compares its version with the
    record, and fills the cache again if they are equal. Both kinds count against the budgets.

    A module with a TTL is fresh only while it certainly has more of its TTL left than hits are served for (`_ends_s` says until
    when, by `remaining_s`), so that a hit need not look at it. Then it becomes a suspect, and the read that follows decides.

    The cache is *live* between `go_live` and `lost`. Only then it accepts and serves modules, and it serves them only for
    `staleness_s` seconds after the latest time passed to `confirm`. It is thread-safe; `get` takes no lock.
    """

    def __init__(
        self, *, max_tokens: int, max_bytes: int, max_entries: int, staleness_s: float,
        clock: Callable[[], float] = time.monotonic, remaining_s: Callable[[Module], float] = _none_left,
    ) -> None:  # fmt: skip
        self.max_tokens, self.max_bytes, self.max_entries = max_tokens, max_bytes, max_entries
        self.staleness_s = staleness_s
        self.tokens = self.size_bytes = 0
        self._clock, self._remaining_s = clock, remaining_s
        self._fresh_until_s = NEVER
        self._live = False
        self._modules: dict[str, Module] = {}
        self._suspects: dict[str, Module] = {}
        self._ends_s: dict[str, float] = {}
        self._costs: OrderedDict[str, tuple[int, int]] = OrderedDict()  # tokens, bytes; in order of use
        self._reading: dict[str, Ticket] = {}
        self._writing: Counter[str] = Counter()
        self._hits: list[str] = []
        self._uses: Counter[str] = Counter()
        self._spoilt = False
        self._lock: Any = threading.RLock()

    def __len__(self) -> int:
        return len(self._costs)

    @property
    def suspects(self) -> int:
        return len(self._suspects)

    def __contains__(self, id: object) -> bool:
        """Return whether `get` would return the module now. Does not count as a use."""
        return self.is_fresh and id in self._modules

    def holds(self, id: str) -> bool:
        """Return whether the module is here, also as a suspect."""
        return id in self._costs

    def get(self, id: str) -> Module | None:
        """Return the module if it is here and certainly fresh. Freshness is checked first; `facade.py` says why."""
        if self._clock() < self._fresh_until_s:
            module = self._modules.get(id)
            if module is not None:
                self._hits.append(module.id)
                return module
        return None

    def begin(self, id: str) -> Ticket | None:
        """Return a ticket for a read that is about to be sent, or None if its result must not be kept.

        Concurrent reads of one id share a ticket, and any of them may fill the cache.
        """
        if self._lock._is_owned():
            return None
        with self._lock:
            if self._spoilt:
                self._clear()
            if not self._live or id in self._writing:
                return None
            return self._reading.setdefault(id, Ticket(id))

    def suspect(self, id: str) -> Module | None:
        """Return the suspect of this id, or None. It must not be served before its version was compared with the record."""
        return self._suspects.get(id)

    def fill(self, ticket: Ticket, module: Module | None) -> bool:
        """Store the result of a read that started after `begin`: fresh, or as a suspect if its ticket is void by now.

        Returns:
            Whether the module is fresh now. A `module` of None only returns the ticket.
        """
        if self._lock._is_owned():
            return False
        with self._lock:
            if self._spoilt:
                self._clear()
            valid = self._reading.get(ticket.id) is ticket
            if valid:
                del self._reading[ticket.id]
            if module is None or not self._live:
                return False
            if valid:
                return self._keep(module, self._modules) and module.id in self._modules
            if ticket.id not in self._modules and ticket.id not in self._writing:
                self._keep(module, self._suspects)
            return False

    def start_writing(self, ids: Iterable[str]) -> None:
        """Drop `ids`. No read of them gets a ticket until `end_writing`."""
        if self._lock._is_owned():  # `end_writing` will be called inside this call, too
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._writing[id] += 1
                self._forget(id)

    def end_writing(self, ids: Iterable[str]) -> None:
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._writing[id] -= 1
                if self._writing[id] <= 0:
                    del self._writing[id]

    def invalidate(self, ids: Iterable[str]) -> None:
        """Make suspects of `ids` and void their tickets, because these records were written."""
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._reading.pop(id, None)
                self._doubt(id)

    def doubt_promotable(self, ids: Iterable[str]) -> None:
        """Make suspects of those of `ids` that are not hot. They were used often enough for promotion.

        Their next read then goes to Redis, and promotes them with the content that is here.
        """
        if self._lock._is_owned():
            return
        with self._lock:
            for id in ids:
                module = self._modules.get(id)
                if module is not None and module.tier != "hot":
                    self._doubt(id)

    def doubt_all(self) -> None:
        """Make suspects of all modules and void all tickets, because any record may have been written."""
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            self._doubt_all()

    def go_live(self) -> None:
        """Start to serve: from now on every change is pushed."""
        if self._lock._is_owned():
            return
        with self._lock:
            self._doubt_all()  # and no ticket of an earlier live period is valid
            self._live = True
            self._serve_until(self._clock() + self.staleness_s)

    def confirm(self, at_s: float) -> None:
        """Extend serving: every change until `at_s` (monotonic clock) has been pushed and processed."""
        if self._lock._is_owned():
            return
        with self._lock:
            if self._spoilt:
                self._clear()
            if self._live:
                self._serve_until(max(self._fresh_until_s, at_s + self.staleness_s))

    def lost(self) -> None:
        """Stop serving, and make suspects of all modules: changes may be missed from now on."""
        if self._lock._is_owned():
            self._live = False
            self._spoil()
            return
        with self._lock:
            self._fresh_until_s = NEVER
            self._live = False
            self._doubt_all()

    @property
    def is_live(self) -> bool:
        return self._live

    @property
    def is_fresh(self) -> bool:
        """Whether hits are served now."""
        return self._clock() < self._fresh_until_s

    def take_uses(self) -> Mapping[str, int]:
        """Return the hits by id since the last call. Each hit is in exactly one result."""
        if self._lock._is_owned():
            return {}
        with self._lock:
            self._gather()
            uses, self._uses = self._uses, Counter()
            return uses

    def after_fork(self) -> None:
        """Reset the cache in a forked child, including the lock, which a thread of the parent may hold."""
        self._lock = threading.RLock()
        self._writing.clear()
        self._hits.clear()
        self._uses.clear()
        self._live = False
        self._fresh_until_s = NEVER
        self._clear()

    def _spoil(self) -> None:
        """Stop serving, because the entries may be old and cannot be changed now."""
        self._spoilt = True
        self._fresh_until_s = NEVER

    # All following methods are called with the lock held.

    def _serve_until(self, at_s: float) -> None:
        for id in [id for id, end_s in self._ends_s.items() if end_s <= at_s]:
            self._doubt(id)
        if not self._spoilt:  # no signal handler can run between this line and the next
            self._fresh_until_s = at_s

    def _keep(self, module: Module, kind: dict[str, Module]) -> bool:
        tokens, size_bytes = module.tokens, _size_bytes(module)
        if tokens > self.max_tokens or size_bytes > self.max_bytes:
            return False
        self._drop(module.id)
        if module.expires_ms is not None and kind is self._modules:
            end_s = self._clock() + self._remaining_s(module)
            if end_s <= self._fresh_until_s:
                kind = self._suspects
            else:
                self._ends_s[module.id] = end_s
        self._gather()  # hits until now precede this entry in the order of use
        kind[module.id] = module
        self._costs[module.id] = (tokens, size_bytes)
        self.tokens += tokens
        self.size_bytes += size_bytes
        while self.size_bytes > self.max_bytes or self.tokens > self.max_tokens or len(self._costs) > self.max_entries:
            self._drop(next(iter(self._costs)))
        return True

    def _drop(self, id: str) -> None:
        cost = self._costs.pop(id, None)
        if cost is not None:
            self._modules.pop(id, None)
            self._suspects.pop(id, None)
            self._ends_s.pop(id, None)
            self.tokens -= cost[0]
            self.size_bytes -= cost[1]

    def _forget(self, id: str) -> None:
        self._drop(id)
        self._reading.pop(id, None)

    def _doubt(self, id: str) -> None:
        module = self._modules.pop(id, None)
        self._ends_s.pop(id, None)
        if module is not None:
            self._suspects[id] = module

    def _doubt_all(self) -> None:
        if self._spoilt:
            self._clear()
        self._suspects.update(self._modules)
        self._modules.clear()
        self._ends_s.clear()
        self._reading.clear()

    def _clear(self) -> None:
        self._spoilt = False  # first, so that a signal handler in between can set it again
        self._modules.clear()
        self._ends_s.clear()
        self._suspects.clear()
        self._costs.clear()
        self._reading.clear()
        self.tokens = self.size_bytes = 0

    def _gather(self) -> None:
        """Update the order of use. Hits that arrive in the meantime follow the `n` hits that are processed."""
        n = len(self._hits)
        if not n:
            return
        uses = Counter(reversed(self._hits[:n]))
        del self._hits[:n]
        self._uses.update(uses)
        for id in reversed(uses):  # a Counter keeps insertion order, so this ends with the last used
            if id in self._costs:
                self._costs.move_to_end(id)


def _size_bytes(module: Module) -> int:
    extra = len(module.outline or "") + sum(map(len, module.keywords))
    if module.meta:
        extra += len(pack_json(module.meta, "meta"))
    return ENTRY_BYTES + len(module.content) + extra
