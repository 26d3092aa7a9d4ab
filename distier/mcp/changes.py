"""Tells clients what changed, whichever process changed it: from the events of the namespace.

Clients of the revision 2026-07-28 listen to a stream (`subscriptions/listen`), which the SDK serves. Older ones subscribe to a
resource in their session, and are notified there. A notification is a hint: a client reads what changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from mcp.server.subscriptions import InMemorySubscriptionBus, ResourcesListChanged, ResourceUpdated

from distier.client import AsyncStore
from distier.domain.module import Event
from distier.mcp.uris import module_uri, skill_uri

LISTS_S = 0.25
"""How long changes of the list are gathered before clients are told."""
SUBSCRIBED_MAX = 10_000
"""How many resources a session of an older client may subscribe to."""


class Changes:
    """Notifies clients from `start` to `stop`."""

    def __init__(self, store: AsyncStore) -> None:
        self.bus = InMemorySubscriptionBus()
        self._store = store
        self._clients: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
        self._remove: Callable[[], None] | None = None
        self._lists: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._remove = await self._store.on("event", self._happened)

    def stop(self) -> None:
        if self._remove is not None:
            self._remove()
        if self._lists is not None:
            self._lists.cancel()
        for task in self._tasks:
            task.cancel()

    def meet(self, session: Any) -> set[str]:
        """Note the connection of a client of an older revision, and return what it subscribed to.

        A session is one request's. Its connection, which lives as long as the client, has no public name in the SDK.
        """
        return self._clients.setdefault(session._connection, set())

    def _happened(self, event: Event) -> None:
        if event.reason not in ("put", "delete", "recover", "epoch"):
            return  # it moved: its content is the same
        if event.id:
            for uri in (module_uri(event.id), skill_uri(event.id)):
                self._do(self.bus.publish(ResourceUpdated(uri)))
                for client, uris in list(self._clients.items()):
                    if uri in uris:
                        self._do(client.send_resource_updated(uri))
        if (event.from_ in ("none", "deleted")) != (event.to in ("none", "deleted")) or not event.id:
            self._list_changed_soon()

    def _list_changed_soon(self) -> None:
        if self._lists is None:
            self._lists = asyncio.get_running_loop().call_later(LISTS_S, self._list_changed)

    def _list_changed(self) -> None:
        self._lists = None
        self._do(self.bus.publish(ResourcesListChanged()))
        for client in list(self._clients):
            self._do(client.send_resource_list_changed())

    def _do(self, sending: Any) -> None:
        task = asyncio.get_running_loop().create_task(_sent(sending))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _sent(sending: Any) -> None:
    with suppress(Exception):  # the client is gone
        await sending
