"""The worker as a thread, and as a task in an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from distier.client import AsyncStore, Store
from distier.stores.threads import Flag
from distier.worker.rounds import ROUND_DEADLINE_S, Report, Rounds

STOP_GRACE_S = 20.0
"""Seconds that the current step may take after `stop`. Then it is interrupted, which is safe at any point of a step."""
LEAVE_DEADLINE_S = 2.0


class Worker(Rounds):
    """Maintains the namespace of `store` in a thread until `stop`.

    The caller still owns the store and may use it at the same time.

    Args:
        store: The store to use for all calls.
        on_round: Called with the report after each round.
    """

    def __init__(self, store: Store, *, on_round: Callable[[Report], None] | None = None) -> None:
        super().__init__(store.space, on_round)
        self.store = store
        self._stopping = Flag()  # a signal handler may stop it
        self._left = Flag()
        self._thread: threading.Thread | None = None

    def run(self) -> Report:
        """Run rounds until `stop` is called, and finish the current step. Failed rounds are logged and repeated."""
        self._heartbeat()
        heartbeats = threading.Thread(target=self._heartbeats, name="distier-worker-leases", daemon=True)
        heartbeats.start()
        try:
            while not self._stopping.is_set():
                self._round()
                self._stopping.wait(self._pause_s)
        finally:
            self._left.set()
            heartbeats.join()
            with suppress(Exception):  # the leases expire by themselves
                self.store.run(self._leave(), deadline_s=LEAVE_DEADLINE_S)
        return self.report

    def _heartbeats(self) -> None:
        while not self._left.wait(self._next_heartbeat_s()):
            self._heartbeat()

    def _heartbeat(self) -> None:
        self._heartbeat_began_s = time.monotonic()
        try:
            self.store.run(self._join(), deadline_s=self.heartbeat_s)
        except Exception as e:
            self._heartbeat_failed(e)

    def run_once(self) -> bool:
        """Run one round over all shards that no other worker leases.

        Returns:
            Whether all steps succeeded. A failed step does not prevent the next ones, unless the archive is wrong.
        """
        try:
            self.store.run(self._claim(self.space.keys.shards), deadline_s=self.heartbeat_s)
        except Exception as e:
            self._failed(e)
            return self._ended(False)
        try:
            return self._round(alone=True)
        finally:
            with suppress(Exception):
                self.store.run(self._give_back(), deadline_s=LEAVE_DEADLINE_S)

    def _round(self, *, alone: bool = False) -> bool:
        plans = self._plans(alone=alone)
        try:
            plan, deadline_s = next(plans)
            while True:
                try:
                    self.store.run(plan, deadline_s=deadline_s, on_progress=self._progressed)
                except Exception as e:
                    plan, deadline_s = plans.throw(e)
                else:
                    plan, deadline_s = next(plans)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def start(self) -> Worker:
        """Run in a daemon thread."""
        self._thread = threading.Thread(target=self.run, name="distier-worker", daemon=True)
        self._thread.start()
        return self

    def stop(self, *, timeout_s: float = ROUND_DEADLINE_S) -> Report:
        """Stop after the current step, or interrupt it after 20 s. Waits at most `timeout_s` seconds for that."""
        self.stop_in(self._thread, timeout_s=timeout_s)
        return self.report

    def stop_in(self, thread: threading.Thread | None, *, timeout_s: float = ROUND_DEADLINE_S) -> None:
        """Stop as `stop` does, for a caller that called `run` in its own thread."""
        self._ask_to_stop()
        self._stopping.set()
        if thread is not None:
            thread.join(min(timeout_s, STOP_GRACE_S))
            self.pacer.over = True
            thread.join(max(0.0, timeout_s - STOP_GRACE_S))

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class AsyncWorker(Rounds):
    """Maintains the namespace of `store` as a task in an event loop: `async with AsyncWorker(store): ...`."""

    def __init__(self, store: AsyncStore, *, on_round: Callable[[Report], None] | None = None) -> None:
        super().__init__(store.space, on_round)
        self.store = store
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[Report] | None = None

    async def run(self) -> Report:
        """See `Worker.run`."""
        await self._heartbeat()
        heartbeats = asyncio.get_running_loop().create_task(self._heartbeats())
        try:
            while not self._stopping.is_set():
                await self._round()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._pause_s)
        finally:
            heartbeats.cancel()
            await asyncio.gather(heartbeats, return_exceptions=True)
            with suppress(Exception):
                await self.store.run(self._leave(), deadline_s=LEAVE_DEADLINE_S)
        return self.report

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self._next_heartbeat_s())
            await self._heartbeat()

    async def _heartbeat(self) -> None:
        self._heartbeat_began_s = time.monotonic()
        try:
            await self.store.run(self._join(), deadline_s=self.heartbeat_s)
        except Exception as e:
            self._heartbeat_failed(e)

    async def run_once(self) -> bool:
        """See `Worker.run_once`."""
        try:
            await self.store.run(self._claim(self.space.keys.shards), deadline_s=self.heartbeat_s)
        except Exception as e:
            self._failed(e)
            return self._ended(False)
        try:
            return await self._round(alone=True)
        finally:
            with suppress(Exception):
                await self.store.run(self._give_back(), deadline_s=LEAVE_DEADLINE_S)

    async def _round(self, *, alone: bool = False) -> bool:
        plans = self._plans(alone=alone)
        try:
            plan, deadline_s = next(plans)
            while True:
                try:
                    await self.store.run(plan, deadline_s=deadline_s, on_progress=self._progressed)
                except Exception as e:
                    plan, deadline_s = plans.throw(e)
                else:
                    plan, deadline_s = next(plans)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def start(self) -> AsyncWorker:
        """Run as a task in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self.run())
        return self

    async def stop(self) -> Report:
        """See `Worker.stop`."""
        self._ask_to_stop()
        self._stopping.set()
        if self._task is None:
            return self.report
        await asyncio.wait({self._task}, timeout=STOP_GRACE_S)
        self.pacer.over = True
        return await self._task

    async def __aenter__(self) -> AsyncWorker:
        return self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
