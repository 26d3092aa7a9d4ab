"""One blocking connection."""

from __future__ import annotations

import os
import secrets
import select
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from distier.stores.redis.wire import (
    BLOCK_MAX_S,
    CONNECTIONS,
    NOT_YET,
    READ_BYTES,
    SEND_BYTES,
    SLOWEST_BYTES_PER_S,
    Errors,
    RawCommand,
    Silent,
    block,
    new_reader,
    pack,
    replace_socket,
    unsolicited,
)


class Connection:
    """A blocking connection. redis-py opens it (address, TLS), and this class then uses its socket directly.

    Sending and reading with redis-py costs as much as the round trip over a unix socket. A single wait takes at most
    `doubt_s` seconds. After such a wait, `is_dead` decides whether to keep waiting. The connection is unusable after any
    exception.
    """

    kept_after_fork = False

    def __init__(self, raw: Any, timeout_s: float, doubt_s: float) -> None:
        self._raw = raw
        self.pid = os.getpid()
        raw.socket_connect_timeout = raw.socket_timeout = max(timeout_s, 0.001)
        self.end_s = 0.0
        raw.connect()
        self._socket = raw._get_socket()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        self.has_arrived = poll.poll
        """`has_arrived(0)` is true if something can be read now."""
        self.errors = Errors()
        self._reader = new_reader(self.errors)
        self._buffer = bytearray(READ_BYTES)
        self._doubt_s = doubt_s
        self._timeout_s = -1.0
        self._allowance_s = 0.0
        self.heard_s = 0.0
        self.incarnation = 0
        self.is_dead: Callable[[Connection], bool] = lambda connection: False
        CONNECTIONS.add(self, self.pid)

    def send(self, commands: Sequence[RawCommand], end_s: float) -> None:
        """Send commands. `end_s`, on the monotonic clock, is the deadline for sending them and for their replies."""
        self.end_s, self.heard_s = end_s, time.monotonic()
        self._allowance_s = BLOCK_MAX_S if block(commands) else 0.0
        self._wait_at_most(end_s - self.heard_s)
        parts: list[bytes] = []
        size_bytes = 0
        for command in commands:
            if size_bytes >= SEND_BYTES:  # the server executes these while the next ones are packed
                self._send_rest(memoryview(b"".join(parts)))
                self._check_time()
                parts, size_bytes = [], 0
            parts.append(pack(command))
            size_bytes += len(parts[-1])
            self._allowance_s += len(parts[-1]) / SLOWEST_BYTES_PER_S
        data = b"".join(parts)
        try:
            sent = self._socket.send(data)
        except TimeoutError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        while rest:
            self._check_time()
            with suppress(TimeoutError):
                rest = rest[self._socket.send(rest[:SEND_BYTES]) :]
                self.heard_s = time.monotonic()

    def receive(self, n: int) -> list[Any]:
        """Return the replies to the `n` commands that were sent."""
        reader = self._reader
        replies: list[Any] = []
        while len(replies) < n:
            reply = reader.gets()
            if reply is NOT_YET:
                self._read()
            elif type(reply) is not hiredis.PushNotification:  # no request subscribes to these
                replies.append(reply)
        if reader.has_data() and not self._holds_pushes():
            raise unsolicited(b"")
        return replies

    def _holds_pushes(self) -> bool:
        while (reply := self._reader.gets()) is not NOT_YET:
            if type(reply) is not hiredis.PushNotification:
                return False
        return not self._reader.has_data()

    def _read(self) -> None:
        while True:
            left_s = self.end_s - time.monotonic()
            if left_s < self._timeout_s:
                self._wait_at_most(left_s)
            try:
                n = self._socket.recv_into(self._buffer)
            except TimeoutError:
                self._check_time()
                continue
            if n == 0:
                raise RedisConnectionError("Redis closed the connection")
            self._reader.feed(self._buffer, 0, n)
            self.heard_s = time.monotonic()
            return

    def _check_time(self) -> None:
        """Prepare the next wait. Raises `TimeoutError` after the deadline, and `Silent` if the connection is dead."""
        if self.is_silent() and self.is_dead(self):
            raise Silent("no reply on this connection, while the server replies on a new one")
        self._wait_at_most(self.end_s - time.monotonic())

    def _wait_at_most(self, left_s: float) -> None:
        """Limit each single wait. The timeout is set only if it differs, because that is a system call."""
        if left_s <= 0:
            raise TimeoutError("no reply in time")
        wait_s = min(left_s, self._doubt_s)
        if wait_s != self._timeout_s:
            self._socket.settimeout(wait_s)
            self._timeout_s = wait_s

    def until(self, end_s: float) -> None:
        """Set another deadline for the commands that were sent."""
        self.end_s = end_s

    def is_silent(self) -> bool:
        """Return whether the connection has been silent long enough to be doubted."""
        return time.monotonic() - self.heard_s >= self._doubt_s * 0.9 + self._allowance_s

    def is_clean(self) -> bool:
        """Return whether neither unsolicited data nor the end of the connection has arrived. Called before each use."""
        return not self.has_arrived(0) or (isinstance(self._socket, ssl.SSLSocket) and self._has_no_tls_data())

    def _has_no_tls_data(self) -> bool:
        """Read the records of TLS itself (session tickets), and return whether no data follows them."""
        self._socket.settimeout(0.0)
        self._timeout_s = -1.0
        try:
            self._socket.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except OSError:
            return False
        return False

    def is_alive(self, timeout_s: float) -> bool:
        """Return whether the server replies after a long pause, and with the expected reply."""
        nonce = secrets.token_hex(8)
        try:
            self.send([("PING", nonce)], time.monotonic() + timeout_s)
            reply = self.receive(1)[0]
        except (OSError, RedisConnectionError, InvalidResponse):
            return False
        return reply == nonce.encode() or isinstance(reply, ResponseError)

    def close(self) -> None:
        self._raw.disconnect()

    def leave(self) -> None:
        """Drop the inherited socket in a forked child, without sending anything.

        The descriptor is redirected to /dev/null instead of closed. A signal handler may have forked the child during a
        wait for a reply, and a wait on a closed descriptor lasts until the deadline.
        """
        with suppress(OSError):
            replace_socket(self._socket.fileno())
