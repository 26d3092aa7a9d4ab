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

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.config import Address, Config, mask_url
from distier.domain.keys import Shard
from distier.stores.redis import Answer, Batch, RedisExchange
from distier.stores.redis.nodes import (
    NO_ANSWER,
    REDIRECTS_MAX,
    Nodes,
    ends_unsettled,
    left_s,
    next_step,
    redirected,
    without_asking,
)
from distier.stores.redis.topology import NOT_COVERED, Routes, Topology
from distier.stores.redis.wire import RawCommand


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

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        try:
            address = self._owner(shard, end_s)
            replies = self._send(address, shard, commands, timeout_s)
            return self._settle(shard, commands, replies, address, end_s) if redirected(replies) else replies
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
                    wait_s = min(left_s(end_s), self.nodes.attempt_s)
                    connection = self._at(address).begin([batches[i] for i in members], wait_s)
                    begun.append((address, members, connection))
                except NO_ANSWER as e:
                    self._lost(address, members, answers, e)
            while begun:
                address, members, connection = begun.pop(0)
                asked = [batches[i] for i in members]
                try:
                    wait_s = min(left_s(end_s), self.nodes.attempt_s)
                    answers |= zip(members, self._at(address).finish(connection, asked, wait_s), strict=True)
                except NO_ANSWER as e:
                    self._lost(address, members, answers, e)
                for i, (shard, commands) in zip(members, asked, strict=True):
                    answer = answers[i]
                    if isinstance(answer, list) and redirected(answer):
                        answers[i] = self._settled(shard, commands, answer, address, end_s)
        finally:
            for _, _, connection in begun:  # interrupted: their replies must not meet other commands
                connection.close()
        return [answers[i] for i in range(len(batches))]

    def _alone(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> Answer:
        try:
            return self.exchange(shard, commands, timeout_s)
        except NO_ANSWER as e:
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
            except NO_ANSWER as e:
                answers[i] = e
        return list(groups.items())

    def _lost(self, address: Address, members: Sequence[int], answers: dict[int, Answer], error: Any) -> None:
        self.routes.suspect(address)
        answers.update(dict.fromkeys(members, error))

    def _send(self, address: Address, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        try:
            return self._at(address).exchange(shard, commands, min(timeout_s, self.nodes.attempt_s))
        except NO_ANSWER:
            self.routes.suspect(address)
            raise

    def _settled(
        self, shard: Shard, commands: Sequence[RawCommand], replies: list[Any], asked: Address, end_s: float
    ) -> Answer:
        try:
            return self._settle(shard, commands, replies, asked, end_s)
        except ResponseError as e:
            return [e] * len(commands)
        except NO_ANSWER as e:
            return e

    def _settle(
        self, shard: Shard, commands: Sequence[RawCommand], replies: list[Any], asked: Address, end_s: float
    ) -> list[Any]:
        """Follow the redirections among these replies."""
        for _ in range(REDIRECTS_MAX):
            step = next_step(commands, replies, asked)
            if step is None:
                return replies
            address = step.address
            if not step.asking:
                if self.routes.moved(shard.slot, address):
                    self._forget()
                address = self._owner(shard, end_s)
            got = self._send(address, shard, step.commands, left_s(end_s))
            for i, reply in zip(step.indexes, without_asking(got) if step.asking else got, strict=True):
                replies[i] = reply
            asked = address
        return ends_unsettled(replies)

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
        if not self._looking.acquire(timeout=left_s(end_s)):
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
