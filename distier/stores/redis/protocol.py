"""The protocols through which drivers exchange commands for raw replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from redis.exceptions import RedisError

from distier.domain.keys import Shard
from distier.stores.redis.wire import RawCommand

Batch = tuple[Shard, Sequence[RawCommand]]
Answer = list[Any] | RedisError
"""The replies to a batch, or the error if there are none: redis-py's `ConnectionError` or `TimeoutError`."""
Revive = Callable[[float], bool]
"""Restarts a dead server within the given seconds. Returns whether to connect again; raises `DistierError`."""


class Exchange(Protocol):
    """Sends commands to Redis, blocking. Raises redis-py's `ConnectionError` or `TimeoutError` if the replies are unknown."""

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]: ...

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """Return the replies or the error of each batch, with one round trip to each server, to all servers in parallel."""
        ...

    def drop(self) -> None:
        """Close all idle connections because they may be out of step. The next call opens new ones."""
        ...

    def close(self) -> None: ...


class AsyncExchange(Protocol):
    async def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]: ...

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]: ...

    def drop(self) -> None: ...

    async def close(self) -> None: ...


def joined(batches: Sequence[Batch]) -> list[RawCommand]:
    return [command for _, commands in batches for command in commands]


def split(batches: Sequence[Batch], replies: Sequence[Any]) -> list[list[Any]]:
    """Split the replies to all commands into the replies to each batch."""
    left = iter(replies)
    return [list(islice(left, len(commands))) for _, commands in batches]
