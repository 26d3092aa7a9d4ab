"""Measure packs: how small real modules become, what a read of a member costs, and how many objects are left."""

from __future__ import annotations

import statistics
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.archive.measured import LATENCY_S, Counted, measured
from distier import Item, Store, connect
from distier.plans.fleet.packing import Packed, pack_all
from tests.servers import TestServer

READS = 60
MODULES = 2_000
FAR_MS = -(10**15)
"""A least age that everything has."""


def opened(server: TestServer, home: Path, **settings: Any) -> Store:
    with server.client() as raw:
        raw.flushall()
    base: dict[str, Any] = {
        "redis__url": server.url, "namespace": "bench", "storage_tiers__cold__directory": home, "near__enabled": False,
        "deadline": "120s", "storage_tiers__hot__max_size": 10**9, "storage_tiers__cold__archive_after": "3650d",
    }  # fmt: skip
    return connect({"counter": "estimate"}, **base, **settings)


def packed(store: Store) -> Packed:
    plan = pack_all(store.space, min_age_ms=FAR_MS, everything=True)
    return store.run(plan, deadline_s=3600)


Rounds = list[list[tuple[str, bytes]]]
"""The ids and contents of a corpus, as `corpora` yields them."""


def corpora(directory: Path | None) -> Iterator[tuple[str, Rounds]]:
    """Yield each corpus: its name, and its modules in rounds. A round has each module once; the next one has their next
    versions (files of one directory that are named by number)."""
    for path in sorted(directory.glob("*.tar.xz")) if directory is not None else ():
        rounds: Rounds = []
        versions: Counter[str] = Counter()
        with tarfile.open(path) as tar:
            for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
                file = tar.extractfile(member)
                assert file is not None
                id, number = member.name, 0
                if path.name.removesuffix(".tar.xz").endswith("_versions") and "/v/" in id:
                    id = id.rpartition("/")[0]
                    number = versions[id]
                    versions[id] += 1
                while len(rounds) <= number:
                    rounds.append([])
                rounds[number].append((id, file.read()))
        yield path.name.removesuffix(".tar.xz"), rounds


def size_of(home: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in home.rglob(pattern))


def ratios(server: TestServer, home: Path, rounds: Rounds) -> dict[str, float]:
    """Return how many times smaller than its content a corpus is: as single objects, in packs, and with their indexes."""
    total = sum(len(content) for some in rounds for _, content in some)
    with opened(server, home, storage_tiers__cold__keep_versions=10_000, max_module_bytes=64 << 20) as store:
        for some in rounds:
            for start in range(0, len(some), 200):
                store.put_many([Item(id, content) for id, content in some[start : start + 200] if content])
            store.archive_now(deadline_s=3600)
        single = size_of(home, "@*.xz")
        done = packed(store)
        rest = size_of(home / "bench/modules", "@*.xz")
        packs = size_of(home / "bench/packs", "*.tar.xz")
        indexes = size_of(home / "bench/packs", "*.jsonl.gz")
    return {
        "modules": done.members, "content": total, "single": total / single, "packed": total / (packs + rest),
        "with indexes": total / (packs + rest + indexes), "objects": done.packs * 2,
    }  # fmt: skip


def reads(server: TestServer, home: Path, text: Any) -> dict[str, Any]:
    """Return the median time of a cold read at `LATENCY_S`, of single objects and from packs, and the objects before and
    after packing."""
    found: dict[str, Any] = {}
    with opened(server, home) as store:
        store.put_many([Item(f"skills/s{i % 97}/m{i}.md", text(i) * 4, tokens=300) for i in range(MODULES)])
        with measured(store) as found["write-back"]:
            store.archive_now(deadline_s=3600)
        ids = [f"skills/s{i % 97}/m{i}.md" for i in range(MODULES)]
        store.demote_many(ids, to="cold")
        found["single"] = timed(store, ids[:READS])
        found["objects before"] = sum(1 for _ in (home / "bench/modules").rglob("@*.xz"))
        with measured(store) as found["packing"]:
            done = packed(store)
        found["packs"] = done.packs
        found["content of a pack"] = done.content_bytes / max(1, done.packs)
        found["objects after"] = sum(1 for _ in (home / "bench").rglob("@*.*z"))
        found["packed"] = timed(store, ids[READS : 2 * READS])
    return found


def timed(store: Store, ids: list[str]) -> float:
    archive, times = store._driver.archive, []
    store._driver.archive = Counted(archive, LATENCY_S)
    for id in ids:
        store.space.process.packs._values = {}  # the neighbours of a module that was read are already here
        began = time.perf_counter()
        assert store.get(id) is not None
        times.append(time.perf_counter() - began)
    store._driver.archive = archive
    return statistics.median(times)


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [
        "| corpus | modules | content | single objects | packs | packs and their indexes |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in found.items():
        lines.append(
            f"| {name} | {r['modules']:,} | {r['content'] / 1e6:.1f} MB | {r['single']:.2f}x | {r['packed']:.2f}x | "
            f"{r['with indexes']:.2f}x |"
        )
    return "\n".join(lines)
