"""Exchanges with Redis: send some commands over one connection, and get as many replies.

redis-py provides the connections (RESP3, TLS, unix sockets, hiredis); its retries and its client-side cache are off.
Retries belong to the driver, which knows the deadline and which calls may be sent twice. An error reply is returned as a
value (`ResponseError`), so that one refused command does not lose the replies of the others.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from distier.config import SENTINEL_SCHEMES, Config, mask_url
from distier.domain.keys import Shard
from distier.errors import DistierError
from distier.stores.redis.connection import Connection
from distier.stores.redis.dial import Dial, options_of
from distier.stores.redis.protocol import Answer, Batch, Revive, joined, split
from distier.stores.redis.wire import RawCommand, Silent, check_greeting, greeting

DOUBT_MAX_S = 1.0
DOUBT_SHARE = 4
"""A connection is doubted after a silence of one second, or of a quarter of the usual deadline if that is less."""
IDLE_S = 30.0
"""A connection that was idle for more seconds than this gets a PING before any other command."""


class Incarnations:
    """Notices when a new connection reaches another incarnation of the server: a restart, a promotion, another machine.

    The process's knowledge of the epoch is then void, so `forget` is called before the connection is used. Connections to the
    earlier incarnation, whose `incarnation` differs from `number`, are not used again. That server may still reply, as a
    primary that does not know that it was replaced, and it does not have the writes that go to the new one.

    With `only_master` a replica is refused: a sentinel that does not know of a failover yet names the old master.
    """

    def __init__(self, forget: Callable[[], object], *, only_master: bool = False) -> None:
        self._forget = forget
        self._only_master = only_master
        self._replid: bytes | None = None
        self.number = 0

    def met(self, info: bytes | str) -> None:
        """Take note of the incarnation in `info`, the reply to INFO replication.

        Raises:
            ConnectionError: The server is a replica, and only a master is accepted (redis-py's error).
        """
        text = info.encode() if isinstance(info, str) else info
        if self._only_master and b"role:slave" in text:
            raise RedisConnectionError("the sentinels name a server that is a replica now")
        found = re.search(rb"master_replid:([0-9a-f]+)", text)
        replid = found[1] if found else None
        if replid is not None and replid != self._replid:
            self.number += 1
        if replid is None or replid != self._replid:
            self._replid = replid
            self._forget()

    def greeting(self, raw: Any) -> list[RawCommand]:
        return [*greeting(raw), ("INFO", "replication")]

    def greeted(self, raw: Any, replies: Sequence[Any]) -> None:
        """Check the replies to the greeting. Raises as `check_greeting`."""
        check_greeting(raw, replies[:-1])
        # Without the permission for INFO, every connection may reach another incarnation.
        self.met(b"" if isinstance(replies[-1], ResponseError) else replies[-1])


class Patient:
    """A `Revive` that waits `PAUSE_S` seconds after a failure. Otherwise every call would try to start a broken server."""

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
    return kind(str(error) or "no reply in time")


class RedisExchange:
    """One Redis or Valkey server, for threads: a stack of idle connections, of which the last used one is taken first.

    It is fork-safe: a new process starts without connections. It waits for no lock, so a signal handler may use it in the
    middle of a call.
    """

    def __init__(
        self, config: Config, url: str, forget: Callable[[], object] = lambda: None, *, connect_s: float | None = None,
        revive: Revive | None = None,
    ) -> None:  # fmt: skip
        self.url = url
        default_s = config.deadline_ms / 1000
        self._doubt_s = min(DOUBT_MAX_S, default_s / DOUBT_SHARE)
        self._connect_s = default_s if connect_s is None else connect_s  # short if there are other servers to try
        self._incarnations = Incarnations(forget, only_master=url.startswith(SENTINEL_SCHEMES))
        self._dial = Dial(config, url, options_of(config, url) | {"retry": Retry(NoBackoff(), 0)})
        self._revive = None if revive is None else Patient(revive)
        self._reset()

    def _reset(self) -> None:
        self._idle: list[Connection] = []
        self._proving = threading.Lock()
        self._proved_s = 0.0
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"RedisExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        connection = self._take(end_s)
        try:
            connection.send(commands, end_s)
            replies = connection.receive(len(commands))
        except BaseException as e:
            self._give_up(connection, e)
            raise
        self._give_back(connection)
        return replies

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        try:
            return [*split(batches, self.exchange(batches[0][0], joined(batches), timeout_s))]
        except (RedisConnectionError, redis.TimeoutError) as e:
            return [e] * len(batches)

    def begin(self, batches: Sequence[Batch], timeout_s: float) -> Connection:
        """Send the commands of `exchange_many`, so that other servers can be sent theirs before the replies arrive.

        The caller must then call `finish` or close the connection. Raises as `exchange`.
        """
        end_s = time.monotonic() + timeout_s
        connection = self._take(end_s)
        try:
            connection.send(joined(batches), end_s)
        except BaseException as e:
            self._give_up(connection, e)
            raise
        return connection

    def finish(self, connection: Connection, batches: Sequence[Batch], timeout_s: float) -> list[list[Any]]:
        """Return the replies to each batch that `begin` sent. Raises as `exchange`."""
        try:
            connection.until(time.monotonic() + timeout_s)
            replies = connection.receive(sum(len(commands) for _, commands in batches))
        except BaseException as e:
            self._give_up(connection, e)
            raise
        self._give_back(connection)
        return split(batches, replies)

    def _give_up(self, connection: Connection, error: BaseException) -> None:
        """Close a connection after any error, also KeyboardInterrupt: the next command must not get the unread replies."""
        connection.close()
        if isinstance(error, Silent):
            return  # `_is_dead` has checked the other connections
        if isinstance(error, OSError | RedisConnectionError):
            self._drop_idle()  # most likely these have lost the server too
        if isinstance(error, OSError):
            raise _of_redis(error) from error

    def _give_back(self, connection: Connection) -> None:
        if (
            connection.pid != self._pid or connection.incarnation != self._incarnations.number
        ):  # the process has forked, or has met another incarnation
            connection.close()
        elif connection.errors.demoted:  # the next attempt looks up the server again, which may have changed
            connection.close()
            self._drop_idle()
        else:
            self._idle.append(connection)

    def _take(self, end_s: float) -> Connection:
        if self._pid != os.getpid():
            self._reset()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._open(end_s)
            if connection.incarnation != self._incarnations.number or (
                connection.has_arrived(0) and not connection.is_clean()
            ):
                connection.close()
            elif (now_s := time.monotonic()) - connection.heard_s > IDLE_S and not connection.is_alive(
                self._patience_s(end_s - now_s)
            ):
                connection.close()
                self._drop_idle()  # these have been idle even longer
            else:
                return connection

    def _patience_s(self, left_s: float) -> float:
        return max(min(self._doubt_s, left_s / 2), 0.001)

    def _open(self, end_s: float) -> Connection:
        """Open a connection and send the greeting.

        Raises:
            ConfigError: The server refuses the greeting for good.
            RedisError: As `exchange`.
        """
        try:
            return self._open_once(end_s)
        except RedisConnectionError:
            if self._revive is None or not self._revive(end_s - time.monotonic()):
                raise
        return self._open_once(end_s)

    def _open_once(self, end_s: float) -> Connection:
        end_s = min(end_s, time.monotonic() + self._connect_s)
        raw = self._dial.connection(end_s - time.monotonic())
        connection = Connection(raw, end_s - time.monotonic(), self._doubt_s)
        try:
            commands = self._incarnations.greeting(raw)
            connection.send(commands, end_s)
            self._incarnations.greeted(raw, connection.receive(len(commands)))
            connection.incarnation = self._incarnations.number
        except BaseException as e:
            connection.close()
            if isinstance(e, OSError):
                raise _of_redis(e) from e
            raise
        connection.is_dead = self._is_dead
        return connection

    def _is_dead(self, connection: Connection) -> bool:
        """Return whether a silent connection is dead, because the server replies on a connection that was opened later.

        One thread opens that connection; its success also counts for the other threads.
        """
        if self._proved_s <= connection.heard_s and not self._prove(connection):
            return False
        return not connection.has_arrived(0)  # it may have received something in the meantime

    def _prove(self, connection: Connection) -> bool:
        if not self._proving.acquire(blocking=False):
            return False
        try:
            began_s = time.monotonic()
            fresh = self._open(min(connection.end_s, began_s + self._doubt_s))
        except (RedisError, OSError, DistierError):
            return False
        finally:
            self._proving.release()
        self._proved_s = began_s
        self._drop_idle()  # at least as old as the silent one
        self._idle.append(fresh)
        return True

    def _drop_idle(self) -> None:
        with suppress(IndexError):  # other threads take connections too
            while True:
                self._idle.pop().close()

    drop = _drop_idle

    def close(self) -> None:
        if self._pid == os.getpid():
            self._drop_idle()
