"""This node's service in the fleet: a thread or a task that announces the node's copies and serves them to other nodes.

It runs next to the calls of a store; `plans/fleet/nodes.py` has the plans. One process of a node serves other nodes: the one
that holds a file lock in the directory, which ends with the process. The other processes announce only their own changes,
and are ready to take over.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from distier.drive.aio import OwnTask
from distier.drive.process import PeerTable
from distier.effects import Plan
from distier.observe.logs import log
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.nodes import ASK_WAIT_S, HEARTBEAT_S, announce_changes, answer, heartbeat, wait_for_ask
from distier.plans.tier.peers import DiskSums
from distier.stores.threads import Flag, Helpers

if TYPE_CHECKING:
    from distier.stores.local import LocalStore

FIRST_S = 0.2
"""Seconds before the first announcement, so that a short process (a command) announces nothing."""
EXPIRE_S = 60.0


class Runs(Protocol):
    def __call__(self, plan: Plan[Any], *, deadline_s: float | None = None) -> Any: ...


class _Service:
    """The common part of the thread and the task: the work that is due, and its results."""

    def __init__(self, space: Namespace, local: LocalStore, peers: PeerTable) -> None:
        self.space, self.local, self.peers = space, local, peers
        self.pid = os.getpid()
        self._next_heartbeat_s = 0.0
        self._next_expire_s = 0.0
        self._rebuild = False
        self._lock_fd: int | None = None
        self.wait_s = min(ASK_WAIT_S, space.config.deadline_ms / 2000)

    def look(self) -> Plan[Any] | None:
        """Return the plan that announces changes to Redis, if one is due. Also maintains the disk, which blocks briefly."""
        now_s = time.monotonic()
        if now_s < self._next_heartbeat_s:
            changes = self.local.take_changes()
            return announce_changes(self.space, self.local.node, changes) if changes else None
        self._next_heartbeat_s = now_s + HEARTBEAT_S
        self.local.tend()
        if now_s >= self._next_expire_s:
            self._next_expire_s = now_s + EXPIRE_S
            self.local.expire()
        sums = self.local.sums()
        held = DiskSums(sums.modules, sums.size_bytes, sums.max_modules, sums.max_bytes)
        return self._heartbeat(held, rebuild=self._rebuild)

    def _heartbeat(self, held: DiskSums, *, rebuild: bool) -> Plan[None]:
        changes = self.local.take_changes()
        self._rebuild = True  # in case the heartbeat fails
        found = yield from heartbeat(self.space, self.local.node, held, changes, self.local.ids, rebuild=rebuild)
        self._rebuild = False
        self.peers.found(found)

    def serves(self) -> bool:
        """Return whether this process serves the node's copies."""
        if self._lock_fd is None:
            path = self.local.lock_path(self.space.namespace)
            with suppress(OSError):
                self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if self._lock_fd is None:
            return False
        try:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not `flock`, which a forked child would share
        except OSError:
            return False
        return True

    def failed(self) -> None:
        self._rebuild = True  # changes that were taken for an announcement are lost

    def release(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


class NodeThread(_Service):
    """The service of a blocking store. `run` is the store's method."""

    def __init__(self, run: Runs, space: Namespace, local: LocalStore, peers: PeerTable) -> None:
        super().__init__(space, local, peers)
        self._run = run
        self.stopping = Flag()
        self._thread = threading.Thread(target=self._serve, name="distier-node", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as e:  # no more threads, or the interpreter is exiting
            log.warning("this process does not serve its node's copies to others: %s", e)

    def _serve(self) -> None:
        self.stopping.wait(FIRST_S)
        while not self.stopping.is_set():
            try:
                plan = self.look()
                if plan is not None:
                    self._run(plan)
                if not self.serves():
                    self.stopping.wait(self.wait_s)
                    continue
                entry = self._run(wait_for_ask(self.space, self.local.node, self.wait_s))
                if entry is not None:
                    self._run(answer(self.space, self.local.node, entry))
            except Exception:  # after any error: other nodes rely on the service
                self.failed()
                self.stopping.wait(self.wait_s)

    def stop(self) -> None:
        self.stopping.set()
        if self._thread.is_alive() and self.pid == os.getpid():
            self._thread.join(timeout=5)
        self.release()


class NodeTask(_Service):
    """The service of an asyncio store, as a task."""

    def __init__(self, run: Runs, space: Namespace, local: LocalStore, peers: PeerTable) -> None:
        super().__init__(space, local, peers)
        self._run = run
        self._helper = Helpers(1)
        self._task = OwnTask(self._serve())

    @property
    def is_over(self) -> bool:
        """Whether another task must replace it: its event loop has ended, or this is a forked child."""
        return self._task.is_over

    async def _serve(self) -> None:
        await asyncio.sleep(FIRST_S)
        while True:
            try:
                plan = await asyncio.wrap_future(self._helper.submit(self.look))
                if plan is not None:
                    await self._run(plan)
                if not self.serves():
                    await asyncio.sleep(self.wait_s)
                    continue
                entry = await self._run(wait_for_ask(self.space, self.local.node, self.wait_s))
                if entry is not None:
                    await self._run(answer(self.space, self.local.node, entry))
            except Exception:  # after any error: other nodes rely on the service
                self.failed()
                await asyncio.sleep(self.wait_s)

    async def stop(self) -> None:
        await self._task.stop()
        self._helper.close()
        self.release()


__all__ = ["NodeTask", "NodeThread"]
