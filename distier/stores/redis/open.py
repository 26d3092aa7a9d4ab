"""Opens the exchange of a configuration: one server, sentinels or a cluster."""

from __future__ import annotations

from collections.abc import Callable

from distier.config import CLUSTER_SCHEMES, Config
from distier.stores.redis import AsyncExchange, AsyncRedisExchange, Exchange, RedisExchange, Revive
from distier.stores.redis.aio_cluster import AsyncClusterExchange
from distier.stores.redis.cluster import ClusterExchange


def open_exchange(config: Config, url: str, forget: Callable[[], object], revive: Revive | None = None) -> Exchange:
    """Return the exchange for `url`: a cluster's, or that of one server, which sentinels may name.

    Args:
        config: The configuration.
        url: The URL of Redis.
        forget: Called when the server may have lost data, so that epochs must be read again.
        revive: Restarts an embedded server.
    """
    if url.startswith(CLUSTER_SCHEMES):
        return ClusterExchange(config, url, forget)
    return RedisExchange(config, url, forget, revive=revive)


def open_async_exchange(
    config: Config, url: str, forget: Callable[[], object], revive: Revive | None = None
) -> AsyncExchange:
    """Return the exchange for `url` for event loops. See `open_exchange`."""
    if url.startswith(CLUSTER_SCHEMES):
        return AsyncClusterExchange(config, url, forget)
    return AsyncRedisExchange(config, url, forget, revive=revive)
