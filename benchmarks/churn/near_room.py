"""`near_room`: one process whose near cache has room for all, while hot and warm have room for a few."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.churn.caches import Delay, open_store
from benchmarks.churn.replay import LEAN, OURS_ALL
from benchmarks.churn.traces import content
from benchmarks.table import Table
from distier import Item, Store
from tests.servers import poll, running_server

MODULES, SIZE_BYTES = 200, 7_000
READS, EACH = 2_000, 400
HOT_MODULES, WARM_MODULES = 10, 10
WRITTEN, LATER_S = 10, 3.0
"""A near hit may be two seconds old."""


def near_room() -> Table:
    table = Table(
        "One process whose near cache has room for all, reads only",
        ("reads", "archive reads", "near hits", "warm copies not kept", "old contents"),
        notes=f"{MODULES} modules of {SIZE_BYTES / 1000:.0f} kB are read once each, then {READS:,} at random. The near "
        f"cache may hold 64 MiB, hot {HOT_MODULES} modules, warm {WARM_MODULES}. Nothing is written until the last row: there "
        f"another client has written {WRITTEN} of the modules {LATER_S:.0f} s before they are read.",
    )
    settings = {
        **OURS_ALL, "storage_tiers__hot__max_bytes": HOT_MODULES * SIZE_BYTES, "near__max_bytes": 2**26,
        "storage_tiers__warm__max_modules": WARM_MODULES,
    }  # fmt: skip
    chance, delay = random.Random(1), Delay()
    ids = [f"page/{n}" for n in range(MODULES)]
    with tempfile.TemporaryDirectory() as tmp, running_server("valkey", args=LEAN) as server:
        with (
            open_store(server.socket_url, Path(tmp), settings, Delay()) as writer,
            open_store(server.socket_url, Path(tmp), settings, delay) as store,
        ):
            for id in ids:
                writer.put(id, content(id, SIZE_BYTES), durability="archived")
                writer.demote(id, to="cold")
            poll(lambda: store.get(ids[0]) and store.near.status == "on", what="a near cache")
            found = []

            def rows(name: str, read: Sequence[str], version: int) -> None:
                before = _counts(store, delay)
                old = 0
                for id in read:
                    module = store.get(id)
                    old += module is None or module.content != content(id, SIZE_BYTES, version)
                found.append([now - then for now, then in zip(_counts(store, delay), before, strict=True)])
                table.add(name, *found[-1], old)
                table.figures["near room old"] = table.figures.get("near room old", 0) + old

            rows("first pass", chance.sample(ids, MODULES), 0)
            for first in range(0, READS, EACH):
                rows(f"{first + 1} to {first + EACH}", [chance.choice(ids) for _ in range(EACH)], 0)
            writer.put_many([Item(id, content(id, SIZE_BYTES, 1)) for id in ids[:WRITTEN]])
            time.sleep(LATER_S)
            rows("after a write", ids[:WRITTEN], 1)
    found.pop()
    table.figures["near room reads"] = max(reads for reads, _, _ in found[1:])
    table.figures["near room hits"] = sum(hits for _, hits, _ in found[1:]) / READS
    return table


def _counts(store: Store, delay: Delay) -> tuple[int, int, int]:
    stats = store.stats()
    return delay.reads, stats.near.hits, sum(stats.counters.get(name, 0) for name in ("keeps.refused", "keeps.failed"))
