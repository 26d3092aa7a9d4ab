"""Deliver events to listeners: from a thread of a store, or from a task on an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

from distier.client.arguments import Listener
from distier.domain.module import Event
from distier.drive.aio import OwnTask
from distier.effects import Plan
from distier.errors import DistierError, Unavailable
from distier.near import Near
from distier.observe.events import Cursor, read_events
from distier.stores.threads import Flag

EVENT_WAIT_MS = 500
"""How long one read of a stream waits for new events."""


class Listening:
    """The task that reads a store's events for the listeners of one event loop."""

    def __init__(self, run: Callable[[Plan[list[Event]]], Awaitable[list[Event]]], cursor: Cursor, near: Near) -> None:
        self._run, self._cursor, self._near = run, cursor, near
        self._listeners: list[tuple[str, Listener]] = []
        self.loop = asyncio.get_running_loop()
        self._task = OwnTask(self._deliver())

    @property
    def is_over(self) -> bool:
        return self._task.is_over

    def add(self, event: str, listener: Listener) -> Callable[[], None]:
        entry = (event, listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry) if entry in self._listeners else None

    async def _deliver(self) -> None:
        while True:
            try:
                events = await self._run(next_events(self._cursor, EVENT_WAIT_MS, self._near))
                notify(self._listeners, events)
            except DistierError:
                await asyncio.sleep(EVENT_WAIT_MS / 1000)

    async def stop(self) -> None:
        await self._task.stop()


class Watcher:
    """The thread that reads a store's events for its listeners."""

    def __init__(self, run: Callable[[Plan[list[Event]]], list[Event]], cursor: Cursor, near: Near) -> None:
        self._run, self._cursor, self._near = run, cursor, near
        self._listeners: list[tuple[str, Listener]] = []
        self._stopping = Flag()
        self._thread = threading.Thread(target=self._deliver, name="distier-events", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as e:
            raise Unavailable(f"cannot start the thread that calls listeners: {e}") from e

    def add(self, event: str, listener: Listener) -> Callable[[], None]:
        entry = (event, listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry) if entry in self._listeners else None

    def _deliver(self) -> None:
        while not self._stopping.is_set():
            try:
                notify(self._listeners, self._run(next_events(self._cursor, EVENT_WAIT_MS, self._near)))
            except DistierError:
                self._stopping.wait(EVENT_WAIT_MS / 1000)  # Redis is unavailable; the stream keeps the events

    def stop(self) -> None:
        self._stopping.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)


def next_events(cursor: Cursor, wait_ms: int, near: Near) -> Plan[list[Event]]:
    """Return the next events, after the near cache has learned of them.

    Who is told of a change may read the module, and the near cache's own pushes come by another connection, perhaps later.
    """
    events = yield from read_events(cursor, wait_ms)
    near.take_events(events)
    return events


def notify(listeners: Sequence[tuple[str, Listener]], events: Sequence[Event]) -> None:
    """Call each listener that is registered for the kind of each event; log its exceptions."""
    from distier.observe.logs import log

    for event in events:
        for kind, listener in list(listeners):
            if kind == "event" or event.is_tier_change:
                try:
                    listener(event)
                except Exception:
                    log.exception("a listener raised an exception for %s", event)
