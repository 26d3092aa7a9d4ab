"""Redis as distier uses it: send some commands over one connection, get as many replies.

redis-py brings the connections (RESP3, TLS, unix sockets, hiredis); its retries and its client-side cache are off.
Retries belong to the driver, which knows the deadline and which calls may be sent twice. A reply that is an error
comes back as a value (`ResponseError`), so that one refused command does not lose its neighbours' replies.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from itertools import islice
from typing import Any, Protocol, TypeVar

import redis
import redis.asyncio as aredis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from distier.config import SENTINEL_SCHEMES, TLS_SCHEMES, Config, mask_url, parse_sentinel_url
from distier.domain.keys import Shard
from distier.errors import DistierError, Invalid

from .threads import Helpers
from .wire import BLOCK_MAX_S, READS, AsyncLine, Line, Silent, Words, block, check_greeting, greeting, verb_of

T = TypeVar("T")
Batch = tuple[Shard, Sequence[Words]]
Answer = list[Any] | RedisError
"""The replies to a batch, or why there are none: redis-py's `ConnectionError` or `TimeoutError`."""

CONNECTIONS_MAX = 256
DOUBT_MAX_S = 1.0
DOUBT_SHARE = 4
"""A connection is doubted when it has been silent for a second, or for a quarter of the usual deadline if that is less."""
IDLE_S = 30.0
"""A connection that was idle for longer is asked whether it is still there before anything else is sent over it."""
SENTINEL_TIMEOUT_MAX_S = 1.0


Revive = Callable[[float], bool]
"""Starts a server that has died, within so many seconds; whether it is worth to connect again. Raises `DistierError`."""


class Exchange(Protocol):
    """Where commands go, blocking. Raises redis-py's `ConnectionError` or `TimeoutError` if the answer is not known."""

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]: ...

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """What `exchange` answers or raises for each batch, in one round trip to each server, to all servers at once."""
        ...

    def drop(self) -> None:
        """End all connections that nobody is using: they are out of step. The next call makes others."""
        ...

    def close(self) -> None: ...


class AsyncExchange(Protocol):
    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]: ...

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]: ...

    def drop(self) -> None: ...

    async def close(self) -> None: ...


def _options(config: Config, url: str) -> dict[str, Any]:
    server = config.redis
    options: dict[str, Any] = {
        "protocol": 3,
        "client_name": "distier",
        "socket_timeout": config.deadline_ms / 1000,
        "socket_connect_timeout": config.deadline_ms / 1000,
        "max_connections": CONNECTIONS_MAX,
        "redis_connect_func": _no_greeting,
        "driver_info": None,  # only redis-py's own greeting would say it, and to look it up takes 10 ms
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if server.username:
        options["username"] = server.username
    if server.password:
        options["password"] = server.password.get_secret_value()
    if url.startswith(TLS_SCHEMES):
        options |= _tls_files(config)
    if "ssl_cert_reqs=none" in url:  # Python has no check of the name without one of the certificate
        options["ssl_check_hostname"] = False
    return options


def _no_greeting(connection: Any) -> None:
    """redis-py only opens the connection; the first words are ours (`wire.greeting`): one round trip instead of up to six,
    within the call's own deadline, and what is refused is told apart."""


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
    return _Dial(config, url, options).connection(config.deadline_ms / 1000)


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

    def _within(self, timeout_s: float, retry: Any) -> dict[str, Any]:
        """Settings for asking all sentinels in turn within this time."""
        each_s = min(self._options["socket_timeout"], max(timeout_s, 0.01) / len(self._order))
        return self._options | {"retry": retry, "socket_timeout": each_s, "socket_connect_timeout": each_s}

    def master(self, timeout_s: float) -> tuple[str, int]:
        sentinel: Any = Sentinel  # redis-py says no types here
        with sentinel(self._order, sentinel_kwargs=self._within(timeout_s, Retry(NoBackoff(), 0))) as found:
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

    def connection(self, timeout_s: float) -> Any:
        pool = self._pool
        if self._sentinels:
            kind = redis.SSLConnection if self._sentinels.url.tls else redis.Connection
            address = self._sentinels.master(timeout_s)
            pool = redis.ConnectionPool(kind, **self._sentinels.server(address, self._options))
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
    the process knew of its epoch is worth nothing: `forget` is called before the connection is used. And the connections to the
    life before (their `life` is not `number` any more) are not used again: that server may still answer, as a primary that does
    not know that it was replaced, and would not have what is written over the new one.

    With `only_master` a replica is refused: a sentinel that has not heard of a failover yet names the old master."""

    def __init__(self, forget: Callable[[], object], *, only_master: bool = False) -> None:
        self._forget = forget
        self._only_master = only_master
        self._replid: bytes | None = None
        self.number = 0

    def met(self, info: bytes | str) -> None:
        """`info` is the answer to INFO replication."""
        text = info.encode() if isinstance(info, str) else info
        if self._only_master and b"role:slave" in text:
            raise RedisConnectionError("the sentinels name a server that is a replica (by now)")
        found = re.search(rb"master_replid:([0-9a-f]+)", text)
        replid = found[1] if found else None
        if replid is not None and replid != self._replid:
            self.number += 1
        if replid is None or replid != self._replid:
            self._replid = replid
            self._forget()

    def greeting(self, connection: Any) -> list[Words]:
        return [*greeting(connection), ("INFO", "replication")]

    def greeted(self, connection: Any, replies: Sequence[Any]) -> None:
        """Raises as `check_greeting`."""
        check_greeting(connection, replies[:-1])
        # A user who may not ask: then every connection may be another life.
        self.met(b"" if isinstance(replies[-1], ResponseError) else replies[-1])


class RedisExchange:
    """One Redis or Valkey server, for threads: a stack of idle connections, the last used one first. Safe over fork: a new
    process starts with none. Takes no lock that it waits for: a signal handler may call it in the middle of a call."""

    def __init__(
        self, config: Config, url: str, forget: Callable[[], object] = lambda: None, *, connect_s: float | None = None,
        revive: Revive | None = None,
    ) -> None:  # fmt: skip
        self.url = url
        default_s = config.deadline_ms / 1000
        self._doubt_s = min(DOUBT_MAX_S, default_s / DOUBT_SHARE)
        self._connect_s = default_s if connect_s is None else connect_s  # where there are other servers to turn to
        self._lives = Lives(forget, only_master=url.startswith(SENTINEL_SCHEMES))
        self._dial = _Dial(config, url, _options(config, url) | {"retry": Retry(NoBackoff(), 0)})
        self._revive = None if revive is None else _Patient(revive)
        self._start_anew()

    def _start_anew(self) -> None:
        self._idle: list[Line] = []
        self._proving = threading.Lock()
        self._proved_s = 0.0
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"RedisExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        line = self._take(end_s)
        try:
            line.send(commands, end_s)
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

    def begin(self, batches: Sequence[Batch], timeout_s: float) -> Line:
        """The first half of `exchange_many`, so that other servers can be told meanwhile; then `finish` must be called, or
        the line closed. Raises as `exchange`."""
        end_s = time.monotonic() + timeout_s
        line = self._take(end_s)
        try:
            line.send(_joined(batches), end_s)
        except BaseException as e:
            self._give_up(line, e)
            raise
        return line

    def finish(self, line: Line, batches: Sequence[Batch], timeout_s: float) -> list[list[Any]]:
        """The replies to each batch. Raises as `exchange`."""
        try:
            line.until(time.monotonic() + timeout_s)
            replies = line.receive(sum(len(commands) for _, commands in batches))
        except BaseException as e:
            self._give_up(line, e)
            raise
        self._give_back(line)
        return split(batches, replies)

    def _give_up(self, line: Line, error: BaseException) -> None:
        """Whatever it was (also KeyboardInterrupt): unread replies must not meet the next command."""
        line.close()
        if isinstance(error, Silent):
            return  # `_is_dead` has looked after the others
        if isinstance(error, OSError | RedisConnectionError):
            self._drop_idle()  # the others have most likely lost their server too
        if isinstance(error, OSError):
            raise _of_redis(error) from error

    def _give_back(self, line: Line) -> None:
        if line.pid != self._pid or line.life != self._lives.number:  # forked, or another life was met, meanwhile
            line.close()
        elif line.errors.demoted:  # the next try looks for the server anew: it may be another one by now
            line.close()
            self._drop_idle()
        else:
            self._idle.append(line)

    def _take(self, end_s: float) -> Line:
        if self._pid != os.getpid():
            self._start_anew()
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return self._open(end_s)
            if line.life != self._lives.number or (line.has_arrived(0) and not line.is_clean()):
                line.close()
            elif (now_s := time.monotonic()) - line.heard_s > IDLE_S and not line.answers(
                self._patience_s(end_s - now_s)
            ):
                line.close()
                self._drop_idle()  # they were idle for longer
            else:
                return line

    def _patience_s(self, left_s: float) -> float:
        return max(min(self._doubt_s, left_s / 2), 0.001)

    def _open(self, end_s: float) -> Line:
        """A new connection, greeted. Raises as `exchange`, and `ConfigError`."""
        try:
            return self._open_once(end_s)
        except RedisConnectionError:
            if self._revive is None or not self._revive(end_s - time.monotonic()):
                raise
        return self._open_once(end_s)

    def _open_once(self, end_s: float) -> Line:
        end_s = min(end_s, time.monotonic() + self._connect_s)
        connection = self._dial.connection(end_s - time.monotonic())
        line = Line(connection, end_s - time.monotonic(), self._doubt_s)
        try:
            words = self._lives.greeting(connection)
            line.send(words, end_s)
            self._lives.greeted(connection, line.receive(len(words)))
            line.life = self._lives.number
        except BaseException as e:
            line.close()
            if isinstance(e, OSError):
                raise _of_redis(e) from e
            raise
        line.is_dead = self._is_dead
        return line

    def _is_dead(self, line: Line) -> bool:
        """Whether a silent line is of no more use: a connection that was made after it fell silent is answered. One thread
        makes it; for the others its success counts as well."""
        if self._proved_s <= line.heard_s and not self._prove(line):
            return False
        return not line.has_arrived(0)  # it may have spoken meanwhile

    def _prove(self, line: Line) -> bool:
        if not self._proving.acquire(blocking=False):
            return False
        try:
            began_s = time.monotonic()
            fresh = self._open(min(line.end_s, began_s + self._doubt_s))
        except (RedisError, OSError, DistierError):
            return False
        finally:
            self._proving.release()
        self._proved_s = began_s
        self._drop_idle()  # as old as the silent one, or older
        self._idle.append(fresh)
        return True

    def _drop_idle(self) -> None:
        with suppress(IndexError):  # other threads take from it too
            while True:
                self._idle.pop().close()

    drop = _drop_idle

    def close(self) -> None:
        if self._pid == os.getpid():
            self._drop_idle()


class _Patient:
    """`Revive` that is not tried again at once where it failed: a server that cannot start would be started by every call."""

    PAUSE_S = 5.0

    def __init__(self, revive: Revive) -> None:
        self._inner = revive
        self._failed_s = float("-inf")
        self._why = ""

    def __call__(self, left_s: float) -> bool:
        if time.monotonic() - self._failed_s < self.PAUSE_S:
            raise RedisConnectionError(self._why)
        try:
            return self._inner(max(left_s, 0.1))
        except DistierError as e:
            self._failed_s, self._why = time.monotonic(), str(e)
            raise RedisConnectionError(self._why) from e


def _of_redis(error: OSError) -> RedisError:
    kind = redis.TimeoutError if isinstance(error, TimeoutError) else RedisConnectionError
    return kind(str(error) or "no answer in time")


# -- on an event loop ------------------------------------------------------------------------------------------------


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


class _Shared:
    """A line that all tasks of a loop share, and the making of it."""

    def __init__(self) -> None:
        self.line: AsyncLine | None = None
        self.opening = Together()


class _Lines:
    """The connections of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.reads, self.writes = _Shared(), _Shared()
        self.idle: list[AsyncLine] = []
        self.proving: asyncio.Task[None] | None = None
        self._ended = ""

    def take(self, line: AsyncLine) -> AsyncLine:
        """To be called with each new line. Raises redis-py's `ConnectionError` if it comes too late."""
        if self._ended:
            line.fail(RedisConnectionError(self._ended))
            raise RedisConnectionError(self._ended)
        return line

    def give_back(self, line: AsyncLine) -> None:
        if self._ended:
            line.fail(RedisConnectionError(self._ended))
        else:
            self.idle.append(line)

    def end(self, why: str) -> None:
        self._ended = why
        self.drop(why)

    def drop(self, why: str) -> None:
        """End all of them; the next call makes others."""
        for line in [self.reads.line, self.writes.line, *self.idle]:
            if line is not None:
                line.end(RedisConnectionError(why))
        self.reads.line, self.writes.line, self.idle = None, None, []


class AsyncRedisExchange:
    """The same for event loops. On each loop that it is used on, two lines are shared by everybody, one of them for what only
    reads: where the server keeps a write waiting, no read waits behind it. What blocks at the server gets a line of its own.
    Nothing is shared between loops, whatever thread they run in."""

    def __init__(
        self, config: Config, url: str, forget: Callable[[], object] = lambda: None, *, connect_s: float | None = None,
        revive: Revive | None = None,
    ) -> None:  # fmt: skip
        self.url = url
        default_s = config.deadline_ms / 1000
        self._doubt_s = min(DOUBT_MAX_S, default_s / DOUBT_SHARE)
        self._connect_s = default_s if connect_s is None else connect_s
        self._lives = Lives(forget, only_master=url.startswith(SENTINEL_SCHEMES))
        options = _options(config, url) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        self._dial = _AsyncDial(config, url, options)
        self._revive = None if revive is None else _Patient(revive)
        self._all: list[_Lines] = []
        self._last: _Lines | None = None
        self._closed = False
        _ASYNC.add(self)

    def __repr__(self) -> str:
        return f"AsyncRedisExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        lines = self._last
        if lines is None or lines.loop is not _running():
            lines = self._of_this_loop()
        if block(commands):
            return await self._exchange_alone(lines, commands, timeout_s)
        shared = lines.reads if READS.issuperset(map(verb_of, commands)) else lines.writes
        line = shared.line
        if line is None or line.closed or line.errors.demoted or line.life != self._lives.number or (
            time.monotonic() - line.heard_s > IDLE_S and line.is_idle
        ):  # fmt: skip
            end_s = time.monotonic() + timeout_s
            line = await shared.opening.wait(lambda: self._usable(lines, shared), timeout_s)
            timeout_s = max(end_s - time.monotonic(), 0.001)
        return await line.ask(commands, timeout_s)

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        try:
            return [*split(batches, await self.exchange(batches[0][0], _joined(batches), timeout_s))]
        except (RedisConnectionError, redis.TimeoutError) as e:
            return [e] * len(batches)

    def _of_this_loop(self) -> _Lines:
        loop = _running()
        if self._closed:
            raise RedisConnectionError("these connections are closed")
        if loop is None:
            raise Invalid(
                "this process was forked inside a running event loop: run another one (asyncio.run) in the child"
            )
        for lines in list(self._all):
            if lines.loop.is_closed():
                lines.end("its event loop is closed")
                with suppress(ValueError):  # another thread was faster
                    self._all.remove(lines)
        own = next((lines for lines in self._all if lines.loop is loop), None)
        if own is None:
            own = _Lines(loop)
            self._all.append(own)
        self._last = own  # other threads set it too
        return own

    async def _usable(self, lines: _Lines, shared: _Shared) -> AsyncLine:
        """A shared line of a loop, looked at, or a new one."""
        line = shared.line
        if (
            line is None
            or line.closed
            or line.errors.demoted
            or line.life != self._lives.number
            or not await line.answers(self._doubt_s)
        ):
            fresh = lines.take(await self._open(self._connect_s))
            if line is not None and not line.errors.demoted:  # else the rest of its replies may still come
                line.fail(RedisConnectionError("no answer after a long pause, or another server by now"))
            line = shared.line = fresh
            line.doubt = lambda silent: self._doubt(lines, silent)
        return line

    async def _open(self, timeout_s: float) -> AsyncLine:
        """A new connection, greeted. Raises as `exchange`, and `ConfigError`."""
        try:
            return await self._open_once(timeout_s)
        except RedisConnectionError:
            if self._revive is None or not await asyncio.wrap_future(
                _RESOLVERS.submit(partial(self._revive, timeout_s))
            ):
                raise
        return await self._open_once(timeout_s)

    async def _open_once(self, timeout_s: float) -> AsyncLine:
        connection: Any = None
        line: AsyncLine | None = None
        pid = os.getpid()
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                connection = await self._dial.connection()
                await _connected(connection)
                line = AsyncLine(connection, asyncio.get_running_loop(), pid, self._doubt_s)
                words = self._lives.greeting(connection)
                self._lives.greeted(connection, await line.ask(words, timeout_s))
                line.life = self._lives.number
        except BaseException as e:
            if line is not None:
                line.fail(RedisConnectionError("given up"))
            elif connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(e, TimeoutError):  # asyncio's: the built-in one
                raise redis.TimeoutError("no connection in time") from e
            raise
        return line

    async def _exchange_alone(self, lines: _Lines, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        line = await self._lone(lines, timeout_s)
        try:
            asked = line.ask(commands, max(end_s - time.monotonic(), 0.001))
            line.allow(BLOCK_MAX_S)
            replies = await asked
        except BaseException:  # cancelled too: the server may block on it for a while
            line.fail(RedisConnectionError("given up"))
            raise
        if line.errors.demoted:
            line.fail(RedisConnectionError("the server is a replica by now"))
        else:
            lines.give_back(line)
        return replies

    async def _lone(self, lines: _Lines, timeout_s: float) -> AsyncLine:
        """A line for what blocks: an idle one that is still good, or a new one."""
        end_s = time.monotonic() + timeout_s
        while lines.idle:
            line = lines.idle.pop()
            if line.closed or line.errors.demoted:
                continue
            if line.life != self._lives.number:
                line.fail(RedisConnectionError("another server by now"))
                continue
            if time.monotonic() - line.heard_s <= IDLE_S:
                return line
            good = False
            try:
                good = await line.answers(min(self._doubt_s, timeout_s / 2))
            finally:  # also where this task is cancelled
                if not good:
                    line.fail(RedisConnectionError("no answer after a long pause"))
            if good:
                return line
        line = lines.take(await self._open(min(self._connect_s, end_s - time.monotonic())))
        line.doubt = lambda silent: self._doubt(lines, silent)
        return line

    def _doubt(self, lines: _Lines, silent: AsyncLine) -> None:
        """Compare a silent line with a new one, one at a time."""
        if lines.proving is None or lines.proving.done():
            lines.proving = lines.loop.create_task(self._prove(lines, silent))

    async def _prove(self, lines: _Lines, silent: AsyncLine) -> None:
        heard_s = silent.heard_s
        try:
            fresh = lines.take(await self._open(max(self._doubt_s, 0.05)))
        except (RedisError, OSError, DistierError):
            await asyncio.sleep(self._doubt_s)  # not again at once
            return
        fresh.doubt = lambda line: self._doubt(lines, line)
        lines.give_back(fresh)
        await asyncio.sleep(0)  # what has come meanwhile is read first
        if silent.closed or silent.heard_s != heard_s:
            return
        for shared in (lines.reads, lines.writes):
            if silent is shared.line and fresh in lines.idle:
                lines.idle.remove(fresh)
                shared.line = fresh
        silent.fail(Silent("no answer on this connection, while the server answers on a new one"))

    def drop(self) -> None:
        self._of_this_loop().drop("out of step: a reply belonged to another request")

    async def close(self) -> None:
        """From whatever loop."""
        self._closed = True
        lines, self._all, self._last = self._all, [], None
        for some in lines:
            some.end("this store is closed")
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn

    def after_fork_in_child(self) -> None:
        """The lines have left already (`wire.CONNECTIONS`)."""
        self._all, self._last = [], None


_RESOLVERS = Helpers(4)


async def _connected(connection: Any) -> None:
    """Connect, by the addresses of the host in their order. asyncio would resolve the name in a thread of the loop's executor,
    which takes no work at the exit of the interpreter, or where no thread can be started."""
    host = getattr(connection, "host", None)
    if host is None or _is_address(host):  # or a unix socket
        await connection.connect()
        return
    find = partial(socket.getaddrinfo, host, connection.port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.wrap_future(_RESOLVERS.submit(find))
    except OSError as e:
        raise RedisConnectionError(f"Error {e.errno} connecting to {host}:{connection.port}. {e.strerror}.") from e
    if isinstance(connection, aredis.SSLConnection):  # the certificate has the name
        inner = connection._connection_arguments
        connection._connection_arguments = lambda: {**inner(), "server_hostname": host}  # type: ignore[method-assign]
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    for address in addresses:
        connection.host = address
        try:
            await connection.connect()
            break
        except RedisConnectionError:
            if address == addresses[-1]:
                raise
    connection.host = host


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


_ASYNC: weakref.WeakSet[AsyncRedisExchange] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for exchange in list(_ASYNC):
        exchange.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
_running = asyncio._get_running_loop  # in C, and None in a child of the loop's process


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
