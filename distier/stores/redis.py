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
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

import hiredis
import redis
import redis.asyncio as aredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from distier.config import SENTINEL_SCHEMES, TLS_SCHEMES, Config, mask_url, parse_sentinel_url
from distier.domain.keys import Shard
from distier.effects import Word

Words = Sequence[Word]
Batch = tuple[Shard, Sequence[Words]]
Answer = list[Any] | RedisError
"""The replies to a batch, or why there are none: redis-py's `ConnectionError` or `TimeoutError`."""

CONNECTIONS_MAX = 256
READ_BYTES = 64 * 1024
WATCH_S = 0.05
SENTINEL_TIMEOUT_MAX_S = 1.0


class Exchange(Protocol):
    """Where commands go, blocking. Raises redis-py's `ConnectionError` or `TimeoutError` if the answer is not known."""

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]: ...

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """What `exchange` answers or raises for each batch, in one round trip to each server, to all servers at once."""
        ...

    def close(self) -> None: ...


class AsyncExchange(Protocol):
    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]: ...

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]: ...

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
    if url.startswith(TLS_SCHEMES):
        options |= _tls_files(config)
    return options


def _tls_files(config: Config) -> dict[str, str]:
    server = config.redis
    files = {"ssl_ca_certs": server.ca_file, "ssl_certfile": server.cert_file, "ssl_keyfile": server.key_file}
    return {name: str(path) for name, path in files.items() if path}


def _joined(batches: Sequence[Batch]) -> list[Words]:
    return [words for _, commands in batches for words in commands]


def split(batches: Sequence[Batch], replies: Sequence[Any]) -> list[list[Any]]:
    """The replies to all commands of these batches, as those of each."""
    left = iter(replies)
    return [list(islice(left, len(commands))) for _, commands in batches]


def lone_connection(config: Config, url: str) -> Any:
    """A redis-py connection outside of any pool, not connected yet: for a conversation of its own. Raises redis-py's
    `ConnectionError` where the sentinels know no master."""
    options = _options(config, url) | {"retry": Retry(NoBackoff(), 0), "client_name": "distier-near"}
    return _Dial(config, url, options).connection()


# -- which server ----------------------------------------------------------------------------------------------------


class _Sentinels:
    """Asks the sentinels of a `sentinel://` url who the master is, anew for each connection: nothing is kept that could
    be out of date but who answered last, who is asked first.

    redis-py asks; its pool and connections for Sentinel are not used: they look at replies that only they read.
    """

    def __init__(self, config: Config, url: str) -> None:
        self.url = parse_sentinel_url(url)
        self._order = self.url.sentinels
        # One that does not answer must leave time for the others, and for the server itself.
        timeout_s = min(config.deadline_ms / 1000 / (len(self._order) + 2), SENTINEL_TIMEOUT_MAX_S)
        self._options: dict[str, Any] = {
            "protocol": 2,
            "client_name": "distier",
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.url.tls:
            self._options |= {"ssl": True, **_tls_files(config)}

    def server(self, address: tuple[str, int], options: dict[str, Any]) -> dict[str, Any]:
        """What a connection to this address needs."""
        own = {"username": self.url.username, "password": self.url.password}
        host, port = address
        return options | {name: v for name, v in own.items() if v} | {"host": host, "port": port, "db": self.url.db}

    def master(self) -> tuple[str, int]:
        retry = Retry(NoBackoff(), 0)
        sentinel: Any = Sentinel  # redis-py says no types here
        with sentinel(self._order, sentinel_kwargs=self._options | {"retry": retry}) as found:
            try:
                address: tuple[str, int] = found.discover_master(self.url.master)
            except ResponseError as e:
                raise RedisConnectionError(f"a sentinel refuses to name the master: {e}") from e
            except MasterNotFoundError as e:
                why: RedisError | None = None
                try:
                    found.sentinels[0].ping()
                except RedisError as said:
                    why = said
                raise self._unknown(why) from e
            self._prefer(found.sentinels[0])
        return address

    async def master_async(self) -> tuple[str, int]:
        retry = AsyncRetry(NoBackoff(), 0)
        make: Any = AsyncSentinel
        found = make(self._order, sentinel_kwargs=self._options | {"retry": retry})
        try:
            address: tuple[str, int] = await found.discover_master(self.url.master)
            self._prefer(found.sentinels[0])
        except ResponseError as e:
            raise RedisConnectionError(f"a sentinel refuses to name the master: {e}") from e
        except MasterNotFoundError as e:
            why: RedisError | None = None
            try:
                await found.sentinels[0].ping()
            except RedisError as said:
                why = said
            raise self._unknown(why) from e
        finally:
            for sentinel in found.sentinels:
                await sentinel.aclose()
        return address

    def _unknown(self, why: RedisError | None) -> RedisConnectionError:
        """redis-py says only that it was the network, among all settings of its connections. (`why`: what the first says)"""
        reason = f"the first one: {why}" if why else "they answer, and know none of this name, or hold it for dead"
        return RedisConnectionError(f"no sentinel names a master {self.url.master!r} ({reason})")

    def _prefer(self, answered: Any) -> None:
        kwargs = answered.connection_pool.connection_kwargs
        first = (kwargs["host"], kwargs["port"])
        self._order = (first, *(address for address in self._order if address != first))


class _Dial:
    """Makes connections, not connected yet, to the server that `url` means at this moment."""

    def __init__(self, config: Config, url: str, options: dict[str, Any]) -> None:
        self._options = options
        self._sentinels = _Sentinels(config, url) if url.startswith(SENTINEL_SCHEMES) else None
        self._pool: Any = None if self._sentinels else redis.ConnectionPool.from_url(url, **options)

    def connection(self) -> Any:
        pool = self._pool
        if self._sentinels:
            kind = redis.SSLConnection if self._sentinels.url.tls else redis.Connection
            pool = redis.ConnectionPool(kind, **self._sentinels.server(self._sentinels.master(), self._options))
        return pool.connection_class(**pool.connection_kwargs)


class _AsyncDial:
    """The same on an event loop."""

    def __init__(self, config: Config, url: str, options: dict[str, Any]) -> None:
        self._options = options
        self._sentinels = _Sentinels(config, url) if url.startswith(SENTINEL_SCHEMES) else None
        self._pool: Any = None if self._sentinels else aredis.ConnectionPool.from_url(url, **options)

    async def connection(self) -> Any:
        pool = self._pool
        if self._sentinels:
            address = await self._sentinels.master_async()
            kind = aredis.SSLConnection if self._sentinels.url.tls else aredis.Connection
            pool = aredis.ConnectionPool(kind, **self._sentinels.server(address, self._options))
        return pool.connection_class(**pool.connection_kwargs)


class Lives:
    """Notices when a new connection reaches another life of the server: a restart, a promotion, another machine. Then what
    the process knew of its epoch is worth nothing: `forget` is called before the connection is used.

    With `only_master` a replica is refused: a sentinel that has not heard of a failover yet names the old master."""

    def __init__(self, forget: Callable[[], object], *, only_master: bool = False) -> None:
        self._forget = forget
        self._only_master = only_master
        self._replid: bytes | None = None

    def met(self, info: bytes | str) -> None:
        """`info` is the answer to INFO replication."""
        text = info.encode() if isinstance(info, str) else info
        if self._only_master and b"role:slave" in text:
            raise RedisConnectionError("the sentinels name a server that is a replica (by now)")
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


class _Errors:
    """Makes the error replies of a line, and notices those of a replica: the line is then to be dropped."""

    __slots__ = ("demoted",)

    def __init__(self) -> None:
        self.demoted = False

    def __call__(self, text: str) -> ResponseError:
        if text.startswith(("READONLY", "MASTERDOWN", "UNBLOCKED")):
            self.demoted = True
        return ResponseError(text)


class _Line:
    """A connection whose handshake redis-py has made (address, TLS, AUTH, HELLO), and whose socket is then used directly:
    redis-py's own way of sending and reading costs as much again as the round trip over a unix socket."""

    __slots__ = ("_buffer", "_connection", "_reader", "_socket", "_timeout_s", "errors")

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self._socket = connection._get_socket()
        self.errors = _Errors()
        self._reader = hiredis.Reader(replyError=self.errors, protocolError=InvalidResponse, notEnoughData=_NOT_YET)
        self._buffer = bytearray(READ_BYTES)
        self._timeout_s = self._socket.gettimeout()

    def send(self, commands: Sequence[Words], timeout_s: float) -> None:
        """After any exception the line is of no more use."""
        self.wait_at_most(timeout_s)
        pack: Any = hiredis.pack_command
        self._socket.sendall(pack(commands[0]) if len(commands) == 1 else b"".join([pack(words) for words in commands]))

    def receive(self, n: int) -> list[Any]:
        """The replies to the `n` commands that were sent. After any exception the line is of no more use."""
        return [self._reply() for _ in range(n)]

    def wait_at_most(self, timeout_s: float) -> None:
        """For each single wait. Setting it is a system call: done where it differs."""
        if timeout_s != self._timeout_s:
            self._socket.settimeout(timeout_s)
            self._timeout_s = timeout_s

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

    def __init__(
        self, config: Config, url: str, forget: Callable[[], object] = lambda: None, *, connect_s: float | None = None
    ) -> None:
        self.url = url
        self._default_s = config.deadline_ms / 1000
        lives = Lives(forget, only_master=url.startswith(SENTINEL_SCHEMES))
        options = _options(config, url) | {"retry": Retry(NoBackoff(), 0), "redis_connect_func": lives.on_connect}
        if connect_s is not None:  # where there are other servers to turn to
            options["socket_connect_timeout"] = connect_s
        self._dial = _Dial(config, url, options)
        self._idle: list[_Line] = []
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"RedisExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        line = self._take()
        try:
            line.send(commands, self._wait_s(timeout_s))
            replies = line.receive(len(commands))
        except BaseException as e:
            self._give_up(line, e)
            raise
        self._give_back(line)
        return replies

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        try:
            return [*split(batches, self.exchange(batches[0][0], _joined(batches), timeout_s))]
        except (RedisConnectionError, redis.TimeoutError) as e:
            return [e] * len(batches)

    def begin(self, batches: Sequence[Batch], timeout_s: float) -> _Line:
        """The first half of `exchange_many`, so that other servers can be told meanwhile; then `finish` must be called, or
        the line closed. Raises as `exchange`."""
        line = self._take()
        try:
            line.send(_joined(batches), self._wait_s(timeout_s))
        except BaseException as e:
            self._give_up(line, e)
            raise
        return line

    def finish(self, line: _Line, batches: Sequence[Batch], timeout_s: float) -> list[list[Any]]:
        """The replies to each batch. Raises as `exchange`."""
        try:
            line.wait_at_most(self._wait_s(timeout_s))
            replies = line.receive(sum(len(commands) for _, commands in batches))
        except BaseException as e:
            self._give_up(line, e)
            raise
        self._give_back(line)
        return split(batches, replies)

    def _wait_s(self, timeout_s: float) -> float:
        # Setting a timeout is a system call: while there is plenty of time, the usual one does.
        return self._default_s if timeout_s > self._default_s * 0.9 else max(timeout_s, 0.001)

    def _give_up(self, line: _Line, error: BaseException) -> None:
        """Whatever it was (also KeyboardInterrupt): unread replies must not meet the next command."""
        line.close()
        if isinstance(error, OSError | RedisConnectionError):
            self._drop_idle()  # the others have most likely lost their server too
        if isinstance(error, OSError):
            kind = redis.TimeoutError if isinstance(error, TimeoutError) else RedisConnectionError
            raise kind(str(error) or "no answer in time") from error

    def _give_back(self, line: _Line) -> None:
        if line.errors.demoted:  # the next try looks for the server anew: it may be another one by now
            line.close()
            self._drop_idle()
        else:
            self._idle.append(line)

    def _take(self) -> _Line:
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return _Line(self._dial.connection())

    def _drop_idle(self) -> None:
        with suppress(IndexError):  # other threads take from it too
            while True:
                self._idle.pop().close()

    def close(self) -> None:
        if self._pid == os.getpid():
            self._drop_idle()


class _AsyncLine(asyncio.Protocol):
    """The same on an event loop, shared by all tasks: commands go out as they come, replies are dealt out in order. A task
    that is cancelled leaves its place in the queue, and its replies are dropped when they arrive."""

    def __init__(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._transport = connection._writer.transport
        self.errors = _Errors()
        self._reader = hiredis.Reader(replyError=self.errors, protocolError=InvalidResponse, notEnoughData=_NOT_YET)
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
        if self.errors.demoted and not self._waiting:  # nobody begins to use it any more, and this was the last reply
            self.fail(RedisConnectionError("the server is a replica by now"))

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


_BLOCKING = frozenset(("XREAD", "WAIT", "BLPOP"))


class AsyncRedisExchange:
    """The same for an event loop; to be used on the loop where it was first used. One line is shared by everybody; what
    blocks at the server gets a line of its own."""

    def __init__(
        self, config: Config, url: str, forget: Callable[[], object] = lambda: None, *, connect_s: float | None = None
    ) -> None:
        self.url = url
        self._connect_s = connect_s
        lives = Lives(forget, only_master=url.startswith(SENTINEL_SCHEMES))
        options = _options(config, url) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        options["redis_connect_func"] = lives.on_connect_async
        self._dial = _AsyncDial(config, url, options)
        self._shared: _AsyncLine | None = None
        self._idle: list[_AsyncLine] = []
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"AsyncRedisExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        if any(words[0] in _BLOCKING for words in commands):
            return await self._exchange_alone(commands, timeout_s)
        line = self._shared
        if line is None or line.closed or line.errors.demoted:
            line = await self._open_shared(timeout_s)
        return await line.ask(commands, timeout_s)

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        try:
            return [*split(batches, await self.exchange(batches[0][0], _joined(batches), timeout_s))]
        except (RedisConnectionError, redis.TimeoutError) as e:
            return [e] * len(batches)

    async def _open_shared(self, timeout_s: float) -> _AsyncLine:
        async with self._opening:
            if self._shared is None or self._shared.closed or self._shared.errors.demoted:
                self._shared = await self._open(timeout_s)
            return self._shared

    async def _open(self, timeout_s: float) -> _AsyncLine:
        connection: Any = None
        if self._connect_s is not None:
            timeout_s = min(timeout_s, self._connect_s)
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                connection = await self._dial.connection()
                await connection.connect()
        except BaseException as e:
            if connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(e, TimeoutError):  # asyncio's: the built-in one
                raise redis.TimeoutError("no connection in time") from e
            raise
        return _AsyncLine(connection, asyncio.get_running_loop())

    async def _exchange_alone(self, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        line = self._idle.pop() if self._idle else await self._open(timeout_s)
        try:
            replies = await line.ask(commands, timeout_s)
        except BaseException:  # cancelled too: the server may block on it for a while
            line.fail(RedisConnectionError("given up"))
            raise
        if line.errors.demoted:
            line.fail(RedisConnectionError("the server is a replica by now"))
        else:
            self._idle.append(line)
        return replies

    async def close(self) -> None:
        for line in [self._shared, *self._idle]:
            if line is not None:
                line.fail(RedisConnectionError("this store is closed"))
        self._shared, self._idle = None, []
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn


__all__ = [
    "Answer",
    "AsyncExchange",
    "AsyncRedisExchange",
    "Batch",
    "Exchange",
    "RedisError",
    "RedisExchange",
    "ResponseError",
    "Words",
    "lone_connection",
    "split",
]
