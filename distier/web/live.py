"""What the page remembers: two hours of totals, the moves of the last minute, and who watches them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from distier.client import AsyncStore, Store
from distier.domain.module import Event
from distier.effects import Plan
from distier.errors import ArchiveUnavailable, DistierError, Invalid
from distier.observe.events import Cursor, read_events
from distier.plans.fleet.health import Health, probe_archive, read_health
from distier.plans.fleet.statistics import Stats, read_stats

T = TypeVar("T")
log = logging.getLogger("distier.web")
SAMPLE_S = 5.0
SAMPLES_MAX = 1440
PROBE_S = 15.0
"""How often the archive is asked whether it replies."""
PROBE_DEADLINE_S = 2.0
FRESH_S = 0.5
"""Totals of this age are shown again: several browsers that poll cost as much as one."""
EVENT_WAIT_MS = 500
MINUTE_S = 60
RECENT = 30
WATCHERS_MAX = 32
WATCHER_EVENTS = 500
TIRED_S = 1.0
IDLE_S = 600.0
THREADS = 16
UP = (("warm", "hot"), ("cold", "hot"), ("cold", "warm"))
THRASH_MIN = 30
THRASH_PART = 0.1


class Runner:
    """Runs plans on a store of either kind; those of a blocking store in threads of its own."""

    def __init__(self, store: Store | AsyncStore) -> None:
        self.store, self.space = store, store.space
        self._threads = ThreadPoolExecutor(THREADS, "distier-web")
        self._running: set[asyncio.Future[Any]] = set()

    async def __call__(self, plan: Plan[T], deadline_s: float | None = None) -> T:
        if isinstance(self.store, AsyncStore):
            return await self.store.run(plan, deadline_s=deadline_s)
        call = partial(self.store.run, plan, deadline_s=deadline_s)
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            running.exception()  # nobody may be left to see it

    async def settle(self) -> None:
        """Wait for calls whose callers were cancelled: a thread goes on, and the store must not be closed below it."""
        if self._running:
            await asyncio.wait(self._running)


@dataclass(frozen=True, slots=True)
class Now:
    """The totals at one moment. `archive` is why the archive does not reply, empty if it does, None if not asked yet."""

    stats: Stats
    health: Health
    archive: str | None
    at_s: float


class Live:
    """Follows one namespace while the app runs.

    The tasks start with the first request on an event loop, since a mounted app is not told that it starts. They end with the
    loop, with the store, by `stop`, or after ten minutes in which nobody looked.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._now: Now | None = None
        self._reading: asyncio.Lock | None = None
        self._archive: str | None = None
        self._reads: deque[tuple[float, int, int]] = deque(maxlen=SAMPLES_MAX)
        self._seconds: deque[tuple[int, Counter[tuple[str, str]]]] = deque(maxlen=MINUTE_S + 5)
        self._watchers: set[asyncio.Queue[Event | None]] = set()
        self._ahead_ms = self._asked_s = 0.0
        self._keep = False
        self.recent: deque[Event] = deque(maxlen=RECENT)

    def start(self, *, keep: bool = False) -> None:
        """Start following on this event loop, unless that is done already. `keep`: also while nobody looks."""
        loop = asyncio.get_running_loop()
        self._asked_s, self._keep = time.monotonic(), self._keep or keep
        if self._loop is loop and any(not task.done() for task in self._tasks):
            return
        self._loop, self._reading = loop, asyncio.Lock()
        self._watchers.clear()
        # The archive has its own task: one that hangs must not stop the totals.
        self._tasks = [loop.create_task(work()) for work in (self._sample, self._follow, self._probe)]

    def end_streams(self) -> None:
        """End the streams of those who watch, which have no end of their own. For a signal handler of the loop's thread."""
        for queue in self._watchers:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(None)

    async def stop(self) -> None:
        """Stop following, and end the streams of those who watch."""
        self.end_streams()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._run.settle()
        self._tasks = []

    # -- totals --------------------------------------------------------------------------------------------------------

    async def now(self) -> Now:
        """Return the totals, at most half a second old. Raises `DistierError`."""
        assert self._reading is not None
        async with self._reading:
            if self._now is None or time.monotonic() - self._now.at_s > FRESH_S:
                stats = await self._run(read_stats(self._run.space, {}))
                health = await self._run(read_health(self._run.space))
                self._ahead_ms = health.now_ms - time.time() * 1000
                self._now = Now(stats, health, self._archive, time.monotonic())
            return self._now

    async def _sample(self) -> None:
        await self._repeat(SAMPLE_S, self._sample_once)

    async def _sample_once(self) -> None:
        reads = (await self.now()).stats.reads
        self._reads.append((time.time(), reads.hot + reads.warm, reads.hot + reads.warm + reads.cold))

    async def _probe(self) -> None:
        await self._repeat(PROBE_S, self._probe_once)

    async def _probe_once(self) -> None:
        try:
            await self._run(probe_archive(self._run.space), PROBE_DEADLINE_S)
            self._archive = ""
        except ArchiveUnavailable as e:
            self._archive = str(e)
        except Invalid as e:  # `ConfigError`: refused, or another archive
            self._archive = str(e)

    def hit_ratio(self) -> tuple[list[float], list[float | None]]:
        """Return times in seconds, and the part of the reads just before each that needed no archive, in percent."""
        times: list[float] = []
        parts: list[float | None] = []
        for (_, hits0, all0), (at_s, hits, every) in zip(self._reads, list(self._reads)[1:], strict=False):
            times.append(round(at_s, 1))
            parts.append(round(100 * (hits - hits0) / (every - all0), 1) if every > all0 else None)
        return times, parts

    # -- moves ---------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        cursor: Cursor | None = None

        async def step() -> None:
            nonlocal cursor
            if cursor is None:
                since = int(time.time() * 1000 - MINUTE_S * 1000)
                cursor = await self._run(Cursor.start(self._run.space.keys.shards, str(since)))
            for event in await self._run(read_events(cursor, EVENT_WAIT_MS)):
                self._note(event)

        await self._repeat(0, step)

    def _note(self, event: Event) -> None:
        if event.id and not event.is_tier_change:
            return
        self.recent.appendleft(event)
        second = event.at_ms // 1000
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, Counter()))
        if event.id:
            self._seconds[-1][1][event.from_, event.to] += 1
        for queue in self._watchers:
            with suppress(asyncio.QueueFull):  # a browser that is too slow misses moves; they are a hint
                queue.put_nowait(event)

    def flows(self) -> Counter[tuple[str, str]]:
        """Return the moves of the last minute, by the tiers that modules left and came to."""
        since = (time.time() * 1000 + self._ahead_ms) / 1000 - MINUTE_S
        total: Counter[tuple[str, str]] = Counter()
        for second, moves in self._seconds:
            if second >= since:
                total.update(moves)
        return total

    def thrash(self, stats: Stats) -> str:
        """Return what shows that modules are evicted and wanted back; empty if they are not.

        Modules come back to a tier as fast as they leave it, and that is a good part of what it holds: the budget is too small
        for what is used.
        """
        moves = self.flows()
        for tier, held in (("hot", stats.hot.count), ("warm", stats.warm.count)):
            back = sum(n for (was, to), n in moves.items() if (was, to) in UP and to == tier)
            left = sum(n for (was, to), n in moves.items() if (to, was) in UP and was == tier)
            churn = min(back, left)
            if churn >= max(THRASH_MIN, THRASH_PART * held):
                return f"{churn:,} modules left {tier} and as many came back in the last minute; it holds {held:,}"
        return ""

    async def watch(self) -> AsyncIterator[Event | None]:
        """Yield moves as they happen, and None after 10 s without one."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(WATCHER_EVENTS)
        self._watchers.add(queue)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), 10)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._watchers.discard(queue)

    @property
    def is_full(self) -> bool:
        """Whether no more browsers may watch: each holds a connection."""
        return len(self._watchers) >= WATCHERS_MAX

    async def _repeat(self, every_s: float, step: Callable[[], Awaitable[Any]]) -> None:
        """Run a step again and again. One that fails is tried again; a closed store ends it."""
        while self._keep or self._watchers or time.monotonic() - self._asked_s < IDLE_S:
            try:
                await step()
            except DistierError as e:
                if type(e) is Invalid:  # the store is closed
                    return
                log.info("the page could not read: %s", e)
                await asyncio.sleep(TIRED_S)
            except Exception:
                log.exception("the page could not read")
                await asyncio.sleep(TIRED_S)
            await asyncio.sleep(every_s)
