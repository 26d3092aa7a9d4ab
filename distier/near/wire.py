"""The connection that the server's invalidations come over."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from distier.stores.redis.wire import greeting

READ_BYTES = 65536
READABLE_S = 0.001
"""How long a read waits that should not have to: of TLS, less than a record may have arrived."""


class RefusedTracking(Exception):
    """This server, or this user on it, cannot be followed."""


class TrackingWire:
    """One connection on which replies and pushes are read in the order in which they came."""

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self.greeting = greeting(connection)
        # redis-py's own reading hands pushes to a handler and swallows what that raises: here nothing may be missed.
        self._socket: socket.socket = connection._sock
        self.fileno = self._socket.fileno
        self._more = object()
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=self._more)

    def send(self, command: Sequence[Any], timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        for part in self._connection.pack_command(*command):
            self._socket.sendall(part)

    def read(self) -> Iterator[Any]:
        """What has arrived."""
        self._socket.settimeout(READABLE_S)
        try:
            data = self._socket.recv(READ_BYTES)
        except TimeoutError:
            return
        if not data:
            raise RedisConnectionError("the server closed the connection")
        self._reader.feed(data)
        while (message := self._reader.gets()) is not self._more:
            yield message

    def interrupt(self) -> None:
        """End a `read` in another thread."""
        with suppress(OSError):  # not SSLSocket's own, which takes apart what the reader is using
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.disconnect()

    def drop(self) -> None:
        """In a child: close the descriptor that it got, and leave the connection alone."""
        self._socket.close()
