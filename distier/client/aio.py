"""`AsyncStore`: the methods of `Store` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from distier.client.arguments import (
    Landings,
    Listener,
    Moves,
    check_event,
    check_ids,
    check_items,
    check_ttl_ms,
    warn_renamed,
)
from distier.client.browsing import AsyncBrowsing
from distier.client.events import EVENT_WAIT_MS, Listening, next_events
from distier.client.fitting import AsyncFitting
from distier.client.preload import Preload
from distier.client.ranges import AsyncRanges
from distier.client.restoring import AsyncRestoring
from distier.client.searching import AsyncSearching, Search
from distier.client.session import AsyncSessions
from distier.client.store import ARCHIVE_LOOK_S, OPEN_DEADLINE_S, T
from distier.client.versions import AsyncVersions
from distier.domain.ids import check_id
from distier.domain.module import Event, Landed, Module, Moved, Tier
from distier.domain.order import Order
from distier.drive.aio import AsyncDriver
from distier.effects import Plan
from distier.errors import DistierError, Invalid
from distier.near import Near
from distier.observe.events import Cursor
from distier.observe.hooks import MetricsHook, hooked
from distier.plans.common.namespace import Namespace
from distier.plans.common.touches import send_touch
from distier.plans.fleet.maintain import write_back_due
from distier.plans.fleet.quotas import open_quotas
from distier.plans.fleet.statistics import PredictionStats, Stats, read_stats
from distier.plans.get.history import get_version
from distier.plans.get.many import get_many as get_many_plan
from distier.plans.get.one import get as get_plan
from distier.plans.put.delete import delete as delete_plan
from distier.plans.put.many import put_many as put_many_plan
from distier.plans.put.one import put as put_plan
from distier.plans.put.prepare import Content, Durability, Expected, Item, deadline_s_of
from distier.plans.put.rename import rename as rename_plan
from distier.plans.recovery.epochs import WrongArchive, check_shape, open_space, recover
from distier.plans.recovery.identity import try_archive
from distier.plans.tier.demote import demote as demote_plan
from distier.plans.tier.demote import demote_many as demote_many_plan
from distier.plans.tier.promote import pin as pin_plan
from distier.plans.tier.promote import promote as promote_plan
from distier.plans.tier.promote import promote_many as promote_many_plan
from distier.plans.tier.promote import unpin as unpin_plan
from distier.stores.archive import Archive
from distier.stores.redis import AsyncExchange

if TYPE_CHECKING:
    from distier.node import NodeTask
    from distier.stores.local import LocalStore  # LMDB is loaded only when it is used


class AsyncStore(
    AsyncBrowsing, AsyncFitting, AsyncRanges, AsyncRestoring, AsyncSearching, AsyncSessions, AsyncVersions
):
    """A namespace of modules for asyncio: the methods of `Store` as coroutines. `connect_async` returns one."""

    def __init__(
        self, space: Namespace, redis: AsyncExchange, archive: Archive, *, url: str | None = None,
        local: LocalStore | None = None, metrics: Sequence[MetricsHook] = (),
    ) -> None:  # fmt: skip
        self.space = space
        deadline_s = space.config.deadline_ms / 1000
        counters, archive = hooked(metrics, archive)
        self._driver = AsyncDriver(
            redis, archive, deadline_s=deadline_s, recover=partial(recover, space), counters=counters
        )
        self.near = Near(space, url, self._driver.counters, self._driver.uses)
        self._near_get = self.near.get
        self._load: Callable[[], None] | None = getattr(space.counter, "load", None)
        self._preload: Preload | None = None
        self.searching = Search(space)
        self._listening: list[Listening] = []
        self._driver.use_local(local)
        self._node: NodeTask | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncStore(namespace={self.space.namespace!r}, redis={self._driver.redis!r})"

    async def open(self) -> AsyncStore:
        """As `Store.open`."""
        try:
            await self.run(check_shape(self.space))  # reports a server that is down within the usual deadline
            await self._look_at_archive()
            await self.run(open_space(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
            await self.run(open_quotas(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
        except BaseException:
            await self._driver.close()
            raise
        self._serve_node()
        return self

    def _serve_node(self) -> None:
        if self._driver.local is not None:
            from distier.node import NodeTask

            self._node = NodeTask(self._driver.run, self.space, self._driver.local, self._driver.peers)

    async def _look_at_archive(self) -> None:
        try:
            await self.run(try_archive(self.space), deadline_s=min(ARCHIVE_LOOK_S, self._driver.deadline_s))
        except WrongArchive:
            raise
        except DistierError:
            pass

    async def run(
        self, plan: Plan[T], *, deadline_s: float | None = None, on_progress: Callable[[Any], object] | None = None
    ) -> T:
        """As `Store.run`.

        Safe to call from several event loops, in other threads and in child processes: each loop has its own connections.
        """
        if self._closed:
            raise Invalid("this store is closed")
        if self._node is not None and self._node.is_over:
            self._serve_node()
        return await self._driver.run(plan, deadline_s, on_progress)

    async def put(
        self, id: str, content: Content, *, content_type: str | None = None, keywords: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None, tokens: int | None = None, if_version: Expected = None,
        durability: Durability | None = None, ttl: float | None = None,
    ) -> Landed:  # fmt: skip
        """As `Store.put`."""
        item = Item(id, content, content_type, keywords, meta, tokens, if_version, durability, ttl)
        if self._load is not None and tokens is None:
            await self._load_counter()
        with self.near.writing([id]):
            return await self.run(put_plan(self.space, item), deadline_s=deadline_s_of(self.space, [item]))

    async def _load_counter(self) -> None:
        if self._load is not None:
            await self._driver.in_thread(self._load)
        self._load = None

    def _load_counter_soon(self) -> None:
        """As `Store._load_counter_soon`."""
        self._preload = Preload(self, self.space.counter)

    async def put_many(self, items: Iterable[Item]) -> Landings:
        """As `Store.put_many`."""
        wanted = check_items(items)
        if self._load is not None and any(item.tokens is None for item in wanted):
            await self._load_counter()
        with self.near.writing([item.id for item in wanted]):
            return await self.run(put_many_plan(self.space, wanted), deadline_s=deadline_s_of(self.space, wanted))

    async def get(self, id: str, *, version: Order | str | None = None) -> Module | None:
        """As `Store.get`."""
        if version is not None:
            return await self.run(get_version(self.space, check_id(id), version))
        if (near := self._near_get(id)) is not None:
            return near
        with self.near.reading([check_id(id)]) as reading:
            module = await self.run(get_plan(self.space, id, reading.suspects.get(id)))
            reading.fill({id: module})
        return module

    async def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """As `Store.get_many`."""
        found = self.near.get_many(check_ids(ids))
        missing = [id for id, module in found.items() if module is None]
        with self.near.reading(missing) as reading:
            read_now = await self.run(get_many_plan(self.space, missing, reading.suspects))
            reading.fill(read_now)
        return found | read_now

    async def delete(self, id: str, *, if_version: Expected = None, durability: Durability | None = None) -> bool:
        """As `Store.delete`."""
        with self.near.writing([check_id(id)]):
            return await self.run(delete_plan(self.space, id, if_version, durability))

    async def rename(
        self, old: str, new: str, *, if_version: Expected = None, durability: Durability | None = None
    ) -> Landed:
        """As `Store.rename`."""
        with self.near.writing([check_id(old), check_id(new)]):
            return await self.run(rename_plan(self.space, old, new, if_version, durability))

    async def promote(self, id: str) -> Moved:
        """As `Store.promote`."""
        return await self.run(promote_plan(self.space, check_id(id)))

    async def demote(self, id: str, *, to: Tier | None = None) -> Moved:
        """As `Store.demote`."""
        return await self.run(demote_plan(self.space, check_id(id), to))

    async def promote_many(self, ids: Iterable[str]) -> Moves:
        """As `Store.promote_many`."""
        return await self.run(promote_many_plan(self.space, check_ids(ids)))

    async def demote_many(self, ids: Iterable[str], *, to: Tier | None = None) -> Moves:
        """As `Store.demote_many`."""
        return await self.run(demote_many_plan(self.space, check_ids(ids), to))

    async def pin(self, id: str, ttl: float) -> int:
        """As `Store.pin`."""
        return await self.run(pin_plan(self.space, check_id(id), check_ttl_ms(ttl)))

    async def unpin(self, id: str) -> None:
        """As `Store.unpin`."""
        await self.run(unpin_plan(self.space, check_id(id)))

    async def stats(self) -> Stats:
        """As `Store.stats`."""
        near = self.near.stats()
        enabled = self.space.config.prediction.enabled
        prediction = PredictionStats(enabled) if self._ahead is None else self._ahead.stats()
        return await self.run(read_stats(self.space, self._driver.counters.snapshot(), near, prediction))

    async def archive_now(self, *, deadline_s: float = 300.0) -> int:
        """As `Store.archive_now`."""
        return sum([
            await self.run(write_back_due(self.space, shard, older_than_ms=0), deadline_s=deadline_s)
            for shard in self.space.keys.shards
        ])  # fmt: skip

    async def flush(self, *, deadline_s: float = 300.0) -> int:
        """As `Store.flush`: deprecated, call `archive_now`."""
        warn_renamed("flush", "archive_now")
        return await self.archive_now(deadline_s=deadline_s)

    async def events(self, *, since: str = "$", wait: bool = True) -> AsyncIterator[Event]:
        """As `Store.events`."""
        cursor = await self.run(Cursor.start(self.space.keys.shards, since))
        while True:
            found = await self.run(next_events(cursor, EVENT_WAIT_MS if wait else 0, self.near))
            for event in found:
                yield event
            if not found and not wait:
                return

    async def on(self, event: str, listener: Listener) -> Callable[[], None]:
        """As `Store.on`; listeners are called on the event loop."""
        check_event(event)
        self._listening = [listening for listening in self._listening if not listening.is_over]
        loop = asyncio.get_running_loop()
        listening = next((each for each in self._listening if each.loop is loop), None)
        if listening is None:
            listening = Listening(self.run, await self.run(Cursor.start(self.space.keys.shards, "$")), self.near)
            self._listening.append(listening)
        return listening.add(event, listener)

    async def close(self) -> None:
        """As `Store.close`."""
        if self._closed:
            return
        if self._preload is not None:
            self._preload.stop()
        for listening in self._listening:
            await listening.stop()
        if self._node is not None:
            await self._node.stop()
        if self._ahead_task is not None:
            await self._ahead_task.stop()
        await self._driver.in_thread(self.near.close)
        with suppress(DistierError):  # recency is a hint: closing must not fail while Redis is unavailable
            await self.run(send_touch(self.space, self._driver.uses.drain()))
        self._closed = True
        await self._driver.close()

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()
