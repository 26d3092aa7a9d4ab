"""Redis as distier uses it: send some commands over one connection, get as many replies.

redis-py brings the connections (RESP3, TLS, unix sockets, hiredis); its retries and its client-side cache are off.
Retries belong to the driver, which knows the deadline and which calls may be sent twice. A reply that is an error
comes back as a value (`ResponseError`), so that one refused command does not lose its neighbours' replies.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import hiredis
import redis
import redis.asyncio as aredis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from distier.config import Config, mask_url
from distier.domain.keys import Shard
from distier.effects import Word

Words = Sequence[Word]

CONNECTIONS_MAX = 256
READ_BYTES = 64 * 1024
WATCH_S = 0.05


class Exchange(Protocol):
    """Where commands go, blocking. Raises redis-py's `ConnectionError` or `TimeoutError` if the answer is not known."""

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]: ...

    def close(self) -> None: ...


class AsyncExchange(Protocol):
    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]: ...

    async def close(self) -> None: ...


def _options(config: Config, url: str) -> dict[str, Any]:
    server = config.redis
    options: dict[str, Any] = {
        "protocol": 3,
        "client_name": "distier",
        "socket_timeout": config.deadline_ms / 1000,
        "socket_connect_timeout": config.deadline_ms / 1000,
        "max_connections": CONNECTIONS_MAX,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if server.username:
        options["username"] = server.username
    if server.password:
        options["password"] = server.password.get_secret_value()
    if url.startswith("rediss://"):
        files = {
            "ssl_ca_certs": server.ca_file,
            "ssl_certfile": server.cert_file,
            "ssl_keyfile": server.key_file,
        }
        options |= {name: str(path) for name, path in files.items() if path}
    return options


def lone_connection(config: Config, url: str) -> Any:
    """A redis-py connection outside of any pool, not connected yet: for a conversation of its own."""
    options = _options(config, url) | {"retry": Retry(NoBackoff(), 0), "client_name": "distier-near"}
    return redis.ConnectionPool.from_url(url, **options).make_connection()


class Lives:
    """Notices when a new connection reaches another life of the server: a restart, a promotion, another machine. Then what
    the process knew of its epoch is worth nothing: `forget` is called before the connection is used."""

    def __init__(self, forget: Callable[[], object]) -> None:
        self._forget = forget
        self._replid: bytes | None = None

    def met(self, info: bytes | str) -> None:
        """`info` is the answer to INFO replication."""
        text = info.encode() if isinstance(info, str) else info
        found = re.search(rb"master_replid:([0-9a-f]+)", text)
        replid = found[1] if found else None
        if replid is None or replid != self._replid:
            self._replid = replid
            self._forget()

    def on_connect(self, connection: Any) -> None:
        connection.on_connect()
        try:
            connection.send_command("INFO", "replication")
            self.met(connection.read_response())
        except ResponseError:  # this user may not ask: then every connection may be another life
            self.met(b"")

    async def on_connect_async(self, connection: Any) -> None:
        await connection.on_connect()
        try:
            await connection.send_command("INFO", "replication")
            self.met(await connection.read_response())
        except ResponseError:
            self.met(b"")


class _Line:
    """A connection whose handshake redis-py has made (address, TLS, AUTH, HELLO), and whose socket is then used directly:
    redis-py's own way of sending and reading costs as much again as the round trip over a unix socket."""

    __slots__ = ("_buffer", "_connection", "_reader", "_socket", "_timeout_s")

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self._socket = connection._get_socket()
        self._reader = hiredis.Reader(replyError=ResponseError, protocolError=InvalidResponse, notEnoughData=_NOT_YET)
        self._buffer = bytearray(READ_BYTES)
        self._timeout_s = self._socket.gettimeout()

    def ask(self, commands: Sequence[Words], timeout_s: float | None) -> list[Any]:
        """As many replies as commands. After any exception the line is of no more use."""
        if timeout_s != self._timeout_s:
            self._socket.settimeout(timeout_s)
            self._timeout_s = timeout_s
        pack: Any = hiredis.pack_command
        self._socket.sendall(pack(commands[0]) if len(commands) == 1 else b"".join([pack(words) for words in commands]))
        return [self._reply() for _ in commands]

    def _reply(self) -> Any:
        gets = self._reader.gets
        while True:
            reply = gets()
            if reply is _NOT_YET:
                n = self._socket.recv_into(self._buffer)
                if n == 0:
                    raise RedisConnectionError("Redis closed the connection")
                self._reader.feed(self._buffer, 0, n)  # type: ignore[arg-type]
            elif type(reply) is not hiredis.PushNotification:  # nobody asked for one here
                return reply

    def close(self) -> None:
        self._connection.disconnect()


_NOT_YET = object()


class RedisExchange:
    """One Redis or Valkey server, for threads: a stack of idle connections, the last used one first. Safe over fork: a new
    process starts with none."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        self.url = url
        self._default_s = config.deadline_ms / 1000
        lives = Lives(forget)
        options = _options(config, url) | {"retry": Retry(NoBackoff(), 0), "redis_connect_func": lives.on_connect}
        self._pool: Any = redis.ConnectionPool.from_url(url, **options)
        self._idle: list[_Line] = []
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"RedisExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        # Setting a timeout is a system call: while there is plenty of time, the usual one does.
        wait_s = self._default_s if timeout_s > self._default_s * 0.9 else max(timeout_s, 0.001)
        line = self._take()
        try:
            replies = line.ask(commands, wait_s)
        except BaseException as e:
            # Whatever it was (also KeyboardInterrupt): unread replies must not meet the next command.
            line.close()
            if isinstance(e, OSError | RedisConnectionError):
                self._drop_idle()  # the others have most likely lost their server too
            if isinstance(e, OSError):
                kind = redis.TimeoutError if isinstance(e, TimeoutError) else RedisConnectionError
                raise kind(str(e) or "no answer in time") from e
            raise
        self._idle.append(line)
        return replies

    def _take(self) -> _Line:
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return _Line(self._pool.connection_class(**self._pool.connection_kwargs))

    def _drop_idle(self) -> None:
        while self._idle:
            self._take().close()

    def close(self) -> None:
        if self._pid == os.getpid():
            self._drop_idle()
        self._pool.disconnect()


class _AsyncLine(asyncio.Protocol):
    """The same on an event loop, shared by all tasks: commands go out as they come, replies are dealt out in order. A task
    that is cancelled leaves its place in the queue, and its replies are dropped when they arrive."""

    def __init__(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._transport = connection._writer.transport
        self._reader = hiredis.Reader(replyError=ResponseError, protocolError=InvalidResponse, notEnoughData=_NOT_YET)
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, float]] = deque()
        self._replies: list[Any] = []
        self._watching = False
        self.closed = False
        self._transport.set_protocol(self)

    def ask(self, commands: Sequence[Words], timeout_s: float) -> asyncio.Future[list[Any]]:
        pack: Any = hiredis.pack_command
        self._transport.write(
            pack(commands[0]) if len(commands) == 1 else b"".join([pack(words) for words in commands])
        )
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append((future, len(commands), self._loop.time() + timeout_s))
        if not self._watching:
            self._watch()
        return future

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOT_YET:
                if type(reply) is not hiredis.PushNotification:  # nobody asked for one here
                    self._deal(reply)
        except InvalidResponse as e:
            self.fail(RedisConnectionError(f"Redis sent what is no reply: {e}"))

    def _deal(self, reply: Any) -> None:
        future, n, _ = self._waiting[0]
        self._replies.append(reply)
        if len(self._replies) == n:
            self._waiting.popleft()
            replies, self._replies = self._replies, []
            if not future.done():
                future.set_result(replies)

    def _watch(self) -> None:
        """One timer for the line, not one for each call: looks every 50 ms whether the first in the queue is late."""
        self._watching = bool(self._waiting) and not self.closed
        if not self._watching:
            return
        if self._loop.time() > self._waiting[0][2]:
            self.fail(redis.TimeoutError("no answer in time"))
        else:
            self._loop.call_later(WATCH_S, self._watch)

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(RedisConnectionError(str(error) if error else "Redis closed the connection"))

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


_BLOCKING = frozenset(("XREAD", "WAIT"))


class AsyncRedisExchange:
    """The same for an event loop; to be used on the loop where it was first used. One line is shared by everybody; what
    blocks at the server gets a line of its own."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        from redis.asyncio.retry import Retry as AsyncRetry

        self.url = url
        lives = Lives(forget)
        options = _options(config, url) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        options["redis_connect_func"] = lives.on_connect_async
        self._pool: Any = aredis.ConnectionPool.from_url(url, **options)
        self._shared: _AsyncLine | None = None
        self._idle: list[_AsyncLine] = []
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"AsyncRedisExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        if any(words[0] in _BLOCKING for words in commands):
            return await self._exchange_alone(commands, timeout_s)
        line = self._shared
        if line is None or line.closed:
            line = await self._open_shared(timeout_s)
        return await line.ask(commands, timeout_s)

    async def _open_shared(self, timeout_s: float) -> _AsyncLine:
        async with self._opening:
            if self._shared is None or self._shared.closed:
                self._shared = await self._open(timeout_s)
            return self._shared

    async def _open(self, timeout_s: float) -> _AsyncLine:
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                await connection.connect()
        except TimeoutError as e:  # asyncio's: the built-in one
            raise redis.TimeoutError("no connection in time") from e
        return _AsyncLine(connection, asyncio.get_running_loop())

    async def _exchange_alone(self, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        line = self._idle.pop() if self._idle else await self._open(timeout_s)
        try:
            replies = await line.ask(commands, timeout_s)
        except BaseException:  # cancelled too: the server may block on it for a while
            line.fail(RedisConnectionError("given up"))
            raise
        self._idle.append(line)
        return replies

    async def close(self) -> None:
        for line in [self._shared, *self._idle]:
            if line is not None:
                line.fail(RedisConnectionError("this store is closed"))
        self._shared, self._idle = None, []
        await self._pool.disconnect()


__all__ = [
    "AsyncExchange",
    "AsyncRedisExchange",
    "Exchange",
    "RedisError",
    "RedisExchange",
    "ResponseError",
    "Words",
    "lone_connection",
]
