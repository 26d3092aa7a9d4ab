"""Connects to servers: options for redis-py, TLS, host names and addresses."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import redis
import redis.asyncio as aredis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from distier.config import SENTINEL_SCHEMES, TLS_SCHEMES, Config
from distier.stores.redis.sentinel import Sentinels, tls_files
from distier.stores.threads import Helpers

CONNECTIONS_MAX = 256


def options_of(config: Config, url: str) -> dict[str, Any]:
    server = config.redis
    options: dict[str, Any] = {
        "protocol": 3,
        "client_name": "distier",
        "socket_timeout": config.deadline_ms / 1000,
        "socket_connect_timeout": config.deadline_ms / 1000,
        "max_connections": CONNECTIONS_MAX,
        "redis_connect_func": _no_greeting,
        "driver_info": None,  # used only in redis-py's own greeting; looking it up takes 10 ms
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if server.username:
        options["username"] = server.username
    if server.password:
        options["password"] = server.password.get_secret_value()
    if url.startswith(TLS_SCHEMES):
        options |= tls_files(config)
    if "ssl_cert_reqs=none" in url:  # Python cannot check the host name without the certificate
        options["ssl_check_hostname"] = False
    return options


def _no_greeting(connection: Any) -> None:
    """Do nothing, so that redis-py only opens the connection.

    distier sends its own greeting (`wire.greeting`). It takes one round trip instead of up to six, within the deadline of
    the call, and each refusal gets its own error.
    """


def lone_connection(config: Config, url: str) -> Any:
    """Return a redis-py connection outside any pool, not connected yet, for the near cache.

    Raises:
        ConnectionError: The sentinels know no master (redis-py's error).
    """
    options = options_of(config, url) | {"retry": Retry(NoBackoff(), 0), "client_name": "distier-near"}
    return Dial(config, url, options).connection(config.deadline_ms / 1000)


class Dial:
    """Makes connections, not connected yet, to the server at `url`, which may differ after a failover."""

    def __init__(self, config: Config, url: str, options: dict[str, Any]) -> None:
        self._options = options
        self._sentinels = Sentinels(config, url) if url.startswith(SENTINEL_SCHEMES) else None
        self._pool: Any = None if self._sentinels else redis.ConnectionPool.from_url(url, **options)

    def connection(self, timeout_s: float) -> Any:
        pool = self._pool
        if self._sentinels:
            kind = redis.SSLConnection if self._sentinels.url.tls else redis.Connection
            address = self._sentinels.master(timeout_s)
            pool = redis.ConnectionPool(kind, **self._sentinels.server(address, self._options))
        return pool.connection_class(**pool.connection_kwargs)


class AsyncDial:
    """Makes connections like `Dial`, on an event loop."""

    def __init__(self, config: Config, url: str, options: dict[str, Any]) -> None:
        self._options = options
        self._sentinels = Sentinels(config, url) if url.startswith(SENTINEL_SCHEMES) else None
        self._pool: Any = None if self._sentinels else aredis.ConnectionPool.from_url(url, **options)

    async def connection(self) -> Any:
        pool = self._pool
        if self._sentinels:
            address = await self._sentinels.master_async()
            kind = aredis.SSLConnection if self._sentinels.url.tls else aredis.Connection
            pool = aredis.ConnectionPool(kind, **self._sentinels.server(address, self._options))
        return pool.connection_class(**pool.connection_kwargs)


RESOLVERS = Helpers(4)


async def connected(connection: Any) -> None:
    """Connect to the first address of the host that accepts the connection.

    asyncio would resolve the name in a thread of the loop's executor. That executor accepts no work at the exit of the
    interpreter, or if no thread can be started.
    """
    host = getattr(connection, "host", None)
    if host is None or _is_address(host):  # None: a unix socket
        await connection.connect()
        return
    find = partial(socket.getaddrinfo, host, connection.port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.wrap_future(RESOLVERS.submit(find))
    except OSError as e:
        raise RedisConnectionError(f"Error {e.errno} connecting to {host}:{connection.port}. {e.strerror}.") from e
    if isinstance(connection, aredis.SSLConnection):  # the certificate is for the name
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
