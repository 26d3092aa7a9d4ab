"""Redis Cluster: each shard is in one slot, each slot is served by one master, and any node knows which.

A shard's commands go to the master of its slot, over that master's own `RedisExchange`; replicas are never read. What a
process knows of the slots may be out of date, and is corrected by whoever notices:

    MOVED       nothing was done: the slot is asked for anew, of the node that was named first, and from the first refused
                command on, the batch is sent again to the new master
    ASK         this key of a slot that is on the move is there already: ASKING and the command go there, once
    TRYAGAIN, CLUSTERDOWN   a script's keys lie on two masters, or a slot has no master now: values, as from any server; the
                driver tries again within the deadline
    no answer   the slots are asked for anew before the next command. A failover takes the cluster about its node timeout;
                the driver goes on trying within the deadline

A slot that changes its master makes the process forget what it knew of the shards' epochs, as another life of a server
does: the new master has another replication id, so the shard is given a new epoch (see `plans/recovery`).

redis-py connects; `CLUSTER SLOTS` is asked and read here. Rejected: its `RedisCluster` and `NodesManager`, whose sync and
async twins differ, ask one node after the other without a deadline in common, open a pool for each replica, and know
nothing of lives of servers.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.config import CLUSTER_SCHEMES, Address, ClusterUrl, Config, mask_url, parse_cluster_url
from distier.domain.keys import Shard

from .redis import (
    Answer,
    AsyncExchange,
    AsyncRedisExchange,
    Batch,
    Exchange,
    RedisExchange,
    Revive,
    Together,
    Words,
    lone_connection,
    split,
)

CONNECT_MAX_S = 1.0
ATTEMPTS = 3
ATTEMPT_MIN_S = 1.5
"""More than WAIT and XREAD are told to wait at the server."""
REDIRECTS_MAX = 5
ASK_SLOTS: tuple[Words, ...] = (("CLUSTER", "SLOTS"),)
_NO_ANSWER = (RedisConnectionError, RedisTimeoutError)


def open_exchange(config: Config, url: str, forget: Callable[[], object], revive: Revive | None = None) -> Exchange:
    """The exchange for `url`: a cluster's, or that of one server (which sentinels may name)."""
    if url.startswith(CLUSTER_SCHEMES):
        return ClusterExchange(config, url, forget)
    return RedisExchange(config, url, forget, revive=revive)


def open_async_exchange(
    config: Config, url: str, forget: Callable[[], object], revive: Revive | None = None
) -> AsyncExchange:
    """The same for an event loop."""
    if url.startswith(CLUSTER_SCHEMES):
        return AsyncClusterExchange(config, url, forget)
    return AsyncRedisExchange(config, url, forget, revive=revive)


# -- who serves which slot -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topology:
    """What one node answered to `CLUSTER SLOTS`."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    owners: tuple[Address, ...]
    replicas: tuple[tuple[Address, ...], ...]

    def owner(self, slot: int) -> Address | None:
        """The master that serves this slot; None where no master does."""
        i = bisect_right(self.starts, slot) - 1
        return self.owners[i] if i >= 0 and slot <= self.ends[i] else None

    @property
    def masters(self) -> tuple[Address, ...]:
        """Those that serve any slot."""
        return tuple(dict.fromkeys(self.owners))

    @property
    def nodes(self) -> tuple[Address, ...]:
        """Masters, then replicas."""
        return tuple(dict.fromkeys((*self.owners, *(r for some in self.replicas for r in some))))

    def replicas_of(self, master: Address) -> tuple[Address, ...]:
        found = [r for owner, some in zip(self.owners, self.replicas, strict=True) if owner == master for r in some]
        return tuple(dict.fromkeys(found))


def parse_slots(reply: Any, asked: Address) -> Topology:
    """The reply to `CLUSTER SLOTS` of the node that is reached at `asked`; a node that does not know its own name is called
    by that."""

    def address(node: Sequence[Any]) -> Address:
        host = (node[0] or b"").decode()
        return (asked[0] if host in ("", "?") else host, int(node[1]))

    try:
        rows = sorted((int(row[0]), int(row[1]), tuple(map(address, row[2:]))) for row in reply)
        return Topology(
            tuple(r[0] for r in rows), tuple(r[1] for r in rows), tuple(r[2][0] for r in rows), tuple(r[2][1:] for r in rows)
        )  # fmt: skip
    except (TypeError, ValueError, LookupError, AttributeError) as e:
        raise RedisConnectionError(f"a node answers CLUSTER SLOTS by {reply!r:.80}") from e


class Routes:
    """What this process knows of a cluster: which nodes there are, and who serves the slots that it uses. No I/O."""

    def __init__(self, seeds: Sequence[Address]) -> None:
        self._seeds = tuple(seeds)
        self._nodes = self._seeds
        self._by_slot: dict[int, Address] = {}
        self._last: dict[int, Address] = {}
        self.topology: Topology | None = None
        self.stale = True
        self.looks = 0

    def owner(self, slot: int) -> Address | None:
        """Who serves this slot, as far as is known."""
        found = self._by_slot.get(slot)
        if found is None and self.topology is not None and (found := self.topology.owner(slot)):
            self._by_slot[slot] = found
            self._last.setdefault(slot, found)
        return found

    def to_ask(self) -> tuple[Address, ...]:
        """Whom to ask for the slots, the most promising first."""
        return tuple(dict.fromkeys((*self._nodes, *self._seeds)))

    def learn(self, topology: Topology, asked: Address) -> bool:
        """Take over what a node said; whether a slot that was used has another master now."""
        others = [node for node in topology.nodes if node != asked]
        self._nodes = (asked, *others) if asked in topology.nodes else tuple(others)
        others_now = {
            slot: owner
            for slot, last in list(self._last.items())
            if (owner := topology.owner(slot)) not in (None, last)
        }
        self._last |= others_now
        self.topology, self._by_slot = topology, {}
        self.stale = False
        self.looks += 1
        return bool(others_now)

    def moved(self, slot: int, target: Address) -> bool:
        """A node says that `target` serves this slot: it is asked first for the others. Whether that is news."""
        self.stale = True
        self._nodes = (target, *(node for node in self._nodes if node != target))
        known, self._last[slot] = self._last.get(slot), target
        self._by_slot[slot] = target
        return known != target

    def suspect(self, address: Address) -> None:
        """A node did not answer: ask others, and it last."""
        self.stale = True
        self._nodes = (*(node for node in self._nodes if node != address), address)


class Redirect(NamedTuple):
    kind: str
    target: Address


def redirect_of(reply: Any, asked: Address) -> Redirect | None:
    """`MOVED slot host:port` and `ASK slot host:port`; an empty host means the one that was asked."""
    if type(reply) is not ResponseError:
        return None
    kind, _, rest = str(reply).partition(" ")
    if kind not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.partition(" ")[2].rpartition(":")
    return Redirect(kind, (host or asked[0], int(port))) if port.isdigit() else None


def _redirected(replies: Sequence[Any]) -> bool:
    return any(type(reply) is ResponseError and str(reply).startswith(("MOVED ", "ASK ")) for reply in replies)


def _asked(replies: Sequence[Any]) -> list[Any]:
    """The replies to (ASKING, command) pairs, as those to the commands. What the target cannot do yet is tried again."""
    found = []
    for asking, reply in zip(replies[::2], replies[1::2], strict=True):
        if type(asking) is ResponseError:
            found.append(asking)
        elif type(reply) is ResponseError and str(reply).startswith(("MOVED ", "ASK ", "NOSCRIPT")):
            found.append(ResponseError("TRYAGAIN the slot has just been moved, or its scripts are to come"))
        else:
            found.append(reply)
    return found


def _ends_unsettled(replies: list[Any]) -> list[Any]:
    """Redirections that are left over are no answer for anybody."""
    disagree = "TRYAGAIN the nodes of the cluster do not agree on who serves the slot"
    return [ResponseError(disagree) if _redirected((reply,)) else reply for reply in replies]


class _Step(NamedTuple):
    """Commands to send to a node, and the places that their replies take."""

    address: Address
    commands: Sequence[Words]
    places: Sequence[int]
    asking: bool


def _next_step(commands: Sequence[Words], replies: Sequence[Any], asked: Address) -> _Step | None:
    """What the first redirection among these replies asks for. After MOVED all that follows goes again, also what names no
    key (`WAIT`, `SCAN`): it was meant for the new master."""
    found = [(i, r) for i, reply in enumerate(replies) if (r := redirect_of(reply, asked))]
    if not found:
        return None
    first, redirect = found[0]
    if redirect.kind == "MOVED":
        return _Step(redirect.target, commands[first:], range(first, len(commands)), False)
    places = [i for i, r in found if r == redirect]
    return _Step(redirect.target, [c for i in places for c in (("ASKING",), commands[i])], places, True)


class Nodes:
    """How the nodes of a cluster are reached, and asked for the slots, blocking."""

    def __init__(self, config: Config, url: str) -> None:
        self.config = config
        self.url: ClusterUrl = parse_cluster_url(url)
        # One that does not answer must leave time for the others.
        self.connect_s = min(config.deadline_ms / 1000 / 4, CONNECT_MAX_S)
        # A master that the network swallows takes this much of a call's deadline; the next try finds who took its place.
        self.attempt_s = max(config.deadline_ms / 1000 / ATTEMPTS, ATTEMPT_MIN_S)

    def url_of(self, address: Address) -> str:
        """The url of one node."""
        host, port = address
        user = ""
        if self.url.username or self.url.password:
            user = f"{quote(self.url.username or '', safe='')}:{quote(self.url.password or '', safe='')}@"
        shown = f"[{host}]" if ":" in host else host
        return f"{'rediss' if self.url.tls else 'redis'}://{user}{shown}:{port}/0"

    def ask(self, routes: Routes, shard: Shard, end_s: float) -> tuple[Topology, Address]:
        """The slots, of the first node that tells, and who that was. Raises redis-py's `ConnectionError` where none does,
        and `ResponseError` where one will not."""
        failed = _Failed()
        for address in routes.to_ask():
            if (left_s := end_s - time.monotonic()) <= 0:
                break
            node = RedisExchange(self.config, self.url_of(address), connect_s=min(self.connect_s, left_s))
            try:
                reply = node.exchange(shard, ASK_SLOTS, min(self.connect_s, left_s))[0]
            except _NO_ANSWER as e:
                failed.note(address, e)
                continue
            finally:
                node.close()
            if not failed.is_passing(address, reply):
                return parse_slots(reply, address), address
        raise failed.error()


class _Failed:
    """Why nobody told the slots."""

    def __init__(self) -> None:
        self._last: Exception | None = None
        self._told = ""

    def note(self, address: Address, error: Exception) -> None:
        self._last, self._told = error, f"{address[0]}:{address[1]}: {error}"

    def is_passing(self, address: Address, reply: Any) -> bool:
        """Whether it is worth asking another node. Raises what no other would answer otherwise."""
        if type(reply) is not ResponseError:
            return False
        if not str(reply).startswith(("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN")):
            raise reply
        self.note(address, reply)
        return True

    def error(self) -> Exception:
        # A wrong password or certificate is that of all nodes, and says more than that none answers.
        if isinstance(self._last, RedisConnectionError) and type(self._last) is not RedisConnectionError:
            return self._last
        made = RedisConnectionError(f"no node of the cluster answers ({self._told or 'no time left to ask'})")
        made.__cause__ = self._last
        return made


NOT_COVERED = "CLUSTERDOWN no master serves this slot"


# -- the exchanges ---------------------------------------------------------------------------------------------------


class ClusterExchange:
    """A Redis Cluster, for threads: one `RedisExchange` a master, opened when it is needed. Safe over fork."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        self.url = url
        self.nodes = Nodes(config, url)
        self.routes = Routes(self.nodes.url.nodes)
        self._forget = forget
        self._masters: dict[Address, RedisExchange] = {}
        self._looking = threading.RLock()  # a signal handler may look, too
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"ClusterExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        try:
            address = self._owner(shard, end_s)
            replies = self._send(address, shard, commands, timeout_s)
            return self._settle(shard, commands, replies, address, end_s) if _redirected(replies) else replies
        except ResponseError as e:  # nobody may tell us the slots, or nobody serves this one
            return [e] * len(commands)

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        if len(batches) == 1:
            return [self._alone(*batches[0], timeout_s)]
        end_s = time.monotonic() + timeout_s
        answers: dict[int, Answer] = {}
        begun: list[tuple[Address, list[int], Any]] = []
        try:
            for address, members in self._by_master(batches, answers, end_s):
                try:
                    wait_s = min(_left_s(end_s), self.nodes.attempt_s)
                    line = self._at(address).begin([batches[i] for i in members], wait_s)
                    begun.append((address, members, line))
                except _NO_ANSWER as e:
                    self._lost(address, members, answers, e)
            while begun:
                address, members, line = begun.pop(0)
                asked = [batches[i] for i in members]
                try:
                    wait_s = min(_left_s(end_s), self.nodes.attempt_s)
                    answers |= zip(members, self._at(address).finish(line, asked, wait_s), strict=True)
                except _NO_ANSWER as e:
                    self._lost(address, members, answers, e)
                for i, (shard, commands) in zip(members, asked, strict=True):
                    answer = answers[i]
                    if isinstance(answer, list) and _redirected(answer):
                        answers[i] = self._settled(shard, commands, answer, address, end_s)
        finally:
            for _, _, line in begun:  # interrupted: their replies must not meet other commands
                line.close()
        return [answers[i] for i in range(len(batches))]

    def _alone(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> Answer:
        try:
            return self.exchange(shard, commands, timeout_s)
        except _NO_ANSWER as e:
            return e

    def _by_master(
        self, batches: Sequence[Batch], answers: dict[int, Answer], end_s: float
    ) -> list[tuple[Address, list[int]]]:
        """The positions of the batches of each master; those without one are answered."""
        groups: dict[Address, list[int]] = {}
        for i, (shard, commands) in enumerate(batches):
            try:
                groups.setdefault(self._owner(shard, end_s), []).append(i)
            except ResponseError as e:
                answers[i] = [e] * len(commands)
            except _NO_ANSWER as e:
                answers[i] = e
        return list(groups.items())

    def _lost(self, address: Address, members: Sequence[int], answers: dict[int, Answer], error: Any) -> None:
        self.routes.suspect(address)
        answers.update(dict.fromkeys(members, error))

    def _send(self, address: Address, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        try:
            return self._at(address).exchange(shard, commands, min(timeout_s, self.nodes.attempt_s))
        except _NO_ANSWER:
            self.routes.suspect(address)
            raise

    def _settled(
        self, shard: Shard, commands: Sequence[Words], replies: list[Any], asked: Address, end_s: float
    ) -> Answer:
        try:
            return self._settle(shard, commands, replies, asked, end_s)
        except ResponseError as e:
            return [e] * len(commands)
        except _NO_ANSWER as e:
            return e

    def _settle(
        self, shard: Shard, commands: Sequence[Words], replies: list[Any], asked: Address, end_s: float
    ) -> list[Any]:
        """Follow the redirections among these replies."""
        for _ in range(REDIRECTS_MAX):
            step = _next_step(commands, replies, asked)
            if step is None:
                return replies
            address = step.address
            if not step.asking:
                if self.routes.moved(shard.slot, address):
                    self._forget()
                address = self._owner(shard, end_s)
            got = self._send(address, shard, step.commands, _left_s(end_s))
            for i, reply in zip(step.places, _asked(got) if step.asking else got, strict=True):
                replies[i] = reply
            asked = address
        return _ends_unsettled(replies)

    def _owner(self, shard: Shard, end_s: float) -> Address:
        """The master of the shard, looked for where that is not known for certain. Raises redis-py's `ConnectionError`, and
        `ResponseError` where nobody serves it."""
        if self.routes.stale:
            self._look(shard, end_s)
        address = self.routes.owner(shard.slot)
        if address is None:
            self.routes.stale = True
            raise ResponseError(NOT_COVERED)
        return address

    def _look(self, shard: Shard, end_s: float) -> None:
        if self._pid != os.getpid():  # another thread of the parent may have held it
            self._looking, self._pid = threading.RLock(), os.getpid()
        looks = self.routes.looks
        if not self._looking.acquire(timeout=_left_s(end_s)):
            raise RedisTimeoutError("no answer in time: who serves which slot?")
        try:
            if self.routes.looks == looks:  # else another thread has just done it
                topology, asked = self.nodes.ask(self.routes, shard, end_s)
                self._take(topology, asked)
        finally:
            self._looking.release()

    def _take(self, topology: Topology, asked: Address) -> None:
        if self.routes.learn(topology, asked):
            self._forget()
        for address in set(self._masters) - set(topology.masters):
            if (gone := self._masters.pop(address, None)) is not None:
                gone.close()

    def _at(self, address: Address) -> RedisExchange:
        found = self._masters.get(address)
        if found is None:
            made = RedisExchange(
                self.nodes.config, self.nodes.url_of(address), self._forget, connect_s=self.nodes.connect_s
            )
            found = self._masters.setdefault(address, made)
        return found

    def drop(self) -> None:
        for master in list(self._masters.values()):
            master.drop()

    def close(self) -> None:
        for master in list(self._masters.values()):
            master.close()


class AsyncClusterExchange:
    """The same for event loops: each has connections of its own."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        self.url = url
        self.nodes = Nodes(config, url)
        self.routes = Routes(self.nodes.url.nodes)
        self._forget = forget
        self._masters: dict[Address, AsyncRedisExchange] = {}
        self._looking = Together()

    def __repr__(self) -> str:
        return f"AsyncClusterExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        try:
            address = await self._owner(shard, end_s)
            replies = await self._send(address, shard, commands, timeout_s)
            return await self._settle(shard, commands, replies, address, end_s) if _redirected(replies) else replies
        except ResponseError as e:
            return [e] * len(commands)

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        end_s = time.monotonic() + timeout_s
        answers: dict[int, Answer] = {}
        groups: dict[Address, list[int]] = {}
        for i, (shard, commands) in enumerate(batches):
            try:
                groups.setdefault(await self._owner(shard, end_s), []).append(i)
            except ResponseError as e:
                answers[i] = [e] * len(commands)
            except _NO_ANSWER as e:
                answers[i] = e
        await asyncio.gather(
            *(self._master(address, batches, members, answers, end_s) for address, members in groups.items())
        )
        return [answers[i] for i in range(len(batches))]

    async def _master(
        self,
        address: Address,
        batches: Sequence[Batch],
        members: Sequence[int],
        answers: dict[int, Answer],
        end_s: float,
    ) -> None:
        """The batches of one master, in one round trip."""
        asked = [batches[i] for i in members]
        commands = [words for _, some in asked for words in some]
        try:
            replies = await self._send(address, asked[0][0], commands, _left_s(end_s))
        except _NO_ANSWER as e:
            answers.update(dict.fromkeys(members, e))
            return
        for i, (shard, some), answer in zip(members, asked, split(asked, replies), strict=True):
            answers[i] = answer
            if _redirected(answer):
                try:
                    answers[i] = await self._settle(shard, some, answer, address, end_s)
                except ResponseError as e:
                    answers[i] = [e] * len(some)
                except _NO_ANSWER as e:
                    answers[i] = e

    async def _send(self, address: Address, shard: Shard, commands: Sequence[Words], timeout_s: float) -> list[Any]:
        try:
            return await self._at(address).exchange(shard, commands, min(timeout_s, self.nodes.attempt_s))
        except _NO_ANSWER:
            self.routes.suspect(address)
            raise

    async def _settle(
        self, shard: Shard, commands: Sequence[Words], replies: list[Any], asked: Address, end_s: float
    ) -> list[Any]:
        for _ in range(REDIRECTS_MAX):
            step = _next_step(commands, replies, asked)
            if step is None:
                return replies
            address = step.address
            if not step.asking:
                if self.routes.moved(shard.slot, address):
                    self._forget()
                address = await self._owner(shard, end_s)
            got = await self._send(address, shard, step.commands, _left_s(end_s))
            for i, reply in zip(step.places, _asked(got) if step.asking else got, strict=True):
                replies[i] = reply
            asked = address
        return _ends_unsettled(replies)

    async def _owner(self, shard: Shard, end_s: float) -> Address:
        if self.routes.stale:
            await self._looking.wait(lambda: self._look(shard), _left_s(end_s))
        address = self.routes.owner(shard.slot)
        if address is None:
            self.routes.stale = True
            raise ResponseError(NOT_COVERED)
        return address

    async def _look(self, shard: Shard) -> None:
        """For all who wait for it: so its end is that of a usual call, and no caller's own."""
        topology, asked = await self._ask(shard, time.monotonic() + self.nodes.config.deadline_ms / 1000)
        await self._take(topology, asked)

    async def _ask(self, shard: Shard, end_s: float) -> tuple[Topology, Address]:
        failed, nodes = _Failed(), self.nodes
        for address in self.routes.to_ask():
            if (left_s := end_s - time.monotonic()) <= 0:
                break
            node = AsyncRedisExchange(nodes.config, nodes.url_of(address), connect_s=nodes.connect_s)
            try:
                reply = (await node.exchange(shard, ASK_SLOTS, min(nodes.connect_s, left_s)))[0]
            except _NO_ANSWER as e:
                failed.note(address, e)
                continue
            finally:
                await node.close()
            if not failed.is_passing(address, reply):
                return parse_slots(reply, address), address
        raise failed.error()

    async def _take(self, topology: Topology, asked: Address) -> None:
        if self.routes.learn(topology, asked):
            self._forget()
        for address in set(self._masters) - set(topology.masters):
            if (gone := self._masters.pop(address, None)) is not None:
                await gone.close()

    def _at(self, address: Address) -> AsyncRedisExchange:
        found = self._masters.get(address)
        if found is None:
            found = self._masters[address] = AsyncRedisExchange(
                self.nodes.config, self.nodes.url_of(address), self._forget, connect_s=self.nodes.connect_s
            )
        return found

    def drop(self) -> None:
        for master in list(self._masters.values()):
            master.drop()

    async def close(self) -> None:
        for master in list(self._masters.values()):
            await master.close()


def _left_s(end_s: float) -> float:
    return max(end_s - time.monotonic(), 0.001)


# -- for the near cache ----------------------------------------------------------------------------------------------


class Followed(NamedTuple):
    """A connection to a server, not connected yet, and the shards that it must serve as long as it is followed: none where
    there is only this server."""

    connection: Any
    shards: tuple[Shard, ...]


class Followers:
    """Makes the connections over which a near cache follows its servers: one, or one to each master of a cluster."""

    def __init__(self, config: Config, url: str, shards: Sequence[Shard]) -> None:
        self._config, self._url, self._shards = config, url, shards
        self._nodes = Nodes(config, url) if url.startswith(CLUSTER_SCHEMES) else None
        self._routes = Routes(self._nodes.url.nodes if self._nodes else ())

    def __call__(self) -> list[Followed]:
        """Raises redis-py's `ConnectionError`, or `ResponseError`."""
        if self._nodes is None:
            return [Followed(lone_connection(self._config, self._url), ())]
        return list(self._masters(self._nodes))

    def _masters(self, nodes: Nodes) -> Iterator[Followed]:
        end_s = time.monotonic() + self._config.deadline_ms / 1000
        topology, asked = nodes.ask(self._routes, self._shards[0], end_s)
        self._routes.learn(topology, asked)
        owners = {shard: topology.owner(shard.slot) for shard in self._shards}
        if None in owners.values():
            raise RedisConnectionError(NOT_COVERED)
        for master in topology.masters:  # also those without a shard of ours: one may be on its way to them
            mine = tuple(shard for shard, owner in owners.items() if owner == master)
            yield Followed(lone_connection(self._config, nodes.url_of(master)), mine)
