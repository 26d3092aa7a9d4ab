"""`records`: what a module takes in Redis where only its record is there, and what many pins cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.bench_scale import content_of, demote_all, id_of, opened
from benchmarks.ratios import race
from benchmarks.table import Table
from distier import Item, Store
from distier.plans.recovery.epochs import ask_state
from tests.servers import TestServer, available_kinds, running_server

MODULES, PINS = 2_000, 5_000


def records() -> Table:
    table = Table(
        "What a cold module takes in Redis, and many pins",
        ("server", "cold record, bytes", "index of ids, bytes a module", f"state with {PINS:,} pins, ratio to none"),
        notes=f"{MODULES:,} modules of 2 kB are put, archived and demoted; ids of 32 bytes. Bytes are the means of MEMORY "
        "USAGE, which includes the key. `HGETALL` reads the record, which has the SHA-256 and `moved`. `state` is timed on the "
        "clock.",
    )
    for kind, missing in available_kinds().items():
        if missing:
            print(f"   {missing}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as tmp, running_server(kind) as server, opened(server, Path(tmp)) as store:
            store.put_many([Item(id_of(i), content_of(i)) for i in range(MODULES)])
            store.archive_now()
            demote_all(store, "cold", MODULES)
            shard = store.space.keys.shards[0]
            with server.client() as client:
                record = _bytes(client, f"{shard.root}module:*") / MODULES
                index = _bytes(client, f"{shard.root}ids*") / MODULES
            ratio = _with_pins(server, Path(tmp))
        table.add(kind, record, index, ratio)
        table.figures |= {f"record {kind}": record, f"index {kind}": index, f"pins {kind}": ratio}
    return table


def _bytes(client: Any, pattern: str) -> int:
    return sum(client.memory_usage(key, samples=0) for key in client.scan_iter(pattern, count=1000))


def _with_pins(server: TestServer, directory: Path) -> float:
    """Return the time of `state` on a shard of hot modules that are pinned, as a ratio to one without any."""
    with opened(server, directory / "many", "many") as many, opened(server, directory / "none", "none") as none:
        ids = [id_of(i) for i in range(PINS)]
        for start in range(0, PINS, 500):
            many.put_many([Item(id, "pinned") for id in ids[start : start + 500]])
        with server.client() as client:
            client.zadd(many.space.keys.shards[0].pins, dict.fromkeys(ids, 4e12))

        def ask(store: Store) -> Callable[[], object]:
            return lambda: store.run(ask_state(store.space, store.space.keys.shards[0]))

        return race({"many": ask(many), "none": ask(none)}).ratio("many", "none")
