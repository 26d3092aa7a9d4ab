"""The worker: it runs the maintenance plans in rounds, as a thread of a process or as `distier worker`.

Any number of workers may run at once. They share nothing but leases that save double work; every step is correct
alone, so a worker may be killed at any line and another one goes on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from distier.client import AsyncStore, Store
from distier.effects import Plan
from distier.errors import DistierError
from distier.observe.logs import log
from distier.plans import maintain
from distier.plans.rescue import rescue_if_needed
from distier.plans.space import Space

ROUND_DEADLINE_S = 60.0
SWEEP_DEADLINE_S = 3600.0
BACKOFF_MAX_S = 30.0


@dataclass
class Report:
    """What a worker has done so far, by name (`archived`, `idle`, `headroom`, `expired`, `aged`, `swept`), the rounds
    and failures, and the last failure."""

    rounds: int = 0
    failures: int = 0
    last_failure: str | None = None
    did: dict[str, int] = field(default_factory=dict)

    def add(self, did: dict[str, int]) -> None:
        for name, n in did.items():
            self.did[name] = self.did.get(name, 0) + n


class Step(NamedTuple):
    """One thing to do in a round: `make` makes its plan, `deadline_s` is how long it may take."""

    make: Callable[[], Plan[object]]
    deadline_s: float


class _Rounds:
    """What both workers share: the steps of a round, what came of them, how long to wait for the next."""

    def __init__(self, space: Space, on_round: Callable[[Report], None] | None) -> None:
        self.report = Report()
        self._space = space
        self._on_round = on_round
        self._next_sweep_s = 0.0
        self._pause_s = 0.0

    def _steps(self) -> Iterator[Step]:
        """One round over all shards, and a sweep of the archive when it is due."""
        space = self._space
        for shard in space.keys.shards:
            yield Step(partial(maintain.maintain, space, shard, self.report.add), ROUND_DEADLINE_S)
        # After a restart or a loss of Redis: compare the records with the archive, one worker of the fleet at a time.
        yield Step(partial(self._told, "rescued", rescue_if_needed), SWEEP_DEADLINE_S)
        if time.monotonic() >= self._next_sweep_s:
            yield Step(partial(self._told, "swept", maintain.sweep), SWEEP_DEADLINE_S)
            self._next_sweep_s = time.monotonic() + space.config.worker.sweep_interval_ms / 1000

    def _told(self, name: str, make: Callable[[Space], Plan[int | None]]) -> Plan[None]:
        n = yield from make(self._space)
        if n is not None:
            self.report.add({name: n})

    def _failed(self, error: DistierError) -> None:
        self.report.failures += 1
        self.report.last_failure = f"{type(error).__name__}: {error}"
        log.warning("a round of the worker failed, it will be repeated: %s", self.report.last_failure)

    def _ended(self, good: bool) -> bool:
        """The round is over: the pause until the next one doubles up to 30 s while rounds fail."""
        usual_s = self._space.config.worker.interval_ms / 1000
        self._pause_s = usual_s if good else min(max(self._pause_s, usual_s) * 2, BACKOFF_MAX_S)
        self.report.rounds += 1
        if self._on_round:
            self._on_round(self.report)
        return good


class Worker(_Rounds):
    """Maintains the namespace of `store` until `stop`. The store stays the caller's, and may be used meanwhile."""

    def __init__(self, store: Store, *, on_round: Callable[[Report], None] | None = None) -> None:
        super().__init__(store.space, on_round)
        self.store = store
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self) -> Report:
        """Rounds until `stop` is called; the round under way is finished. A failing round is logged and repeated."""
        while not self._stopping.is_set():
            self.run_once()
            self._stopping.wait(self._pause_s)
        return self.report

    def run_once(self) -> bool:
        """One round. False if anything failed; each step is tried even where another failed."""
        good = True
        for step in self._steps():
            try:
                self.store.run(step.make(), deadline_s=step.deadline_s)
            except DistierError as e:
                self._failed(e)
                good = False
        return self._ended(good)

    def start(self) -> Worker:
        """Run in a daemon thread."""
        self._thread = threading.Thread(target=self.run, name="distier-worker", daemon=True)
        self._thread.start()
        return self

    def stop(self, *, timeout_s: float = ROUND_DEADLINE_S) -> Report:
        """End after the round under way, and wait for that at most `timeout_s`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self.report

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class AsyncWorker(_Rounds):
    """The same as a task of an event loop: `async with AsyncWorker(store): ...`."""

    def __init__(self, store: AsyncStore, *, on_round: Callable[[Report], None] | None = None) -> None:
        super().__init__(store.space, on_round)
        self.store = store
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[Report] | None = None

    async def run(self) -> Report:
        """As `Worker.run`."""
        while not self._stopping.is_set():
            await self.run_once()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._pause_s)
        return self.report

    async def run_once(self) -> bool:
        """As `Worker.run_once`."""
        good = True
        for step in self._steps():
            try:
                await self.store.run(step.make(), deadline_s=step.deadline_s)
            except DistierError as e:
                self._failed(e)
                good = False
        return self._ended(good)

    def start(self) -> AsyncWorker:
        """Run as a task of the running loop."""
        self._task = asyncio.get_running_loop().create_task(self.run())
        return self

    async def stop(self) -> Report:
        """End after the round under way."""
        self._stopping.set()
        return await self._task if self._task else self.report

    async def __aenter__(self) -> AsyncWorker:
        return self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
