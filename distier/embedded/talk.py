"""Commands that inspect and stop an embedded server."""

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
    """A server that replies.

    `started` says whether this call started it. `pid` is the server's own view, which may be that of its container.
    """

    home: Home
    pid: int
    url: str
    started: bool
    server: str


@contextmanager
def connect_to(home: Home, timeout_s: float) -> Iterator[redis.Redis]:
    """Open a client for one request.

    Raises:
        redis.ConnectionError: No server listens.
        RedisUnavailable: A server listens, but is not ready.
    """
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
    """Return the server if it is ready, or None if no server listens.

    A server with a full disk refuses PING as it refuses writes. It still counts as ready: it serves reads, and each
    refused write raises its own error.
    """
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
    """Return the server's run id, also while it is loading. None if no server listens."""
    try:
        with connect_to(home, timeout_s) as client:
            return str(client.info("server")["run_id"])
    except redis.ConnectionError:
        return None


def shutdown(home: Home, timeout_s: float) -> None:
    # NOSAVE concerns only the RDB file, which we do not use; the append-only file is always fsynced.
    # redis-py treats the closed connection, which is the expected reply, as success.
    with connect_to(home, timeout_s) as client:
        client.shutdown(nosave=True, now=True)


class Unsaved(RedisUnavailable):
    """The embedded server acknowledged writes that are not on its disk."""


def check_saved(home: Home, timeout_s: float) -> None:
    """Raise `Unsaved` if stopping the server would lose writes that it acknowledged."""
    with suppress(redis.ConnectionError), connect_to(home, timeout_s) as client:
        try:
            info: dict[str, Any] = client.info("persistence")
        except redis.BusyLoadingError:
            return
        if info.get("aof_last_write_status", "ok") != "ok":
            raise Unsaved(
                f"the embedded server of {home.path} cannot write to its disk (is it full?): its latest acknowledged writes "
                f"({int(info.get('aof_buffer_length', 0)):,} bytes) are only in its memory and would be lost. Free disk space, "
                "or discard them with `distier down --force`"
            )
