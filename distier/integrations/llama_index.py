"""LlamaIndex's key-value store in distier: `DistierKVStore`. Needs the package `llama-index-core`.

documents = KVDocumentStore(DistierKVStore(distier.connect()))   # also KVIndexStore, IngestionCache
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_BATCH_SIZE, DEFAULT_COLLECTION, BaseKVStore

from distier.client import AsyncStore, Store
from distier.domain.module import Module
from distier.integrations.shared import Bridge, Ids, Steps, delete, get_all, list_paths, put_all

Value = dict[str, Any]
READ_AT_ONCE = 100


class DistierKVStore(BaseKVStore):
    """A key-value store whose values are modules of distier.

    The key K of the collection C is the module `ROOT/C/K`, with its value as JSON.

    Args:
        store: what `distier.connect()` returned; then asyncio methods work in a thread. With what `connect_async()`
            returned, only asyncio methods work.
        root: the first segments of the ids.

    Every method raises `distier.Unavailable` if a server does not answer.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "llama-index") -> None:
        self._bridge, self._ids = Bridge(store), Ids(root)

    def put(self, key: str, val: Value, collection: str = DEFAULT_COLLECTION) -> None:
        """Write a value."""
        self._bridge.run(self._put([(key, val)], collection))

    async def aput(self, key: str, val: Value, collection: str = DEFAULT_COLLECTION) -> None:
        """As `put`."""
        await self._bridge.arun(self._put([(key, val)], collection))

    def put_all(
        self,
        kv_pairs: Sequence[tuple[str, Value]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """Write values. All are sent at once, whatever `batch_size` is; of several for one key, the last is written."""
        self._bridge.run(self._put(kv_pairs, collection))

    async def aput_all(
        self,
        kv_pairs: Sequence[tuple[str, Value]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """As `put_all`."""
        await self._bridge.arun(self._put(kv_pairs, collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> Value | None:
        """Return the value of a key, or None."""
        return self._bridge.run(self._get(key, collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> Value | None:
        """As `get`."""
        return await self._bridge.arun(self._get(key, collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, Value]:
        """Return the values of a collection by key, in the order of the ids."""
        return self._bridge.run(self._get_all(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, Value]:
        """As `get_all`."""
        return await self._bridge.arun(self._get_all(collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete a key, and return whether it existed."""
        return self._bridge.run(delete(self._ids.id((collection, key))))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """As `delete`."""
        return await self._bridge.arun(delete(self._ids.id((collection, key))))

    def _put(self, pairs: Sequence[tuple[str, Value]], collection: str) -> Steps[None]:
        yield from put_all([
            self._ids.item((collection, key), json.dumps(value), "application/json") for key, value in dict(pairs).items()
        ])  # fmt: skip

    def _get(self, key: str, collection: str) -> Steps[Value | None]:
        id = self._ids.id((collection, key))
        return _value((yield from get_all([id]))[id])

    def _get_all(self, collection: str) -> Steps[dict[str, Value]]:
        paths = {id: path for id, path in (yield from list_paths(self._ids, (collection,))).items() if len(path) == 2}
        found: dict[str, Value] = {}
        ids = list(paths)
        for start in range(0, len(ids), READ_AT_ONCE):
            modules = yield from get_all(ids[start : start + READ_AT_ONCE])
            found |= {paths[id][1]: value for id, module in modules.items() if (value := _value(module)) is not None}
        return found


def _value(module: Module | None) -> Value | None:
    value: Value | None = None if module is None else json.loads(module.content)
    return value
