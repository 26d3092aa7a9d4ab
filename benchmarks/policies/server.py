"""A trace replayed through a real server under an eviction policy.

One tier has the whole budget, so that its misses can be compared with those of a simulated tier: `hot` with a promotion at the
first use, or `warm` without compression and without promotion. What is read from the archive is a miss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.churn.traces import Trace, content
from distier import Config, Item, Store, load_config
from distier.client.assemble import make_space
from distier.domain.objects import Fetched
from distier.drive.process import UseBuffer
from distier.plans.recovery.rescue import rescue
from distier.stores.memory import MemoryArchive
from distier.stores.redis.open import open_exchange
from tests.servers import TestServer, running_server

LEAN = ("--appendonly", "no", "--save", "")
TINY, NEVER, HUGE = 1, 10**9, 2**40
SETTINGS: dict[str, Any] = {
    "namespace": "bench", "counter": "estimate", "deadline": "60s", "events__max_length": 100, "near__enabled": False,
    "storage_tiers__hot__max_size": 10**9, "storage_tiers__warm__max_modules": 10**6,
    "storage_tiers__warm__compression": "none", "storage_tiers__cold__compression_level": 0,
    "storage_tiers__cold__archive_after": "1h",
}  # fmt: skip


class CountedArchive(MemoryArchive):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        self.reads += 1
        return super().get(key, max_bytes=max_bytes)


@dataclass(frozen=True)
class Outcome:
    """`misses` of `accesses` and their bytes, and how much of the budget was used at the end."""

    accesses: int
    misses: int
    missed_bytes: int
    filled: float


def budget_of(tier: str, budget_bytes: int) -> dict[str, Any]:
    hot, warm, threshold = (budget_bytes, TINY, 1) if tier == "hot" else (TINY, budget_bytes, NEVER)
    return {
        "storage_tiers__hot__max_bytes": hot, "storage_tiers__warm__max_bytes": warm,
        "storage_tiers__promotion_threshold": threshold,
    }  # fmt: skip


def open_store(server: TestServer, archive: CountedArchive, settings: dict[str, Any]) -> Store:
    config: Config = load_config(
        {}, redis__url=server.socket_url, storage_tiers__cold__directory="/nowhere", **settings
    )
    space = make_space(config, archive)
    return Store(
        space, open_exchange(config, server.socket_url, space.process.forget), archive, url=server.socket_url
    ).open()


@contextmanager
def archived(trace: Trace) -> Iterator[CountedArchive]:
    """Yield an archive with the modules of a trace."""
    archive = CountedArchive()
    roomy = {"storage_tiers__hot__max_bytes": HUGE, "storage_tiers__warm__max_bytes": HUGE}
    with running_server("valkey", args=LEAN) as server, open_store(server, archive, {**SETTINGS, **roomy}) as store:
        ids = list(trace.sizes)
        for at in range(0, len(ids), 200):
            store.put_many([Item(id, content(id, trace.sizes[id])) for id in ids[at : at + 200]])
        store.archive_now(deadline_s=600)
    yield archive


@contextmanager
def reported_each(batch: int) -> Iterator[None]:
    """Let clients report their uses when they have used `batch` modules: a second of a replay is hours of the trace."""
    before = UseBuffer.AGE_S, UseBuffer.PENDING_MAX, UseBuffer.NOTES_MAX
    UseBuffer.AGE_S, UseBuffer.PENDING_MAX = 0.0 if batch == 1 else 1e9, batch
    UseBuffer.NOTES_MAX = min(batch, UseBuffer.NOTES_MAX)
    try:
        yield
    finally:
        UseBuffer.AGE_S, UseBuffer.PENDING_MAX, UseBuffer.NOTES_MAX = before


def replay(
    trace: Trace,
    archive: CountedArchive,
    policy: str,
    tier: str,
    budget_bytes: int,
    *,
    clients: int = 1,
    batch: int = 1,
) -> Outcome:
    """Replay a trace; `clients` read in turn, each of which reports its uses when `batch` modules were used."""
    settings = {**SETTINGS, **budget_of(tier, budget_bytes), "storage_tiers__hot__eviction_policy": policy}
    with reported_each(batch), running_server("valkey", args=LEAN) as server, ExitStack() as stack:
        stores = [stack.enter_context(open_store(server, archive, settings)) for _ in range(clients)]
        stores[0].run(rescue(stores[0].space), deadline_s=600)
        return _read(trace, archive, stores, budget_bytes)


def _read(trace: Trace, archive: CountedArchive, stores: Sequence[Store], budget_bytes: int) -> Outcome:
    misses = missed_bytes = 0
    for n, id in enumerate(trace.ids):
        reads = archive.reads
        found = stores[n % len(stores)].get(id)
        assert found is not None
        assert len(found.content) == trace.sizes[id]
        if archive.reads > reads:
            misses, missed_bytes = misses + 1, missed_bytes + trace.sizes[id]
    stats = stores[0].stats()
    used = max(stats.hot.size_bytes, stats.warm.stored_bytes)
    return Outcome(len(trace.ids), misses, missed_bytes, used / budget_bytes)
