"""Sessions: one agent's reads in order, from which its store learns and loads ahead."""

from __future__ import annotations

import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, cast

from distier.client.ahead import Ahead, Reads, check_keywords
from distier.client.arguments import check_ids
from distier.client.background import AheadTask, AheadThread
from distier.domain.module import Module
from distier.drive.aio import AsyncDriver
from distier.drive.sync import SyncDriver
from distier.errors import Invalid
from distier.near import Near
from distier.near.facade import FILL_MAX
from distier.plans.common.namespace import Namespace
from distier.policy.predict import Context, Prediction

if TYPE_CHECKING:
    from distier.client.aio import AsyncStore
    from distier.client.store import Store


def _note_many(reads: Reads | None, found: dict[str, Module | None]) -> None:
    if reads is not None and len(found) <= FILL_MAX:  # more is a scan, and no agent's path
        for id, module in found.items():
            if module is not None:
                reads.note(id)


def _with_time(context: Context) -> Context:
    if not isinstance(context, Context):
        raise Invalid(f"predict_access takes a distier.Context, not {type(context).__name__}")
    return context._replace(recent=tuple(check_ids(context.recent)), now_s=context.now_s or time.time())


class Session:
    """The reads of one agent. `Store.session` returns it, and `with` ends it.

    `get` and `get_many` return what those of the store return. In addition they note the order of the ids, and the store's
    background learns from it and brings nearer what this session will probably read next. With `prediction.enabled: false`,
    they are the store's own methods.
    """

    def __init__(self, store: Store, reads: Reads | None, wake: Callable[[], None] | None) -> None:
        self.store = store
        self._reads, self._wake = reads, wake
        self._near_get = store.near.get
        self.get: Callable[[str], Module | None] = self._get if reads is not None else store.get
        """As `Store.get`."""
        self._note: Callable[[str], None] = reads.note if reads is not None else _nothing

    def _get(self, id: str) -> Module | None:
        module = self._near_get(id)
        if module is None:
            module = self.store.get(id)
            if module is None:
                return None
        self._note(id)
        return module

    def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """As `Store.get_many`."""
        found = self.store.get_many(ids)
        _note_many(self._reads, found)
        return found

    def close(self) -> None:
        """End the session: what was learned goes to the fleet. Closing it twice does nothing."""
        _end(self._reads, self._wake)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSession:
    """As `Session`, for an `AsyncStore`: `async with store.session(...) as session: await session.get(id)`."""

    def __init__(self, store: AsyncStore, reads: Reads | None) -> None:
        self.store = store
        self._reads = reads
        self._near_get = store.near.get
        self.get: Callable[[str], Awaitable[Module | None]] = self._get if reads is not None else store.get
        """As `AsyncStore.get`."""
        self._note: Callable[[str], None] = reads.note if reads is not None else _nothing

    async def _get(self, id: str) -> Module | None:
        module = self._near_get(id)
        if module is None:
            module = await self.store.get(id)
            if module is None:
                return None
        self._note(id)
        return module

    async def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """As `AsyncStore.get_many`."""
        found = await self.store.get_many(ids)
        _note_many(self._reads, found)
        return found

    def close(self) -> None:
        """As `Session.close`."""
        _end(self._reads, None)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _check_open(closed: bool) -> None:
    if closed:
        raise Invalid("this store is closed")


def _nothing(_: str) -> None:
    """Note nothing."""


def _end(reads: Reads | None, wake: Callable[[], None] | None) -> None:
    if reads is not None and not reads.ended:
        reads.ended = True
        if wake is not None:
            wake()


class Sessions:
    """The part of `Store` that learns and predicts."""

    space: Namespace
    near: Near
    _driver: SyncDriver
    _closed: bool
    _ahead: AheadThread | None = None

    def session(self, *, keywords: Iterable[str] = ()) -> Session:
        """Begin the session of one agent: `with store.session(keywords=["pdf"]) as session: session.get(id)`.

        Args:
            keywords: what the agent is about to do, at most 16 keywords of 1 to 128 characters. Sessions with the same keyword
                are expected to read the same modules.

        Raises:
            Invalid: the keywords are impossible, or the store is closed.
        """
        wanted = check_keywords(keywords)
        _check_open(self._closed)
        if not self.space.config.prediction.enabled:
            return Session(cast("Store", self), None, None)
        thread = self._load_ahead()
        reads = thread.ahead.join(wanted)
        thread.wake()
        return Session(cast("Store", self), reads, thread.wake)

    def predict_access(self, context: Context) -> list[Prediction]:
        """Return what will probably be read next in a context, most probable first.

        Args:
            context: the modules that were read last, oldest first, and the keywords of the session. Without `now_s`, it is now.

        Raises:
            Invalid: the context is impossible.
        """
        _check_open(self._closed)
        return self._driver.run(self._load_ahead().ahead.predict_access(_with_time(context)))

    def _load_ahead(self) -> AheadThread:
        thread = self._ahead
        if thread is None or thread.is_over:
            thread = self._ahead = AheadThread(self._driver.run, Ahead(self.space, self.near, time.monotonic()))
            weakref.finalize(self, thread.abandon)  # for a store that is dropped without `close`
        return thread


class AsyncSessions:
    """The part of `AsyncStore` that learns and predicts."""

    space: Namespace
    near: Near
    _driver: AsyncDriver
    _closed: bool
    _ahead: Ahead | None = None
    _ahead_task: AheadTask | None = None

    def session(self, *, keywords: Iterable[str] = ()) -> AsyncSession:
        """As `Store.session`: `async with store.session() as session`. Call it on the event loop of its reads."""
        wanted = check_keywords(keywords)
        _check_open(self._closed)
        if not self.space.config.prediction.enabled:
            return AsyncSession(cast("AsyncStore", self), None)
        ahead = self._known_ahead()
        reads = ahead.join(wanted)
        if self._ahead_task is None or self._ahead_task.is_over:
            self._ahead_task = AheadTask(self._driver.run, ahead)
        return AsyncSession(cast("AsyncStore", self), reads)

    async def predict_access(self, context: Context) -> list[Prediction]:
        """As `Store.predict_access`."""
        _check_open(self._closed)
        return await self._driver.run(self._known_ahead().predict_access(_with_time(context)))

    def _known_ahead(self) -> Ahead:
        if self._ahead is None:
            self._ahead = Ahead(self.space, self.near, time.monotonic())
        return self._ahead
