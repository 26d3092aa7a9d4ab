"""Access to Redis: connections, sentinels and clusters."""

from __future__ import annotations

from distier.stores.redis.aio import AsyncRedisExchange
from distier.stores.redis.dial import lone_connection
from distier.stores.redis.exchange import RedisExchange
from distier.stores.redis.protocol import Answer, AsyncExchange, Batch, Exchange, Revive, split
from distier.stores.redis.sharing import Together

__all__ = [
    "Answer",
    "AsyncExchange",
    "AsyncRedisExchange",
    "Batch",
    "Exchange",
    "RedisExchange",
    "Revive",
    "Together",
    "lone_connection",
    "split",
]
