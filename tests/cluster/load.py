"""Readers and writers that check what they read, while something happens to the cluster.

Each agent has its own modules and writes growing numbers into them. So a read must return at least the last acknowledged number
(with `durable`: acknowledged as `archived`), and at most the last number that the agent sent.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distier import AsyncStore, Store, connect, connect_async
from distier.errors import Unavailable


@dataclass
class Agent:
    """One agent, and what it knows about its modules."""

    ids: Sequence[str]
    durable: bool
    rng: random.Random
    sent: dict[str, int] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    by_id: dict[str, int] = field(default_factory=dict)

    def write(self) -> tuple[str, bytes, Any]:
        id = self.rng.choice(self.ids)
        self.sent[id] = self.sent.get(id, 0) + 1
        level = "archived" if self.durable and self.rng.random() < 0.5 else "redis"
        return id, f"{id} {self.sent[id]}".encode(), level

    def wrote(self, id: str, n: int, level: str) -> None:
        if level == "archived" or not self.durable:
            self.acked[id] = n

    def read(self) -> list[str]:
        return self.rng.sample(self.ids, min(len(self.ids), self.rng.choice((1, 4))))

    def saw(self, id: str, content: bytes | None, least: int) -> None:
        whose, n = content.decode().rsplit(" ", 1) if content else (id, "0")
        if whose != id or not least <= int(n) <= self.sent.get(id, 0):
            self.faults.append(f"{id}: {content!r}, though {least} was acknowledged and {self.sent.get(id)} sent")

    def took(self, began_s: float) -> None:
        self.calls += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def run(self, store: Store, stopping: Callable[[], bool]) -> None:
        while not stopping():
            began_s = time.monotonic()
            try:
                if self.rng.random() < 0.5:
                    id, content, level = self.write()
                    store.put(id, content, durability=level)
                    self.wrote(id, self.sent[id], level)
                else:
                    ids = self.read()
                    least = {id: self.acked.get(id, 0) for id in ids}
                    for id, module in store.get_many(ids).items():
                        self.saw(id, module.content if module else None, least[id])
                    self.by_id[ids[0]] = self.by_id.get(ids[0], 0) + 1
            except Unavailable as e:
                self.failed.append(f"{type(e).__name__}: {e}")
            self.took(began_s)

    async def run_async(self, store: AsyncStore, stopping: Callable[[], bool]) -> None:
        while not stopping():
            began_s = time.monotonic()
            try:
                if self.rng.random() < 0.5:
                    id, content, level = self.write()
                    await store.put(id, content, durability=level)
                    self.wrote(id, self.sent[id], level)
                else:
                    ids = self.read()
                    least = {id: self.acked.get(id, 0) for id in ids}
                    for id, module in (await store.get_many(ids)).items():
                        self.saw(id, module.content if module else None, least[id])
            except Unavailable as e:
                self.failed.append(f"{type(e).__name__}: {e}")
            self.took(began_s)


class Load:
    """Agents that work inside `with Load(...)`, half of them in threads, half on an event loop.

    At the end it raises the errors that stopped an agent, and the wrong reads.
    """

    def __init__(self, settings: dict[str, Any], *, agents: int = 4, ids_each: int = 12, durable: bool = False) -> None:
        self._settings = settings
        self.agents = [
            Agent([f"load{i}/{n}" for n in range(ids_each)], durable, random.Random(i)) for i in range(agents)
        ]
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guard, args=(self._run,)),
                         threading.Thread(target=self._guard, args=(lambda: asyncio.run(self._run_async()),))]  # fmt: skip

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as e:
            self._errors.append(e)

    def _run(self) -> None:
        with connect({}, **self._settings) as store:
            threads = [
                threading.Thread(target=self._guard, args=(lambda a=a: a.run(store, self._stop.is_set),))
                for a in self.agents[::2]
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async def _run_async(self) -> None:
        store = await connect_async({}, **self._settings)
        try:
            await asyncio.gather(*(a.run_async(store, self._stop.is_set) for a in self.agents[1::2]))
        finally:
            await store.close()

    @property
    def calls(self) -> int:
        return sum(a.calls for a in self.agents)

    @property
    def slowest_s(self) -> float:
        return max(a.slowest_s for a in self.agents)

    @property
    def failed(self) -> list[str]:
        return [f for a in self.agents for f in a.failed]

    def await_calls(self, n: int) -> None:
        """Wait until `n` more calls have ended, and at least one of each agent."""
        before = [a.calls for a in self.agents]
        end_s = time.monotonic() + 60
        while self.calls < sum(before) + n or any(a.calls == b for a, b in zip(self.agents, before, strict=True)):
            assert time.monotonic() < end_s, "no call succeeds"
            assert not self._errors, self._errors
            time.sleep(0.01)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        faults = [f for a in self.agents for f in a.faults]
        assert not faults, "\n".join(faults[:20])
