"""`Store` and `AsyncStore`: the same calls over the same plans, blocking and on an event loop.

Every call has one deadline (`deadline` in the configuration), answers a value, and raises one of `distier.errors`:
`Unavailable` (try again), `Conflict` (read again), `Corrupt` (heal), `Invalid` (fix the call). A miss is `None`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from distier.plans.common.space import Space
from distier.plans.fleet.maintain import write_back_due
from distier.plans.fleet.quotas import open_shares
from distier.plans.fleet.statistics import Stats, read_stats
from distier.plans.get.many import get_many as get_many_plan
from distier.plans.get.one import get as get_plan
from distier.plans.get.scan import Listing
from distier.plans.get.uses import send_touch
from distier.plans.get.where import exists as exists_plan
from distier.plans.get.where import where as where_plan
from distier.plans.put.delete import delete as delete_plan
from distier.plans.put.many import put_many as put_many_plan
from distier.plans.put.one import put as put_plan
from distier.plans.put.prepare import Content, Durability, Expected, Item
from distier.plans.recovery.epochs import WrongArchive, check_shape, find_space, open_space, recover
from distier.plans.recovery.identity import try_archive
from distier.plans.tier.demote import demote as demote_plan
from distier.plans.tier.demote import demote_many as demote_many_plan
from distier.plans.tier.promote import pin as pin_plan
from distier.plans.tier.promote import promote as promote_plan
from distier.plans.tier.promote import promote_many as promote_many_plan
from distier.plans.tier.promote import unpin as unpin_plan

from .config import NO_ARCHIVE, Config, check_directory, expanded, is_url, load_config
from .domain.ids import check_id
from .domain.module import Event, Landed, Module, Moved, Placement, Tier
from .domain.tokens import TokenCounter, token_counter
from .drive.aio import AsyncDriver, OwnTask
from .drive.sync import SyncDriver
from .effects import Plan
from .embedded import Home, ensure_server, revive
from .errors import DistierError, Invalid, Unavailable
from .near import Near
from .observe.events import Cursor, read_events
from .stores.absent import AbsentArchive
from .stores.archive import Archive
from .stores.cluster import open_async_exchange, open_exchange
from .stores.open import open_archive, open_local
from .stores.redis import AsyncExchange, Exchange, Revive
from .stores.threads import Flag, Helpers

if TYPE_CHECKING:
    from .node import NodeTask, NodeThread
    from .stores.local import LocalStore  # LMDB is loaded only where it is used

T = TypeVar("T")
Source = str | Path | Mapping[str, Any] | Config | None
Listener = Callable[[Event], None]
Landings = list[Landed | DistierError]
Moves = list[Moved | DistierError]

OPEN_DEADLINE_S = 30.0
ARCHIVE_LOOK_S = 2.0
"""Opening a store waits for the archive no longer than this: what is in Redis can be read without it."""

EVENT_WAIT_MS = 500


def resolve(source: Source = None, **overrides: Any) -> Config:
    """The configuration that `connect(source, **overrides)` uses.

    `source` is a Redis URL, the path of a YAML file, a directory (an embedded server lives there), a mapping or a
    `Config`; None reads `DISTIER_CONFIG`, ./distier.yaml and `DISTIER_*`. Raises `ConfigError`.
    """
    if isinstance(source, str) and is_url(source):
        return load_config(None, redis__url=source, **overrides)
    if isinstance(source, str | Path) and Path(source).suffix.lower() not in (".yaml", ".yml"):
        return load_config(None, home=expanded(check_directory(str(source))).absolute(), **overrides)
    return load_config(source, **overrides)


def redis_url(config: Config) -> str:
    """Where Redis is; starts the embedded server if the configuration names none. Raises `Unavailable`."""
    if config.redis.url is not None:
        return config.redis.url
    return ensure_server(Home(config.home)).url


def _revive(config: Config) -> Revive | None:
    return partial(revive, Home(config.home)) if config.embedded else None


def archive_of(config: Config) -> Archive:
    """The archive that the configuration means. Raises `ConfigError`."""
    cold = config.storage_tiers.cold
    if cold.directory == NO_ARCHIVE:
        return AbsentArchive()
    if cold.url is None:
        return open_archive(directory=config.archive_directory)
    return open_archive(
        url=cold.url,
        endpoint_url=cold.endpoint_url,
        region=cold.region,
        access_key=cold.access_key,
        secret_key=cold.secret_key.get_secret_value() if cold.secret_key else None,
        session_token=cold.session_token.get_secret_value() if cold.session_token else None,
        addressing_style=cold.addressing_style,
        timeout_s=cold.timeout_ms / 1000,
    )


def make_space(
    config: Config, archive: Archive, counter: TokenCounter | None = None, local: LocalStore | None = None
) -> Space:
    """What plans know: the configuration, who counts tokens, whether the archive needs sidecars, this node's name."""
    sidecar = {"always": True, "never": False, "auto": not archive.keeps_metadata}[config.storage_tiers.cold.sidecar]
    limits = None if archive.limits.take_all else archive.limits
    node = local.node if local else None
    return Space(config, counter or token_counter(config.counter), sidecar, node=node, archive_limits=limits)


def _ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise Invalid("ids is a sequence of module ids, not one str")
    return [check_id(id) for id in ids]


def _items(items: Iterable[Item]) -> list[Item]:
    wanted = list(items)
    for item in wanted:
        if not isinstance(item, Item):
            raise Invalid(f"put_many takes distier.Item(id, content, ...) of each module, not {type(item).__name__}")
    return wanted


def _ttl_ms(ttl: float) -> int:
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= 366 * 86400:
        raise Invalid(f"a pin's ttl is a number of seconds, more than 0 and at most a year; not {ttl!r}")
    return max(1, int(ttl * 1000))


def _counter(counter: TokenCounter | str | None, config: Config) -> tuple[TokenCounter | None, Config]:
    return (None, config.with_overrides(counter=counter)) if isinstance(counter, str) else (counter, config)


def connect(source: Source = None, *, counter: TokenCounter | str | None = None, **overrides: Any) -> Store:
    """Open a namespace and answer its `Store`.

    `source`: see `resolve`. With no Redis configured, a private embedded server is started or attached to.
    `overrides` are settings by name (`namespace="team"`, `storage_tiers__hot__max_size=20000`). `counter` is the name of a
    token counter, or one of your own. Raises `ConfigError`, `Unavailable`.
    """
    counter, config = _counter(counter, resolve(source, **overrides))
    return _unopened(config, counter).open()


def connect_existing(config: Config, *, reading: bool = False) -> Store:
    """`connect` to a namespace that exists: who mistypes its name does not make it. If only for `reading` what Redis knows,
    nothing is written and no disk of this node is opened. Raises `NotFound`."""
    return _unopened(config, reading=reading).open_existing(reading=reading)


def _unopened(config: Config, counter: TokenCounter | None = None, *, reading: bool = False) -> Store:
    url = redis_url(config)  # first: it makes the embedded home, owner-only
    archive, local = archive_of(config), None if reading else open_local(config)
    space = make_space(config, archive, counter, local)
    redis = open_exchange(config, url, space.forget, _revive(config))
    return Store(space, redis, archive, url=url, local=local)


async def connect_async(
    source: Source = None, *, counter: TokenCounter | str | None = None, **overrides: Any
) -> AsyncStore:
    """`connect` for asyncio: the same arguments, answers an `AsyncStore`."""
    counter, config = _counter(counter, resolve(source, **overrides))
    helper = Helpers(1)  # as `AsyncDriver.in_thread`, which is not there yet
    url = await asyncio.wrap_future(helper.submit(partial(redis_url, config)))
    archive, local = archive_of(config), await asyncio.wrap_future(helper.submit(partial(open_local, config)))
    space = make_space(config, archive, counter, local)
    redis = open_async_exchange(config, url, space.forget, _revive(config))
    return await AsyncStore(space, redis, archive, url=url, local=local).open()


class Store:
    """A namespace of modules, blocking. Thread-safe, and safe to use after a fork. Made by `connect`."""

    def __init__(
        self,
        space: Space,
        redis: Exchange,
        archive: Archive,
        *,
        url: str | None = None,
        local: LocalStore | None = None,
    ) -> None:
        self.space = space
        deadline_s = space.config.deadline_ms / 1000
        self._driver = SyncDriver(redis, archive, deadline_s=deadline_s, recover=partial(recover, space))
        self.near = Near(space, url, self._driver.counters, self._driver.uses)
        self._near_get = self.near.get
        self._load: Callable[[], None] | None = getattr(space.counter, "load", None)
        self._watcher: _Watcher | None = None
        self._driver.use_local(local)
        self._node: NodeThread | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Store(namespace={self.space.namespace!r}, redis={self._driver.redis!r})"

    def open(self) -> Store:
        """Check the namespace's shape and create it if it is new. `connect` has done this."""
        try:
            self.run(check_shape(self.space))  # a server that is down is known within the usual deadline
            self._look_at_archive()
            self.run(open_space(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
            self.run(open_shares(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
        except BaseException:
            self._driver.close()
            raise
        self._serve_node()
        return self

    def open_existing(self, *, reading: bool = False) -> Store:
        """`open` of a namespace that exists; see `connect_existing`."""
        try:
            self.run(check_shape(self.space))
            is_open = self.run(find_space(self.space))
        except BaseException:
            self._driver.close()
            raise
        return self if is_open and reading else self.open()

    def _look_at_archive(self) -> None:
        try:
            self.run(try_archive(self.space), deadline_s=min(ARCHIVE_LOOK_S, self._driver.deadline_s))
        except WrongArchive:
            raise
        except DistierError:
            pass  # no time was left

    def _serve_node(self) -> None:
        if self._driver.local is not None:
            from .node import NodeThread

            self._node = NodeThread(self._driver.run, self.space, self._driver.local, self._driver.peers)
            weakref.finalize(self, self._node.stopping.set)  # a store that is dropped without `close`

    def run(self, plan: Plan[T], *, deadline_s: float | None = None) -> T:
        """Run a plan of `distier.plans` on this store."""
        if self._closed:
            raise Invalid("this store is closed")
        if self._node is not None and self._node.pid != os.getpid():
            self._serve_node()  # a thread does not survive a fork
        return self._driver.run(plan, deadline_s)

    def put(
        self, id: str, content: Content, *, content_type: str | None = None, keywords: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None, tokens: int | None = None, if_version: Expected = None,
        durability: Durability | None = None,
    ) -> Landed:  # fmt: skip
        """Write a version of a module; answers where it landed.

        `content` is at most `max_module_bytes` long (text is stored as UTF-8); `content_type` is guessed from the id
        and the content if not given; `tokens` is counted if not given; with `if_version` the write happens only if
        the module is at that version (0: only if it does not exist). `durability` (`redis`, `replicated`, `archived`; the
        configured one if not given) says when it is acknowledged, see docs/PROTOCOL.md.

        Raises `Invalid`, `Conflict`, `Full`: nothing was changed; `Unavailable`: it may or may not have been applied.
        """
        if self._load is not None and tokens is None:
            self._load_counter()
        with self.near.writing([id]):
            return self.run(
                put_plan(self.space, Item(id, content, content_type, keywords, meta, tokens, if_version, durability))
            )

    def _load_counter(self) -> None:
        """The counter's tables, before the clock of the first put starts: they take a second on a busy machine."""
        if self._load is not None:
            self._load()
        self._load = None

    def put_many(self, items: Iterable[Item]) -> Landings:
        """Write many modules; a result per item, in order: where it landed, or its error."""
        wanted = _items(items)
        if self._load is not None and any(item.tokens is None for item in wanted):
            self._load_counter()
        with self.near.writing([item.id for item in wanted]):
            return self.run(put_many_plan(self.space, wanted))

    def get(self, id: str) -> Module | None:
        """The module, from its nearest copy; None if there is none. Raises `Corrupt`, `Unavailable`."""
        if (near := self._near_get(id)) is not None:
            return near
        with self.near.reading([check_id(id)]) as reading:
            module = self.run(get_plan(self.space, id))
            reading.fill({id: module})
        return module

    def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """Modules by id, None for misses, in the order of `ids`. Raises what any single one raises."""
        found = self.near.get_many(_ids(ids))
        missing = [id for id, module in found.items() if module is None]
        with self.near.reading(missing) as reading:
            read_now = self.run(get_many_plan(self.space, missing))
            reading.fill(read_now)
        return found | read_now

    def delete(self, id: str, *, if_version: Expected = None, durability: Durability | None = None) -> bool:
        """Delete a module from all tiers; False if there was none. Raises `Conflict`, `Unavailable`."""
        with self.near.writing([check_id(id)]):
            return self.run(delete_plan(self.space, id, if_version, durability))

    def exists(self, id: str) -> bool:
        """Whether there is such a module. Touches no recency."""
        return self.run(exists_plan(self.space, check_id(id)))

    def where(self, id: str) -> Placement | None:
        """Where the module is: tier, version, sizes, uses, times, nodes with copies. Touches no recency. None if there is
        none."""
        return self.run(where_plan(self.space, check_id(id)))

    def list(self, prefix: str = "", *, tier: Tier | None = None, limit: int | None = None) -> Iterator[str]:
        """Ids that start with `prefix`, in no order, found while iterating (as Redis' SCAN finds them)."""
        for id, _ in self.scan(prefix, tier=tier, limit=limit):
            yield id

    def scan(
        self, prefix: str = "", *, tier: Tier | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, Tier]]:
        """Ids with their tiers; otherwise as `list`."""
        listing = Listing(self.space, prefix, tier, limit)
        while not listing.done:
            yield from self.run(listing.step())

    def promote(self, id: str) -> Moved:
        """Make the module hot. Raises `NotFound`, `Corrupt`, `Unavailable`."""
        return self.run(promote_plan(self.space, check_id(id)))

    def demote(self, id: str, *, to: Tier | None = None) -> Moved:
        """Take the module one tier down, or down to `to`. Raises `NotFound`, `Unavailable`."""
        return self.run(demote_plan(self.space, check_id(id), to))

    def promote_many(self, ids: Iterable[str]) -> Moves:
        """Make many modules hot, loading them in parallel; a result per id, in order."""
        return self.run(promote_many_plan(self.space, _ids(ids)))

    def demote_many(self, ids: Iterable[str], *, to: Tier | None = None) -> Moves:
        """Take many modules down; a result per id, in order."""
        return self.run(demote_many_plan(self.space, _ids(ids), to))

    def pin(self, id: str, ttl: float) -> int:
        """Make the module hot and keep it there for `ttl` seconds; the end in ms since the Unix epoch."""
        return self.run(pin_plan(self.space, check_id(id), _ttl_ms(ttl)))

    def unpin(self, id: str) -> None:
        """End the module's pin, if it has one."""
        self.run(unpin_plan(self.space, check_id(id)))

    def stats(self) -> Stats:
        """Sums by tier over all processes, and this process's own hits and misses."""
        near = self.near.stats()
        return self.run(read_stats(self.space, self._driver.counters.snapshot(), near))

    def flush(self, *, deadline_s: float = 300.0) -> int:
        """Archive every dirty version now; how many. Raises `ArchiveUnavailable`."""
        return sum(
            self.run(write_back_due(self.space, shard, older_than_ms=0), deadline_s=deadline_s)
            for shard in self.space.keys.shards
        )

    def events(self, *, since: str = "$", wait: bool = True) -> Iterator[Event]:
        """Tier changes, oldest first: those after `since` (a stream id; `0` for all that is kept, `$` for new ones
        only), and if `wait`, those to come, for ever. The stream is a history and may be trimmed."""
        cursor = self.run(Cursor.start(self.space, since))
        while True:
            found = self.run(read_events(cursor, EVENT_WAIT_MS if wait else 0))
            yield from found
            if not found and not wait:
                return

    def on(self, event: str, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` in a thread of this store for each `"tier_change"` (or `"event"`: archivings too) from
        now on; answers a function that ends it. An exception in a listener is logged and ends nothing."""
        if event not in ("tier_change", "event"):
            raise Invalid(f"there are events 'tier_change' and 'event', not {event!r}")
        if self._watcher is None:
            self._watcher = _Watcher(self)
        return self._watcher.add(event, listener)

    def close(self) -> None:
        """Send gathered uses, stop threads, close connections. The embedded server goes on for others."""
        if self._closed:
            return
        if self._watcher is not None:
            self._watcher.stop()
        if self._node is not None:
            self._node.stop()
        self.near.close()
        with suppress(DistierError):  # recency is a hint, and closing must not fail because Redis is away
            self.run(send_touch(self.space, self._driver.uses.drain()))
        self._closed = True
        self._driver.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class AsyncStore:
    """A namespace of modules for asyncio: the calls of `Store`, awaited. Made by `connect_async`."""

    def __init__(
        self, space: Space, redis: AsyncExchange, archive: Archive, *, url: str | None = None,
        local: LocalStore | None = None,
    ) -> None:  # fmt: skip
        self.space = space
        deadline_s = space.config.deadline_ms / 1000
        self._driver = AsyncDriver(redis, archive, deadline_s=deadline_s, recover=partial(recover, space))
        self.near = Near(space, url, self._driver.counters, self._driver.uses)
        self._near_get = self.near.get
        self._load: Callable[[], None] | None = getattr(space.counter, "load", None)
        self._listening: list[_Listening] = []
        self._driver.use_local(local)
        self._node: NodeTask | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncStore(namespace={self.space.namespace!r}, redis={self._driver.redis!r})"

    async def open(self) -> AsyncStore:
        try:
            await self.run(check_shape(self.space))  # a server that is down is known within the usual deadline
            await self._look_at_archive()
            await self.run(open_space(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
            await self.run(open_shares(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
        except BaseException:
            await self._driver.close()
            raise
        self._serve_node()
        return self

    def _serve_node(self) -> None:
        if self._driver.local is not None:
            from .node import NodeTask

            self._node = NodeTask(self._driver.run, self.space, self._driver.local, self._driver.peers)

    async def _look_at_archive(self) -> None:
        try:
            await self.run(try_archive(self.space), deadline_s=min(ARCHIVE_LOOK_S, self._driver.deadline_s))
        except WrongArchive:
            raise
        except DistierError:
            pass

    async def run(self, plan: Plan[T], *, deadline_s: float | None = None) -> T:
        """As `Store.run`. Any event loop may run it, also in another thread or in a child: each has its own connections."""
        if self._closed:
            raise Invalid("this store is closed")
        if self._node is not None and self._node.is_over:
            self._serve_node()
        return await self._driver.run(plan, deadline_s)

    async def put(
        self, id: str, content: Content, *, content_type: str | None = None, keywords: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None, tokens: int | None = None, if_version: Expected = None,
        durability: Durability | None = None,
    ) -> Landed:  # fmt: skip
        """As `Store.put`."""
        item = Item(id, content, content_type, keywords, meta, tokens, if_version, durability)
        if self._load is not None and tokens is None:
            await self._load_counter()
        with self.near.writing([id]):
            return await self.run(put_plan(self.space, item))

    async def _load_counter(self) -> None:
        if self._load is not None:
            await self._driver.in_thread(self._load)
        self._load = None

    async def put_many(self, items: Iterable[Item]) -> Landings:
        """As `Store.put_many`."""
        wanted = _items(items)
        if self._load is not None and any(item.tokens is None for item in wanted):
            await self._load_counter()
        with self.near.writing([item.id for item in wanted]):
            return await self.run(put_many_plan(self.space, wanted))

    async def get(self, id: str) -> Module | None:
        """As `Store.get`."""
        if (near := self._near_get(id)) is not None:
            return near
        with self.near.reading([check_id(id)]) as reading:
            module = await self.run(get_plan(self.space, id))
            reading.fill({id: module})
        return module

    async def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """As `Store.get_many`."""
        found = self.near.get_many(_ids(ids))
        missing = [id for id, module in found.items() if module is None]
        with self.near.reading(missing) as reading:
            read_now = await self.run(get_many_plan(self.space, missing))
            reading.fill(read_now)
        return found | read_now

    async def delete(self, id: str, *, if_version: Expected = None, durability: Durability | None = None) -> bool:
        """As `Store.delete`."""
        with self.near.writing([check_id(id)]):
            return await self.run(delete_plan(self.space, id, if_version, durability))

    async def exists(self, id: str) -> bool:
        """As `Store.exists`."""
        return await self.run(exists_plan(self.space, check_id(id)))

    async def where(self, id: str) -> Placement | None:
        """As `Store.where`."""
        return await self.run(where_plan(self.space, check_id(id)))

    async def list(self, prefix: str = "", *, tier: Tier | None = None, limit: int | None = None) -> AsyncIterator[str]:
        """As `Store.list`."""
        async for id, _ in self.scan(prefix, tier=tier, limit=limit):
            yield id

    async def scan(
        self, prefix: str = "", *, tier: Tier | None = None, limit: int | None = None
    ) -> AsyncIterator[tuple[str, Tier]]:
        """As `Store.scan`."""
        listing = Listing(self.space, prefix, tier, limit)
        while not listing.done:
            for found in await self.run(listing.step()):
                yield found

    async def promote(self, id: str) -> Moved:
        """As `Store.promote`."""
        return await self.run(promote_plan(self.space, check_id(id)))

    async def demote(self, id: str, *, to: Tier | None = None) -> Moved:
        """As `Store.demote`."""
        return await self.run(demote_plan(self.space, check_id(id), to))

    async def promote_many(self, ids: Iterable[str]) -> Moves:
        """As `Store.promote_many`."""
        return await self.run(promote_many_plan(self.space, _ids(ids)))

    async def demote_many(self, ids: Iterable[str], *, to: Tier | None = None) -> Moves:
        """As `Store.demote_many`."""
        return await self.run(demote_many_plan(self.space, _ids(ids), to))

    async def pin(self, id: str, ttl: float) -> int:
        """As `Store.pin`."""
        return await self.run(pin_plan(self.space, check_id(id), _ttl_ms(ttl)))

    async def unpin(self, id: str) -> None:
        """As `Store.unpin`."""
        await self.run(unpin_plan(self.space, check_id(id)))

    async def stats(self) -> Stats:
        """As `Store.stats`."""
        near = self.near.stats()
        return await self.run(read_stats(self.space, self._driver.counters.snapshot(), near))

    async def flush(self, *, deadline_s: float = 300.0) -> int:
        """As `Store.flush`."""
        return sum([
            await self.run(write_back_due(self.space, shard, older_than_ms=0), deadline_s=deadline_s)
            for shard in self.space.keys.shards
        ])  # fmt: skip

    async def events(self, *, since: str = "$", wait: bool = True) -> AsyncIterator[Event]:
        """As `Store.events`."""
        cursor = await self.run(Cursor.start(self.space, since))
        while True:
            found = await self.run(read_events(cursor, EVENT_WAIT_MS if wait else 0))
            for event in found:
                yield event
            if not found and not wait:
                return

    async def on(self, event: str, listener: Listener) -> Callable[[], None]:
        """As `Store.on`; listeners are called on the event loop."""
        if event not in ("tier_change", "event"):
            raise Invalid(f"there are events 'tier_change' and 'event', not {event!r}")
        self._listening = [some for some in self._listening if not some.is_over]
        here = next((some for some in self._listening if some.loop is asyncio.get_running_loop()), None)
        if here is None:
            here = _Listening(self.run, await self.run(Cursor.start(self.space, "$")))
            self._listening.append(here)
        return here.add(event, listener)

    async def close(self) -> None:
        """As `Store.close`."""
        if self._closed:
            return
        for some in self._listening:
            await some.stop()
        if self._node is not None:
            await self._node.stop()
        await self._driver.in_thread(self.near.close)
        with suppress(DistierError):  # recency is a hint, and closing must not fail because Redis is away
            await self.run(send_touch(self.space, self._driver.uses.drain()))
        self._closed = True
        await self._driver.close()

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()


class _Listening:
    """The task that reads a store's events for the listeners of one event loop."""

    def __init__(self, run: Callable[[Plan[list[Event]]], Awaitable[list[Event]]], cursor: Cursor) -> None:
        self._run, self._cursor = run, cursor
        self._listeners: list[tuple[str, Listener]] = []
        self.loop = asyncio.get_running_loop()
        self._task = OwnTask(self._tell())

    @property
    def is_over(self) -> bool:
        return self._task.is_over

    def add(self, event: str, listener: Listener) -> Callable[[], None]:
        entry = (event, listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry) if entry in self._listeners else None

    async def _tell(self) -> None:
        while True:
            try:
                for event in await self._run(read_events(self._cursor, EVENT_WAIT_MS)):
                    notify(self._listeners, event)
            except DistierError:
                await asyncio.sleep(EVENT_WAIT_MS / 1000)

    async def stop(self) -> None:
        await self._task.stop()


class _Watcher:
    """The thread that reads a store's events for its listeners."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: list[tuple[str, Listener]] = []
        self._stopping = Flag()
        self._cursor = store.run(Cursor.start(store.space, "$"))
        self._thread = threading.Thread(target=self._watch, name="distier-events", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as e:
            raise Unavailable(f"listeners are called in a thread, and this process can start none: {e}") from e

    def add(self, event: str, listener: Listener) -> Callable[[], None]:
        entry = (event, listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry) if entry in self._listeners else None

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                for event in self._store.run(read_events(self._cursor, EVENT_WAIT_MS)):
                    notify(self._listeners, event)
            except DistierError:
                self._stopping.wait(EVENT_WAIT_MS / 1000)  # Redis is away; the stream keeps what happens

    def stop(self) -> None:
        self._stopping.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)


def notify(listeners: Sequence[tuple[str, Listener]], event: Event) -> None:
    """Tell each listener that asked for it."""
    from .observe.logs import log

    for kind, listener in list(listeners):
        if kind == "event" or event.is_tier_change:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on %s", event)
