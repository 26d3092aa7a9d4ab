"""The calls of both stores that find modules and tell what they are. None of them counts as a use or moves a module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol, cast

from distier.client.arguments import check_ids
from distier.domain.described import Described, Listed
from distier.domain.ids import check_id
from distier.domain.module import Placement, Tier
from distier.effects import Plan
from distier.plans.common.namespace import Namespace
from distier.plans.get.describe import describe as describe_plan
from distier.plans.get.explain import Explained
from distier.plans.get.explain import explain as explain_plan
from distier.plans.get.listing import LIMIT_MAX, check_listing, list_ids, list_page
from distier.plans.get.where import exists as exists_plan
from distier.plans.get.where import where as where_plan
from distier.plans.get.where import where_many as where_many_plan


class _Runner(Protocol):
    space: Namespace

    def run(self, plan: Plan[Any], /) -> Any: ...


class _AsyncRunner(Protocol):
    space: Namespace

    async def run(self, plan: Plan[Any], /) -> Any: ...


class Browsing:
    """The methods of `Store` that find modules and tell what they are."""

    def exists(self, id: str) -> bool:
        """Return whether the module exists. This does not count as a use."""
        store = cast(_Runner, self)
        return bool(store.run(exists_plan(store.space, check_id(id))))

    def where(self: Any, id: str) -> Placement | None:
        """Return where the module is: tier, version, sizes, uses, times and nodes with copies. This does not count as a use.

        Returns:
            The placement, or None if the module does not exist.
        """
        found: Placement | None = self.run(where_plan(self.space, check_id(id)))
        return found

    def where_many(self, ids: Iterable[str]) -> dict[str, Placement | None]:
        """Return where many modules are, with a round trip per 500.

        Args:
            ids: the module ids.

        Returns:
            What `where` returns by id, in the order of `ids`.
        """
        store = cast(_Runner, self)
        found: dict[str, Placement | None] = store.run(where_many_plan(store.space, check_ids(ids)))
        return found

    def explain(self, id: str) -> Explained | None:
        """Return why the module is where it is, and how many would be evicted before it; None if it does not exist."""
        store = cast(_Runner, self)
        found: Explained | None = store.run(explain_plan(store.space, check_id(id)))
        return found

    def describe(self, ids: Iterable[str]) -> dict[str, Described | None]:
        """Return what modules are, without their contents: keywords, meta, sizes, digest, version and times.

        This reads the records only, with a round trip per 500. It does not count as a use.

        Args:
            ids: the module ids.

        Returns:
            The descriptions by id, in the order of `ids`; None for a module that does not exist.

        Raises:
            Invalid: an element is not a module id.
            Corrupt: one of the records is damaged.
        """
        store = cast(_Runner, self)
        found: dict[str, Described | None] = store.run(describe_plan(store.space, check_ids(ids)))
        return found

    def page(self, prefix: str = "", *, after: str = "", limit: int = 100, tier: Tier | None = None) -> Listed:
        """Return the next modules with this prefix, in the order of the bytes of their ids.

        A page costs the same at any size of the namespace. Continue with `after=page.after` until that is None. It is an id,
        so it stays valid when modules come and go, in another process, and after a failover.

        Args:
            prefix: the beginning of the ids; empty for all ids.
            after: only ids after this one; empty for the first page.
            limit: the maximum number of modules, at least 1; more than 1,000 count as 1,000.
            tier: only modules in this tier; None for all tiers.

        Returns:
            The descriptions of the modules, and what continues them.

        Raises:
            Invalid: an argument is impossible.
            Corrupt: one of the records is damaged.
        """
        store = cast(_Runner, self)
        found: Listed = store.run(list_page(store.space, prefix, after, check_limit(limit), tier))
        return found

    def list(
        self, prefix: str = "", *, after: str = "", tier: Tier | None = None, limit: int | None = None
    ) -> Iterator[str]:
        """Iterate over the ids with this prefix, in the order of their bytes.

        The ids are read while you iterate: an id that exists from the start to the end is returned, and one that comes or goes
        meanwhile may be.

        Args:
            prefix: the beginning of the ids; empty for all ids.
            after: only ids after this one.
            tier: only modules in this tier; None for all tiers.
            limit: the maximum number of ids; None for no limit.
        """
        for id, _ in self.scan(prefix, after=after, tier=tier, limit=limit):
            yield id

    def scan(
        self, prefix: str = "", *, after: str = "", tier: Tier | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, Tier]]:
        """Iterate over pairs of id and tier; otherwise as `list`."""
        store, pages = cast(_Runner, self), _Pages(prefix, after, tier, limit)
        while not pages.done:
            yield from pages.add(store.run(pages.next(store.space)))


class AsyncBrowsing:
    """The same for `AsyncStore`."""

    async def exists(self, id: str) -> bool:
        """As `Store.exists`."""
        store = cast(_AsyncRunner, self)
        return bool(await store.run(exists_plan(store.space, check_id(id))))

    async def where(self: Any, id: str) -> Placement | None:
        """As `Store.where`."""
        found: Placement | None = await self.run(where_plan(self.space, check_id(id)))
        return found

    async def where_many(self, ids: Iterable[str]) -> dict[str, Placement | None]:
        """As `Store.where_many`."""
        store = cast(_AsyncRunner, self)
        found: dict[str, Placement | None] = await store.run(where_many_plan(store.space, check_ids(ids)))
        return found

    async def explain(self, id: str) -> Explained | None:
        """As `Store.explain`."""
        store = cast(_AsyncRunner, self)
        found: Explained | None = await store.run(explain_plan(store.space, check_id(id)))
        return found

    async def describe(self, ids: Iterable[str]) -> dict[str, Described | None]:
        """As `Store.describe`."""
        store = cast(_AsyncRunner, self)
        found: dict[str, Described | None] = await store.run(describe_plan(store.space, check_ids(ids)))
        return found

    async def page(self, prefix: str = "", *, after: str = "", limit: int = 100, tier: Tier | None = None) -> Listed:
        """As `Store.page`."""
        store = cast(_AsyncRunner, self)
        found: Listed = await store.run(list_page(store.space, prefix, after, check_limit(limit), tier))
        return found

    async def list(
        self, prefix: str = "", *, after: str = "", tier: Tier | None = None, limit: int | None = None
    ) -> AsyncIterator[str]:
        """As `Store.list`."""
        async for id, _ in self.scan(prefix, after=after, tier=tier, limit=limit):
            yield id

    async def scan(
        self, prefix: str = "", *, after: str = "", tier: Tier | None = None, limit: int | None = None
    ) -> AsyncIterator[tuple[str, Tier]]:
        """As `Store.scan`."""
        store, pages = cast(_AsyncRunner, self), _Pages(prefix, after, tier, limit)
        while not pages.done:
            for found in pages.add(await store.run(pages.next(store.space))):
                yield found


def check_limit(limit: int) -> int:
    """Return the limit of a page. Raises `Invalid`."""
    check_listing("", "", limit, None, 1)
    return min(limit, LIMIT_MAX)


class _Pages:
    """The pages of an iteration over ids: each is a plan with a deadline of its own."""

    def __init__(self, prefix: str, after: str, tier: Tier | None, limit: int | None) -> None:
        check_listing(prefix, after, limit, tier)
        self._prefix, self._tier, self._left = prefix, tier, limit
        self._after: str | None = after

    @property
    def done(self) -> bool:
        return self._after is None or self._left == 0

    def next(self, space: Namespace) -> Plan[Any]:
        most = LIMIT_MAX if self._left is None else min(self._left, LIMIT_MAX)
        return list_ids(space, self._prefix, self._after or "", most, self._tier)

    def add(self, part: Any) -> list[tuple[str, Tier]]:
        found: list[tuple[str, Tier]] = part.rows
        self._after = part.after
        if self._left is not None:
            self._left -= len(found)
        return found
