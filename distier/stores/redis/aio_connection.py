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
    SLOWEST_BYTES_PER_S,
    WATCH_S,
    Errors,
    RawCommand,
    new_reader,
    packed,
    unasked,
)


class AsyncConnection(asyncio.Protocol):
    """The same on an event loop, shared by all tasks: commands go out as they come, replies are dealt out in order.

    The line owns the futures of what was asked, each with its own end: it is done when its replies are there, when its time is
    over, or when the line ends, whichever comes first. A task that is cancelled, or late, leaves its place in the queue, and
    its replies are dropped when they arrive.
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
        data, now_s = packed(commands), time.monotonic()
        if not self._waiting:
            self.heard_s = now_s
            self._allowance_s = 0.0
        self._allowance_s += len(data) / SLOWEST_BYTES_PER_S
        self._transport.write(data)
        self._waiting.append((future, len(commands), now_s + timeout_s))
        if not self._watching:
            self._watching = True
            self.loop.call_later(WATCH_S, self._watch)
        return future

    def is_spent(self, incarnation: int) -> bool:
        """Whether no new request may use it: closed, to a replica by now, or to another incarnation than this one."""
        return self.closed or self.errors.demoted or self.incarnation != incarnation

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        self._reader.feed(data)
        try:
            while not self.closed and (reply := self._reader.gets()) is not NOT_YET:
                if type(reply) is not hiredis.PushNotification:  # nobody asked for one here
                    self._deal(reply)
        except InvalidResponse as e:
            self.fail(RedisConnectionError(f"Redis sent what is no reply: {e}"))
        if self.errors.demoted and not self._waiting:  # nobody begins to use it any more, and this was the last reply
            self.fail(RedisConnectionError("the server is a replica by now"))

    def _deal(self, reply: Any) -> None:
        if not self._waiting:
            self.fail(unasked(reply))
            return
        future, n, _ = self._waiting[0]
        self._replies.append(reply)
        if len(self._replies) == n:
            self._waiting.popleft()
            replies, self._replies = self._replies, []
            if not self._waiting and self._reader.has_data() and (extra := self._unasked()) is not None:
                # What came beside it came twice, or for somebody else: then this may be nobody's, too.
                self._waiting.append((future, n, 0.0))
                self.fail(unasked(extra))
            elif not future.done():
                future.set_result(replies)

    def _unasked(self) -> Any:
        """The next reply in the buffer, which nobody asked for; None if there is none."""
        while (reply := self._reader.gets()) is not NOT_YET:
            if type(reply) is not hiredis.PushNotification:
                return reply if reply is not None else b""
        return None

    def _watch(self) -> None:
        """One timer for the line, not one for each call: every 50 ms it ends what is late, and looks whether the line is
        silent."""
        self._watching = bool(self._waiting) and not self.closed
        if not self._watching:
            return
        now_s = time.monotonic()
        waited_for = False
        for future, _, end_s in self._waiting:
            if not future.done():
                if now_s >= end_s:
                    future.set_exception(RedisTimeoutError("no answer in time"))
                else:
                    waited_for = True
        silent = now_s - self.heard_s >= self._doubt_s + self._allowance_s
        if silent and not waited_for:
            self.fail(RedisTimeoutError("no answer in time"))  # all of them have gone: nobody loses by it
            return
        if silent:
            self.doubt(self)
        self.loop.call_later(WATCH_S, self._watch)

    async def answers(self, timeout_s: float) -> bool:
        """As `Connection.answers`."""
        nonce = secrets.token_hex(8)
        try:
            reply = (await self.ask([("PING", nonce)], timeout_s))[0]
        except (RedisConnectionError, RedisTimeoutError):
            return False
        return reply == nonce.encode() or isinstance(reply, ResponseError)

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(RedisConnectionError(str(error) if error else "Redis closed the connection"))

    def allow(self, more_s: float) -> None:
        """The server was told to keep silent for so long."""
        self._allowance_s += more_s

    def fail(self, error: Exception) -> None:
        """End the line: nobody may take a reply that was meant for another."""
        self.closed = True
        self._watching = False
        self._transport.abort()
        self._raw._reader = self._raw._writer = None  # or redis-py calls it unclosed
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)

    def end(self, error: Exception) -> None:
        """`fail`, from whatever loop or thread; also where the line's own loop runs no more."""
        if self.loop.is_closed():
            self.leave()
            self._quiet()
        elif self.loop.is_running() and not _is_running_here(self.loop):
            with suppress(RuntimeError):  # it has just been closed
                self.loop.call_soon_threadsafe(self.fail, error)
        else:
            self.fail(error)
            if not self.loop.is_running() and self._socket is not None:
                self._socket.close()  # else in the loop's next turn, which may never come

    def leave(self) -> None:
        """In a child, or after the end of the loop: close the descriptor. Not the transport, which would take it out of the
        loop's epoll: a child shares that with its parent."""
        self.closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()

    def _quiet(self) -> None:
        """After the end of the loop nothing closes a transport in order, and those who collect it would complain."""
        with suppress(RuntimeError):  # the loop is closed: it is marked as closed before that is found out
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
