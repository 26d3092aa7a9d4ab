"""The worker as a thread and as a task, and what `stats` reports after Redis was lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from distier import AsyncStore, Store, connect, connect_async
from distier.stores.memory import MemoryArchive
from distier.worker import AsyncWorker, Worker
from tests.servers import TestServer, poll


def settings(server: TestServer, tmp_path: Path) -> dict[str, object]:
    return {
        "namespace": "w",
        "deadline": "60s",
        "redis": {"url": server.url},
        "storage_tiers": {
            "hot": {"max_size": 100},
            "warm": {"max_modules": 50},
            "cold": {"archive_after": "0s", "directory": str(tmp_path / "cold")},
        },
        "worker": {"interval": "20ms", "headroom": 0.5},
        "counter": "estimate",
        "near": {"enabled": False},
    }


def is_kept(store: Store) -> bool:
    found = store.stats()
    return found.dirty_count == 0 and found.cold.archived_count == 8 and found.hot.tokens <= 50


def test_thread_archives_and_keeps_headroom(server: TestServer, redis_url: str, tmp_path: Path):
    with connect(settings(server, tmp_path)) as store, Worker(store) as worker:
        for i in range(8):
            store.put(f"m{i}", b"x" * 100, tokens=10)
        poll(lambda: is_kept(store), what="all are archived, and half of hot is free")
        report = worker.stop()
    assert report.did["archived"] == 8 and report.failures == 0 and report.did["headroom"] >= 3


async def test_task_archives_and_keeps_headroom(server: TestServer, redis_url: str, tmp_path: Path):
    store: AsyncStore = await connect_async(settings(server, tmp_path))
    async with AsyncWorker(store) as worker:
        for i in range(8):
            await store.put(f"m{i}", b"x" * 100, tokens=10)
        for _ in range(500):
            found = await store.stats()
            if found.dirty_count == 0 and found.cold.archived_count == 8 and found.hot.tokens <= 50:
                break
            await asyncio.sleep(0.02)
        report = await worker.stop()
    await store.close()
    assert report.did["archived"] == 8 and report.failures == 0 and report.did["headroom"] >= 3


def test_loss_shows_in_stats_and_events_and_the_worker_restores_all(server: TestServer, redis_url: str, tmp_path: Path):
    with connect(settings(server, tmp_path)) as store:
        for i in range(8):
            store.put(f"m{i}", b"%d" % i)
        store.archive_now()
        before = store.stats().epochs[0]
        assert (before.epoch, before.verified) == (1, True)
        with server.client() as client:
            client.flushall()
        assert store.get("m3") is not None  # from the archive alone
        lost = store.stats().epochs[0]
        assert lost.epoch == 2 and not lost.verified and lost.since_ms >= before.since_ms
        events = [(event.reason, event.id, event.to) for event in store.events(since="0", wait=False)]
        assert "epoch" in {reason for reason, _, _ in events} and ("recover", "m3", "cold") in events
        assert Worker(store).run_once()
        assert store.stats().epochs[0].verified and store.stats().count == 8
        assert [store.get(f"m{i}").content for i in range(8)] == [b"%d" % i for i in range(8)]  # type: ignore[union-attr]


def test_failing_round_is_reported_and_repeated(server: TestServer, redis_url: str, tmp_path: Path):
    with connect(settings(server, tmp_path)) as store:
        store.put("a", b"1")
        archive = tmp_path / "cold"
        archive.rename(tmp_path / "away")
        worker = Worker(store)
        assert not worker.run_once() and worker.report.failures >= 1
        assert worker.report.last_failure is not None and "ArchiveUnavailable" in worker.report.last_failure
        (tmp_path / "away").rename(archive)
        assert worker.run_once() and store.stats().dirty_count == 0


class Broken(MemoryArchive):
    """An archive that raises an exception that no archive should raise and distier does not know."""

    broken = False

    @classmethod
    def of(cls, store: Any) -> Broken:
        """A copy of the store's archive, which the store uses from now on."""
        made = cls()
        for one in store._driver.archive.list(""):
            data = store._driver.archive.get(one.key, max_bytes=one.size_bytes).data
            made.put(one.key, data, content_type="application/octet-stream", metadata={})
        store._driver.archive = made
        return made

    def list(self, prefix: str, **options: Any) -> Any:
        if self.broken:
            raise RecursionError("as botocore once did")
        return super().list(prefix, **options)

    def put(self, key: str, data: bytes, **options: Any) -> None:
        if self.broken:
            raise RecursionError("as botocore once did")
        super().put(key, data, **options)


def test_thread_survives_any_exception(server: TestServer, redis_url: str, tmp_path: Path):
    def fail(_: object) -> None:
        raise KeyError("on_round")

    with connect(settings(server, tmp_path)) as store:
        archive = Broken.of(store)
        archive.broken = True
        store.put("m", b"x")
        with Worker(store, on_round=fail) as worker:
            poll(lambda: worker.report.failures >= 3, what="rounds fail")
            assert "RecursionError" in str(worker.report.last_failure)
            archive.broken = False
            poll(lambda: store.stats().dirty_count == 0, what="it is archived", timeout_s=60)
        archive.broken = True
        store.put("m", b"y")
        assert not Worker(store, on_round=fail).run_once()


async def test_task_survives_any_exception(server: TestServer, redis_url: str, tmp_path: Path):
    store: AsyncStore = await connect_async(settings(server, tmp_path))
    archive = Broken.of(store)
    archive.broken = True
    await store.put("m", b"x")
    async with AsyncWorker(store) as worker:
        for broken, over in (
            (True, lambda: worker.report.failures >= 3),
            (False, lambda: "archived" in worker.report.did),
        ):
            archive.broken = broken
            for _ in range(3000):
                if over():
                    break
                await asyncio.sleep(0.02)
            assert over()
    await store.close()
