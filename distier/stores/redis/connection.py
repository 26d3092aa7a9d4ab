"""One connection, blocking."""

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
    packed,
    replace_socket,
    unasked,
)


class Connection:
    """A connection that redis-py has opened (address, TLS), and whose socket is then used directly: redis-py's own way of
    sending and reading costs as much again as the round trip over a unix socket.

    One wait is at most `doubt_s`: who has waited so long asks `is_dead` whether there is any use in waiting on. After any
    exception the line is of no more use.
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
        """With 0: whether something can be read now."""
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
        """`end_s` is for the replies as well."""
        self.end_s, self.heard_s = end_s, time.monotonic()
        data = packed(commands)
        self._allowance_s = len(data) / SLOWEST_BYTES_PER_S + (BLOCK_MAX_S if block(commands) else 0.0)
        self._wait_at_most(end_s - self.heard_s)
        try:
            sent = self._socket.send(data)
        except TimeoutError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        while rest:
            self._go_on()
            with suppress(TimeoutError):
                rest = rest[self._socket.send(rest[:SEND_BYTES]) :]
                self.heard_s = time.monotonic()

    def receive(self, n: int) -> list[Any]:
        """The replies to the `n` commands that were sent."""
        reader = self._reader
        replies: list[Any] = []
        while len(replies) < n:
            reply = reader.gets()
            if reply is NOT_YET:
                self._read()
            elif type(reply) is not hiredis.PushNotification:  # nobody asked for one here
                replies.append(reply)
        if reader.has_data() and not self._holds_pushes():
            raise unasked(b"")
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
                self._go_on()
                continue
            if n == 0:
                raise RedisConnectionError("Redis closed the connection")
            self._reader.feed(self._buffer, 0, n)
            self.heard_s = time.monotonic()
            return

    def _go_on(self) -> None:
        """Raises where there is no time left, or no use."""
        if self.is_silent() and self.is_dead(self):
            raise Silent("no answer on this connection, while the server answers on a new one")
        self._wait_at_most(self.end_s - time.monotonic())

    def _wait_at_most(self, left_s: float) -> None:
        """For each single wait. Setting it is a system call: done where it differs."""
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        wait_s = min(left_s, self._doubt_s)
        if wait_s != self._timeout_s:
            self._socket.settimeout(wait_s)
            self._timeout_s = wait_s

    def until(self, end_s: float) -> None:
        """A new end for what was sent."""
        self.end_s = end_s

    def is_silent(self) -> bool:
        """Whether it has been so for long enough to be doubted."""
        return time.monotonic() - self.heard_s >= self._doubt_s * 0.9 + self._allowance_s

    def is_clean(self) -> bool:
        """Whether nothing has come that nobody asked for, nor the end of the connection. To be asked before it is used."""
        return not self.has_arrived(0) or (isinstance(self._socket, ssl.SSLSocket) and self._tells_nothing())

    def _tells_nothing(self) -> bool:
        """TLS sends words of its own (session tickets), which only reading takes away."""
        self._socket.settimeout(0.0)
        self._timeout_s = -1.0
        try:
            self._socket.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except OSError:
            return False
        return False

    def answers(self, timeout_s: float) -> bool:
        """Whether it is still there after a long pause, and in step."""
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
        """In a child: drop the socket that it got, and say nothing. Its number is given to /dev/null, and not closed: the child
        may have been forked by a signal handler in the middle of a wait for the reply, and who waits for a closed descriptor
        waits until the deadline."""
        with suppress(OSError):
            replace_socket(self._socket.fileno())
