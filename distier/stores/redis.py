"""Redis as distier uses it: send some commands over one connection, get as many replies.

redis-py brings the connections (RESP3, TLS, unix sockets, hiredis); its retries and its client-side cache are off.
Retries belong to the driver, which knows the deadline and which calls may be sent twice. A reply that is an error
comes back as a value (`ResponseError`), so that one refused command does not lose its neighbours' replies.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis
import redis.asyncio as aredis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from distier.config import Config, mask_url
from distier.domain.keys import Shard
from distier.effects import Word

Words = Sequence[Word]

CONNECTIONS_MAX = 256


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


class RedisExchange:
    """One Redis or Valkey server, for threads. Safe over fork: redis-py's pool notices the new process."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        self.url = url
        self._socket_timeout_s = config.deadline_ms / 1000
        lives = Lives(forget)
        options = _options(config, url) | {"retry": Retry(NoBackoff(), 0), "redis_connect_func": lives.on_connect}
        self._pool: Any = redis.ConnectionPool.from_url(url, **options)

    def __repr__(self) -> str:
        return f"RedisExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        connection = self._pool.get_connection()
        # Two system calls less while there is plenty of time.
        wait = {} if timeout_s > self._socket_timeout_s * 0.9 else {"timeout": max(timeout_s, 0.001)}
        try:
            if len(commands) == 1:
                connection.send_packed_command(connection.pack_command(*commands[0]), check_health=False)
            else:
                connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [_reply(connection, wait) for _ in commands]
        except BaseException:
            # Whatever it was (also KeyboardInterrupt): unread replies must not meet the next command.
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def close(self) -> None:
        self._pool.disconnect()


def _reply(connection: Any, wait: dict[str, float]) -> Any:
    try:
        return connection.read_response(**wait)
    except ResponseError as e:
        return e


class AsyncRedisExchange:
    """The same for an event loop; to be used on the loop where it was first used."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        from redis.asyncio.retry import Retry as AsyncRetry

        self.url = url
        lives = Lives(forget)
        options = _options(config, url) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        options["redis_connect_func"] = lives.on_connect_async
        self._pool: Any = aredis.ConnectionPool.from_url(url, **options)

    def __repr__(self) -> str:
        return f"AsyncRedisExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        try:
            async with asyncio.timeout(max(timeout_s, 0.001)):
                return await self._exchange(commands)
        except TimeoutError as e:  # asyncio's: the built-in one
            raise redis.TimeoutError("no answer in time") from e

    async def _exchange(self, commands: Sequence[Words]) -> list[Any]:
        connection = await self._pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [await _async_reply(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        await self._pool.disconnect()


async def _async_reply(connection: Any) -> Any:
    try:
        return await connection.read_response(timeout=math.inf)
    except ResponseError as e:
        return e


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
