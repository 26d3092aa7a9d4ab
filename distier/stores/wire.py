"""Connections to a server: who may use them, whose reply is whose, and when one is dead.

*A connection is used only by the process, event loop and thread that opened it.* A child of a fork drops its copies of all
sockets before it runs a line of its own (`Connections`): it shares the stream with its parent, and a byte that it wrote, or a
reply that it took, would shift the replies of the parent's calls. Blocking connections are taken out of their pool by the
thread that uses them; those of an event loop are kept by loop (`stores/redis.py`).

*A reply is taken only by the request that it answers.* RESP replies carry no number. So nothing may be in a stream that was
not asked for: bytes that wait before a request is sent, and bytes that are left over behind its replies, end the connection,
and the replies beside them are not believed. A connection that was idle for long answers a PING of its own, with a text that
was never used before, first. That leaves a reply that comes between others while several requests are under way: a record says
whose it is (`domain/order.py`), and one of another module, or a reply of a kind that the request never gets, is `OutOfStep`.
Rejected: an ECHO behind each batch, which is one more command for each read.

*A call ends at its own deadline*, which is one moment for all that it sends and receives. And *a dead connection is found
sooner*: one that has been silent for `doubt_s` is compared with a new one. Where the new one is answered, and the old one is
still silent, the network has lost the old one (NAT tables, firewalls and load balancers do so without a word). A server that
is only slow keeps both waiting, so nobody is cut off because it is.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import select
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, Protocol

import hiredis
from redis.exceptions import AuthenticationError, InvalidResponse, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.effects import Word
from distier.errors import ConfigError

Words = Sequence[Word]

READ_BYTES = 64 * 1024
SEND_BYTES = 64 * 1024
WATCH_S = 0.05
SLOWEST_BYTES_PER_S = 50_000
"""A request may be under way for as long as this pace takes before its connection is doubted."""
BLOCKING = frozenset(("XREAD", "WAIT", "BLPOP"))
# fmt: off
READS = frozenset((
    "GET", "HGETALL", "HGET", "HMGET", "EVALSHA_RO", "SCRIPT", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE", "SCAN", "EXISTS", "INFO",
    "TIME",
))
# fmt: on
"""What a server answers also while it pauses writes (CLIENT PAUSE WRITE, a failover of its own making)."""
BLOCK_MAX_S = 1.5
"""More than any of them is told to wait at the server."""
_NOT_YET = object()


class Silent(RedisConnectionError):
    """No answer on this connection, while the server answers on a new one."""


# -- over forks ------------------------------------------------------------------------------------------------------


class _Leaves(Protocol):
    def leave(self) -> None: ...


class Connections:
    """All connections of this process. In a forked child each *leaves*: its socket is dropped there, which tells the server
    nothing."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inherited: list[Any] = []

    def add(self, connection: _Leaves, pid: int) -> None:
        """`pid`: of the process that opened it."""
        self._all.add(connection)
        if pid != os.getpid():  # forked in between, by a signal handler
            connection.leave()

    def after_fork_in_child(self) -> None:
        for connection in list(self._all):
            connection.leave()
            if isinstance(connection, AsyncLine):
                # Kept for ever: its finaliser would take it out of the parent's event loop, which the child shares (epoll).
                self._inherited.append(connection)
        self._all = weakref.WeakSet()


def _replace(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        if fd >= 0:
            os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)


CONNECTIONS = Connections()
os.register_at_fork(after_in_child=CONNECTIONS.after_fork_in_child)


# -- the first words -------------------------------------------------------------------------------------------------

# Refusals of a server that will take connections in a moment.
_LATER = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
_AUTH = ("WRONGPASS", "NOAUTH")


def greeting(connection: Any) -> list[Words]:
    """What is sent first, in one packet, over a connection of redis-py that is open. The client's name goes with HELLO: then
    no right to use CLIENT is needed, and nobody has to have it."""
    hello: list[Word] = ["HELLO", 3]
    if connection.password or connection.username:
        hello += ["AUTH", connection.username or "default", connection.password or ""]
    if connection.client_name:
        hello += ["SETNAME", connection.client_name]
    select_db: list[Words] = [("SELECT", connection.db)] if connection.db else []
    return [tuple(hello), *select_db]


def check_greeting(connection: Any, replies: Sequence[Any]) -> None:
    """Raises redis-py's `ConnectionError` where it may go well in a moment, else `ConfigError`."""
    hello, *selected = replies
    if isinstance(hello, ResponseError):
        _refused(
            hello,
            "this server does not take HELLO 3, with which distier begins (RESP3, Redis 6 or later): is the command renamed, "
            f"or is this a proxy? ({hello})",
        )
    if not isinstance(hello, dict) or hello.get(b"proto") != 3:
        raise ConfigError(f"the server does not speak RESP3: it answers HELLO 3 by {hello!r:.100}")
    for reply in selected:
        if isinstance(reply, ResponseError):
            _refused(reply, f"redis.url names database {connection.db}, and the server refuses SELECT: {reply}")


def _refused(error: ResponseError, otherwise: str) -> None:
    text = str(error)
    if text.startswith(_LATER):
        raise RedisConnectionError(text) from error
    if text.startswith(_AUTH) or "invalid password" in text:
        raise AuthenticationError(text) from error
    raise ConfigError(otherwise) from error


class Errors:
    """Makes the error replies of a line, and notices those of a replica: the line is then to be dropped."""

    __slots__ = ("demoted",)

    def __init__(self) -> None:
        self.demoted = False

    def __call__(self, text: str) -> ResponseError:
        if text.startswith(("READONLY", "MASTERDOWN", "UNBLOCKED")):
            self.demoted = True
        return ResponseError(text)


def new_reader(errors: Errors) -> Any:
    return hiredis.Reader(replyError=errors, protocolError=InvalidResponse, notEnoughData=_NOT_YET)


def packed(commands: Sequence[Words]) -> bytes:
    pack: Any = hiredis.pack_command
    return pack(commands[0]) if len(commands) == 1 else b"".join([pack(words) for words in commands])


verb_of = itemgetter(0)


def block(commands: Sequence[Words]) -> bool:
    """Whether the server may keep silent over one of these because it is told to wait."""
    return not BLOCKING.isdisjoint(map(verb_of, commands))


def unasked(reply: Any) -> RedisConnectionError:
    return RedisConnectionError(f"a reply to nothing ({type(reply).__name__}): the connection is out of step")


# -- blocking --------------------------------------------------------------------------------------------------------


class Line:
    """A connection that redis-py has opened (address, TLS), and whose socket is then used directly: redis-py's own way of
    sending and reading costs as much again as the round trip over a unix socket.

    One wait is at most `doubt_s`: who has waited so long asks `is_dead` whether there is any use in waiting on. After any
    exception the line is of no more use.
    """

    def __init__(self, connection: Any, timeout_s: float, doubt_s: float) -> None:
        self._connection = connection
        self.pid = os.getpid()
        connection.socket_connect_timeout = connection.socket_timeout = max(timeout_s, 0.001)
        self.end_s = 0.0
        connection.connect()
        self._socket = connection._get_socket()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        self.has_arrived = poll.poll
        """With 0: whether something can be read now."""
        self.errors = Errors()
        self._reader = new_reader(self.errors)
        self._buffer = bytearray(READ_BYTES)
        self._doubt_s = doubt_s
        self._timeout_s = -1.0
        self._allowance_s = 0.0
        self.heard_s = 0.0
        self.life = 0
        self.is_dead: Callable[[Line], bool] = lambda line: False
        CONNECTIONS.add(self, self.pid)

    def send(self, commands: Sequence[Words], end_s: float) -> None:
        """`end_s` is for the replies as well."""
        self.end_s, self.heard_s = end_s, time.monotonic()
        data = packed(commands)
        self._allowance_s = len(data) / SLOWEST_BYTES_PER_S + (BLOCK_MAX_S if block(commands) else 0.0)
        self._wait_at_most(end_s - self.heard_s)
        try:
            sent = self._socket.send(data)
        except TimeoutError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        while rest:
            self._go_on()
            with suppress(TimeoutError):
                rest = rest[self._socket.send(rest[:SEND_BYTES]) :]
                self.heard_s = time.monotonic()

    def receive(self, n: int) -> list[Any]:
        """The replies to the `n` commands that were sent."""
        reader = self._reader
        replies: list[Any] = []
        while len(replies) < n:
            reply = reader.gets()
            if reply is _NOT_YET:
                self._read()
            elif type(reply) is not hiredis.PushNotification:  # nobody asked for one here
                replies.append(reply)
        if reader.has_data() and not self._holds_pushes():
            raise unasked(b"")
        return replies

    def _holds_pushes(self) -> bool:
        while (reply := self._reader.gets()) is not _NOT_YET:
            if type(reply) is not hiredis.PushNotification:
                return False
        return not self._reader.has_data()

    def _read(self) -> None:
        while True:
            left_s = self.end_s - time.monotonic()
            if left_s < self._timeout_s:
                self._wait_at_most(left_s)
            try:
                n = self._socket.recv_into(self._buffer)
            except TimeoutError:
                self._go_on()
                continue
            if n == 0:
                raise RedisConnectionError("Redis closed the connection")
            self._reader.feed(self._buffer, 0, n)
            self.heard_s = time.monotonic()
            return

    def _go_on(self) -> None:
        """Raises where there is no time left, or no use."""
        if self.is_silent() and self.is_dead(self):
            raise Silent("no answer on this connection, while the server answers on a new one")
        self._wait_at_most(self.end_s - time.monotonic())

    def _wait_at_most(self, left_s: float) -> None:
        """For each single wait. Setting it is a system call: done where it differs."""
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        wait_s = min(left_s, self._doubt_s)
        if wait_s != self._timeout_s:
            self._socket.settimeout(wait_s)
            self._timeout_s = wait_s

    def until(self, end_s: float) -> None:
        """A new end for what was sent."""
        self.end_s = end_s

    def is_silent(self) -> bool:
        """Whether it has been so for long enough to be doubted."""
        return time.monotonic() - self.heard_s >= self._doubt_s * 0.9 + self._allowance_s

    def is_clean(self) -> bool:
        """Whether nothing has come that nobody asked for, nor the end of the connection. To be asked before it is used."""
        return not self.has_arrived(0) or (isinstance(self._socket, ssl.SSLSocket) and self._tells_nothing())

    def _tells_nothing(self) -> bool:
        """TLS sends words of its own (session tickets), which only reading takes away."""
        self._socket.settimeout(0.0)
        self._timeout_s = -1.0
        try:
            self._socket.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except OSError:
            return False
        return False

    def answers(self, timeout_s: float) -> bool:
        """Whether it is still there after a long pause, and in step."""
        nonce = secrets.token_hex(8)
        try:
            self.send([("PING", nonce)], time.monotonic() + timeout_s)
            reply = self.receive(1)[0]
        except (OSError, RedisConnectionError, InvalidResponse):
            return False
        return reply == nonce.encode() or isinstance(reply, ResponseError)

    def close(self) -> None:
        self._connection.disconnect()

    def leave(self) -> None:
        """In a child: drop the socket that it got, and say nothing. Its number is given to /dev/null, and not closed: the child
        may have been forked by a signal handler in the middle of a wait for the reply, and who waits for a closed descriptor
        waits until the deadline."""
        with suppress(OSError):
            _replace(self._socket.fileno())


# -- on an event loop ------------------------------------------------------------------------------------------------


class AsyncLine(asyncio.Protocol):
    """The same on an event loop, shared by all tasks: commands go out as they come, replies are dealt out in order.

    The line owns the futures of what was asked, each with its own end: it is done when its replies are there, when its time is
    over, or when the line ends, whichever comes first. A task that is cancelled, or late, leaves its place in the queue, and
    its replies are dropped when they arrive.
    """

    def __init__(self, connection: Any, loop: asyncio.AbstractEventLoop, pid: int, doubt_s: float) -> None:
        self._connection = connection
        self.loop = loop
        self._transport = connection._writer.transport
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
        self.life = 0
        self.doubt: Callable[[AsyncLine], object] = lambda line: None
        self._transport.set_protocol(self)
        CONNECTIONS.add(self, pid)

    def ask(self, commands: Sequence[Words], timeout_s: float) -> asyncio.Future[list[Any]]:
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

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        self._reader.feed(data)
        try:
            while not self.closed and (reply := self._reader.gets()) is not _NOT_YET:
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
        while (reply := self._reader.gets()) is not _NOT_YET:
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
        """As `Line.answers`."""
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
        self._connection._reader = self._connection._writer = None  # or redis-py calls it unclosed
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
        self._connection._reader = self._connection._writer = None


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    with suppress(RuntimeError):
        return asyncio.get_running_loop() is loop
    return False
