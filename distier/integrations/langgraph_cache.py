"""LangGraph's cache of nodes in distier: `DistierCache`. Needs the extra `langgraph`.

graph = builder.compile(cache=DistierCache(distier.connect()))   # nodes with cache_policy=CachePolicy(ttl=60)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from langgraph.cache.base import BaseCache, FullKey, Namespace
from langgraph.checkpoint.serde.base import SerializerProtocol

from distier.client import AsyncStore, Store
from distier.domain.content_types import BINARY
from distier.integrations.shared import Bridge, Ids, Steps, delete_all, get_all, list_paths, put_all

Value = TypeVar("Value")
ENCODING = "encoding"


class DistierCache(BaseCache[Value]):
    """A cache whose values are modules that all processes share. The key K of the namespace (A, B) is the module `ROOT/A/B/K`.

    A value with a TTL is a module with that TTL. A value that this serializer cannot read is a miss; the node then runs, and
    replaces it.

    Args:
        store: what `distier.connect()` returned; then asyncio methods work in a thread. With what `connect_async()`
            returned, only asyncio methods work.
        serde: makes bytes of values; LangGraph's own if not given.
        root: the first segments of the ids.

    Every method raises `distier.Unavailable` if a server does not answer.
    """

    def __init__(
        self, store: Store | AsyncStore, *, serde: SerializerProtocol | None = None, root: str = "langgraph-cache"
    ) -> None:
        super().__init__(serde=serde)
        self._bridge, self._ids = Bridge(store), Ids(root)

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, Value]:
        """Return the values of those keys that have one."""
        return self._bridge.run(self._get(keys))

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, Value]:
        """As `get`."""
        return await self._bridge.arun(self._get(keys))

    def set(self, pairs: Mapping[FullKey, tuple[Value, int | None]]) -> None:
        """Write values, each with its TTL in seconds, or None."""
        self._bridge.run(self._set(pairs))

    async def aset(self, pairs: Mapping[FullKey, tuple[Value, int | None]]) -> None:
        """As `set`."""
        await self._bridge.arun(self._set(pairs))

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Delete the values of these namespaces, without those below them; all values of this cache if none are given."""
        self._bridge.run(self._clear(namespaces))

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """As `clear`."""
        await self._bridge.arun(self._clear(namespaces))

    def _get(self, keys: Sequence[FullKey]) -> Steps[dict[FullKey, Value]]:
        ids = {(tuple(namespace), key): self._ids.id((*namespace, key)) for namespace, key in keys}
        modules = yield from get_all(list(ids.values()))
        values: dict[FullKey, Value] = {}
        for full, id in ids.items():
            module = modules[id]
            if module is not None:
                with suppress(Exception):  # a serializer may raise anything
                    values[full] = self.serde.loads_typed((module.meta[ENCODING], module.content))
        return values

    def _set(self, pairs: Mapping[FullKey, tuple[Value, int | None]]) -> Steps[None]:
        items, over = [], []
        for (namespace, key), (value, ttl_s) in pairs.items():
            path = (*namespace, key)
            if ttl_s is not None and ttl_s <= 0:
                over.append(self._ids.id(path))
                continue
            encoding, content = self.serde.dumps_typed(value)
            items.append(self._ids.item(path, content, BINARY, meta={ENCODING: encoding}, ttl=ttl_s))
        yield from put_all(items)
        yield from delete_all(over)

    def _clear(self, namespaces: Sequence[Namespace] | None) -> Steps[None]:
        for namespace in [()] if namespaces is None else namespaces:
            paths = yield from list_paths(self._ids, tuple(namespace))
            own = [id for id, path in paths.items() if namespaces is None or path[:-1] == tuple(namespace)]
            yield from delete_all(own)
