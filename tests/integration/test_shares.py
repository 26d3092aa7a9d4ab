"""Budgets over shards on real servers: the sum is never exceeded, large modules become hot, and skewed load hits as if
there were one shard."""

from __future__ import annotations

import bisect
import gzip
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distier import Item, Store, connect
from distier.domain.keys import Keyspace
from distier.plans import maintain, shares
from distier.policy.shares import Amounts, sum_of
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


def test_who_opens_again_leaves_the_shares_as_they_are(server: TestServer, tmp_path: Path) -> None:
    def limits(store: Store) -> Amounts:
        names = ("hot_tokens", "hot_bytes", "warm_modules", "warm_bytes")
        with server.client() as raw:
            found = [raw.hmget(shard.limits, *names) for shard in store.space.keys.shards]
        return sum_of([Amounts(*(int(n or 0) for n in reply)) for reply in found])

    for _ in range(3):
        with opened(server, tmp_path, 4, **budgets()) as store:
            assert limits(store) == TOTAL


def used_at_once(server: TestServer, keys: Keyspace) -> Amounts:
    """What all shards hold at one moment: one transaction, which a single server can give."""
    with server.client() as raw:
        pipe = raw.pipeline(transaction=True)
        for shard in keys.shards:
            pipe.hmget(shard.usage, "hot_tokens", "hot_bytes", "warm_count", "warm_frame_bytes")
        return sum_of([Amounts(*(int(n or 0) for n in reply)) for reply in pipe.execute()])


def test_a_sampler_under_load_never_sees_more_than_the_total(valkey_server: TestServer, tmp_path: Path) -> None:
    """Writers, large ones among them, and two workers that move shares as fast as they can."""
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
        store.run(shares.settled(store.space))
        threads = [threading.Thread(target=write, args=(store, seed)) for seed in range(3)]
        with Worker(store) as one, Worker(store) as two:
            for thread in threads:
                thread.start()
            for _ in range(20_000 if LONG else 1500):
                now = used_at_once(valkey_server, store.space.keys)
                seen += 1
                if not now.fits(TOTAL):
                    over.append(now)
            end.set()
            for thread in threads:
                thread.join()
            moved = one.report.did.get("shares", 0) + two.report.did.get("shares", 0)
        assert not errors and not over[:3] and seen > 1000
        assert moved > 0, (one.report, two.report)
        assert sum_of(store.run(shares.settled(store.space)).shares) == TOTAL
        store.flush()
        for shard in store.space.keys.shards:
            with valkey_server.client() as raw:
                kept = {k.decode(): int(v) for k, v in raw.hgetall(shard.usage).items() if int(v)}
            assert kept == store.run(maintain.recount(store.space, shard))


def test_a_large_module_becomes_hot_on_a_real_server(server: TestServer, redis_url: str, tmp_path: Path) -> None:
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
        assert placed is not None and placed.tier == "hot"  # the head-room is beside it
        assert sum(s.max_hot_tokens for s in store.stats().shares) == TOTAL.hot_tokens
        assert store.put("too large", b"y", tokens=2001).tier == "warm"


def test_an_operators_total_holds_for_all_shards(server: TestServer, redis_url: str, tmp_path: Path) -> None:
    with opened(server, tmp_path, 4, **budgets()) as store:
        assert Worker(store).run_once()
        before = store.stats()
        assert (before.hot.max_size, before.warm.max_modules) == (2000, 60)
    with opened(server, tmp_path, 4) as store:  # a bare configuration changes nothing
        assert store.stats().hot.max_size == 2000
    with opened(server, tmp_path, 4, storage_tiers__hot__max_size=3001) as store:
        assert store.stats().hot.max_size == 3001 and store.stats().warm.max_modules == 60
    with opened(server, tmp_path, 4) as store:
        assert store.stats().hot.max_size == 3001


# -- hits ------------------------------------------------------------------------------------------------------------


def skewed(n: int, keys: int, seed: int) -> list[str]:
    """Zipf ids, most of which are of a few of 16 shards."""
    chance, space = Random(seed), Keyspace("s16", 16)
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.9 for rank in range(keys)))
    ids, fresh = [], itertools.count()
    for _ in weights:
        wanted = min(chance.randrange(16), chance.randrange(16), chance.randrange(16))
        ids.append(next(id for id in (f"m{i}" for i in fresh) if space.shard(id).index == wanted))
    return [ids[bisect.bisect(weights, chance.random() * weights[-1])] for _ in range(n)]


def hit_ratio(
    server: TestServer, archive: Path, shards: int, ids: Sequence[str], hot: int, *, moving: bool = True
) -> float:
    """How many reads of the second half found the module hot. A read of another makes it hot; each module is a token."""
    empty(server)
    budget = {"storage_tiers__hot__max_size": hot, "storage_tiers__warm__max_modules": 1_000_000}
    quiet = {"headroom": 0, "sweep_interval": "1d"}
    with opened(server, archive / f"{shards}{moving}", shards, **budget, worker=quiet) as store:
        store.put_many([Item(id, b"x", tokens=1) for id in dict.fromkeys(ids)])
        found = 0
        for i, id in enumerate(ids):
            module = store.get(id)
            assert module is not None
            found += module.tier == "hot" and i >= len(ids) // 2
            if i % 16 == 0:
                store.run(_flush(store))
            if moving and i % 64 == 0:
                store.run(shares.balance(store.space))
        return found / (len(ids) - len(ids) // 2)


def _flush(store: Store) -> Any:
    """Recency of hot hits is sent once a second, which here is hundreds of reads."""
    from distier.plans.read import send_touch

    return send_touch(store.space, store._driver.uses.drain())


def compare(server: TestServer, tmp_path: Path, name: str, ids: Sequence[str], hot: int) -> tuple[float, float, float]:
    one = hit_ratio(server, tmp_path, 1, ids, hot)
    fixed = hit_ratio(server, tmp_path, 16, ids, hot, moving=False)
    moving = hit_ratio(server, tmp_path, 16, ids, hot)
    what = f"{name}: {len(ids)} reads, {len(set(ids))} modules, hot {hot}"
    print(f"{what}: 1 shard {one:.4f}, 16 fixed {fixed:.4f}, 16 moving {moving:.4f}")
    return one, fixed, moving


def test_sixteen_shards_hit_as_one_does(valkey_server: TestServer, tmp_path: Path) -> None:
    one, fixed, moving = compare(valkey_server, tmp_path, "zipf", skewed(4000, 1000, 7), 160)
    assert one - moving <= 0.02, (one, fixed, moving)
    assert one - fixed > 0.03, "the load is not skewed enough to show anything"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["mooncake_conv", "nasa_day", "git_caffeine", "c2k_web12"])
def test_real_traces(valkey_server: TestServer, tmp_path: Path, name: str) -> None:
    path = TRACES / f"{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as lines:
        next(lines)
        keys = [line.split(",")[1] for line in itertools.islice(lines, 12_000)]
    one, _, moving = compare(valkey_server, tmp_path, name, [f"k{key}" for key in keys], max(64, len(set(keys)) // 8))
    assert one - moving <= 0.02
