"""Rules for connections: which code may use one, which request gets a reply, and when a connection is dead.

*Only the process and event loop that opened a connection use it, and one thread at a time.* A forked child drops its copies
of all sockets before it runs any of its own code (`Connections`). It shares the stream with its parent: a byte that it wrote,
or a reply that it read, would shift the replies of the parent's calls. A thread takes a blocking connection out of the pool
while it uses it. The connections of event loops are kept separately for each loop (`sharing.py`).

*Only the request that a reply belongs to gets it.* RESP replies carry no number, so a stream must contain no unsolicited
data. Bytes that have arrived before a request is sent, and bytes that are left after its replies, end the connection, and the
replies next to them are discarded. A connection that was idle for long first gets a PING with a new random text. One case
remains: an extra reply between others while several requests are in progress. A record contains its module's id
(`domain/order.py`); a record of another module, or a reply of a type that the request never gets, raises `OutOfStep`.
Rejected: an ECHO after each batch, because it adds one command to each read.

*A call ends at its own deadline*, which is one moment for all that it sends and receives. *A dead connection is detected
sooner*: one that has been silent for `doubt_s` is compared with a new one. If the server replies on the new one while the old
one is still silent, the network has dropped the old one (NAT tables, firewalls and load balancers do so without notice). A
server that is only slow keeps both waiting, so slowness alone ends no connection.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Protocol

import hiredis
from redis.exceptions import AuthenticationError, InvalidResponse, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from distier.effects import Arg
from distier.errors import ConfigError

RawCommand = Sequence[Arg]
READ_BYTES = 64 * 1024
SEND_BYTES = 64 * 1024
WATCH_S = 0.05
SLOWEST_BYTES_PER_S = 50_000
"""Assumed lowest transfer rate: a connection is doubted only after the time that its request takes at this rate."""
BLOCKING = frozenset(("XREAD", "WAIT", "BLPOP"))
# fmt: off
READS = frozenset((
    "GET", "HGETALL", "HGET", "HMGET", "EVALSHA_RO", "SCRIPT", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE", "SCAN", "EXISTS", "INFO",
    "TIME",
))
# fmt: on
"""Commands that a server serves while it pauses writes (CLIENT PAUSE WRITE, a manual failover)."""
BLOCK_MAX_S = 1.5
"""Longer than any blocking command waits at the server, in seconds."""
NOT_YET = object()


class Silent(RedisConnectionError):
    """The server does not reply on this connection, but does on a new one."""


class _Leaves(Protocol):
    kept_after_fork: bool

    def leave(self) -> None: ...


class Connections:
    """All connections of this process. A forked child drops its copies of their sockets, which the server does not notice."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inherited: list[Any] = []

    def add(self, connection: _Leaves, pid: int) -> None:
        """Register a connection that the process `pid` opened."""
        self._all.add(connection)
        if pid != os.getpid():  # a signal handler forked in between
            connection.leave()

    def after_fork_in_child(self) -> None:
        for connection in list(self._all):
            connection.leave()
            if connection.kept_after_fork:
                # Kept forever: its finalizer would remove it from the parent's epoll, which the child shares.
                self._inherited.append(connection)
        self._all = weakref.WeakSet()


def replace_socket(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        if fd >= 0:
            os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)


CONNECTIONS = Connections()
os.register_at_fork(after_in_child=CONNECTIONS.after_fork_in_child)
# Refusals of a server that will accept connections soon.
_LATER = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
_AUTH = ("WRONGPASS", "NOAUTH")


def greeting(connection: Any) -> list[RawCommand]:
    """Return the first commands for an open connection, which are sent in one packet.

    HELLO includes the client's name, so that the user needs no permission for CLIENT.
    """
    hello: list[Arg] = ["HELLO", 3]
    if connection.password or connection.username:
        hello += ["AUTH", connection.username or "default", connection.password or ""]
    if connection.client_name:
        hello += ["SETNAME", connection.client_name]
    select_db: list[RawCommand] = [("SELECT", connection.db)] if connection.db else []
    return [tuple(hello), *select_db]


def check_greeting(connection: Any, replies: Sequence[Any]) -> None:
    """Check the replies to the greeting.

    Raises:
        ConnectionError: The server refuses now, but may accept soon (redis-py's error).
        AuthenticationError: The user or password is wrong (redis-py's error).
        ConfigError: The server refuses for good.
    """
    hello, *selected = replies
    if isinstance(hello, ResponseError):
        _refused(
            hello,
            "this server does not accept HELLO 3, which distier needs (RESP3, Redis 6 or later): is the command renamed, or is "
            f"this a proxy? ({hello})",
        )
    if not isinstance(hello, dict) or hello.get(b"proto") != 3:
        raise ConfigError(f"the server does not support RESP3: it replies to HELLO 3 with {hello!r:.100}")
    for reply in selected:
        if isinstance(reply, ResponseError):
            _refused(reply, f"redis.url names database {connection.db}, but the server refuses SELECT: {reply}")


def _refused(error: ResponseError, otherwise: str) -> None:
    text = str(error)
    if text.startswith(_LATER):
        raise RedisConnectionError(text) from error
    if text.startswith(_AUTH) or "invalid password" in text:
        raise AuthenticationError(text) from error
    raise ConfigError(otherwise) from error


class Errors:
    """Makes the error replies of a connection. Sets `demoted` at errors of a replica: the connection must then be dropped."""

    __slots__ = ("demoted",)

    def __init__(self) -> None:
        self.demoted = False

    def __call__(self, text: str) -> ResponseError:
        if text.startswith(("READONLY", "MASTERDOWN", "UNBLOCKED")):
            self.demoted = True
        return ResponseError(text)


def new_reader(errors: Errors) -> Any:
    return hiredis.Reader(replyError=errors, protocolError=InvalidResponse, notEnoughData=NOT_YET)


pack: Any = hiredis.pack_command
verb_of = itemgetter(0)


def block(commands: Sequence[RawCommand]) -> bool:
    """Return whether one of these commands may block at the server."""
    return not BLOCKING.isdisjoint(map(verb_of, commands))


def unsolicited(reply: Any) -> RedisConnectionError:
    return RedisConnectionError(f"unsolicited reply ({type(reply).__name__}): the connection is out of step")
