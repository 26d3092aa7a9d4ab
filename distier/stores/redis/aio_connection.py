"""One connection on an event loop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.stores.redis.wire import (
    CONNECTIONS,
    NOT_YET,
    SEND_BYTES,
    SLOWEST_BYTES_PER_S,
    WATCH_S,
    Errors,
    RawCommand,
    new_reader,
    pack,
    unsolicited,
)


class AsyncConnection(asyncio.Protocol):
    """One connection on an event loop, shared by all tasks.

    Commands are sent at once, and replies are assigned to requests in order. The connection owns a future for each
    request. A future is done when its replies have arrived, when its own time limit has passed, or when the connection
    ends. The request of a task that is cancelled or late keeps its position in the queue, and its replies are dropped when
    they arrive.
    """

    kept_after_fork = True

    def __init__(self, raw: Any, loop: asyncio.AbstractEventLoop, pid: int, doubt_s: float) -> None:
        self._raw = raw
        self.loop = loop
        self._transport = raw._writer.transport
        self._socket = getattr(self._transport.get_extra_info("socket"), "_sock", None)
        self.errors = Errors()
        self._reader = new_reader(self.errors)
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, float]] = deque()
        self._replies: list[Any] = []
        self._watching = False
        self._doubt_s = doubt_s
        self._allowance_s = 0.0
        self.heard_s = time.monotonic()
        self.closed = False
        self.incarnation = 0
        self.doubt: Callable[[AsyncConnection], object] = lambda connection: None
        self._transport.set_protocol(self)
        CONNECTIONS.add(self, pid)

    def ask(self, commands: Sequence[RawCommand], timeout_s: float) -> asyncio.Future[list[Any]]:
        future: asyncio.Future[list[Any]] = self.loop.create_future()
        if self.closed:
            future.set_exception(RedisConnectionError("the connection is closed"))
            return future
        now_s = time.monotonic()
        if not self._waiting:
            self.heard_s = now_s
            self._allowance_s = 0.0
        parts: list[bytes] = []
        size_bytes = 0
        for command in commands:
            if size_bytes >= SEND_BYTES:  # the server executes these while the next ones are packed
                self._transport.write(b"".join(parts))
                parts, size_bytes = [], 0
            parts.append(pack(command))
            size_bytes += len(parts[-1])
            self._allowance_s += len(parts[-1]) / SLOWEST_BYTES_PER_S
        self._transport.write(b"".join(parts))
        self._waiting.append((future, len(commands), now_s + timeout_s))
        if not self._watching:
            self._watching = True
            self.loop.call_later(WATCH_S, self._watch)
        return future

    def is_spent(self, incarnation: int) -> bool:
        """Return whether no new request may use it: it is closed, or leads to a replica or to another incarnation."""
        return self.closed or self.errors.demoted or self.incarnation != incarnation

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        self._reader.feed(data)
        try:
            while not self.closed and (reply := self._reader.gets()) is not NOT_YET:
                if type(reply) is not hiredis.PushNotification:  # no request subscribes to these
                    self._assign(reply)
        except InvalidResponse as e:
            self.fail(RedisConnectionError(f"Redis sent an invalid reply: {e}"))
        if self.errors.demoted and not self._waiting:  # no new request uses it, and this was the last reply
            self.fail(RedisConnectionError("the server has become a replica"))

    def _assign(self, reply: Any) -> None:
        if not self._waiting:
            self.fail(unsolicited(reply))
            return
        future, n, _ = self._waiting[0]
        self._replies.append(reply)
        if len(self._replies) == n:
            self._waiting.popleft()
            replies, self._replies = self._replies, []
            if not self._waiting and self._reader.has_data() and (extra := self._next_extra()) is not None:
                # The extra reply is a duplicate or belongs to another client, so these replies may be wrong too.
                self._waiting.append((future, n, 0.0))
                self.fail(unsolicited(extra))
            elif not future.done():
                future.set_result(replies)

    def _next_extra(self) -> Any:
        """Return the next unsolicited reply in the buffer; None if there is none."""
        while (reply := self._reader.gets()) is not NOT_YET:
            if type(reply) is not hiredis.PushNotification:
                return reply if reply is not None else b""
        return None

    def _watch(self) -> None:
        """Time out late requests and check for silence, every 50 ms. One timer per connection replaces one per request."""
        self._watching = bool(self._waiting) and not self.closed
        if not self._watching:
            return
        now_s = time.monotonic()
        waited_for = False
        for future, _, end_s in self._waiting:
            if not future.done():
                if now_s >= end_s:
                    future.set_exception(RedisTimeoutError("no reply in time"))
                else:
                    waited_for = True
        silent = now_s - self.heard_s >= self._doubt_s + self._allowance_s
        if silent and not waited_for:
            self.fail(RedisTimeoutError("no reply in time"))  # no request waits any more, so none is lost
            return
        if silent:
            self.doubt(self)
        self.loop.call_later(WATCH_S, self._watch)

    async def is_alive(self, timeout_s: float) -> bool:
        """See `Connection.is_alive`."""
        nonce = secrets.token_hex(8)
        try:
            reply = (await self.ask([("PING", nonce)], timeout_s))[0]
        except (RedisConnectionError, RedisTimeoutError):
            return False
        return reply == nonce.encode() or isinstance(reply, ResponseError)

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(RedisConnectionError(str(error) if error else "Redis closed the connection"))

    def allow(self, more_s: float) -> None:
        """Allow a longer silence, in seconds, because a command blocks at the server."""
        self._allowance_s += more_s

    def fail(self, error: Exception) -> None:
        """Close the connection and fail all its requests, because no request may take the reply of another."""
        self.closed = True
        self._watching = False
        self._transport.abort()
        self._raw._reader = self._raw._writer = None  # otherwise redis-py warns about an unclosed connection
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def end(self, error: Exception) -> None:
        """Call `fail` from any loop or thread, even if the connection's own loop has stopped."""
        if self.loop.is_closed():
            self.leave()
            self._mark_closed()
        elif self.loop.is_running() and not _is_running_here(self.loop):
            with suppress(RuntimeError):  # it has just been closed
                self.loop.call_soon_threadsafe(self.fail, error)
        else:
            self.fail(error)
            if not self.loop.is_running() and self._socket is not None:
                self._socket.close()  # otherwise in the loop's next iteration, which may never come

    def leave(self) -> None:
        """Close the descriptor, in a forked child or after the end of the loop.

        The transport is not closed: that would remove the descriptor from the loop's epoll, which a child shares with its
        parent.
        """
        self.closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()

    def _mark_closed(self) -> None:
        """Mark the transport as closed after the end of its loop, so that its finalizer prints no warning."""
        with suppress(RuntimeError):  # abort() marks it as closed before it fails on the closed loop
            self._transport.abort()
        lower: Any = getattr(getattr(self._transport, "_ssl_protocol", None), "_transport", None)
        for transport in (self._transport, lower):
            if getattr(transport, "_sock", None) is not None:
                transport._sock = None
        self._raw._reader = self._raw._writer = None


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    with suppress(RuntimeError):
        return asyncio.get_running_loop() is loop
    return False
