"""The methods of the stores about older versions of a module."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from distier.domain.ids import check_id
from distier.domain.module import HistoryEntry, Landed
from distier.domain.order import Order
from distier.effects import Plan
from distier.plans.get.history import history as history_plan
from distier.plans.put.prepare import Durability, Expected
from distier.plans.put.rollback import rollback as rollback_plan

if TYPE_CHECKING:
    from distier.plans.common.namespace import Namespace

T = TypeVar("T")


class _Near(Protocol):
    def writing(self, ids: Iterable[str]) -> AbstractContextManager[Any]: ...


class _Store(Protocol):
    space: Namespace
    near: _Near

    def run(self, plan: Plan[T]) -> T: ...


class Versions:
    """The methods of `Store` about older versions."""

    def history(self, id: str, *, limit: int = 100) -> list[HistoryEntry]:
        """Return the versions of a module that Redis or the archive has, the newest first.

        The archive keeps `cold.keep_versions` of them (1 by default: the current one). After a failure it may have others. A
        version is archived some time after its put; an earlier one that was replaced before that is not kept.

        Args:
            id: the module id.
            limit: the maximum number of versions, 1 to 1000. Each is described by a request to the archive.

        Returns:
            The versions; empty if there is no trace of the module.

        Raises:
            ArchiveUnavailable: the archive did not answer.
        """
        store = cast(_Store, self)
        return store.run(history_plan(store.space, check_id(id), limit))

    def rollback(
        self, id: str, version: Order | str, *, if_version: Expected = None, durability: Durability | None = None
    ) -> Landed:
        """Put an older version of a module again, as a new version. Also brings a deleted module back.

        Args:
            id: the module id.
            version: the version to go back to, such as `3-41`; see `history`.
            if_version: write only if the module is at this version; 0 writes only if it does not exist.
            durability: when the write is acknowledged, as for `put`.

        Returns:
            The new version, and the tier that it landed in.

        Raises:
            NotFound: neither Redis nor the archive has that version.
            Conflict: the module is not at `if_version`; nothing was changed.
            ArchiveUnavailable: the archive did not answer; nothing was changed.
        """
        store = cast(_Store, self)
        with store.near.writing([check_id(id)]):
            return store.run(rollback_plan(store.space, id, version, if_version, durability))


class _AsyncStore(Protocol):
    space: Namespace
    near: _Near

    async def run(self, plan: Plan[T]) -> T: ...


class AsyncVersions:
    """The same for `AsyncStore`."""

    async def history(self, id: str, *, limit: int = 100) -> list[HistoryEntry]:
        """As `Store.history`."""
        store = cast(_AsyncStore, self)
        return await store.run(history_plan(store.space, check_id(id), limit))

    async def rollback(
        self, id: str, version: Order | str, *, if_version: Expected = None, durability: Durability | None = None
    ) -> Landed:
        """As `Store.rollback`."""
        store = cast(_AsyncStore, self)
        with store.near.writing([check_id(id)]):
            return await store.run(rollback_plan(store.space, id, version, if_version, durability))
