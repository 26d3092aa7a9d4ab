"""A call that is given up, by a cancelled task or Ctrl-C, returns its leases, so that no other call waits for them."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import pytest

from tests.integration.world import World, until

LEASE_LEFT_MS = 4_000
"""With `deadline: 30s` a lease lasts 10 s. A lease that still exists after this time was left behind."""


class Slow:
    """An archive whose reads and writes block until `go` is set."""

    def __init__(self, archive: Any) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        for name in ("get", "put"):
            setattr(archive, name, self._held(getattr(archive, name)))

    def _held(self, real: Any) -> Any:
        def held(*args: Any, **kwargs: Any) -> Any:
            self.began.set()
            assert self.go.wait(60)
            return real(*args, **kwargs)

        return held


def leases(world: World) -> list[bytes]:
    return [key for key in world.raw.keys("*lease:*") if not key.endswith(b"%worker")]


async def cold(world: World) -> Any:
    face = await world.open(deadline="30s", storage_tiers__cold__archive_after="0s")
    await face.put("a", "x")
    await face.archive_now()
    await face.demote("a", to="cold")
    return face


@pytest.mark.parametrize("world", ["async"], indirect=True)
async def test_cancelled_fetch_releases_its_lease(world: World) -> None:
    face, other = await cold(world), await world.open(deadline="30s")
    slow = Slow(face.store._driver.archive)
    task = asyncio.create_task(face.get("a"))
    await until(slow.began.is_set, what="the fetch is under way")
    assert leases(world)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    began = time.monotonic()
    await until(lambda: not leases(world), what="the lease is given back", timeout_s=LEASE_LEFT_MS / 1000)
    assert (await other.get("a")).text == "x"
    assert time.monotonic() - began < LEASE_LEFT_MS / 1000
    slow.go.set()


@pytest.mark.parametrize("world", ["async"], indirect=True)
async def test_cancelled_write_back_releases_its_lease(world: World) -> None:
    face = await world.open(deadline="30s", storage_tiers__cold__archive_after="0s")
    await face.put("a", "x")
    slow = Slow(face.store._driver.archive)
    task = asyncio.create_task(face.maintain())
    await until(slow.began.is_set, what="the write-back is under way")
    assert leases(world)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not leases(world), what="the lease is given back", timeout_s=LEASE_LEFT_MS / 1000)
    slow.go.set()


@pytest.mark.parametrize("world", ["sync"], indirect=True)
async def test_interrupted_fetch_releases_its_lease(world: World) -> None:
    """Ctrl-C in the middle of a blocking call."""
    face = await cold(world)
    slow = Slow(face.store._driver.archive)

    came = threading.Event()

    def handler(*_: object) -> None:
        if not came.is_set():
            came.set()
            raise KeyboardInterrupt

    def interrupt() -> None:
        """Interrupt repeatedly until it is handled: an interrupt just before the call waits is not noticed until the
        wait ends.
        """
        assert slow.began.wait(60)
        while not came.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            face.store.get("a")
    finally:
        signal.signal(signal.SIGINT, before)
        slow.go.set()
        thread.join()
    assert not leases(world)
