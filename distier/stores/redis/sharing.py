"""Connections that the tasks of an event loop share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from distier.stores.redis.aio_connection import AsyncConnection

T = TypeVar("T")


class Together:
    """Runs one attempt at a time for all tasks that need its result.

    Each task waits until its own deadline, and a task that stops waiting does not cancel the attempt for the others. With a
    lock, each task would wait for the full time of the tasks before it.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def wait(self, begin: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """Return the result of `begin`, or of the attempt in progress.

        Raises:
            TimeoutError: It takes longer than `timeout_s` seconds (redis-py's error).
            Exception: The error of the attempt.
        """
        task, loop = self._task, asyncio.get_running_loop()
        if task is None or task.done() or task.get_loop() is not loop:
            task = self._task = loop.create_task(begin())
            task.add_done_callback(_retrieve_error)
        done, _ = await asyncio.wait({task}, timeout=max(timeout_s, 0.001))
        if not done:
            raise redis.TimeoutError("no connection in time")
        if task.cancelled():
            raise RedisConnectionError("the attempt was given up: the store is closed, or the event loop is ending")
        return task.result()  # type: ignore[no-any-return]

    @property
    def attempt(self) -> asyncio.Task[Any] | None:
        """The attempt in progress."""
        return None if self._task is None or self._task.done() else self._task


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # no task may wait for it any more; asyncio would log the error as never retrieved


class Shared:
    """A connection that all tasks of a loop share, and the attempt to open it."""

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
        """Register a new connection, and return it.

        Raises:
            ConnectionError: The connections of this loop were closed in the meantime (redis-py's error).
        """
        if self._ended:
            connection.fail(RedisConnectionError(self._ended))
            raise RedisConnectionError(self._ended)
        return connection

    def give_back(self, connection: AsyncConnection) -> None:
        if self._ended:
            connection.fail(RedisConnectionError(self._ended))
        else:
            self.idle.append(connection)

    def end(self, why: str) -> list[asyncio.Task[Any]]:
        """Close all connections, and cancel the attempts to open more, which may have lost those that waited for them.

        Returns the attempts, which have ended when their sockets are closed.
        """
        self._ended = why
        self.drop(why)
        proving = self.proving if self.proving is not None and not self.proving.done() else None
        attempts = [task for task in (self.reads.opening.attempt, self.writes.opening.attempt, proving) if task]
        for task in attempts:
            with suppress(RuntimeError):  # its loop has just been closed
                self.loop.call_soon_threadsafe(task.cancel)
        return attempts

    def drop(self, why: str) -> None:
        """Close all connections. The next call opens new ones."""
        for connection in [self.reads.connection, self.writes.connection, *self.idle]:
            if connection is not None:
                connection.end(RedisConnectionError(why))
        self.reads.connection, self.writes.connection, self.idle = None, None, []
