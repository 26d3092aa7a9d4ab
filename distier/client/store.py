"""`Store` and `AsyncStore`: the same calls over the same plans, blocking and on an event loop.

Every call has one deadline (`deadline` in the configuration), answers a value, and raises one of `distier.errors`:
`Unavailable` (try again), `Conflict` (read again), `Corrupt` (heal), `Invalid` (fix the call). A miss is `None`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from distier.client.arguments import Landings, Listener, Moves, check_ids, check_items, check_ttl_ms, warn_renamed
from distier.client.events import EVENT_WAIT_MS, Watcher
from distier.domain.ids import check_id
from distier.domain.module import Event, Landed, Module, Moved, Placement, Tier
from distier.drive.sync import SyncDriver
from distier.effects import Plan
from distier.errors import DistierError, Invalid
from distier.near import Near
from distier.observe.events import Cursor, read_events
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.maintain import write_back_due
from distier.plans.fleet.quotas import open_quotas
from distier.plans.fleet.statistics import Stats, read_stats
from distier.plans.get.many import get_many as get_many_plan
from distier.plans.get.one import get as get_plan
from distier.plans.get.scan import IdScan
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
from distier.stores.archive import Archive
from distier.stores.redis import Exchange

if TYPE_CHECKING:
    from distier.node import NodeThread
    from distier.stores.local import LocalStore  # LMDB is loaded only where it is used


T = TypeVar("T")
OPEN_DEADLINE_S = 30.0
ARCHIVE_LOOK_S = 2.0
"""Opening a store waits for the archive no longer than this: what is in Redis can be read without it."""


class Store:
    """A namespace of modules, blocking. Thread-safe, and safe to use after a fork. Made by `connect`."""

    def __init__(
        self,
        space: Namespace,
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
        self._watcher: Watcher | None = None
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
            self.run(open_quotas(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
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
            from distier.node import NodeThread

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
        wanted = check_items(items)
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
        found = self.near.get_many(check_ids(ids))
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
        listing = IdScan(self.space, prefix, tier, limit)
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
        return self.run(promote_many_plan(self.space, check_ids(ids)))

    def demote_many(self, ids: Iterable[str], *, to: Tier | None = None) -> Moves:
        """Take many modules down; a result per id, in order."""
        return self.run(demote_many_plan(self.space, check_ids(ids), to))

    def pin(self, id: str, ttl: float) -> int:
        """Make the module hot and keep it there for `ttl` seconds; the end in ms since the Unix epoch."""
        return self.run(pin_plan(self.space, check_id(id), check_ttl_ms(ttl)))

    def unpin(self, id: str) -> None:
        """End the module's pin, if it has one."""
        self.run(unpin_plan(self.space, check_id(id)))

    def stats(self) -> Stats:
        """Sums by tier over all processes, and this process's own hits and misses."""
        near = self.near.stats()
        return self.run(read_stats(self.space, self._driver.counters.snapshot(), near))

    def archive_now(self, *, deadline_s: float = 300.0) -> int:
        """Archive every dirty version now.

        Args:
            deadline_s: seconds that each shard may take.

        Returns:
            The number of versions that were archived.

        Raises:
            ArchiveUnavailable: the archive does not answer.
        """
        return sum(
            self.run(write_back_due(self.space, shard, older_than_ms=0), deadline_s=deadline_s)
            for shard in self.space.keys.shards
        )

    def flush(self, *, deadline_s: float = 300.0) -> int:
        """Deprecated name of `archive_now`, which flushes nothing."""
        warn_renamed("flush", "archive_now")
        return self.archive_now(deadline_s=deadline_s)

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
            self._watcher = Watcher(self.run, self.run(Cursor.start(self.space, "$")))
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
