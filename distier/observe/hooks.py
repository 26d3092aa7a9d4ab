"""Hooks for metrics: a program gets what its stores count, while they count it.

`connect(metrics=[hook])` registers hooks. A store without hooks has plain `Counters` and a plain archive, and does nothing for
this module.

A hook is called in the thread that counted, because a thread of our own would have to survive forks and the exit of the
interpreter. A signal handler or a finaliser may count in the middle of any line here, also inside a hook, which may hold a lock
then. So what is counted waits in a queue, and whoever has the turn calls the hooks. A caller that has the turn already only
leaves its count in the queue.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Protocol, runtime_checkable

from distier.domain.archived import Limits
from distier.domain.objects import Fetched, Listed
from distier.drive.process import TURN_S, Counters
from distier.observe.logs import log
from distier.stores.archive import Archive, restore

NEAR = "hits.near"


class MetricsHook(Protocol):
    """What a store calls with all that it counts and measures: pass hooks to `connect` or `connect_async` as `metrics`.

    A hook must return quickly, because it runs in the thread that counted, or on the event loop, within the deadline of the
    call. It must not call the store. One store makes one call at a time; a hook of several stores must be thread-safe. An
    exception fails nothing: the first one of a hook is logged, and the hook is called again for the next count.
    """

    def count(self, name: str, amount: int) -> None:
        """Add `amount`, which is at least 1, to a counter of `Stats.counters`; `distier.observe.COUNTERS` lists them.

        Hits of the near cache cost no call each. They arrive as one sum: with the next count of any other kind, at least
        four times a second while the near cache is on, and at `stats()` and `close()` at the latest.
        """

    def observe(self, name: str, seconds: float) -> None:
        """Take the duration of one request to the archive, failed ones included.

        The name is `archive.get`, `archive.put`, `archive.list`, `archive.delete` or `archive.restore`.
        """


@runtime_checkable
class TracingHook(MetricsHook, Protocol):
    """A hook that also surrounds the calls of a store, for example with spans."""

    def call(self, name: str) -> AbstractContextManager[object]:
        """Return a context for one call. The name is that of the method: `get`, `put_many`, `promote`.

        A read from the near cache is no such call. The context is entered and left in the caller's thread or task. What it
        raises, the caller gets.
        """


class HookedCounters(Counters):
    """Counters that also call hooks."""

    def __init__(self, hooks: Sequence[MetricsHook]) -> None:
        tracing = [hook for hook in hooks if isinstance(hook, TracingHook)]
        if tracing:
            self.trace = partial(_surround, tracing)
        self.settle: Callable[[], None] = lambda: None
        """Counts the hits of the near cache. The near cache sets it."""
        self._hooks = tuple(hooks)
        self._logged: set[int] = set()
        self._waiting: deque[tuple[str, str, float]] = deque()
        self._turn: Any = threading.RLock()
        super().__init__()  # last: from then on a fork resets this object

    def add(self, name: str, n: int = 1) -> None:
        super().add(name, n)
        if n:
            self._waiting.append(("count", name, n))
        if name != NEAR:  # `settle` itself counts those
            self.settle()
        self._call_hooks()

    def observe(self, name: str, seconds: float) -> None:
        self._waiting.append(("observe", name, seconds))
        self._call_hooks()

    def _call_hooks(self) -> None:
        """Call the hooks with what waits. The outer loop sees what came from a thread that waited for its turn in vain."""
        turn = self._turn
        while self._waiting and not turn._is_owned():
            try:
                if not turn.acquire(timeout=TURN_S):
                    return
                with suppress(IndexError):  # nothing is left; a signal handler may also fork, which empties the queue
                    while True:
                        self._call_each(*self._waiting.popleft())
            finally:
                if turn._is_owned():  # also after an exception that came just after `acquire`
                    turn.release()

    def _call_each(self, method: str, name: str, value: float) -> None:
        for hook in self._hooks:
            try:
                getattr(hook, method)(name, value)
            except Exception:
                if id(hook) not in self._logged:
                    self._logged.add(id(hook))
                    log.warning(
                        "the metrics hook %r failed at %s(%r, %r); calls of the store succeed without it, and its "
                        "next failures are not logged", hook, method, name, value, exc_info=True,
                    )  # fmt: skip

    def after_fork_in_child(self) -> None:
        """Forget what the parent has counted and not passed on yet: it does that itself."""
        super().after_fork_in_child()
        self._turn = threading.RLock()
        self._waiting.clear()


@contextmanager
def _surround(hooks: Sequence[TracingHook], name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook.call(name))
        yield


class MeasuredArchive:
    """An archive whose requests are measured."""

    def __init__(self, archive: Archive, observe: Callable[[str, float], None]) -> None:
        self._archive = archive
        self._observe = observe

    @property
    def name(self) -> str:
        return self._archive.name

    @property
    def keeps_metadata(self) -> bool:
        return self._archive.keeps_metadata

    @property
    def limits(self) -> Limits:
        return self._archive.limits

    @contextmanager
    def _measured(self, verb: str) -> Iterator[None]:
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self._observe(f"archive.{verb}", time.monotonic() - begun_s)

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        with self._measured("put"):
            self._archive.put(key, data, content_type=content_type, metadata=metadata)

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        with self._measured("get"):
            return self._archive.get(key, max_bytes=max_bytes)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        with self._measured("list"):
            return self._archive.list(prefix, start_after=start_after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        with self._measured("delete"):
            self._archive.delete(keys)

    def restore(self, key: str, *, days: int, tier: str) -> bool:
        with self._measured("restore"):
            return restore(self._archive, key, days=days, tier=tier)

    def check(self) -> None:
        self._archive.check()

    def close(self) -> None:
        self._archive.close()


def hooked(hooks: Sequence[MetricsHook], archive: Archive) -> tuple[Counters, Archive]:
    """Return the counters of a store with these hooks, and the archive as it uses it."""
    if not hooks:
        return Counters(), archive
    counters = HookedCounters(hooks)
    return counters, MeasuredArchive(archive, counters.observe)
