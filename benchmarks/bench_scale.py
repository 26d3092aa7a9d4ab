"""The cost of a namespace of 10^4, 10^5 and 10^6 modules: bytes in Redis, latency, requests to the archive.

    python -m benchmarks.bench_scale [--sizes 10000,100000,1000000] [--kinds valkey,redis]

The script of the rescue writes the cold records, with the fields of a module that the write-back has archived. An id
has 32 bytes. Latencies are ratios in one run: the same call on the server with the most modules and on one with a
thousand, in turn. The tables in docs/SCALE.md are the output of this program.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from distier import Store, connect
from distier.client import make_space, resolve
from distier.domain.module import Tier
from distier.domain.objects import Fetched, Listed
from distier.effects import Pipeline, Plan, collect
from distier.lua import Adoption, adopt
from distier.plans.fleet.maintain import maintain
from distier.plans.fleet.sweep import sweep
from distier.plans.recovery.rescue import rescue
from distier.stores.memory import MemoryArchive
from distier.stores.redis import RedisExchange
from tests.servers import Kind, TestServer, running_server

BATCH = 200
SMALL = 1_000
ROUNDS, CALLS = 21, 50
TIER_N = 10_000
# S3 Standard in us-east-1, in dollars: a request, and a GB for a month.
PUT_DOLLARS, GET_DOLLARS, GB_MONTH_DOLLARS = 0.005 / 1000, 0.0004 / 1000, 0.023


def id_of(i: int) -> str:
    """An id of 32 bytes."""
    return f"docs/library/{i % 1000:04d}/page-{i:09d}"


def content_of(i: int) -> bytes:
    """About 2 kB of text, which lz4 halves."""
    words = hashlib.sha256(b"%d" % i).hexdigest()
    return "".join(f"{words[k : k + 20]} is what section {k} of this page says.\n" for k in range(40)).encode()


def cold_record(i: int) -> Adoption:
    content = content_of(i % 997)
    digest = hashlib.sha256(b"%d" % i).hexdigest()
    fields = ("sha256", digest, "type", "text/plain", "counter", "o200k")
    sizes = len(content) // 4, len(content), len(content) // 3
    return Adoption(id_of(i), 1, i + 1, digest[:32], "content", *sizes, fields=fields)


def fill(store: Store, first: int, last: int) -> None:
    """Create modules `first` to `last` in the archive only."""
    shard = store.space.keys.shards[0]

    def step(start: int) -> Plan[None]:
        calls = [
            adopt(shard, 1, [cold_record(i) for i in range(at, min(at + BATCH, last))])
            for at in range(start, min(start + 10 * BATCH, last), BATCH)
        ]
        for reply in (yield from Pipeline(calls)):
            assert collect(reply).adopted, reply

    for start in range(first, last, 10 * BATCH):
        store.run(step(start), deadline_s=60)


@contextmanager
def opened(server: TestServer, directory: Path, namespace: str = "team") -> Iterator[Store]:
    roomy = {
        "storage_tiers__hot__max_size": 10**9, "storage_tiers__hot__max_bytes": 2**34,
        "storage_tiers__warm__max_modules": 10**6, "storage_tiers__warm__max_bytes": 2**34,
    }  # fmt: skip
    options: dict[str, Any] = {
        "redis__url": server.socket_url, "namespace": namespace, "counter": "estimate",
        "storage_tiers__cold__directory": directory, "near__enabled": False, "events__max_length": 1,
        "storage_tiers__promotion_threshold": 10**9, **roomy,
    }  # fmt: skip
    with connect({}, **options) as store:
        yield store


def used_bytes(server: TestServer) -> int:
    """Bytes used without the part that does not grow with the modules: the hash by which a repeated put is recognised."""
    with server.client() as client:
        while keys := list(islice(client.scan_iter("*:done", count=1000), 1000)):
            client.unlink(*keys)
        return int(client.info("memory")["used_memory"])


def by_tier(kind: Kind) -> None:
    """Bytes per module of 2 kB, by tier, at 10^4 modules that were put as users put them."""
    print(f"\n| {kind}: tier | bytes in Redis a module | of them content or frame |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as tmp, running_server(kind) as server, opened(server, Path(tmp)) as store:
        empty = used_bytes(server)
        for i in range(TIER_N):
            store.put(id_of(i), content_of(i))
        store.archive_now()
        _row("hot", server, empty, sum(len(content_of(i)) for i in range(100)) / 100)
        demote_all(store, "warm")
        with server.client() as client:
            frames = int(client.hget(store.space.keys.shards[0].usage, "warm_frame_bytes") or 0)
        _row("warm", server, empty, frames / TIER_N)
        demote_all(store, "cold")
        _row("cold", server, empty, 0)


def demote_all(store: Store, tier: Tier, n: int = TIER_N) -> None:
    for start in range(0, n, 200):
        for moved in store.demote_many(map(id_of, range(start, min(start + 200, n))), to=tier):
            assert collect(moved).tier == tier


def _row(tier: str, server: TestServer, empty: int, content: float) -> None:
    print(f"| {tier} | {(used_bytes(server) - empty) / TIER_N:.0f} | {content:.0f} |", flush=True)


def by_size(kind: Kind, sizes: Sequence[int]) -> None:
    """Bytes per cold module at each size; then latencies at the largest size as ratios of those at a thousand."""
    print(f"\n| {kind}: cold modules | bytes in Redis a module | all |\n|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as tmp,
        running_server(kind, args=("--appendonly", "no")) as large,
        running_server(kind, args=("--appendonly", "no")) as small,
        opened(large, Path(tmp) / "large") as many,
        opened(small, Path(tmp) / "small") as few,
    ):
        fill(few, 0, SMALL)
        empty, done = used_bytes(large), 0
        for size in sizes:
            fill(many, done, size)
            done, used = size, used_bytes(large) - empty
            print(f"| {size:,} | {used / size:.0f} | {used / 2**20:.0f} MiB |", flush=True)
        latencies(kind, (many, large), (few, small), done)


def latencies(kind: Kind, many: tuple[Store, TestServer], few: tuple[Store, TestServer], n: int) -> None:
    """Measures the CPU time of the server in addition to the time of a call. A reply that finds the client asleep takes
    three times as long, and it is chance for which of two servers that happens.
    """
    for store, _ in (many, few):
        for i in range(100):
            store.put(f"hot/{i}", content_of(i))
        store.archive_now()
        for i in range(50):
            store.put(f"warm/{i}", content_of(i))
            store.demote(f"warm/{i}", to="warm")
    hundred = [f"hot/{i}" for i in range(100)]
    body = content_of(7)
    calls: Mapping[str, Callable[[Store], object]] = {
        "get hot": lambda s: s.get("hot/7"),
        "get warm": lambda s: s.get("warm/49"),
        "get, a miss": lambda s: s.get("absent/7"),
        "get_many(100) hot": lambda s: s.get_many(hundred),
        "put": lambda s: s.put("hot/8", body),
        "where, a cold one": lambda s: s.where(id_of(77)),
        "promote and demote": lambda s: (s.demote("hot/9"), s.promote("hot/9")),
        "stats": lambda s: s.stats(),
        "a worker's round": lambda s: s.run(maintain(s.space, s.space.keys.shards[0])),
    }
    print(
        f"\n| {kind}: call | at {n:,} modules, us | ratio to {SMALL:,} | the server's CPU, us | ratio |\n|---|---|---|---|---|"
    )
    for name, call in calls.items():
        for store, _ in (many, few):
            store.archive_now()  # work left over from the previous call does not count for this one
        rounds = [(_round(call, *many), _round(call, *few)) for _ in range(ROUNDS)][1:]
        us, cpu_us = (statistics.median(large[i] for large, _ in rounds) for i in (0, 1))
        ratios = [statistics.median(large[i] / max(small[i], 0.1) for large, small in rounds) for i in (0, 1)]
        print(f"| {name} | {us:.0f} | {ratios[0]:.2f} | {cpu_us:.0f} | {ratios[1]:.2f} |", flush=True)


def _round(call: Callable[[Store], object], store: Store, server: TestServer) -> tuple[float, float]:
    """Microseconds per call: by the clock, and of the server's CPU."""

    def cpu_s() -> float:
        with server.client() as client:
            info = client.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])

    before_s, begin_s = cpu_s(), time.perf_counter()
    for _ in range(CALLS):
        call(store)
    took_s = time.perf_counter() - begin_s
    return took_s / CALLS * 1e6, (cpu_s() - before_s) / CALLS * 1e6


class CountingArchive(MemoryArchive):
    """Counts requests as S3 bills them."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        self.requests["PUT"] += 1
        super().put(key, data, content_type=content_type, metadata=metadata)

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        self.requests["GET"] += 1
        return super().get(key, max_bytes=max_bytes)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        self.requests["LIST"] += 1
        return super().list(prefix, start_after=start_after, limit=limit)

    def delete(self, keys: Sequence[str]) -> None:
        self.requests["DELETE"] += 1
        super().delete(keys)

    @property
    def stored_bytes(self) -> int:
        return sum(len(found.data) for found in self._objects.values())


def requests(n: int = 2_000) -> None:
    """The requests that S3 gets, counted at `n` modules and scaled to a million."""
    with running_server("valkey") as server, tempfile.TemporaryDirectory() as tmp:
        config = resolve({}, redis__url=server.socket_url, namespace="team", counter="estimate",
                         storage_tiers__cold__directory=Path(tmp), near__enabled=False)  # fmt: skip
        archive = CountingArchive()
        space = make_space(config, archive)
        store = Store(space, RedisExchange(config, server.socket_url, space.process.forget), archive).open()
        print(
            "\n| for a million modules of 2 kB | PUT | GET | LIST | DELETE (free) | dollars |\n|---|---|---|---|---|---|"
        )
        steps: Mapping[str, Callable[[], object]] = {
            "put and written back": lambda: (
                [store.put(id_of(i), content_of(i)) for i in range(n)],
                store.archive_now(),
            ),
            "each read once, cold": lambda: (
                demote_all(store, "cold", n),  # type: ignore[func-returns-value]
                [store.get(id_of(i)) for i in range(n)],
            ),
            "a sweep, nothing to do": lambda: store.run(sweep(space), deadline_s=600),
            "put again and written back": lambda: (
                [store.put(id_of(i), content_of(i + 1)) for i in range(n)],
                store.archive_now(),
            ),
            "a sweep of the versions before": lambda: store.run(sweep(space), deadline_s=600),
            "a rescue": lambda: (server.client().flushall(), store.run(rescue(space), deadline_s=600)),
        }
        for name, step in steps.items():
            archive.requests.clear()
            step()
            asked = {kind: archive.requests[kind] * 1_000_000 // n for kind in ("PUT", "GET", "LIST", "DELETE")}
            dollars = (asked["PUT"] + asked["LIST"]) * PUT_DOLLARS + asked["GET"] * GET_DOLLARS
            print(f"| {name} | {' | '.join(f'{c:,}' for c in asked.values())} | {dollars:.2f} |", flush=True)
        month = archive.stored_bytes / n * 1e6 / 1e9 * GB_MONTH_DOLLARS
        print(f"\nStored: {archive.stored_bytes / n:.0f} bytes a module, {month:.2f} dollars a month for a million.")
        store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--kinds", default="valkey,redis")
    chosen = parser.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",")]
    kinds: list[Kind] = [kind for kind in ("valkey", "redis") if kind in chosen.kinds.split(",")]
    for kind in kinds:
        by_tier(kind)
        by_size(kind, sizes)
    requests()


if __name__ == "__main__":
    main()
