"""Asking a server, and ending it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distier.embedded.home import Home
from distier.errors import RedisUnavailable


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. `started`: by this call. `pid` is the server's own view (its container's)."""

    home: Home
    pid: int
    url: str
    started: bool
    server: str


@contextmanager
def connect_to(home: Home, timeout_s: float) -> Iterator[redis.Redis]:
    """A client for one question. Leaves `redis.ConnectionError` (nobody listens) to the caller; all that
    shows that somebody is there but not ready becomes `RedisUnavailable`."""
    client = redis.Redis(
        unix_socket_path=str(home.socket), socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0), driver_info=None,
    )  # fmt: skip
    try:
        yield client
    except redis.BusyLoadingError as e:
        raise RedisUnavailable("it is still loading its data: try again") from e
    except (redis.TimeoutError, redis.ResponseError) as e:
        raise RedisUnavailable(f"it does not serve: {e}") from e
    finally:
        client.close()


def ask(home: Home, timeout_s: float, *, started: bool) -> Running | None:
    """The server if it serves, None if nobody listens. PING is refused as writes are where the disk is full: reading goes on
    then, and who writes is told."""
    try:
        with connect_to(home, timeout_s) as client:
            try:
                client.ping()
            except redis.ResponseError as e:
                if not str(e).startswith("MISCONF"):
                    raise
            info: dict[str, Any] = client.info("server")
    except redis.ConnectionError:
        return None
    version = info.get("valkey_version") or info["redis_version"]
    server = f"{info.get('server_name', 'redis')} {version}"
    return Running(home, int(info["process_id"]), home.url, started, server)


def run_id_of(home: Home, timeout_s: float) -> str | None:
    """Which life of the server this is; a server answers that even while it loads. None: nobody listens."""
    try:
        with connect_to(home, timeout_s) as client:
            return str(client.info("server")["run_id"])
    except redis.ConnectionError:
        return None


def shutdown(home: Home, timeout_s: float) -> None:
    # NOSAVE is about an RDB file, which we do not keep; the append-only file is always fsynced.
    # redis-py takes the closed connection, which is the right answer, for what it is.
    with connect_to(home, timeout_s) as client:
        client.shutdown(nosave=True, now=True)


class Unsaved(RedisUnavailable):
    """The embedded server has acknowledged writes that are not on its disk."""


def check_saved(home: Home, timeout_s: float) -> None:
    """Raises `Unsaved` where the end of the server would lose what it acknowledged."""
    with suppress(redis.ConnectionError), connect_to(home, timeout_s) as client:
        try:
            info: dict[str, Any] = client.info("persistence")
        except redis.BusyLoadingError:
            return
        if info.get("aof_last_write_status", "ok") != "ok":
            raise Unsaved(
                f"the embedded server of {home.path} cannot write to its disk (is it full?): the writes that it acknowledged "
                f"last are only in its memory, {int(info.get('aof_buffer_length', 0)):,} bytes, and would be lost. Make room; "
                "or lose them (`distier down --force`)"
            )
