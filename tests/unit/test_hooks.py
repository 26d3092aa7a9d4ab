"""Hooks for metrics: they get each count once, whoever counts when, and what they do fails nothing."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from typing import Any

import pytest

from distier.client.arguments import check_hooks
from distier.drive.process import Counters
from distier.errors import ArchiveUnavailable, Invalid
from distier.observe import COUNTERS
from distier.observe.hooks import HookedCounters, MeasuredArchive, hooked
from distier.stores.memory import MemoryArchive


class Sums:
    """A hook that adds up what it gets."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.calls: list[str] = []
        self.times: list[tuple[str, float]] = []

    def count(self, name: str, amount: int) -> None:
        self.calls.append(name)
        self.counts[name] += amount

    def observe(self, name: str, seconds: float) -> None:
        self.times.append((name, seconds))


def test_every_hook_gets_every_count_and_no_zero() -> None:
    one, two = Sums(), Sums()
    counters = HookedCounters([one, two])
    counters.add("puts")
    counters.add("puts", 4)
    counters.add("moves.evicted", 0)
    assert one.counts == two.counts == counters.snapshot() == {"puts": 5}
    assert one.calls == two.calls == ["puts", "puts"]


def test_without_hooks_counters_and_archive_are_the_plain_ones() -> None:
    archive = MemoryArchive()
    counters, same = hooked((), archive)
    assert type(counters) is Counters and same is archive


def test_failing_hook_is_logged_once_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Sums):
        def count(self, name: str, amount: int) -> None:
            super().count(name, amount)
            raise ValueError("a fault of the hook")

    bad, good = Fails(), Sums()
    counters = HookedCounters([bad, good])
    with caplog.at_level(logging.WARNING, "distier"):
        for _ in range(3):
            counters.add("puts")
    assert bad.counts == good.counts == counters.snapshot() == {"puts": 3}
    (record,) = caplog.records
    assert "failed at count('puts', 1)" in record.getMessage() and record.exc_info is not None


def test_count_inside_a_hook_follows_when_the_hook_has_returned() -> None:
    """As a signal handler or a finaliser does, while the hook holds a lock of its own."""
    lock = threading.Lock()
    inside: list[str] = []

    class Locks(Sums):
        def count(self, name: str, amount: int) -> None:
            assert lock.acquire(blocking=False), "it would wait for itself"
            inside.append(name)
            if len(inside) == 1:
                counters.add("misses")
            super().count(name, amount)
            lock.release()

    hook = Locks()
    counters = HookedCounters([hook])
    counters.add("puts")
    assert hook.calls == ["puts", "misses"] and hook.counts == counters.snapshot()


def test_threads_call_a_hook_one_at_a_time_and_no_count_is_lost() -> None:
    busy = threading.Lock()

    class Alone(Sums):
        def count(self, name: str, amount: int) -> None:
            assert busy.acquire(blocking=False)
            super().count(name, amount)
            busy.release()

    hook = Alone()
    counters = HookedCounters([hook])

    def count() -> None:
        for _ in range(2000):
            counters.add("puts")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hook.counts == counters.snapshot() == {"puts": 8000}


def test_hook_that_hangs_delays_other_threads_by_one_turn_and_gets_their_counts_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distier.observe.hooks.TURN_S", 0.01)
    hangs, goes_on = threading.Event(), threading.Event()

    class Hangs(Sums):
        def count(self, name: str, amount: int) -> None:
            if name == "puts":
                hangs.set()
                assert goes_on.wait(20)
            super().count(name, amount)

    hook = Hangs()
    counters = HookedCounters([hook])
    thread = threading.Thread(target=counters.add, args=("puts",))
    thread.start()
    assert hangs.wait(20)
    counters.add("misses")  # returns although the hook hangs
    assert hook.counts == {} and counters.snapshot() == {"puts": 1, "misses": 1}
    goes_on.set()
    thread.join()
    assert hook.counts == {"puts": 1, "misses": 1}


def test_count_of_a_thread_that_waited_in_vain_just_before_the_release_is_passed_on() -> None:
    hook = Sums()
    counters = HookedCounters([hook])
    real = threading.RLock()

    class Turn:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def release(self) -> None:
            if not hook.counts["misses"]:
                counters._waiting.append(("count", "misses", 1))  # of another thread, whose wait has just ended
            real.release()

    counters._turn = Turn()
    counters.add("puts")
    assert hook.counts == {"puts": 1, "misses": 1}


def test_hits_of_the_near_cache_arrive_with_the_next_other_count() -> None:
    hook, hits = Sums(), [3, 2]
    counters = HookedCounters([hook])

    def settle() -> None:
        if hits:
            counters.add("hits.near", hits.pop())

    counters.settle = settle
    counters.add("misses")
    assert hook.counts == {"misses": 1, "hits.near": 2}
    counters.add("misses")
    assert hook.counts == {"misses": 2, "hits.near": 5}


def test_child_of_a_fork_inside_a_hook_passes_on_its_own_counts_only() -> None:
    child: list[int] = []

    class Forks(Sums):
        def count(self, name: str, amount: int) -> None:
            if name == "puts":
                counters._waiting.append(("count", "deletes", 1))  # of another thread, for the parent to pass on
                child.append(os.fork())
            super().count(name, amount)

    hook = Forks()
    counters = HookedCounters([hook])
    counters.add("puts")
    if child == [0]:
        counters.add("misses")
        os._exit(int(hook.counts != {"puts": 1, "misses": 1}))
    assert os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == 0
    assert hook.counts == {"puts": 1, "deletes": 1}


def test_archive_requests_are_measured_also_those_that_fail() -> None:
    hook = Sums()
    archive = MemoryArchive()
    _, measured = hooked([hook], archive)
    assert isinstance(measured, MeasuredArchive)
    measured.put("a/b", b"text", content_type="text/plain", metadata={})
    found = measured.get("a/b", max_bytes=10)
    assert found is not None and found.data == b"text"
    assert [one.key for one in measured.list("a/")] == ["a/b"]
    measured.delete(["a/b"])

    def fails(key: str, *, max_bytes: int) -> Any:
        raise ArchiveUnavailable("away")

    archive.get = fails  # type: ignore[method-assign]
    with pytest.raises(ArchiveUnavailable):
        measured.get("a/b", max_bytes=10)
    assert [name for name, _ in hook.times] == [f"archive.{verb}" for verb in ("put", "get", "list", "delete", "get")]
    assert all(0 <= seconds < 60 for _, seconds in hook.times)
    assert (measured.name, measured.limits, measured.keeps_metadata) == (archive.name, archive.limits, True)


@pytest.mark.parametrize("wrong", [Sums(), [object()], 1, "text"])
def test_metrics_that_are_no_sequence_of_hooks_are_refused(wrong: Any) -> None:
    with pytest.raises(Invalid, match="metrics must be a sequence"):
        check_hooks(wrong)


def test_prometheus_hook_exports_sums_of_all_its_stores() -> None:
    client = pytest.importorskip("prometheus_client", reason="the extra `prometheus` is not installed")
    from distier.observe.prometheus import PrometheusHook

    registry = client.CollectorRegistry()
    hook = PrometheusHook(registry)
    for _ in range(2):  # two stores
        counters, archive = hooked([hook], MemoryArchive())
        counters.add("puts", 3)
        archive.put("a/b", b"text", content_type="text/plain", metadata={})
    text = client.generate_latest(registry).decode()
    assert 'distier_store_counts_total{counter="puts"} 6.0' in text
    assert all(f'distier_store_counts_total{{counter="{name}"}}' in text for name in COUNTERS), "zeros are there too"
    assert 'distier_store_archive_request_seconds_count{verb="put"} 2.0' in text
    value = registry.get_sample_value("distier_store_archive_request_seconds_sum", {"verb": "put"})
    assert value is not None and 0 <= value < 60
