"""The contenders of the macro benchmark return the right bytes, and a whole replay counts what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.churn.caches import KINDS, LZ4, NEAR, OURS, PLAIN, PREFIX, ByHandNear, Cache, open_cache
from benchmarks.churn.client import wrong_bytes
from benchmarks.churn.replay import Cell, Work, fill_records, fit, prepared, replay, settings_of
from benchmarks.churn.traces import content, zipf
from tests.conftest import empty
from tests.servers import TestServer, poll

BUDGETS = (50_000, 100_000)
NEAR_BYTES = 200_000


@pytest.fixture(scope="module")
def work() -> Iterator[Work]:
    with prepared(zipf(150, ids=60), 50) as made:
        yield made


def opened(kind: str, server: TestServer, work: Work, archive: Path) -> Cache:
    if kind == NEAR:
        pytest.importorskip("cachetools", reason="`make bench` installs cachetools")
    url, settings = server.socket_url, settings_of(BUDGETS)
    if kind.startswith("distier"):
        fill_records(server, archive, settings)
    return open_cache(kind, url, archive, work.objects, settings, NEAR_BYTES)


@pytest.mark.parametrize("kind", KINDS)
def test_contender_returns_the_right_bytes_from_every_place(valkey_server: TestServer, work: Work, kind: str) -> None:
    empty(valkey_server)
    cache = opened(kind, valkey_server, work, work.archive)
    try:
        assert wrong_bytes(cache.get, work.trace.sizes, work.digests) == 0
        first = cache.delay.reads
        assert first == len(work.trace.sizes)
        _, id = min((size, id) for id, size in work.trace.sizes.items())
        for _ in range(8):
            assert cache.get(id) == content(id, work.trace.sizes[id])
        assert cache.delay.reads <= first + 1
        assert wrong_bytes(cache.get, work.trace.sizes, work.digests) == 0
    finally:
        cache.close()


@pytest.mark.parametrize("kind", [PLAIN, LZ4])
def test_changed_byte_in_redis_is_found(valkey_server: TestServer, work: Work, kind: str) -> None:
    empty(valkey_server)
    cache = opened(kind, valkey_server, work, work.archive)
    id, size = next(iter(work.trace.sizes.items()))
    cache.get(id)
    with valkey_server.client() as client:
        client.set(PREFIX + id, cache.pack(b"?" + content(id, size)[1:]))  # type: ignore[attr-defined]
    assert wrong_bytes(cache.get, work.trace.sizes, work.digests) == size
    cache.close()


def test_near_cache_by_hand_drops_what_others_write_and_redis_evicts(valkey_server: TestServer, work: Work) -> None:
    empty(valkey_server)
    one, other = (opened(NEAR, valkey_server, work, work.archive) for _ in range(2))
    assert isinstance(one, ByHandNear)
    id, size = next((id, size) for id, size in work.trace.sizes.items() if size < NEAR_BYTES)
    with valkey_server.client() as client:
        one.get(id)
        one.near["marker"] = b"1"
        client.set(PREFIX + "marker", b"2")
        poll(lambda: "marker" not in one.near, what="the invalidation")
        assert id in one.near, "its own SET, of which there was time to hear, has dropped it"
        client.set(PREFIX + id, other.pack(b"other"))  # type: ignore[attr-defined]
        poll(lambda: id not in one.near, what="the invalidation")
        assert (one.get(id), one.get(id)) == (b"other", b"other")
        client.unlink(PREFIX + id)
        poll(lambda: id not in one.near, what="the invalidation")
        assert one.get(id) == content(id, size)
        client.flushall()
        poll(lambda: not one.near, what="the invalidation of all")
        one.get(id)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", 1)
        poll(lambda: not one.near, what="the invalidation of an evicted key")
    empty(valkey_server)
    one.close()
    other.close()


@pytest.mark.parametrize("kind", [LZ4, OURS])
def test_replay_of_two_clients_loses_nothing_although_they_write(work: Work, kind: str) -> None:
    memory = work.trace.footprint_bytes // 4
    found = replay(work, kind, Cell(memory, clients=2, measured=100, puts=5), BUDGETS)
    assert (found.accesses, len(found.us), found.lost_bytes) == (100, 100, 0)
    assert 0 < found.archive_reads < 100
    assert found.client_cpu_s > 0
    assert found.memory_bytes > 0


def test_replay_reports_lost_bytes(work: Work) -> None:
    id, size = next(iter(work.trace.sizes.items()))
    wrong = Work(work.trace, 0, work.archive, work.file, work.objects, {**work.digests, id: "0" * 64})
    assert replay(wrong, PLAIN, Cell(10**7, measured=10), BUDGETS).lost_bytes == size


def test_delay_is_in_the_times_of_reads_from_the_archive(work: Work) -> None:
    found = replay(work, PLAIN, Cell(10**7, delay_s=0.05, measured=20), BUDGETS)
    slow = [us for us in found.us if us >= 50_000]
    assert len(slow) == found.archive_reads > 0


def test_budgets_leave_room_for_the_records(work: Work) -> None:
    memory = work.trace.footprint_bytes // 3
    (hot, warm), records = fit(work, memory)
    assert 300 < records / len(work.trace.sizes) < 1500
    assert hot + warm + records < memory
    found = replay(work, OURS, Cell(memory), (hot, warm))
    assert found.memory_bytes <= memory * 1.5, "a short replay has few samples, and one may be from within a command"
    assert found.lost_bytes == 0
