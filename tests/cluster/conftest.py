"""A real cluster of each kind for each module of tests, and stores on it. Every test has its own namespace."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from distier import connect, connect_async
from distier.domain.keys import Keyspace, Shard
from distier.errors import DistierError
from tests.clusters import TestCluster, running_cluster
from tests.integration.world import Face
from tests.servers import KINDS, TestServer, available_kinds

SHARDS = 16
_names = (f"t{i}" for i in itertools.count())


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[TestCluster]:
    """Three masters and three replicas, in the state in which earlier tests left them."""
    if reason := available_kinds()[request.param]:
        pytest.skip(reason)
    with running_cluster(request.param) as found:
        yield found


@pytest.fixture
def takes_seconds() -> None:
    """For tests that wait for elections: on Redis only with CHAOS=long (`tests/conftest.py` leaves them out)."""


@dataclass
class Stores:
    """Opens stores of one namespace on a cluster, and closes them at the end."""

    cluster: TestCluster
    archive: Path
    namespace: str = field(default_factory=lambda: next(_names))
    shards: int = SHARDS
    _faces: list[Face] = field(default_factory=list)

    def settings(self, **overrides: Any) -> dict[str, Any]:
        base = {"redis__url": self.cluster.url, "namespace": self.namespace, "shards": self.shards, "near__enabled": False,
                "deadline": "15s", "counter": "estimate", "storage_tiers__cold__directory": self.archive}  # fmt: skip
        return base | overrides

    def store(self, **overrides: Any) -> Any:
        """Open a blocking store."""
        return self.keep(connect({}, **self.settings(**overrides))).store

    async def open(self, kind: str, **overrides: Any) -> Face:
        if kind == "sync":
            return self.keep(connect({}, **self.settings(**overrides)))
        return self.keep(await connect_async({}, **self.settings(**overrides)))

    def keep(self, store: Any) -> Face:
        self._faces.append(Face(store))
        return self._faces[-1]

    async def close(self) -> None:
        for face in self._faces:
            with suppress(DistierError):
                await face.close()

    # -- ids, shards and masters -------------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> Keyspace:
        return Keyspace(self.namespace, self.shards)

    def ids(self, n: int, prefix: str = "m") -> list[str]:
        return [f"{prefix}/{i}" for i in range(n)]

    def id_in(self, shard: Shard) -> str:
        """Return an id of this shard."""
        return next(f"s/{i}" for i in itertools.count() if self.keys.shard(f"s/{i}") is self.keys.shards[shard.index])

    def on(self, node: TestServer) -> list[Shard]:
        """Return the shards that this master serves."""
        return [shard for shard in self.keys.shards if self.cluster.owner(shard.slot) is node]


@pytest.fixture
async def stores(cluster: TestCluster, tmp_path: Path) -> AsyncIterator[Stores]:
    found = Stores(cluster, tmp_path / "cold")
    yield found
    await found.close()
