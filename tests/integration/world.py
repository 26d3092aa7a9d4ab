"""The environment of the integration tests: a real server, a directory archive, and stores of both kinds behind one
face.

A scenario is written once, as a coroutine over a `Face`. The face of a blocking store calls it directly on the event
loop (nothing else runs on it), so `await face.put(...)` means the same for `Store` and `AsyncStore`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distier import AsyncStore, Store, connect, connect_async
from distier.domain.keys import Shard
from distier.errors import DistierError
from distier.plans.fleet.maintain import maintain as maintain_plan
from distier.plans.fleet.maintain import recount as recount_plan
from tests.servers import TestServer

TTL_FAR_S = 3600.0

Open = Callable[..., Store]


class Face:
    """A store of either kind. Every method of the stores is awaited, and iterators come as lists."""

    def __init__(self, store: Store | AsyncStore) -> None:
        self.store = store
        self.space = store.space

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if hasattr(result, "__await__"):
                return await result
            if hasattr(result, "__aiter__"):
                return [item async for item in result]
            return list(result) if hasattr(result, "__next__") else result

        return call

    async def maintain(self) -> dict[str, int]:
        """One round of the worker's plans over all shards; returns what each plan did."""
        did: dict[str, int] = {}

        def add_step(step: dict[str, int]) -> None:
            for name, n in step.items():
                did[name] = did.get(name, 0) + n

        for shard in self.space.keys.shards:
            await self.run(maintain_plan(self.space, shard), deadline_s=30, on_progress=add_step)
        return did

    async def recount(self) -> dict[str, int]:
        """The usage of all shards, counted from the data."""
        sums: dict[str, int] = {}
        for shard in self.space.keys.shards:
            for name, n in (await self.run(recount_plan(self.space, shard))).items():
                sums[name] = sums.get(name, 0) + n
        return sums


async def until(true: Callable[[], object], *, what: str, timeout_s: float = 60.0) -> None:
    """Like `servers.poll`, without blocking the event loop."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s:g} s"
        await asyncio.sleep(0.005)


@dataclass
class World:
    """A server, an archive's directory, and the stores that a test opened. The stores are closed at its end."""

    server: TestServer
    url: str
    archive: Path
    kind: str  # "sync" or "async"
    shards: int = 1
    raw: Any = field(init=False)  # redis-py types every reply as bytes or str
    _faces: list[Face] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.raw = self.server.client()

    def settings(self, **overrides: Any) -> dict[str, Any]:
        """The configuration as `connect` takes it. Overrides have the names that they have there
        (`storage_tiers__hot__max_size`); None leaves a value at its default.
        """
        base = {"redis__url": self.url, "namespace": "t", "shards": self.shards, "near__enabled": False,
                "deadline": "60s", "storage_tiers__cold__directory": self.archive}  # fmt: skip
        return {name: value for name, value in (base | overrides).items() if value is not None}

    async def open(self, **overrides: Any) -> Face:
        settings = self.settings(**overrides)
        source = {"counter": "estimate"}
        store = connect(source, **settings) if self.kind == "sync" else await connect_async(source, **settings)
        face = Face(store)
        self._faces.append(face)
        return face

    async def close(self) -> None:
        for face in self._faces:
            with suppress(DistierError):
                await face.close()
        self.raw.close()

    # -- behind the store ------------------------------------------------------------------------------------------

    def shard(self, id: str, namespace: str = "t") -> Shard:
        from distier.domain.keys import Keyspace

        return Keyspace(namespace, self.shards).shard(id)

    def scores(self) -> dict[bytes, list[tuple[bytes, float]]]:
        """All sorted sets of the server."""
        keys = [k for k in self.raw.keys("*") if self.raw.type(k) == b"zset"]
        return {key: self.raw.zrange(key, 0, -1, withscores=True) for key in keys}

    def usage(self) -> dict[str, int]:
        """The accounts of all shards, without zeros."""
        sums: dict[str, int] = {}
        for key in self.raw.keys("*:usage"):
            for name, n in self.raw.hgetall(key).items():
                sums[name.decode()] = sums.get(name.decode(), 0) + int(n)
        return {name: n for name, n in sums.items() if n}

    def objects(self) -> list[str]:
        """Keys of all objects in the archive."""
        files = (p for p in self.archive.rglob("*") if p.is_file())
        return sorted(str(p.relative_to(self.archive)) for p in files)
