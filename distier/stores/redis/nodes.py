"""The nodes of a cluster: how to find them, redirections and failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.config import Address, ClusterUrl, Config, parse_cluster_url
from distier.domain.keys import Shard
from distier.stores.redis import RedisExchange
from distier.stores.redis.topology import Routes, Topology, parse_slots, redirect_of
from distier.stores.redis.wire import RawCommand

CONNECT_MAX_S = 1.0
ATTEMPTS = 3
ATTEMPT_MIN_S = 1.5
"""Longer than any WAIT or XREAD waits at the server, in seconds."""
REDIRECTS_MAX = 5
ASK_SLOTS: tuple[RawCommand, ...] = (("CLUSTER", "SLOTS"),)
NO_ANSWER = (RedisConnectionError, RedisTimeoutError)


def redirected(replies: Sequence[Any]) -> bool:
    return any(type(reply) is ResponseError and str(reply).startswith(("MOVED ", "ASK ")) for reply in replies)


def without_asking(replies: Sequence[Any]) -> list[Any]:
    """Return the replies to the commands among the replies to (ASKING, command) pairs.

    A command that the target cannot run yet gets a TRYAGAIN error, so that the driver retries it.
    """
    found = []
    for asking, reply in zip(replies[::2], replies[1::2], strict=True):
        if type(asking) is ResponseError:
            found.append(asking)
        elif type(reply) is ResponseError and str(reply).startswith(("MOVED ", "ASK ", "NOSCRIPT")):
            found.append(ResponseError("TRYAGAIN the slot has just moved, or the target does not have the scripts yet"))
        else:
            found.append(reply)
    return found


def ends_unsettled(replies: list[Any]) -> list[Any]:
    """Replace the remaining redirections with TRYAGAIN errors, because callers cannot handle redirections."""
    disagree = "TRYAGAIN the nodes of the cluster disagree about the master of the slot"
    return [ResponseError(disagree) if redirected((reply,)) else reply for reply in replies]


class _Step(NamedTuple):
    """Commands to send to a node, and the indexes of their replies."""

    address: Address
    commands: Sequence[RawCommand]
    indexes: Sequence[int]
    asking: bool


def next_step(commands: Sequence[RawCommand], replies: Sequence[Any], asked: Address) -> _Step | None:
    """Return the step that the first redirection in these replies requires; None if there is no redirection.

    After MOVED, all following commands are sent again, also those without a key (`WAIT`, `SCAN`), because they were meant
    for the new master.
    """
    found = [(i, r) for i, reply in enumerate(replies) if (r := redirect_of(reply, asked))]
    if not found:
        return None
    first, redirect = found[0]
    if redirect.kind == "MOVED":
        return _Step(redirect.target, commands[first:], range(first, len(commands)), False)
    indexes = [i for i, r in found if r == redirect]
    return _Step(redirect.target, [c for i in indexes for c in (("ASKING",), commands[i])], indexes, True)


class Resend(NamedTuple):
    """Commands to send again: to this node, or, with None, to the owner of the slot."""

    address: Address | None
    commands: Sequence[RawCommand]


Redirections = Generator[Resend, tuple[Address, list[Any]], list[Any]]


def follow(
    commands: Sequence[RawCommand], replies: list[Any], asked: Address, moved: Callable[[Address], None]
) -> Redirections:
    """Follow the redirections in these replies: yields what to send again, and gets the node that was asked with its replies.

    `moved` is called with the master that a MOVED names. Returns the final replies.
    """
    for _ in range(REDIRECTS_MAX):
        step = next_step(commands, replies, asked)
        if step is None:
            return replies
        if not step.asking:
            moved(step.address)
        asked, got = yield Resend(step.address if step.asking else None, step.commands)
        for i, reply in zip(step.indexes, without_asking(got) if step.asking else got, strict=True):
            replies[i] = reply
    return ends_unsettled(replies)


class Nodes:
    """Connects to the nodes of a cluster and fetches the slots, blocking."""

    def __init__(self, config: Config, url: str) -> None:
        self.config = config
        self.url: ClusterUrl = parse_cluster_url(url)
        # A silent node must leave time for the others.
        self.connect_s = min(config.deadline_ms / 1000 / 4, CONNECT_MAX_S)
        # An unreachable master takes this much of a call's deadline. The next attempt finds the new master.
        self.attempt_s = max(config.deadline_ms / 1000 / ATTEMPTS, ATTEMPT_MIN_S)

    def url_of(self, address: Address) -> str:
        """Return the URL of one node."""
        host, port = address
        user = ""
        if self.url.username or self.url.password:
            user = f"{quote(self.url.username or '', safe='')}:{quote(self.url.password or '', safe='')}@"
        shown = f"[{host}]" if ":" in host else host
        return f"{'rediss' if self.url.tls else 'redis'}://{user}{shown}:{port}/0"

    def ask(self, routes: Routes, shard: Shard, end_s: float) -> tuple[Topology, Address]:
        """Return the slots from the first node that replies, and the address of that node.

        Raises:
            ConnectionError: No node replies (redis-py's error).
            ResponseError: A node refuses the request.
        """
        failed = Failed()
        for address in routes.to_ask():
            if (left_s := end_s - time.monotonic()) <= 0:
                break
            node = RedisExchange(self.config, self.url_of(address), connect_s=min(self.connect_s, left_s))
            try:
                reply = node.exchange(shard, ASK_SLOTS, min(self.connect_s, left_s))[0]
            except NO_ANSWER as e:
                failed.note(address, e)
                continue
            finally:
                node.close()
            if not failed.is_passing(address, reply):
                return parse_slots(reply, address), address
        raise failed.error()


class Failed:
    """The reason why no node returned the slots."""

    def __init__(self) -> None:
        self._last: Exception | None = None
        self._text = ""

    def note(self, address: Address, error: Exception) -> None:
        self._last, self._text = error, f"{address[0]}:{address[1]}: {error}"

    def is_passing(self, address: Address, reply: Any) -> bool:
        """Return whether another node should be asked. Raises an error reply that every node would give."""
        if type(reply) is not ResponseError:
            return False
        if not str(reply).startswith(("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN")):
            raise reply
        self.note(address, reply)
        return True

    def error(self) -> Exception:
        # A wrong password or certificate affects all nodes, and is more helpful than "no node replies".
        if isinstance(self._last, RedisConnectionError) and type(self._last) is not RedisConnectionError:
            return self._last
        made = RedisConnectionError(f"no node of the cluster replies ({self._text or 'no time was left'})")
        made.__cause__ = self._last
        return made


def left_s(end_s: float) -> float:
    return max(end_s - time.monotonic(), 0.001)
