"""The servers that a near cache must follow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError

from distier.config import CLUSTER_SCHEMES, Config
from distier.domain.keys import Shard
from distier.stores.redis import lone_connection
from distier.stores.redis.nodes import Nodes
from distier.stores.redis.topology import NOT_COVERED, Routes


class Followed(NamedTuple):
    """A connection to a server, not connected yet, and the shards that this server must serve while it is followed. `shards`
    is empty if there is only one server."""

    connection: Any
    shards: tuple[Shard, ...]


class Followers:
    """Makes the connections over which a near cache follows its servers: one, or one for each master of a cluster."""

    def __init__(self, config: Config, url: str, shards: Sequence[Shard]) -> None:
        self._config, self._url, self._shards = config, url, shards
        self._nodes = Nodes(config, url) if url.startswith(CLUSTER_SCHEMES) else None
        self._routes = Routes(self._nodes.url.nodes if self._nodes else ())

    def __call__(self) -> list[Followed]:
        """Return a connection for each server to follow.

        Raises:
            ConnectionError: No server replies, or a slot has no master (redis-py's error).
            ResponseError: A node refuses to return the slots.
        """
        if self._nodes is None:
            return [Followed(lone_connection(self._config, self._url), ())]
        return list(self._masters(self._nodes))

    def _masters(self, nodes: Nodes) -> Iterator[Followed]:
        end_s = time.monotonic() + self._config.deadline_ms / 1000
        topology, asked = nodes.ask(self._routes, self._shards[0], end_s)
        self._routes.learn(topology, asked)
        owners = {shard: topology.owner(shard.slot) for shard in self._shards}
        if None in owners.values():
            raise RedisConnectionError(NOT_COVERED)
        for master in topology.masters:  # also those without a shard of ours, because one may be moving there
            mine = tuple(shard for shard, owner in owners.items() if owner == master)
            yield Followed(lone_connection(self._config, nodes.url_of(master)), mine)
