"""Budgets over shards on real servers: the sum is never exceeded, large modules become hot, and skewed load reaches
nearly the hit ratio of one shard.
"""

from __future__ import annotations

import bisect
import gzip
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, NamedTuple
from zlib import crc32

import pytest

from distier import Item, Store, connect
from distier.domain.keys import Keyspace
from distier.plans.fleet.maintain import keep_headroom, recount
from distier.plans.tier.ledger import settled
from distier.policy.quotas import Amounts, sum_of
from distier.worker import Worker
from tests.conftest import empty
from tests.servers import TestServer

LONG = os.environ.get("CHAOS") == "long"
TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"


@contextmanager
def opened(server: TestServer, archive: Path, shards: int, **more: Any) -> Iterator[Store]:
    settings: dict[str, Any] = {
        "redis__url": server.url, "namespace": f"s{shards}", "shards": shards, "counter": "estimate", "near__enabled": False,
        "storage_tiers__cold__directory": archive, "storage_tiers__cold__archive_after": "1h",
        "storage_tiers__promotion_threshold": 1,
    }  # fmt: skip
    with connect({}, **settings | more) as store:
        yield store


# -- the sum ---------------------------------------------------------------------------------------------------------

TOTAL = Amounts(2000, 200_000, 60, 100_000)


def budgets() -> dict[str, Any]:
    return {
        "storage_tiers__hot__max_size": TOTAL.hot_tokens, "storage_tiers__hot__max_bytes": TOTAL.hot_bytes,
        "storage_tiers__warm__max_modules": TOTAL.warm_modules, "storage_tiers__warm__max_bytes": TOTAL.warm_bytes,
    }  # fmt: skip


def test_reopening_keeps_the_total_of_the_quotas(server: TestServer, tmp_path: Path) -> None:
    def limits(store: Store) -> Amounts:
        names = ("hot_tokens", "hot_bytes", "warm_modules", "warm_bytes")
        with server.client() as raw:
            found = [raw.hmget(shard.limits, *names) for shard in store.space.keys.shards]
        return sum_of([Amounts(*(int(n or 0) for n in reply)) for reply in found])

    for _ in range(3):
        with opened(server, tmp_path, 4, **budgets()) as store:
            assert limits(store) == TOTAL


def used_at_once(server: TestServer, keys: Keyspace) -> Amounts:
    """The usage of all shards at one moment: one transaction, which only a single server can give."""
    with server.client() as raw:
        pipe = raw.pipeline(transaction=True)
        for shard in keys.shards:
            pipe.hmget(shard.usage, "hot_tokens", "hot_bytes", "warm_count", "warm_frame_bytes")
        return sum_of([Amounts(*(int(n or 0) for n in reply)) for reply in pipe.execute()])


@pytest.mark.timeout(900 if LONG else 300)
def test_usage_under_load_never_exceeds_the_total(valkey_server: TestServer, tmp_path: Path) -> None:
    """Writers, some of large modules, and two workers that move quotas as fast as they can."""
    empty(valkey_server)
    over: list[Amounts] = []
    seen = 0
    end = threading.Event()
    errors: list[BaseException] = []

    def write(store: Store, seed: int) -> None:
        chance = Random(seed)
        try:
            while not end.is_set():
                shard_like = chance.randrange(1 + seed * 3)
                tokens = chance.choice([10, 20, 30, 300, 900]) if chance.random() < 0.05 else 15
                store.put(f"m{seed}/{shard_like}/{chance.randrange(60)}", b"x" * tokens * 50, tokens=tokens)
        except BaseException as e:
            errors.append(e)

    with opened(valkey_server, tmp_path, 4, **budgets(), worker={"interval": "10ms", "lease": "1s"}) as store:
        store.run(settled(store.space))
        threads = [threading.Thread(target=write, args=(store, seed)) for seed in range(3)]
        with Worker(store) as one, Worker(store) as two:

            def moved() -> int:
                return one.report.did.get("shares", 0) + two.report.did.get("shares", 0)

            for thread in threads:
                thread.start()
            while seen < (20_000 if LONG else 1500) or not moved():
                now = used_at_once(valkey_server, store.space.keys)
                seen += 1
                if not now.fits(TOTAL):
                    over.append(now)
            end.set()
            for thread in threads:
                thread.join()
        assert not errors and not over[:3]
        assert sum_of(store.run(settled(store.space)).quotas) == TOTAL
        store.archive_now()
        for shard in store.space.keys.shards:
            with valkey_server.client() as raw:
                kept = {k.decode(): int(v) for k, v in raw.hgetall(shard.usage).items() if int(v)}
            assert kept == store.run(recount(store.space, shard))


def test_module_larger_than_one_quota_becomes_hot(server: TestServer, redis_url: str, tmp_path: Path) -> None:
    with opened(server, tmp_path, 8, **budgets(), worker={"headroom": 0.1}) as store:
        for i in range(60):
            store.put(f"m{i}", b"x" * 100, tokens=20)
        landed = store.put("large", b"y" * 5000, tokens=1500)
        assert landed.tier == "hot" and landed.reason is None
        assert store.put_many([Item("large/2", b"z" * 3000, tokens=1200)])[0].tier == "hot"  # type: ignore[union-attr]
        store.demote_many(["large", "large/2"])
        assert store.promote("large").tier == "hot"
        assert Worker(store).run_once()
        placed = store.where("large")
        assert placed is not None and placed.tier == "hot"  # the headroom is kept in addition to it
        assert sum(s.max_hot_tokens for s in store.stats().quotas) == TOTAL.hot_tokens
        assert store.put("too large", b"y", tokens=2001).tier == "warm"


def test_changed_total_applies_to_all_shards(server: TestServer, redis_url: str, tmp_path: Path) -> None:
    with opened(server, tmp_path, 4, **budgets()) as store:
        assert Worker(store).run_once()
        before = store.stats()
        assert (before.hot.max_tokens, before.warm.max_modules) == (2000, 60)
    with opened(server, tmp_path, 4) as store:  # a bare configuration changes nothing
        assert store.stats().hot.max_tokens == 2000
    with opened(server, tmp_path, 4, storage_tiers__hot__max_size=3001) as store:
        assert store.stats().hot.max_tokens == 3001 and store.stats().warm.max_modules == 60
    with opened(server, tmp_path, 4) as store:
        assert store.stats().hot.max_tokens == 3001


# -- hits ------------------------------------------------------------------------------------------------------------

SEEDS = range(1, 11 if LONG else 6)
POINT = 0.01
READS = 12_288 if LONG else 3584
ROUND = 256 if LONG else 128
"""Reads between two rounds of the worker, as if this were the number of reads per second."""

TYPICAL = 30
"""Typical modules that the quota of a shard must hold, as OPERATIONS requires. With ten, chance alone costs 2 to 3 points."""

TOGETHER = 64
"""Reads in one `get_many`."""


def skewed(n: int, keys: int, seed: int) -> list[str]:
    """Zipf ids, most of which belong to a few of 16 shards."""
    chance, space = Random(seed), Keyspace("s16", 16)
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.9 for rank in range(keys)))
    ids, fresh = [], itertools.count()
    for _ in weights:
        wanted = min(chance.randrange(16), chance.randrange(16), chance.randrange(16))
        ids.append(next(id for id in (f"m{i}" for i in fresh) if space.shard(id).index == wanted))
    return [ids[bisect.bisect(weights, chance.random() * weights[-1])] for _ in range(n)]


def tokens_of(id: str) -> int:
    """From 50 to 349, 200 on average."""
    return 50 + crc32(id.encode()) % 300


def hit_ratio(
    server: TestServer, archive: Path, shards: int, ids: Sequence[str], hot: int, *, moving: bool = True
) -> float:
    """The fraction of reads of the second half that found the module hot, with a budget for `hot` typical modules. A
    read of a module that is not hot promotes it; the second read of an id within a batch is a hit. The worker has its
    defaults.
    """
    empty(server)
    budget = {"storage_tiers__hot__max_size": hot * 200, "storage_tiers__warm__max_modules": 1_000_000}
    parts = [ids[at : at + TOGETHER] for at in range(0, len(ids), TOGETHER)]
    counted, missed = parts[len(parts) // 2 :], 0
    with opened(server, archive / f"{shards}{moving}", shards, **budget) as store:
        fill(store, list(dict.fromkeys(ids)))
        worker = Worker(store)
        for i, part in enumerate(parts):
            tiers = [module.tier for module in store.get_many(part).values() if module is not None]
            assert len(tiers) == len(set(part))
            if i >= len(parts) - len(counted):
                missed += sum(tier != "hot" for tier in tiers)
            if i % (ROUND // TOGETHER) == 0:
                work(worker, moving=moving)
    return 1 - missed / sum(map(len, counted))


def work(worker: Worker, *, moving: bool) -> None:
    """One round of the worker, or the same round without moving quotas."""
    store = worker.store
    store.run(_flush(store))
    if moving:
        assert worker.run_once(), worker.report
        return
    for shard in store.space.keys.shards:
        store.run(keep_headroom(store.space, shard))


def fill(store: Store, ids: Sequence[str]) -> None:
    """Put in batches that each end within the deadline."""
    for at in range(0, len(ids), 250):
        landed = store.put_many([Item(id, b"x", tokens=tokens_of(id)) for id in ids[at : at + 250]])
        faults = [result for result in landed if isinstance(result, Exception)]
        assert not faults, faults[:3]


def _flush(store: Store) -> Any:
    """Send the recency of hot hits. A process does so once a second, which here is one round of the worker."""
    from distier.plans.common.touches import send_touch

    return send_touch(store.space, store._driver.uses.drain())


class Compared(NamedTuple):
    """Hit ratios."""

    one: float
    fixed: float
    moving: float

    @property
    def lost(self) -> float:
        return self.one - self.moving


def compare(server: TestServer, tmp_path: Path, what: str, ids: Sequence[str], hot: int) -> Compared:
    one = hit_ratio(server, tmp_path, 1, ids, hot)
    fixed = hit_ratio(server, tmp_path, 16, ids, hot, moving=False)
    found = Compared(one, fixed, hit_ratio(server, tmp_path, 16, ids, hot))
    print(f"{what}, {len(ids)} reads, {len(set(ids))} modules, hot {hot}: {found}")
    return found


@pytest.mark.timeout(600)
def test_sixteen_shards_hit_nearly_as_often_as_one(
    valkey_server: TestServer, tmp_path: Path, report: Callable[[str], None]
) -> None:
    """With quotas for `TYPICAL` modules, for each seed."""
    lost: dict[int, float] = {}
    hot = 16 * TYPICAL
    for seed in SEEDS:
        path, ids = tmp_path / str(seed), skewed(READS, 3000, seed)
        if seed == 1:
            found = compare(valkey_server, path, "zipf", ids, hot)
            assert found.one - found.fixed > 2 * POINT, "the load is not skewed enough to show anything"
            report(
                f"one shard {found.one:.1%}, 16 with fixed quotas {found.fixed:.1%}, with moving ones {found.moving:.1%}"
            )
            lost[seed] = found.lost
        else:
            lost[seed] = hit_ratio(valkey_server, path, 1, ids, hot) - hit_ratio(valkey_server, path, 16, ids, hot)
    points = [one / POINT for one in lost.values()]
    report(f"points lost: mean {mean(points):.2f}, {min(points):.2f} to {max(points):.2f} ({len(points)} seeds)")
    assert max(points) <= 2, lost


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["mooncake_conv", "nasa_day", "git_caffeine", "c2k_web12"])
def test_sixteen_shards_hit_nearly_as_often_on_real_traces(
    valkey_server: TestServer, tmp_path: Path, name: str, report: Callable[[str], None]
) -> None:
    path = TRACES / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as lines:
        next(lines)
        keys = [line.split(",")[1] for line in itertools.islice(lines, 12_000)]
    hot = max(16 * TYPICAL, len(set(keys)) // 8)
    found = compare(valkey_server, tmp_path, name, [f"k{key}" for key in keys], hot)
    report(f"{name}, hot holds {hot} of {len(set(keys))}: one shard {found.one:.1%}, points lost {found.lost / POINT:.2f}, "
         f"with fixed quotas {(found.one - found.fixed) / POINT:.2f}")  # fmt: skip
    assert found.lost <= 2 * POINT, found
