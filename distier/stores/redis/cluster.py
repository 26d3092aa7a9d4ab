"""Redis Cluster: each shard is in one slot, each slot is served by one master, and any node knows which.

A shard's commands go to the master of its slot, over that master's own `RedisExchange`. Replicas are never read. A
process's knowledge of the slots may be out of date, and is corrected by the first request that notices:

    MOVED       nothing was done: fetch the slots again, first from the node that MOVED names, and send the batch again to
                the new master, from the first refused command on
    ASK         this key of a migrating slot has been moved already: send ASKING and the command to the target, once
    TRYAGAIN, CLUSTERDOWN   a script's keys are on two masters, or a slot has no master now. These are error replies like
                those of any server; the driver retries within the deadline
    no reply    fetch the slots again before the next command. A failover takes the cluster about its node timeout; the
                driver keeps retrying within the deadline

If a slot gets another master, the process forgets the epochs of the shards, as for another incarnation of a server. The new
master has another replication id, so the shard gets a new epoch (see `plans/recovery`).

redis-py connects; this module sends `CLUSTER SLOTS` and parses the reply. Rejected: redis-py's `RedisCluster` and
`NodesManager`. Their sync and async versions differ, ask one node after the other without a common deadline, open a pool
for each replica, and do not notice incarnations of servers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.config import Address, Config, mask_url
from distier.domain.keys import Shard
from distier.stores.redis import Answer, Batch, RedisExchange
from distier.stores.redis.nodes import (
    NO_ANSWER,
    Nodes,
    follow,
    left_s,
    redirected,
)
from distier.stores.redis.topology import NOT_COVERED, Routes, Topology
from distier.stores.redis.wire import RawCommand


class ClusterExchange:
    """A Redis Cluster, for threads. Opens one `RedisExchange` per master when it is needed. It is fork-safe."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        self.url = url
        self.nodes = Nodes(config, url)
        self.routes = Routes(self.nodes.url.nodes)
        self._forget = forget
        self._masters: dict[Address, RedisExchange] = {}
        self._looking = threading.RLock()  # re-entrant, because a signal handler may fetch the slots too
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"ClusterExchange({mask_url(self.url)})"

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        try:
            address = self._owner(shard, end_s)
            replies = self._send(address, shard, commands, timeout_s)
            return self._settle(shard, commands, replies, address, end_s) if redirected(replies) else replies
        except ResponseError as e:  # CLUSTER SLOTS is refused, or no master serves this slot
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
            for _, _, connection in begun:  # interrupted: later commands must not get these replies
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
        """Return the indexes of the batches of each master. Batches without a master get their error in `answers`."""
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
        """Follow the redirections in these replies. Returns the final replies."""
        redirections = follow(commands, replies, asked, partial(self._moved, shard))
        try:
            resend = next(redirections)
            while True:
                address = resend.address or self._owner(shard, end_s)
                got = self._send(address, shard, resend.commands, left_s(end_s))
                resend = redirections.send((address, got))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _moved(self, shard: Shard, address: Address) -> None:
        if self.routes.moved(shard.slot, address):
            self._forget()

    def _owner(self, shard: Shard, end_s: float) -> Address:
        """Return the master of the shard; fetch the slots first if they may be out of date.

        Raises:
            ConnectionError: No node replies (redis-py's error).
            ResponseError: No master serves the slot.
        """
        if self.routes.stale:
            self._look(shard, end_s)
        address = self.routes.owner(shard.slot)
        if address is None:
            self.routes.stale = True
            raise ResponseError(NOT_COVERED)
        return address

    def _look(self, shard: Shard, end_s: float) -> None:
        if self._pid != os.getpid():  # a thread of the parent may have held the lock
            self._looking, self._pid = threading.RLock(), os.getpid()
        looks = self.routes.looks
        if not self._looking.acquire(timeout=left_s(end_s)):
            raise RedisTimeoutError("no reply to CLUSTER SLOTS in time")
        try:
            if self.routes.looks == looks:  # otherwise another thread has just done it
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
