"""LangChain's stores and its cache of LLM calls in distier: `DistierByteStore` and `DistierCache`. Needs the extra `langchain`.

set_llm_cache(DistierCache(distier.connect()))
embedder = CacheBackedEmbeddings.from_bytes_store(model, DistierByteStore(distier.connect()), namespace="m")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.messages import message_to_dict, messages_from_dict
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from langchain_core.stores import ByteStore

from distier.client import AsyncStore, Store
from distier.domain.content_types import BINARY
from distier.integrations.shared import Bridge, Ids, Steps, delete_all, get_all, list_paths, list_rows, put_all

KINDS: dict[str, type[Generation]] = {
    kind.__name__: kind for kind in (Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk)
}


class DistierByteStore(ByteStore):
    """A key-value store of LangChain whose values are modules of distier. The key K is the module `ROOT/K`.

    Args:
        store: what `distier.connect()` returned; then asyncio methods work in a thread. With what `connect_async()`
            returned, only asyncio methods work.
        root: the first segments of the ids.

    Every method raises `distier.Unavailable` if a server does not answer.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "langchain/store") -> None:
        self._bridge, self._ids = Bridge(store), Ids(root)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key; None for a key that does not exist."""
        return self._bridge.run(self._get(keys))

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `mget`."""
        return await self._bridge.arun(self._get(keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Write values. Each is a write of its own; of several values for one key, the last one is written."""
        self._bridge.run(self._set(key_value_pairs))

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """As `mset`."""
        await self._bridge.arun(self._set(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys. Those that do not exist are no error."""
        self._bridge.run(delete_all(self._ids_of(keys)))

    async def amdelete(self, keys: Sequence[str]) -> None:
        """As `mdelete`."""
        await self._bridge.arun(delete_all(self._ids_of(keys)))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Iterate over the keys with this prefix, in the order of their ids."""
        yield from self._bridge.run(self._keys(prefix or ""))

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """As `yield_keys`."""
        for key in await self._bridge.arun(self._keys(prefix or "")):
            yield key

    def _ids_of(self, keys: Sequence[str]) -> list[str]:
        return [self._ids.id(key.split("/")) for key in keys]

    def _get(self, keys: Sequence[str]) -> Steps[list[bytes | None]]:
        ids = self._ids_of(keys)
        found = yield from get_all(ids)
        return [None if (module := found[id]) is None else module.content for id in ids]

    def _set(self, pairs: Sequence[tuple[str, bytes]]) -> Steps[None]:
        yield from put_all([self._ids.item(key.split("/"), value, BINARY) for key, value in dict(pairs).items()])

    def _keys(self, prefix: str) -> Steps[list[str]]:
        # A prefix may end within a segment, and ids are listed by whole segments.
        paths = yield from list_paths(self._ids, prefix.split("/")[:-1])
        return [key for key in map("/".join, paths.values()) if key.startswith(prefix)]


class DistierCache(BaseCache):
    """A cache of LLM calls that all processes share. The answer to a prompt is the module `ROOT/HASH OF LLM/HASH OF PROMPT`.

    An answer that this version of LangChain cannot read is a miss. Generations are rebuilt from JSON: no class is loaded by a
    name that is stored.

    Args:
        store: as for `DistierByteStore`.
        root: the first segments of the ids.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "langchain/cache") -> None:
        self._bridge, self._ids = Bridge(store), Ids(root)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return what `update` stored; None on a miss. Raises `distier.Unavailable` if a server does not answer."""
        return self._bridge.run(self._lookup(_path(prompt, llm_string)))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """As `lookup`."""
        return await self._bridge.arun(self._lookup(_path(prompt, llm_string)))

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store the answer to a prompt."""
        self._bridge.run(self._update(_path(prompt, llm_string), return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """As `update`."""
        await self._bridge.arun(self._update(_path(prompt, llm_string), return_val))

    def clear(self, **kwargs: Any) -> None:
        """Delete all answers of this cache, for all processes. `llm_string` limits it to those of one LLM."""
        self._bridge.run(self._clear(**kwargs))

    async def aclear(self, **kwargs: Any) -> None:
        """As `clear`."""
        await self._bridge.arun(self._clear(**kwargs))

    def _lookup(self, path: tuple[str, str]) -> Steps[list[Generation] | None]:
        id = self._ids.id(path)
        module = (yield from get_all([id]))[id]
        try:
            return None if module is None else [_restored(each) for each in json.loads(module.content)]
        except (ValueError, TypeError, KeyError):  # another version wrote it; the next `update` replaces it
            return None

    def _update(self, path: tuple[str, str], answer: RETURN_VAL_TYPE) -> Steps[None]:
        yield from put_all([self._ids.item(path, json.dumps([_dumped(each) for each in answer]), "application/json")])

    def _clear(self, *, llm_string: str | None = None) -> Steps[None]:
        prefix = self._ids.prefix(() if llm_string is None else (_hash(llm_string),))
        yield from delete_all([row.id for row in (yield from list_rows(prefix))])


def _path(prompt: str, llm_string: str) -> tuple[str, str]:
    return _hash(llm_string), _hash(prompt)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _dumped(generation: Generation) -> dict[str, Any]:
    """Return a generation as JSON values. `loads` of LangChain is not used: it makes objects of classes that the data names."""
    kind = next((kind.__name__ for kind in KINDS.values() if type(generation) is kind), None)
    if kind is None:  # a provider's own class: what its base holds is kept
        kind = "ChatGeneration" if isinstance(generation, ChatGeneration) else "Generation"
    found: dict[str, Any] = {"kind": kind, "info": generation.generation_info}
    if isinstance(generation, ChatGeneration):
        return found | {"message": message_to_dict(generation.message)}
    return found | {"text": generation.text}


def _restored(data: dict[str, Any]) -> Generation:
    kind = KINDS[data["kind"]]
    if issubclass(kind, ChatGeneration):
        (message,) = messages_from_dict([data["message"]])
        return kind.model_validate({"message": message, "generation_info": data["info"]})
    return kind(text=data["text"], generation_info=data["info"])
