"""The call `search` of both stores. Each process keeps an index of its own, which follows the shards' events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from distier.client.browsing import check_limit
from distier.domain.described import Found
from distier.domain.module import Event
from distier.domain.search import Builder, Index, Query, entries_of, parse_query
from distier.effects import Offload, Pipeline, Plan, collect
from distier.errors import Invalid
from distier.lua import state
from distier.observe.events import Cursor, are_lost, read_events
from distier.plans.common.namespace import Namespace
from distier.plans.get.describe import describe
from distier.plans.get.listing import LIMIT_MAX, list_page

CHANGES = frozenset({"put", "delete", "recover", "repair"})
"""Reasons of events that may change a description. All others are moves, unless a module comes or goes."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The index of a process, and how far it has followed the events of which epochs."""

    index: Index
    cursor: Cursor
    epochs: tuple[int, ...]


@dataclass(slots=True)
class _Building:
    """An index whose records are being read: those that were read, and where to go on."""

    cursor: Cursor
    epochs: tuple[int, ...]
    modules: Builder
    after: str | None


class Search:
    """The index of one store. Calls of several threads may refresh it at once: the last one to end leaves its result."""

    def __init__(self, space: Namespace) -> None:
        self._space = space
        self._known: _Known | None = None
        self._building: _Building | None = None

    def find(self, query: Query, prefix: str, start: int, limit: int) -> Plan[Found]:
        """Return the modules that match, described from their records as they are now."""
        known = yield from self._refreshed()
        ids, total = known.index.find(query, prefix=prefix, start=start, limit=limit)
        found = (yield from describe(self._space, ids)) if ids else {}
        return Found(tuple(module for module in found.values() if module is not None), total)

    def _refreshed(self) -> Plan[_Known]:
        known = self._known
        epochs = yield from self._epochs()
        if known is None or known.epochs != epochs or (yield from are_lost(known.cursor)):
            known = yield from self._built(epochs)
        self._known = known = yield from self._followed(known)
        return known

    def _epochs(self) -> Plan[tuple[int, ...]]:
        replies = yield from Pipeline([state(shard) for shard in self._space.keys.shards])
        return tuple(collect(reply).epoch for reply in replies)

    def _built(self, epochs: tuple[int, ...]) -> Plan[_Known]:
        """Read all records. A call that reaches its deadline leaves what it has read to the next one."""
        building, self._building = self._building, None  # another thread begins one of its own
        if building is None or building.epochs != epochs or (yield from are_lost(building.cursor)):
            cursor = yield from Cursor.start(self._space.keys.shards, "$")  # before the records are read
            building = _Building(cursor, epochs, Builder(), "")
        try:
            while building.after is not None:
                page = yield from list_page(self._space, "", building.after, LIMIT_MAX)
                for module in page.modules:
                    building.modules.add(module.id, entries_of(module))
                building.after = page.after
        except BaseException:
            self._building = building
            raise
        modules = building.modules
        index = yield from Offload(len(modules.ids) * 1024, lambda: Index.of(modules), "making the index for searches")
        return _Known(index, building.cursor, epochs)

    def _followed(self, known: _Known) -> Plan[_Known]:
        cursor = Cursor(dict(known.cursor.last))
        changed: dict[str, None] = {}
        while events := (yield from read_events(cursor, 0)):
            changed |= {event.id: None for event in events if _changes(event)}
        if not changed:
            return _Known(known.index, cursor, known.epochs)
        found = yield from describe(self._space, list(changed))
        entries = {id: None if module is None else entries_of(module) for id, module in found.items()}
        return _Known(known.index.changed(entries), cursor, known.epochs)


def _changes(event: Event) -> bool:
    return event.reason in CHANGES or not {event.from_, event.to} <= {"hot", "warm", "cold"}


class _Runner(Protocol):
    space: Namespace
    searching: Search

    def run(self, plan: Plan[Found], /) -> Found: ...


class _AsyncRunner(Protocol):
    space: Namespace
    searching: Search

    async def run(self, plan: Plan[Found], /) -> Found: ...


class Searching:
    """The method of `Store` that finds modules by words."""

    def search(self, query: str, *, prefix: str = "", start: int = 0, limit: int = 20) -> Found:
        """Find modules by words of their ids, keywords, names and descriptions (those of `meta`).

        All words must be there, in any order and case: `pdf forms`. `-word` excludes, `word*` is a beginning, `keyword:pdf`
        is a whole keyword (`keyword:"two words"`), `name:pdf` a word of the id or the name, `description:pdf` one of the
        description.
        Results are in the order of their scores: rare words count more, and keywords and names more than descriptions.

        The first call of a process reads all records and makes an index, which takes about 20 ms for a thousand modules and 130
        bytes for each. If its deadline is too short for that, the next call goes on. Later calls read the events since the last
        one. It does not count as a use.

        Args:
            query: what to find, at most 1,000 characters and 8 words.
            prefix: only modules whose ids begin with it.
            start: how many of the best results to leave out.
            limit: the maximum number of modules, at least 1; more than 1,000 count as 1,000.

        Raises:
            Invalid: an argument is impossible, or the query wants nothing.
        """
        store = cast(_Runner, self)
        return store.run(search_plan(store.searching, query, prefix, start, limit))


class AsyncSearching:
    """The same for `AsyncStore`."""

    async def search(self, query: str, *, prefix: str = "", start: int = 0, limit: int = 20) -> Found:
        """As `Store.search`."""
        store = cast(_AsyncRunner, self)
        return await store.run(search_plan(store.searching, query, prefix, start, limit))


def search_plan(searching: Search, query: str, prefix: Any, start: Any, limit: int) -> Plan[Found]:
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise Invalid(f"start must be a whole number from 0, not {start!r}")
    if not isinstance(prefix, str):
        raise Invalid(f"prefix must be a str, not {type(prefix).__name__}")
    return searching.find(parse_query(query), prefix, start, check_limit(limit))
