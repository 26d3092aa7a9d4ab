"""What drivers ask of Redis: exchanges of commands for raw replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

from redis.exceptions import RedisError

from distier.domain.keys import Shard
from distier.stores.redis.wire import RawCommand

Batch = tuple[Shard, Sequence[RawCommand]]
Answer = list[Any] | RedisError
"""The replies to a batch, or why there are none: redis-py's `ConnectionError` or `TimeoutError`."""
Revive = Callable[[float], bool]
"""Starts a server that has died, within so many seconds; whether it is worth to connect again. Raises `DistierError`."""


class Exchange(Protocol):
    """Where commands go, blocking. Raises redis-py's `ConnectionError` or `TimeoutError` if the answer is not known."""

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]: ...

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """What `exchange` answers or raises for each batch, in one round trip to each server, to all servers at once."""
        ...

    def drop(self) -> None:
        """End all connections that nobody is using: they are out of step. The next call makes others."""
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
    """The replies to all commands of these batches, as those of each."""
    left = iter(replies)
    return [list(islice(left, len(commands))) for _, commands in batches]
