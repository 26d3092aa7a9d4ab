"""Exchanges on an event loop."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from distier.config import SENTINEL_SCHEMES, Config, mask_url
from distier.domain.keys import Shard
from distier.errors import DistierError, Invalid
from distier.stores.redis.aio_connection import AsyncConnection
from distier.stores.redis.dial import RESOLVERS, AsyncDial, connected, options_of
from distier.stores.redis.exchange import DOUBT_MAX_S, DOUBT_SHARE, IDLE_S, Incarnations, Patient
from distier.stores.redis.protocol import Answer, Batch, Revive, joined, split
from distier.stores.redis.sharing import LoopConnections, Shared
from distier.stores.redis.wire import BLOCK_MAX_S, READS, RawCommand, Silent, block, verb_of

CLOSE_S = 1.0
"""How long `close` waits for attempts to connect that it cancelled, in seconds."""


class AsyncRedisExchange:
    """One Redis or Valkey server, for event loops.

    All tasks of a loop share two connections. One of them is for reads only, so that no read waits behind a write that
    the server delays. Commands that block at the server use separate connections. Event loops share nothing, whatever
    threads they run in.
    """

    def __init__(
        self, config: Config, url: str, forget: Callable[[], object] = lambda: None, *, connect_s: float | None = None,
        revive: Revive | None = None,
    ) -> None:  # fmt: skip
        self.url = url
        default_s = config.deadline_ms / 1000
        self._doubt_s = min(DOUBT_MAX_S, default_s / DOUBT_SHARE)
        self._connect_s = default_s if connect_s is None else connect_s
        self._incarnations = Incarnations(forget, only_master=url.startswith(SENTINEL_SCHEMES))
        options = options_of(config, url) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        self._dial = AsyncDial(config, url, options)
        self._revive = None if revive is None else Patient(revive)
        self._all: list[LoopConnections] = []
        self._last: LoopConnections | None = None
        self._closed = False
        _ASYNC.add(self)

    def __repr__(self) -> str:
        return f"AsyncRedisExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        connections = self._last
        if connections is None or connections.loop is not _running():
            connections = self._of_this_loop()
        if block(commands):
            return await self._exchange_alone(connections, commands, timeout_s)
        shared = connections.reads if READS.issuperset(map(verb_of, commands)) else connections.writes
        connection = shared.connection
        current = self._incarnations.number
        # `is_spent` inlined, because every command of an event loop runs this.
        if (
            connection is None
            or connection.closed
            or connection.errors.demoted
            or connection.incarnation != current
            or (time.monotonic() - connection.heard_s > IDLE_S and connection.is_idle)
        ):
            end_s = time.monotonic() + timeout_s
            connection = await shared.opening.wait(lambda: self._usable(connections, shared), timeout_s)
            timeout_s = max(end_s - time.monotonic(), 0.001)
        return await connection.ask(commands, timeout_s)

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        try:
            return [*split(batches, await self.exchange(batches[0][0], joined(batches), timeout_s))]
        except (RedisConnectionError, redis.TimeoutError) as e:
            return [e] * len(batches)

    def _of_this_loop(self) -> LoopConnections:
        loop = _running()
        if self._closed:
            raise RedisConnectionError("these connections are closed")
        if loop is None:
            raise Invalid(
                "this process was forked inside a running event loop: run another one (asyncio.run) in the child"
            )
        for connections in list(self._all):
            if connections.loop.is_closed():
                connections.end("its event loop is closed")
                with suppress(ValueError):  # another thread removed it
                    self._all.remove(connections)
        own = next((connections for connections in self._all if connections.loop is loop), None)
        if own is None:
            own = LoopConnections(loop)
            self._all.append(own)
        self._last = own  # other threads set it too
        return own

    async def _usable(self, connections: LoopConnections, shared: Shared) -> AsyncConnection:
        """Return a shared connection of a loop after checking it, or a new one."""
        connection = shared.connection
        if (
            connection is None
            or connection.is_spent(self._incarnations.number)
            or not await connection.is_alive(self._doubt_s)
        ):
            fresh = connections.take(await self._open(self._connect_s))
            if connection is not None and not connection.errors.demoted:  # a demoted one may still get its replies
                connection.fail(RedisConnectionError("no reply after a long pause, or the server has changed"))
            connection = shared.connection = fresh
            connection.doubt = lambda silent: self._doubt(connections, silent)
        return connection

    async def _open(self, timeout_s: float) -> AsyncConnection:
        """Open a connection and send the greeting.

        Raises:
            ConfigError: The server refuses the greeting for good.
            RedisError: As `exchange`.
        """
        try:
            return await self._open_once(timeout_s)
        except RedisConnectionError:
            if self._revive is None or not await asyncio.wrap_future(
                RESOLVERS.submit(partial(self._revive, timeout_s))
            ):
                raise
        return await self._open_once(timeout_s)

    async def _open_once(self, timeout_s: float) -> AsyncConnection:
        raw: Any = None
        connection: AsyncConnection | None = None
        pid = os.getpid()
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                raw = await self._dial.connection()
                await connected(raw)
                connection = AsyncConnection(raw, asyncio.get_running_loop(), pid, self._doubt_s)
                commands = self._incarnations.greeting(raw)
                self._incarnations.greeted(raw, await connection.ask(commands, timeout_s))
                connection.incarnation = self._incarnations.number
        except BaseException as e:
            if connection is not None:
                connection.fail(RedisConnectionError("the connection attempt was abandoned"))
            elif raw is not None:
                if (
                    raw._writer is not None
                ):  # otherwise TLS waits for the server's goodbye, perhaps longer than the loop runs
                    raw._writer.transport.abort()
                await raw.disconnect(nowait=True)
            if isinstance(e, TimeoutError):  # that of asyncio.timeout
                raise redis.TimeoutError("no connection in time") from e
            raise
        return connection

    async def _exchange_alone(
        self, connections: LoopConnections, commands: Sequence[RawCommand], timeout_s: float
    ) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        connection = await self._lone(connections, timeout_s)
        try:
            asked = connection.ask(commands, max(end_s - time.monotonic(), 0.001))
            connection.allow(BLOCK_MAX_S)
            replies = await asked
        except BaseException:  # also when cancelled: the server may block on the command for a while
            connection.fail(RedisConnectionError("the request was abandoned"))
            raise
        if connection.errors.demoted:
            connection.fail(RedisConnectionError("the server has become a replica"))
        else:
            connections.give_back(connection)
        return replies

    async def _lone(self, connections: LoopConnections, timeout_s: float) -> AsyncConnection:
        """Return a connection for blocking commands: an idle one that still works, or a new one."""
        end_s = time.monotonic() + timeout_s
        while connections.idle:
            connection = connections.idle.pop()
            if connection.is_spent(self._incarnations.number):
                connection.fail(RedisConnectionError("closed, or the server has changed"))
                continue
            if time.monotonic() - connection.heard_s <= IDLE_S:
                return connection
            good = False
            try:
                good = await connection.is_alive(min(self._doubt_s, timeout_s / 2))
            finally:  # also if this task is cancelled
                if not good:
                    connection.fail(RedisConnectionError("no reply after a long pause"))
            if good:
                return connection
        connection = connections.take(await self._open(min(self._connect_s, end_s - time.monotonic())))
        connection.doubt = lambda silent: self._doubt(connections, silent)
        return connection

    def _doubt(self, connections: LoopConnections, silent: AsyncConnection) -> None:
        """Compare a silent connection with a new one, unless such a comparison is in progress."""
        if connections.proving is None or connections.proving.done():
            connections.proving = connections.loop.create_task(self._prove(connections, silent))

    async def _prove(self, connections: LoopConnections, silent: AsyncConnection) -> None:
        heard_s = silent.heard_s
        try:
            fresh = connections.take(await self._open(max(self._doubt_s, 0.05)))
        except (RedisError, OSError, DistierError):
            await asyncio.sleep(self._doubt_s)  # delays the next attempt
            return
        fresh.doubt = lambda connection: self._doubt(connections, connection)
        connections.give_back(fresh)
        await asyncio.sleep(0)  # first read what has arrived in the meantime
        if silent.closed or silent.heard_s != heard_s:
            return
        for shared in (connections.reads, connections.writes):
            if silent is shared.connection and fresh in connections.idle:
                connections.idle.remove(fresh)
                shared.connection = fresh
        silent.fail(Silent("no reply on this connection, while the server replies on a new one"))

    def drop(self) -> None:
        self._of_this_loop().drop("out of step: a reply belonged to another request")

    async def close(self) -> None:
        """Close all connections. May be called on any loop."""
        self._closed = True
        connections, self._all, self._last = self._all, [], None
        attempts = [task for some in connections for task in some.end("this store is closed")]
        if here := [task for task in attempts if task.get_loop() is _running()]:
            await asyncio.wait(here, timeout=CLOSE_S)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next iteration

    def after_fork_in_child(self) -> None:
        """Forget all connections; `wire.CONNECTIONS` has dropped their sockets already."""
        self._all, self._last = [], None


_ASYNC: weakref.WeakSet[AsyncRedisExchange] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for exchange in list(_ASYNC):
        exchange.after_fork_in_child()


_running = asyncio._get_running_loop  # in C, and None in a child of the loop's process
os.register_at_fork(after_in_child=_after_fork_in_child)
