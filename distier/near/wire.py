"""The connection that receives the server's invalidations."""

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
"""Timeout of a read in seconds, if no data is available after all: an incomplete TLS record may have arrived."""


class RefusedTracking(Exception):
    """The server does not support tracking, or does not allow it for this user."""


class TrackingWire:
    """A connection that reads replies and pushes in the order of arrival."""

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self.greeting = greeting(connection)
        # redis-py passes pushes to a handler and swallows its exceptions, but here no push may be missed.
        self._socket: socket.socket = connection._sock
        self.fileno = self._socket.fileno
        self._more = object()
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=self._more)

    def send(self, command: Sequence[Any], timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        for part in self._connection.pack_command(*command):
            self._socket.sendall(part)

    def read(self) -> Iterator[Any]:
        """Yield the messages that have arrived."""
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
        """Interrupt a `read` in another thread."""
        with suppress(OSError):  # not SSLSocket's own shutdown, which destroys state that the reader is using
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.disconnect()

    def drop(self) -> None:
        """Close the inherited descriptor in a forked child. The parent's connection stays open."""
        self._socket.close()
