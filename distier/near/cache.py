"""The cache itself: what is in it, what may be served now, what goes first."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distier.domain.module import Module, pack_json

NEVER = float("-inf")
ENTRY_BYTES = 1024
"""What a module takes beside its content, keywords, outline and meta: its objects, and our notes on it."""


class Ticket:
    """The right of the reads of `id` that are under way to fill; void once it is not in the cache's book any more."""

    __slots__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id


class NearCache:
    """Modules within three budgets, the least recently used leaving first; no I/O and no threads of its own.

    It is *live* between `go_live` and `lost`: only then it takes and serves modules, and serves them only for
    `staleness_s` after the last time that `confirm` named. Thread-safe; `get` takes no lock.
    """

    def __init__(
        self, *, max_tokens: int, max_bytes: int, max_entries: int, staleness_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.max_tokens, self.max_bytes, self.max_entries = max_tokens, max_bytes, max_entries
        self.staleness_s = staleness_s
        self.tokens = self.size_bytes = 0
        self._clock = clock
        self._fresh_until_s = NEVER
        self._live = False
        self._modules: dict[str, Module] = {}
        self._costs: OrderedDict[str, tuple[int, int]] = OrderedDict()  # tokens, bytes; in order of use
        self._reading: dict[str, Ticket] = {}
        self._writing: Counter[str] = Counter()
        self._hits: list[str] = []
        self._uses: Counter[str] = Counter()
        self._spoilt = False
        self._lock: Any = threading.RLock()

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, id: object) -> bool:
        """Whether `get` would answer it now; counts as no use."""
        return self.is_fresh and id in self._modules

    def get(self, id: str) -> Module | None:
        """The module if it is here and certainly young enough. Freshness first: see the top of this file."""
        if self._clock() < self._fresh_until_s:
            module = self._modules.get(id)
            if module is not None:
                self._hits.append(module.id)
                return module
        return None

    def begin(self, id: str) -> Ticket | None:
        """To be called before a read is sent; None if what it reads must not be kept. Reads of one id at one time
        share a ticket: any of them may fill."""
        if self._lock._is_owned():
            return None
        with self._lock:
            if self._spoilt:
                self._clear()
            if not self._live or id in self._writing:
                return None
            return self._reading.setdefault(id, Ticket(id))

    def fill(self, ticket: Ticket, module: Module | None) -> bool:
        """Whether `module`, which a read after `begin` found, is held now. None gives the ticket back."""
        if self._lock._is_owned():
            return False
        with self._lock:
            if self._spoilt:
                self._clear()
            if self._reading.get(ticket.id) is not ticket:
                return False
            del self._reading[ticket.id]
            if module is None:
                return False
            return self._keep(module)

    def start_writing(self, ids: Iterable[str]) -> None:
        """Drop `ids`; until `end_writing` no read of them gets a ticket."""
        if self._lock._is_owned():  # `end_writing` will be called in there, too
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
        """They changed: entries and tickets are void."""
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._forget(id)

    def drop_promotable(self, uses: Mapping[str, float], threshold: float) -> None:
        """Drop what Redis counted as used often enough for hot and is not held from there, so that its next read goes
        all the way and promotes it."""
        if self._lock._is_owned():
            return
        with self._lock:
            for id, count in uses.items():
                module = self._modules.get(id)
                if module is not None and module.tier != "hot" and count >= threshold:
                    self._forget(id)

    def flush(self) -> None:
        """Everything may have changed."""
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            self._clear()

    def go_live(self) -> None:
        """From now on every change is pushed."""
        if self._lock._is_owned():
            return
        with self._lock:
            self._clear()  # also tickets that were taken while it was live before
            self._live = True
            self._serve_until(self._clock() + self.staleness_s)

    def confirm(self, at_s: float) -> None:
        """Every change until `at_s` has been pushed and taken."""
        if self._lock._is_owned():
            return
        with self._lock:
            if self._spoilt:
                self._clear()
            if self._live:
                self._serve_until(max(self._fresh_until_s, at_s + self.staleness_s))

    def lost(self) -> None:
        """Changes may be missed from now on."""
        if self._lock._is_owned():
            self._live = False
            self._spoil()
            return
        with self._lock:
            self._fresh_until_s = NEVER
            self._live = False
            self._clear()

    @property
    def is_live(self) -> bool:
        return self._live

    @property
    def is_fresh(self) -> bool:
        """Whether hits are served now."""
        return self._clock() < self._fresh_until_s

    def take_uses(self) -> Mapping[str, int]:
        """Hits by id since the last call; each hit is in exactly one answer."""
        if self._lock._is_owned():
            return {}
        with self._lock:
            self._gather()
            uses, self._uses = self._uses, Counter()
            return uses

    def after_fork(self) -> None:
        """In a child: nothing of the parent's is valid, not even the lock."""
        self._lock = threading.RLock()
        self._writing.clear()
        self._hits.clear()
        self._uses.clear()
        self.lost()

    def _spoil(self) -> None:
        """What is here may be old, and cannot be changed now."""
        self._spoilt = True
        self._fresh_until_s = NEVER

    # The rest is called with the lock held.

    def _serve_until(self, at_s: float) -> None:
        if not self._spoilt:  # nothing can come between this line and the next
            self._fresh_until_s = at_s

    def _keep(self, module: Module) -> bool:
        tokens, size_bytes = module.tokens, _size_bytes(module)
        if tokens > self.max_tokens or size_bytes > self.max_bytes:
            return False
        self._drop(module.id)
        self._gather()  # hits until now come before this entry in the order of use
        self._modules[module.id] = module
        self._costs[module.id] = (tokens, size_bytes)
        self.tokens += tokens
        self.size_bytes += size_bytes
        while self.size_bytes > self.max_bytes or self.tokens > self.max_tokens or len(self._costs) > self.max_entries:
            self._drop(next(iter(self._costs)))
        return True

    def _drop(self, id: str) -> None:
        cost = self._costs.pop(id, None)
        if cost is not None:
            del self._modules[id]
            self.tokens -= cost[0]
            self.size_bytes -= cost[1]

    def _forget(self, id: str) -> None:
        self._drop(id)
        self._reading.pop(id, None)

    def _clear(self) -> None:
        self._spoilt = False  # first: what comes in between spoils what is left here
        self._modules.clear()
        self._costs.clear()
        self._reading.clear()
        self.tokens = self.size_bytes = 0

    def _gather(self) -> None:
        """Bring the order of use up to date. Hits that come meanwhile stand after the `n` that are taken."""
        n = len(self._hits)
        if not n:
            return
        uses = Counter(reversed(self._hits[:n]))
        del self._hits[:n]
        self._uses.update(uses)
        for id in reversed(uses):  # a Counter keeps the order of first sight: this ends with the last used
            if id in self._costs:
                self._costs.move_to_end(id)


def _size_bytes(module: Module) -> int:
    extra = len(module.outline or "") + sum(map(len, module.keywords))
    if module.meta:
        extra += len(pack_json(module.meta, "meta"))
    return ENTRY_BYTES + len(module.content) + extra
