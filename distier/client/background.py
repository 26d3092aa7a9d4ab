"""The thread of a blocking store, or the task of an asyncio store, that runs the rounds of `ahead.py`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from distier.client.ahead import Ahead, timed
from distier.drive.aio import OwnTask
from distier.effects import Plan
from distier.errors import DistierError, Invalid
from distier.observe.logs import log
from distier.stores.threads import Flag

FIRST_WAIT_S = 0.002
LONGEST_WAIT_S = 0.05
"""The longest wait between two looks at what sessions have read, in seconds, while there are sessions."""
EFFECT_S = 50e-6
"""What an effect costs the interpreter, about."""


class _Rounds:
    """The common part: one round, and how long to wait before the next."""

    def __init__(self, ahead: Ahead) -> None:
        self.ahead = ahead
        self.pid = os.getpid()
        self._idle_s = FIRST_WAIT_S
        self._spent = [0.0]

    def begin(self) -> Plan[int]:
        self._spent = [0.0]
        return timed(self.ahead.round(time.time(), time.monotonic()), time.thread_time, EFFECT_S, self._spent)

    def end(self, used: int, *, had_reads: bool) -> float:
        """Return how long to wait, in seconds."""
        pace = self.ahead.pace
        pace.spend(self._spent[0], used)
        self._idle_s = FIRST_WAIT_S if had_reads else min(2 * self._idle_s, LONGEST_WAIT_S)
        return max(self._idle_s, pace.wait_s(time.monotonic()))

    def has_reads(self) -> bool:
        return any(reads.ids or not reads.begun for reads in self.ahead.sessions)


class AheadThread(_Rounds):
    """The rounds of a blocking store. `run` is the method of its driver."""

    def __init__(self, run: Callable[..., Any], ahead: Ahead) -> None:
        super().__init__(ahead)
        self._run = run
        self._stopping = Flag()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="distier-ahead", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as e:  # no more threads, or the interpreter is exiting
            log.warning("this process does not load ahead: %s", e)

    @property
    def is_over(self) -> bool:
        """Whether this is a forked child, which has no such thread."""
        return self.pid != os.getpid()

    def wake(self) -> None:
        """A session has begun or ended."""
        self._wake.put(None)

    def abandon(self) -> None:
        """End the thread soon."""
        self._stopping.set()
        self._wake.put(None)

    def _serve(self) -> None:
        wait_s: float | None = None
        while True:
            with suppress(Empty):
                self._wake.get(timeout=wait_s)
            if self._stopping.is_set():
                return
            had_reads, used = self.has_reads(), 0
            try:
                used = self._run(self.begin())
            except DistierError:
                self._idle_s = LONGEST_WAIT_S  # Redis or the archive is unavailable: predictions can wait
            except Exception:
                log.exception("loading ahead failed")
                self._idle_s = LONGEST_WAIT_S
            wait_s = None if self.ahead.is_idle else self.end(used, had_reads=had_reads)

    def stop(self) -> None:
        """End the thread, and teach the fleet what is left."""
        self.abandon()
        if self.is_over:
            return
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join(timeout=5)
        with suppress(DistierError, Invalid):
            self._run(self.ahead.finish(time.time()))


class AheadTask(_Rounds):
    """The rounds of an asyncio store, as a task that ends when there is no session left."""

    def __init__(self, run: Callable[..., Any], ahead: Ahead) -> None:
        super().__init__(ahead)
        self._run = run
        self._task = OwnTask(self._serve())

    @property
    def is_over(self) -> bool:
        return self._task.is_over

    def wake(self) -> None:
        """It looks often enough."""

    async def _serve(self) -> None:
        while True:
            had_reads, used = self.has_reads(), 0
            try:
                used = await self._run(self.begin())
            except DistierError:
                self._idle_s = LONGEST_WAIT_S
            except Exception:
                log.exception("loading ahead failed")
                self._idle_s = LONGEST_WAIT_S
            if self.ahead.is_idle:
                return
            await asyncio.sleep(self.end(used, had_reads=had_reads))

    async def stop(self) -> None:
        """End the task, and teach the fleet what is left."""
        await self._task.stop()
        if self.pid == os.getpid():
            with suppress(DistierError, Invalid):
                await self._run(self.ahead.finish(time.time()))
