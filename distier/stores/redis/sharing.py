"""One connection that many tasks of an event loop share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from distier.stores.redis.aio_connection import AsyncConnection

T = TypeVar("T")


class Together:
    """One attempt at something at a time, for all who need its outcome: each waits until its own deadline, and who leaves
    ends nothing for the others. (A lock would make each wait for as long as the one before it may take.)"""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def wait(self, begin: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """What `begin` answers or raises; redis-py's `TimeoutError` where that takes too long."""
        task, loop = self._task, asyncio.get_running_loop()
        if task is None or task.done() or task.get_loop() is not loop:
            task = self._task = loop.create_task(begin())
            task.add_done_callback(_looked_at)
        done, _ = await asyncio.wait({task}, timeout=max(timeout_s, 0.001))
        if not done:
            raise redis.TimeoutError("no connection in time")
        if task.cancelled():
            raise RedisConnectionError("the event loop is ending")
        return task.result()  # type: ignore[no-any-return]


def _looked_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # all who waited may have left


class Shared:
    """A line that all tasks of a loop share, and the making of it."""

    def __init__(self) -> None:
        self.connection: AsyncConnection | None = None
        self.opening = Together()


class LoopConnections:
    """The connections of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.reads, self.writes = Shared(), Shared()
        self.idle: list[AsyncConnection] = []
        self.proving: asyncio.Task[None] | None = None
        self._ended = ""

    def take(self, connection: AsyncConnection) -> AsyncConnection:
        """To be called with each new line. Raises redis-py's `ConnectionError` if it comes too late."""
        if self._ended:
            connection.fail(RedisConnectionError(self._ended))
            raise RedisConnectionError(self._ended)
        return connection

    def give_back(self, connection: AsyncConnection) -> None:
        if self._ended:
            connection.fail(RedisConnectionError(self._ended))
        else:
            self.idle.append(connection)

    def end(self, why: str) -> None:
        self._ended = why
        self.drop(why)

    def drop(self, why: str) -> None:
        """End all of them; the next call makes others."""
        for connection in [self.reads.connection, self.writes.connection, *self.idle]:
            if connection is not None:
                connection.end(RedisConnectionError(why))
        self.reads.connection, self.writes.connection, self.idle = None, None, []
