"""Where the primary is, as sentinels say."""

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
            self._options |= {"ssl": True, **tls_files(config)}

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
