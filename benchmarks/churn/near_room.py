"""`near_room`: one process whose near cache has room for all, while hot and warm have room for a few."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from benchmarks.churn.caches import Delay, open_store
from benchmarks.churn.replay import LEAN, OURS_ALL
from benchmarks.churn.traces import content
from benchmarks.table import Table
from tests.servers import poll, running_server

MODULES, SIZE_BYTES = 200, 7_000
READS, EACH = 2_000, 400
HOT_MODULES, WARM_MODULES = 10, 10


def near_room() -> Table:
    table = Table(
        "One process whose near cache has room for all, reads only",
        ("reads", "archive reads", "near hits"),
        notes=f"{MODULES} modules of {SIZE_BYTES / 1000:.0f} kB are read {READS:,} times, each time one at random. The near "
        f"cache may hold 64 MiB, hot {HOT_MODULES} modules, warm {WARM_MODULES}. Nothing is written.",
    )
    settings = {
        **OURS_ALL, "storage_tiers__hot__max_bytes": HOT_MODULES * SIZE_BYTES, "near__max_bytes": 2**26,
        "storage_tiers__warm__max_modules": WARM_MODULES,
    }  # fmt: skip
    chance, delay = random.Random(1), Delay()
    ids = [f"page/{n}" for n in range(MODULES)]
    with tempfile.TemporaryDirectory() as tmp, running_server("valkey", args=LEAN) as server:
        with open_store(server.socket_url, Path(tmp), settings, Delay()) as writer:
            for id in ids:
                writer.put(id, content(id, SIZE_BYTES), durability="archived")
                writer.demote(id, to="cold")
        with open_store(server.socket_url, Path(tmp), settings, delay) as store:
            poll(lambda: store.get(ids[0]) and store.near.status == "on", what="a near cache")
            found = []
            for first in range(0, READS, EACH):
                reads, hits = delay.reads, store.stats().near.hits
                for _ in range(EACH):
                    store.get(chance.choice(ids))
                found.append((delay.reads - reads, store.stats().near.hits - hits))
                table.add(f"{first + 1} to {first + EACH}", *found[-1])
    table.figures["near room reads"] = max(reads for reads, _ in found[1:])
    table.figures["near room hits"] = sum(hits for _, hits in found) / READS
    return table
