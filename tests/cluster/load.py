"""Readers and writers that check what they read, while something happens to the cluster.

Each agent has its own modules and writes growing numbers into them. So a read must return at least the last acknowledged number
(with `durable`: acknowledged as `archived`), and at most the last number that the agent sent. For the checker
(`tests/history.py`) these numbers are the versions.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distier import AsyncStore, Module, Store, connect, connect_async
from distier.errors import Unavailable
from tests.history import NEVER, Call, History, Promises, Version


@dataclass
class Agent:
    """One agent, and the history of each of its modules."""

    ids: Sequence[str]
    durable: bool
    rng: random.Random
    calls: int = 0
    slowest_s: float = 0.0
    failed: list[str] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)
    _sent: Counter[str] = field(default_factory=Counter)
    _ticks: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        survives = frozenset({"archived"} if self.durable else {"archived", "redis"})
        self.histories = {id: History(Promises(survives)) for id in self.ids}

    @property
    def acked(self) -> set[str]:
        """The modules that have a version which survives."""
        known = ((id, put) for id, history in self.histories.items() for put in history.puts if put.known)
        return {id for id, put in known if put.level in self.histories[id].promises.survives}

    @property
    def faults(self) -> list[str]:
        return [fault for id, history in self.histories.items() for fault in history.faults(id)]

    def write(self) -> tuple[str, Call, Any]:
        """Begin to write the next number into a module."""
        id = self.rng.choice(self.ids)
        self._sent[id] += 1
        level = "archived" if self.durable and self.rng.random() < 0.5 else "redis"
        call = Call("put", next(self._ticks), NEVER, f"{id} {self._sent[id]}", known=False, level=level)
        self.histories[id].add(call)
        return id, call, level

    def wrote(self, id: str, call: Call) -> None:
        self.histories[id].add(replace(call, ended=next(self._ticks), known=True, version=version_of(call.value)))

    def read(self) -> tuple[list[str], int]:
        return self.rng.sample(self.ids, min(len(self.ids), self.rng.choice((1, 4)))), next(self._ticks)

    def saw(self, began: int, found: Mapping[str, Module | None]) -> None:
        ended = next(self._ticks)
        for id, module in found.items():
            content = module.content.decode() if module else None
            version = version_of(content) if content else None
            self.histories[id].add(Call("read", began, ended, content, version=version))

    def took(self, began_s: float) -> None:
        self.calls += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def run(self, store: Store, stopping: Callable[[], bool]) -> None:
        while not stopping():
            began_s = time.monotonic()
            try:
                if self.rng.random() < 0.5:
                    id, call, level = self.write()
                    store.put(id, call.value.encode(), durability=level)
                    self.wrote(id, call)
                else:
                    ids, began = self.read()
                    self.saw(began, store.get_many(ids))
            except Unavailable as e:
                self.failed.append(f"{type(e).__name__}: {e}")
            self.took(began_s)

    async def run_async(self, store: AsyncStore, stopping: Callable[[], bool]) -> None:
        while not stopping():
            began_s = time.monotonic()
            try:
                if self.rng.random() < 0.5:
                    id, call, level = self.write()
                    await store.put(id, call.value.encode(), durability=level)
                    self.wrote(id, call)
                else:
                    ids, began = self.read()
                    self.saw(began, await store.get_many(ids))
            except Unavailable as e:
                self.failed.append(f"{type(e).__name__}: {e}")
            self.took(began_s)


def version_of(content: str) -> Version:
    return 0, int(content.rsplit(" ", 1)[1])


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
