"""Redis Cluster on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from distier.config import Address, Config, mask_url
from distier.domain.keys import Shard
from distier.stores.redis import Answer, AsyncRedisExchange, Batch, Together, split
from distier.stores.redis.nodes import (
    ASK_SLOTS,
    NO_ANSWER,
    Failed,
    Nodes,
    follow,
    left_s,
    redirected,
)
from distier.stores.redis.topology import NOT_COVERED, Routes, Topology, parse_slots
from distier.stores.redis.wire import RawCommand


class AsyncClusterExchange:
    """A Redis Cluster, for event loops. Each loop has its own connections."""

    def __init__(self, config: Config, url: str, forget: Callable[[], object] = lambda: None) -> None:
        self.url = url
        self.nodes = Nodes(config, url)
        self.routes = Routes(self.nodes.url.nodes)
        self._forget = forget
        self._masters: dict[Address, AsyncRedisExchange] = {}
        self._looking = Together()

    def __repr__(self) -> str:
        return f"AsyncClusterExchange({mask_url(self.url)})"

    async def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        end_s = time.monotonic() + timeout_s
        try:
            address = await self._owner(shard, end_s)
            replies = await self._send(address, shard, commands, timeout_s)
            return await self._settle(shard, commands, replies, address, end_s) if redirected(replies) else replies
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
            except NO_ANSWER as e:
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
        """Exchange the batches of one master in one round trip."""
        asked = [batches[i] for i in members]
        commands = [command for _, some in asked for command in some]
        try:
            replies = await self._send(address, asked[0][0], commands, left_s(end_s))
        except NO_ANSWER as e:
            answers.update(dict.fromkeys(members, e))
            return
        for i, (shard, some), answer in zip(members, asked, split(asked, replies), strict=True):
            answers[i] = answer
            if redirected(answer):
                answers[i] = await self._settled(shard, some, answer, address, end_s)

    async def _send(
        self, address: Address, shard: Shard, commands: Sequence[RawCommand], timeout_s: float
    ) -> list[Any]:
        try:
            return await self._at(address).exchange(shard, commands, min(timeout_s, self.nodes.attempt_s))
        except NO_ANSWER:
            self.routes.suspect(address)
            raise

    async def _settled(
        self, shard: Shard, commands: Sequence[RawCommand], replies: list[Any], asked: Address, end_s: float
    ) -> Answer:
        try:
            return await self._settle(shard, commands, replies, asked, end_s)
        except ResponseError as e:
            return [e] * len(commands)
        except NO_ANSWER as e:
            return e

    async def _settle(
        self, shard: Shard, commands: Sequence[RawCommand], replies: list[Any], asked: Address, end_s: float
    ) -> list[Any]:
        redirections = follow(commands, replies, asked, partial(self._moved, shard))
        try:
            resend = next(redirections)
            while True:
                address = resend.address or await self._owner(shard, end_s)
                got = await self._send(address, shard, resend.commands, left_s(end_s))
                resend = redirections.send((address, got))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _moved(self, shard: Shard, address: Address) -> None:
        if self.routes.moved(shard.slot, address):
            self._forget()

    async def _owner(self, shard: Shard, end_s: float) -> Address:
        if self.routes.stale:
            await self._looking.wait(lambda: self._look(shard), left_s(end_s))
        address = self.routes.owner(shard.slot)
        if address is None:
            self.routes.stale = True
            raise ResponseError(NOT_COVERED)
        return address

    async def _look(self, shard: Shard) -> None:
        """Fetch the slots for all waiting callers. The deadline is that of a usual call, not that of one caller."""
        topology, asked = await self._ask(shard, time.monotonic() + self.nodes.config.deadline_ms / 1000)
        await self._take(topology, asked)

    async def _ask(self, shard: Shard, end_s: float) -> tuple[Topology, Address]:
        failed, nodes = Failed(), self.nodes
        for address in self.routes.to_ask():
            if (left_s := end_s - time.monotonic()) <= 0:
                break
            node = AsyncRedisExchange(nodes.config, nodes.url_of(address), connect_s=nodes.connect_s)
            try:
                reply = (await node.exchange(shard, ASK_SLOTS, min(nodes.connect_s, left_s)))[0]
            except NO_ANSWER as e:
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
