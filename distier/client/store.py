"""`Store` and `AsyncStore`: the same methods over the same plans, blocking and on an event loop.

Every call has one deadline (`deadline` in the configuration). A miss is a value (`None` or `False`). A failure is one of
`distier.errors`: `Unavailable` (try again), `Conflict` (read again), `Corrupt` (heal), `Invalid` (fix the call).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

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
from distier.client.browsing import Browsing
from distier.client.events import EVENT_WAIT_MS, Watcher, next_events
from distier.client.fitting import Fitting
from distier.client.preload import Preload
from distier.client.ranges import Ranges
from distier.client.restoring import Restoring
from distier.client.searching import Search, Searching
from distier.client.session import Sessions
from distier.client.versions import Versions
from distier.domain.ids import check_id
from distier.domain.module import Event, Landed, Module, Moved, Tier
from distier.domain.order import Order
from distier.drive.sync import SyncDriver
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
    from distier.stores.local import LocalStore  # LMDB is loaded only when it is used


T = TypeVar("T")
OPEN_DEADLINE_S = 30.0
"""The least that opening a namespace may take: it may have to rebuild records."""
ARCHIVE_LOOK_S = 2.0
"""How long opening a store waits for the archive. Modules in Redis can be read without it."""


class Store(Browsing, Fitting, Ranges, Restoring, Searching, Sessions, Versions):
    """A namespace of modules with blocking methods. `connect` returns one.

    A store is thread-safe, and safe to use after a fork. Every method can raise `Unavailable` (a server did not answer within
    the deadline, or refused; try again) and `ConfigError` (Redis refused the credentials). "Raises" names the other errors.
    """

    def __init__(
        self,
        space: Namespace,
        redis: Exchange,
        archive: Archive,
        *,
        url: str | None = None,
        local: LocalStore | None = None,
        metrics: Sequence[MetricsHook] = (),
    ) -> None:
        self.space = space
        deadline_s = space.config.deadline_ms / 1000
        counters, archive = hooked(metrics, archive)
        self._driver = SyncDriver(
            redis, archive, deadline_s=deadline_s, recover=partial(recover, space), counters=counters
        )
        self.near = Near(space, url, self._driver.counters, self._driver.uses)
        self._near_get = self.near.get
        self._load: Callable[[], None] | None = getattr(space.counter, "load", None)
        self._preload: Preload | None = None
        self.searching = Search(space)
        self._watcher: Watcher | None = None
        self._driver.use_local(local)
        self._node: NodeThread | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Store(namespace={self.space.namespace!r}, redis={self._driver.redis!r})"

    def open(self) -> Store:
        """Check the namespace's shape, and create the namespace if it is new. `connect` does this.

        Raises:
            Invalid: the namespace has another key layout or another number of shards.
        """
        try:
            self.run(check_shape(self.space))  # reports a server that is down within the usual deadline
            self._look_at_archive()
            self.run(open_space(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
            self.run(open_quotas(self.space), deadline_s=max(OPEN_DEADLINE_S, self._driver.deadline_s))
        except BaseException:
            self._driver.close()
            raise
        self._serve_node()
        return self

    def open_existing(self, *, reading: bool = False) -> Store:
        """Open a namespace that exists already; see `connect_existing`."""
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
            pass  # the archive did not answer in time; reads from Redis do not need it

    def _serve_node(self) -> None:
        if self._driver.local is not None:
            from distier.node import NodeThread

            self._node = NodeThread(self._driver.run, self.space, self._driver.local, self._driver.peers)
            weakref.finalize(self, self._node.stopping.set)  # for a store that is dropped without `close`

    def run(
        self, plan: Plan[T], *, deadline_s: float | None = None, on_progress: Callable[[Any], object] | None = None
    ) -> T:
        """Run a plan of `distier.plans` on this store.

        Args:
            plan: the plan.
            deadline_s: seconds until the plan must have ended; the configured deadline if not given.
            on_progress: called with each value that the plan reports while it runs.

        Returns:
            The plan's result.

        Raises:
            DistierError: whatever the plan raises.
            Invalid: the store is closed.
        """
        if self._closed:
            raise Invalid("this store is closed")
        if self._node is not None and self._node.pid != os.getpid():
            self._serve_node()  # threads do not survive a fork
        return self._driver.run(plan, deadline_s, on_progress)

    def put(
        self, id: str, content: Content, *, content_type: str | None = None, keywords: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None, tokens: int | None = None, if_version: Expected = None,
        durability: Durability | None = None, ttl: float | None = None,
    ) -> Landed:  # fmt: skip
        """Write a version of a module.

        Args:
            id: the module id, 1 to 256 bytes of UTF-8.
            content: text (stored as UTF-8) or bytes, at most `max_module_bytes` long.
            content_type: the media type; guessed from the id and the content if not given.
            keywords: up to 64 keywords of 1 to 128 characters.
            meta: a mapping that JSON can hold, at most 64 KiB of JSON.
            tokens: the size of the content in tokens; counted if not given.
            if_version: write only if the module is at this version; 0 writes only if the module does not exist.
            durability: when the write is acknowledged: in `redis`, `replicated` or `archived` (see docs/PROTOCOL.md). The
                configured durability if not given.
            ttl: seconds after which the module expires, at most 100 years; None for never. From then on it is a miss for all
                readers, by the clock of the Redis server. The worker deletes it some minutes later.

        Returns:
            The new version, and the tier that it landed in.

        Raises:
            Invalid: an argument is impossible; nothing was changed.
            Conflict: the module is not at `if_version`; nothing was changed.
            Full: there is no room; nothing was changed.
            Unavailable: a server did not answer; the write may or may not have been applied.
        """
        if self._load is not None and tokens is None:
            self._load_counter()
        item = Item(id, content, content_type, keywords, meta, tokens, if_version, durability, ttl)
        with self.near.writing([id]):
            return self.run(put_plan(self.space, item), deadline_s=deadline_s_of(self.space, [item]))

    def _load_counter(self) -> None:
        """Load the counter's tables before the first put starts its deadline: on a busy machine they take a second."""
        if self._load is not None:
            self._load()
        self._load = None

    def _load_counter_soon(self) -> None:
        """Load the counter's tables in a thread, soon after now. `connect` does this."""
        self._preload = Preload(self, self.space.counter)

    def put_many(self, items: Iterable[Item]) -> Landings:
        """Write many modules.

        Args:
            items: one `Item` for each module; its fields are the arguments of `put`.

        Returns:
            One result for each item, in order: what `put` would return, or the `DistierError` that it would raise.

        Raises:
            Invalid: an element is not an `Item`; nothing was changed.
        """
        wanted = check_items(items)
        if self._load is not None and any(item.tokens is None for item in wanted):
            self._load_counter()
        with self.near.writing([item.id for item in wanted]):
            return self.run(put_many_plan(self.space, wanted), deadline_s=deadline_s_of(self.space, wanted))

    def get(self, id: str, *, version: Order | str | None = None) -> Module | None:
        """Read a module from its nearest copy.

        Args:
            id: the module id.
            version: read this version, from the archive if it is an older one (see `history`); the current one if not given.

        Returns:
            The module, or None if it, or that version of it, does not exist.

        Raises:
            Invalid: `id` is not a module id.
            Corrupt: every copy that was found is damaged.
            Unavailable: a server that is needed did not answer. This is never a miss.
        """
        if version is not None:
            return self.run(get_version(self.space, check_id(id), version))
        if (near := self._near_get(id)) is not None:
            return near
        with self.near.reading([check_id(id)]) as reading:
            module = self.run(get_plan(self.space, id, reading.suspects.get(id)))
            reading.fill({id: module})
        return module

    def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """Read many modules.

        Args:
            ids: the module ids.

        Returns:
            The modules by id, in the order of `ids`; None for a module that does not exist.

        Raises:
            Invalid: an element is not a module id.
            Corrupt: every copy of one of the modules is damaged.
            Unavailable: a server that is needed for one of the modules did not answer.
        """
        found = self.near.get_many(check_ids(ids))
        missing = [id for id, module in found.items() if module is None]
        with self.near.reading(missing) as reading:
            read_now = self.run(get_many_plan(self.space, missing, reading.suspects))
            reading.fill(read_now)
        return found | read_now

    def delete(self, id: str, *, if_version: Expected = None, durability: Durability | None = None) -> bool:
        """Delete a module from all tiers.

        Args:
            id: the module id.
            if_version: delete only if the module is at this version.
            durability: when the deletion is acknowledged, as for `put`.

        Returns:
            True if the module existed, otherwise False.

        Raises:
            Conflict: the module is not at `if_version`; nothing was changed.
            Unavailable: a server did not answer; the deletion may or may not have been applied.
        """
        with self.near.writing([check_id(id)]):
            return self.run(delete_plan(self.space, id, if_version, durability))

    def rename(
        self, old: str, new: str, *, if_version: Expected = None, durability: Durability | None = None
    ) -> Landed:
        """Give a module another id. Its versions under the old id stay in its history; pins and uses are not taken along.

        The module is put as `new` and then deleted as `old`, so both exist for a moment. If the call is interrupted between the
        two, call it again: it finishes what was begun. A module whose version is archived is archived as `new` first.

        Args:
            old: the id of the module.
            new: its id from now on. It must not exist, unless with the same content and description.
            if_version: rename only if the module is at this version.
            durability: when the writes are acknowledged, as for `put`.

        Returns:
            The version and tier of `new`; `replayed` is True if it was there already.

        Raises:
            NotFound: `old` does not exist.
            Conflict: `new` exists, or `old` is not at `if_version` or was changed meanwhile; nothing was renamed.
            Invalid: the two ids are the same.
            Unavailable: a server did not answer; both may exist. Call it again.
        """
        with self.near.writing([check_id(old), check_id(new)]):
            return self.run(rename_plan(self.space, old, new, if_version, durability))

    def promote(self, id: str) -> Moved:
        """Move a module to hot.

        Returns:
            The module's tier, and whether this call moved it. `reason` says why it was not moved.

        Raises:
            NotFound: the module does not exist.
            Corrupt: every copy that was found is damaged.
        """
        return self.run(promote_plan(self.space, check_id(id)))

    def demote(self, id: str, *, to: Tier | None = None) -> Moved:
        """Move a module one tier down, or down to the tier `to`.

        Args:
            id: the module id.
            to: `warm` or `cold`; the next lower tier if not given.

        Returns:
            The module's tier, and whether this call moved it. `reason` says why it was not moved.

        Raises:
            NotFound: the module does not exist.
        """
        return self.run(demote_plan(self.space, check_id(id), to))

    def promote_many(self, ids: Iterable[str]) -> Moves:
        """Move many modules to hot, and load them in parallel.

        Returns:
            One result for each id, in order: what `promote` would return, or the `DistierError` that it would raise.
        """
        return self.run(promote_many_plan(self.space, check_ids(ids)))

    def demote_many(self, ids: Iterable[str], *, to: Tier | None = None) -> Moves:
        """Move many modules one tier down, or down to the tier `to`.

        Returns:
            One result for each id, in order: what `demote` would return, or the `DistierError` that it would raise.
        """
        return self.run(demote_many_plan(self.space, check_ids(ids), to))

    def pin(self, id: str, ttl: float) -> int:
        """Move a module to hot, if there is room, and keep it in its tier for a time.

        Args:
            id: the module id.
            ttl: seconds, greater than 0 and at most 366 days.

        Returns:
            When the pin ends, in milliseconds since the Unix epoch, by the clock of the Redis server.

        Raises:
            NotFound: the module does not exist.
        """
        return self.run(pin_plan(self.space, check_id(id), check_ttl_ms(ttl)))

    def unpin(self, id: str) -> None:
        """End the module's pin, if it has one."""
        self.run(unpin_plan(self.space, check_id(id)))

    def stats(self) -> Stats:
        """Return the namespace's sums by tier, and the hits and misses of this process."""
        near = self.near.stats()
        enabled = self.space.config.prediction.enabled
        prediction = self._ahead.ahead.stats() if self._ahead and not self._ahead.is_over else PredictionStats(enabled)
        return self.run(read_stats(self.space, self._driver.counters.snapshot(), near, prediction))

    def archive_now(self, *, deadline_s: float = 300.0) -> int:
        """Archive all dirty modules now.

        Args:
            deadline_s: seconds that each shard may take.

        Returns:
            The number of versions that were archived.

        Raises:
            ArchiveUnavailable: the archive did not answer, or refused.
        """
        return sum(
            self.run(write_back_due(self.space, shard, older_than_ms=0), deadline_s=deadline_s)
            for shard in self.space.keys.shards
        )

    def flush(self, *, deadline_s: float = 300.0) -> int:
        """Archive all dirty modules now. Deprecated: call `archive_now`."""
        warn_renamed("flush", "archive_now")
        return self.archive_now(deadline_s=deadline_s)

    def events(self, *, since: str = "$", wait: bool = True) -> Iterator[Event]:
        """Iterate over the namespace's events, oldest first. The stream is a history that Redis trims, not a queue.

        Args:
            since: a stream id, to begin after it; `0` for all events that are kept; `$` for new events only.
            wait: wait for new events without end; False ends after the last event that exists.
        """
        cursor = self.run(Cursor.start(self.space.keys.shards, since))
        while True:
            found = self.run(next_events(cursor, EVENT_WAIT_MS if wait else 0, self.near))
            yield from found
            if not found and not wait:
                return

    def on(self, event: str, listener: Listener) -> Callable[[], None]:
        """Call a listener for every new event, in a thread of this store.

        An exception in a listener is logged; the listener is called for the next event all the same.

        Args:
            event: `tier_change` for tier changes, `event` for all events, archiving included.
            listener: called with one `Event`.

        Returns:
            A function that removes the listener.

        Raises:
            Invalid: `event` has another value.
        """
        check_event(event)
        if self._watcher is None:
            self._watcher = Watcher(self.run, self.run(Cursor.start(self.space.keys.shards, "$")), self.near)
        return self._watcher.add(event, listener)

    def close(self) -> None:
        """Send the uses that were gathered, stop threads and close connections.

        An embedded server keeps running for other processes. Closing a closed store does nothing.
        """
        if self._closed:
            return
        if self._preload is not None:
            self._preload.stop()
        if self._watcher is not None:
            self._watcher.stop()
        if self._node is not None:
            self._node.stop()
        if self._ahead is not None:
            self._ahead.stop()
        self.near.close()
        with suppress(DistierError):  # recency is a hint: closing must not fail while Redis is unavailable
            self.run(send_touch(self.space, self._driver.uses.drain()))
        self._closed = True
        self._driver.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
