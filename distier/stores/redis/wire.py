"""Connections to a server: who may use them, whose reply is whose, and when one is dead.

*A connection is used only by the process, event loop and thread that opened it.* A child of a fork drops its copies of all
sockets before it runs a line of its own (`Connections`): it shares the stream with its parent, and a byte that it wrote, or a
reply that it took, would shift the replies of the parent's calls. Blocking connections are taken out of their pool by the
thread that uses them; those of an event loop are kept by loop (`sharing.py`).

*A reply is taken only by the request that it answers.* RESP replies carry no number. So nothing may be in a stream that was
not asked for: bytes that wait before a request is sent, and bytes that are left over behind its replies, end the connection,
and the replies beside them are not believed. A connection that was idle for long answers a PING of its own, with a text that
was never used before, first. That leaves a reply that comes between others while several requests are under way: a record says
whose it is (`domain/order.py`), and one of another module, or a reply of a kind that the request never gets, is `OutOfStep`.
Rejected: an ECHO behind each batch, which is one more command for each read.

*A call ends at its own deadline*, which is one moment for all that it sends and receives. And *a dead connection is found
sooner*: one that has been silent for `doubt_s` is compared with a new one. Where the new one is answered, and the old one is
still silent, the network has lost the old one (NAT tables, firewalls and load balancers do so without a word). A server that
is only slow keeps both waiting, so nobody is cut off because it is.
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
"""A request may be under way for as long as this pace takes before its connection is doubted."""
BLOCKING = frozenset(("XREAD", "WAIT", "BLPOP"))
# fmt: off
READS = frozenset((
    "GET", "HGETALL", "HGET", "HMGET", "EVALSHA_RO", "SCRIPT", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE", "SCAN", "EXISTS", "INFO",
    "TIME",
))
# fmt: on
"""What a server answers also while it pauses writes (CLIENT PAUSE WRITE, a failover of its own making)."""
BLOCK_MAX_S = 1.5
"""More than any of them is told to wait at the server."""
NOT_YET = object()


class Silent(RedisConnectionError):
    """No answer on this connection, while the server answers on a new one."""


class _Leaves(Protocol):
    kept_after_fork: bool

    def leave(self) -> None: ...


class Connections:
    """All connections of this process. In a forked child each *leaves*: its socket is dropped there, which tells the server
    nothing."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inherited: list[Any] = []

    def add(self, connection: _Leaves, pid: int) -> None:
        """`pid`: of the process that opened it."""
        self._all.add(connection)
        if pid != os.getpid():  # forked in between, by a signal handler
            connection.leave()

    def after_fork_in_child(self) -> None:
        for connection in list(self._all):
            connection.leave()
            if connection.kept_after_fork:
                # Kept for ever: its finaliser would take it out of the parent's event loop, which the child shares (epoll).
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
# Refusals of a server that will take connections in a moment.
_LATER = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")
_AUTH = ("WRONGPASS", "NOAUTH")


def greeting(connection: Any) -> list[RawCommand]:
    """What is sent first, in one packet, over a connection of redis-py that is open. The client's name goes with HELLO: then
    no right to use CLIENT is needed, and nobody has to have it."""
    hello: list[Arg] = ["HELLO", 3]
    if connection.password or connection.username:
        hello += ["AUTH", connection.username or "default", connection.password or ""]
    if connection.client_name:
        hello += ["SETNAME", connection.client_name]
    select_db: list[RawCommand] = [("SELECT", connection.db)] if connection.db else []
    return [tuple(hello), *select_db]


def check_greeting(connection: Any, replies: Sequence[Any]) -> None:
    """Raises redis-py's `ConnectionError` where it may go well in a moment, else `ConfigError`."""
    hello, *selected = replies
    if isinstance(hello, ResponseError):
        _refused(
            hello,
            "this server does not take HELLO 3, with which distier begins (RESP3, Redis 6 or later): is the command renamed, "
            f"or is this a proxy? ({hello})",
        )
    if not isinstance(hello, dict) or hello.get(b"proto") != 3:
        raise ConfigError(f"the server does not speak RESP3: it answers HELLO 3 by {hello!r:.100}")
    for reply in selected:
        if isinstance(reply, ResponseError):
            _refused(reply, f"redis.url names database {connection.db}, and the server refuses SELECT: {reply}")


def _refused(error: ResponseError, otherwise: str) -> None:
    text = str(error)
    if text.startswith(_LATER):
        raise RedisConnectionError(text) from error
    if text.startswith(_AUTH) or "invalid password" in text:
        raise AuthenticationError(text) from error
    raise ConfigError(otherwise) from error


class Errors:
    """Makes the error replies of a line, and notices those of a replica: the line is then to be dropped."""

    __slots__ = ("demoted",)

    def __init__(self) -> None:
        self.demoted = False

    def __call__(self, text: str) -> ResponseError:
        if text.startswith(("READONLY", "MASTERDOWN", "UNBLOCKED")):
            self.demoted = True
        return ResponseError(text)


def new_reader(errors: Errors) -> Any:
    return hiredis.Reader(replyError=errors, protocolError=InvalidResponse, notEnoughData=NOT_YET)


def packed(commands: Sequence[RawCommand]) -> bytes:
    pack: Any = hiredis.pack_command
    return pack(commands[0]) if len(commands) == 1 else b"".join([pack(command) for command in commands])


verb_of = itemgetter(0)


def block(commands: Sequence[RawCommand]) -> bool:
    """Whether the server may keep silent over one of these because it is told to wait."""
    return not BLOCKING.isdisjoint(map(verb_of, commands))


def unasked(reply: Any) -> RedisConnectionError:
    return RedisConnectionError(f"a reply to nothing ({type(reply).__name__}): the connection is out of step")
