"""Finds the primary through sentinels."""

from __future__ import annotations

from typing import Any

from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from distier.config import Config, parse_sentinel_url

SENTINEL_TIMEOUT_MAX_S = 1.0


def tls_files(config: Config) -> dict[str, str]:
    server = config.redis
    files = {"ssl_ca_certs": server.ca_file, "ssl_certfile": server.cert_file, "ssl_keyfile": server.key_file}
    return {name: str(path) for name, path in files.items() if path}


class Sentinels:
    """Asks the sentinels of a `sentinel://` URL for the master, for each new connection.

    Nothing is cached except which sentinel replied last; that one is asked first. redis-py sends the requests. Its pool
    and connections for Sentinel are not used, because they inspect replies that only they read.
    """

    def __init__(self, config: Config, url: str) -> None:
        self.url = parse_sentinel_url(url)
        self._order = self.url.sentinels
        # A silent sentinel must leave time for the others, and for the server itself.
        timeout_s = min(config.deadline_ms / 1000 / (len(self._order) + 2), SENTINEL_TIMEOUT_MAX_S)
        self._options: dict[str, Any] = {
            "protocol": 2,
            "client_name": "distier",
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.url.tls:
            self._options |= {"ssl": True, **tls_files(config)}

    def server(self, address: tuple[str, int], options: dict[str, Any]) -> dict[str, Any]:
        """Return the options for a connection to this address."""
        own = {"username": self.url.username, "password": self.url.password}
        host, port = address
        return options | {name: v for name, v in own.items() if v} | {"host": host, "port": port, "db": self.url.db}

    def _within(self, timeout_s: float, retry: Any) -> dict[str, Any]:
        """Return options with timeouts that allow to ask all sentinels in turn within `timeout_s`."""
        each_s = min(self._options["socket_timeout"], max(timeout_s, 0.01) / len(self._order))
        return self._options | {"retry": retry, "socket_timeout": each_s, "socket_connect_timeout": each_s}

    def master(self, timeout_s: float) -> tuple[str, int]:
        sentinel: Any = Sentinel  # redis-py has no types here
        with sentinel(self._order, sentinel_kwargs=self._within(timeout_s, Retry(NoBackoff(), 0))) as found:
            try:
                address: tuple[str, int] = found.discover_master(self.url.master)
            except ResponseError as e:
                raise RedisConnectionError(f"a sentinel refuses to name the master: {e}") from e
            except MasterNotFoundError as e:
                why: RedisError | None = None
                try:
                    found.sentinels[0].ping()
                except RedisError as first_error:
                    why = first_error
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
            except RedisError as first_error:
                why = first_error
            raise self._unknown(why) from e
        finally:
            for sentinel in found.sentinels:
                await sentinel.aclose()
        return address

    def _unknown(self, why: RedisError | None) -> RedisConnectionError:
        """Return a clear error; redis-py's is a list of connection settings. `why` is the error of the first sentinel."""
        reason = f"the first one: {why}" if why else "they reply, but know no master of this name, or consider it down"
        return RedisConnectionError(f"no sentinel names a master {self.url.master!r} ({reason})")

    def _prefer(self, answered: Any) -> None:
        kwargs = answered.connection_pool.connection_kwargs
        first = (kwargs["host"], kwargs["port"])
        self._order = (first, *(address for address in self._order if address != first))
