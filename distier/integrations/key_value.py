"""A store of py-key-value (FastMCP's storage) in distier: `DistierStore`. Needs the extra `key-value`.

store = DistierStore(await distier.connect_async())
server = FastMCP(..., client_storage=store)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from key_value.aio.errors import DeserializationError, StoreConnectionError
from key_value.aio.stores.base import (
    SEED_DATA_TYPE,
    BaseCullStore,
    BaseDestroyCollectionStore,
    BaseDestroyStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
    ManagedEntry,
)

from distier.client import AsyncStore, Store
from distier.domain.module import Module
from distier.errors import Conflict, Corrupt, Unavailable
from distier.integrations.shared import Bridge, Ids, Steps, delete, delete_all, get_all, list_paths, put_all

T = TypeVar("T")
CULLED_AT_ONCE = 100
TTL_MIN_S = 0.001


class DistierStore(
    BaseEnumerateKeysStore, BaseEnumerateCollectionsStore, BaseDestroyCollectionStore, BaseDestroyStore, BaseCullStore
):
    """A key-value store whose entries are modules of distier. The key K of the collection C is the module `ROOT/C/K`.

    An entry with a TTL is a module with that TTL.

    Args:
        store: what `distier.connect_async()` returned, or what `connect()` returned: then calls work in a thread. It is not
            closed with this store.
        root: the first segments of the ids.
        default_collection: the collection of calls that name none.
        seed: values by collection and key, which the first call writes.

    Raises:
        StoreConnectionError: a server does not answer, or refuses; its cause is the error of distier.
        DeserializationError: a module is damaged, or is no entry of a store.
    """

    def __init__(
        self, store: Store | AsyncStore, *, root: str = "key-value", default_collection: str | None = None,
        seed: SEED_DATA_TYPE | None = None,
    ) -> None:  # fmt: skip
        self._bridge, self._ids = Bridge(store), Ids(root)
        super().__init__(default_collection=default_collection, seed=seed, stable_api=True)

    async def _run(self, steps: Steps[T]) -> T:
        try:
            return await self._bridge.arun(steps)
        except Unavailable as e:
            raise StoreConnectionError(message=str(e)) from e
        except Corrupt as e:
            raise DeserializationError(message=str(e)) from e

    def _entry(self, module: Module | None) -> ManagedEntry | None:
        if module is None:
            return None
        try:
            return self._serialization_adapter.load_json(json_str=module.text)
        except UnicodeDecodeError as e:
            raise DeserializationError(message=str(e)) from e

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        return (await self._get_managed_entries(collection=collection, keys=[key]))[0]

    async def _get_managed_entries(self, *, collection: str, keys: Sequence[str]) -> list[ManagedEntry | None]:
        ids = [self._ids.id((collection, key)) for key in keys]
        found = await self._run(get_all(ids))
        return [self._entry(found[id]) for id in ids]

    async def _put_managed_entry(self, *, collection: str, key: str, managed_entry: ManagedEntry) -> None:
        await self._put(collection, {key: managed_entry})

    async def _put_managed_entries(
        self, *, collection: str, keys: Sequence[str], managed_entries: Sequence[ManagedEntry], ttl: float | None,
        created_at: datetime, expires_at: datetime | None,
    ) -> None:  # fmt: skip
        await self._put(collection, dict(zip(keys, managed_entries, strict=True)))

    async def _put(self, collection: str, entries: dict[str, ManagedEntry]) -> None:
        items = [
            self._ids.item(
                (collection, key),
                self._serialization_adapter.dump_json(entry=entry),
                "application/json",
                ttl=_ttl(entry),
            )
            for key, entry in entries.items()
        ]
        await self._run(put_all(items))

    async def _delete_managed_entry(self, *, key: str, collection: str) -> bool:
        return await self._delete_managed_entries(keys=[key], collection=collection) == 1

    async def _delete_managed_entries(self, *, keys: Sequence[str], collection: str) -> int:
        return await self._run(delete_all([self._ids.id((collection, key)) for key in keys]))

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        return [path[1] for path in (await self._run(self._paths((collection,)))).values()][:limit]

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        return list(dict.fromkeys(path[0] for path in (await self._run(self._paths(()))).values()))[:limit]

    def _paths(self, prefix: tuple[str, ...]) -> Steps[dict[str, tuple[str, ...]]]:
        """Return (collection, key) by id, of the ids in order."""
        return {id: path for id, path in (yield from list_paths(self._ids, prefix)).items() if len(path) == 2}

    async def _delete_collection(self, *, collection: str) -> bool:
        return await self._run(self._clear((collection,))) > 0

    async def _delete_store(self) -> bool:
        return await self._run(self._clear(())) > 0

    def _clear(self, prefix: tuple[str, ...]) -> Steps[int]:
        return (yield from delete_all(list((yield from self._paths(prefix)))))

    async def _cull(self) -> None:
        await self._run(self._cull_steps())

    def _cull_steps(self) -> Steps[None]:
        left = list((yield from self._paths(())))
        while left:
            now, left = left[:CULLED_AT_ONCE], left[CULLED_AT_ONCE:]
            for id, module in (yield from get_all(now)).items():
                try:
                    entry = self._entry(module)
                except DeserializationError:
                    continue  # it is no entry of a store, and so not ours to delete
                if module and entry and entry.is_expired:
                    with suppress(Conflict):  # it was written again meanwhile
                        yield from delete(id, module.version)


def _ttl(entry: ManagedEntry) -> float | None:
    """Return the TTL of an entry; the least one if it has expired before it is written."""
    return None if entry.ttl is None else max(entry.ttl, TTL_MIN_S)
