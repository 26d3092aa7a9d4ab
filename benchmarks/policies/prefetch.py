"""What prediction is worth: traces replayed with and without it, through a simulated LRU cache and through the real server."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.churn.traces import NoTrace, Trace
from benchmarks.policies.server import LEAN, SETTINGS, CountedArchive, archived, budget_of, open_store, reported_each
from benchmarks.table import Table
from distier.client.ahead import Ahead, Reads
from distier.plans.recovery.rescue import rescue
from distier.policy.predict import Predictor
from distier.policy.predict.simulate import Access, replay
from tests.servers import running_server

GOALS = {
    "nasa_day": (6.0, 0.6), "c2k_orm_busy": (7.0, 0.85), "git_caffeine": (7.0, 0.5), "mooncake_conv": (6.0, 0.95),
    "c2k_web12": (-0.1, 0.0),
}  # fmt: skip
"""Points over LRU, and precision, at 5 % of the footprint."""
PARTS = (0.01, 0.05, 0.10)
SERVER_PART = 0.05
AT_ONCE = {"prediction__archive_reads_per_second": 1000}
ACCESS_S = 0.1
"""The time between two accesses on the real server, for the half-life and the budget of reads."""


def accesses_of(name: str, folder: Path, each_bytes: int) -> list[Access]:
    """Return the accesses of a recorded trace, with their times and sessions. Raises `NoTrace`."""
    path = folder / f"{name}.csv.gz"
    if not path.exists():
        raise NoTrace(f"{name} is skipped: there is no {path.name} in the folder of traces (set BENCH_TRACES)")
    with gzip.open(path, "rt") as lines:
        next(lines)
        rows = [line.rstrip().split(",") for line in lines]
    clients, file = ["0"] * len(rows), folder / f"{name}.client.gz"
    if file.exists():
        with gzip.open(file, "rt") as lines:
            clients = lines.read().split()[-len(rows) :]
    sized = any(int(size) > 1 for _, _, size in rows)
    return [
        Access(float(at), f"page/{key}", max(1, int(size)) if sized else each_bytes, client)
        for (at, key, size), client in zip(rows, clients, strict=True)
    ]


def simulated(traces: dict[str, list[Access]]) -> Table:
    table = Table(
        "Prediction, simulated: hits of an LRU cache, whole traces",
        ("trace", "budget", "hit ratio", "with prediction", "points", "precision", "archive reads / without"),
    )
    for name, trace in traces.items():
        footprint = sum({access.key: access.size for access in trace}.values())
        for part in PARTS:
            budget = int(footprint * part)
            plain, ahead = replay(trace, budget), replay(trace, budget, Predictor())
            points, reads = (ahead.hit_ratio - plain.hit_ratio) * 100, ahead.reads / plain.reads
            table.add(
                name, f"{part:.0%}", f"{plain.hit_ratio:.4f}", f"{ahead.hit_ratio:.4f}", points, ahead.precision, reads
            )
            if part == SERVER_PART:
                table.figures |= {
                    f"prediction, points, {name}": points, f"precision, {name}": ahead.precision,
                    f"archive reads, {name}": reads,
                }  # fmt: skip
    return table


def real(traces: dict[str, list[Access]], accesses: int) -> Table:
    table = Table(
        f"Prediction, real server: {SERVER_PART:.0%} of the footprint in one cache",
        ("trace", "accesses", "LRU, simulated", "cache", "hit ratio", "with prediction", "points", "precision",
         "points over LRU"),
    )  # fmt: skip
    for name, whole in traces.items():
        first = max(0, (len(whole) - accesses) // 2)
        part = whole[first : first + accesses]
        sizes: dict[str, int] = {}
        for access in part:
            sizes.setdefault(access.key, access.size)
        trace = Trace(name, [access.key for access in part], sizes)
        budget = int(trace.footprint_bytes * SERVER_PART)
        lru = replay(part, budget).hit_ratio
        near = {**budget_of("warm", 1), "near__enabled": True, "near__max_bytes": budget, "near__max_entries": 10**6,
                "near__max_tokens": 10**9}  # fmt: skip
        warm = {**budget_of("warm", budget), "storage_tiers__hot__eviction_policy": "gdsf"}
        with archived(trace) as archive:
            for cache, settings in (("near (LRU)", near), ("warm, gdsf", warm)):
                plain = _replay(part, archive, {**settings, "prediction__enabled": False})
                ahead = _replay(part, archive, {**settings, "prediction__enabled": True})
                points, over = (ahead[0] - plain[0]) * 100, (ahead[0] - lru) * 100
                table.add(
                    name, len(part), f"{lru:.4f}", cache, f"{plain[0]:.4f}", f"{ahead[0]:.4f}", points, ahead[1], over
                )
                table.figures[f"prediction on the server, points over LRU, {name}, {cache}"] = over
    table.notes = (
        "Each access is a session's, which learns and loads ahead between two accesses; a hit is a read without the archive. "
        "Once the near cache of the process has the budget, and Redis no room; once warm has it, and there is no near cache. "
        "A predicted module is admitted to warm like others, with its probability for a use, so it never displaces what ranks "
        "higher: most of what prediction adds to LRU, `gdsf` has already."
    )
    return table


def _replay(part: Sequence[Access], archive: CountedArchive, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Return the hit ratio, and the precision of the predictions."""
    with reported_each(1), running_server("valkey", args=LEAN) as server, ExitStack() as stack:
        store = stack.enter_context(open_store(server, archive, {**SETTINGS, **settings, **AT_ONCE}))
        store.run(rescue(store.space), deadline_s=600)
        ahead, sessions, misses = Ahead(store.space, store.near, 0.0), dict[Any, Reads](), 0
        for n, access in enumerate(part):
            before = archive.reads
            found = store.get(access.key)
            assert found is not None
            misses += archive.reads > before
            if store.space.config.prediction.enabled:
                if access.session not in sessions:
                    sessions[access.session] = ahead.join(())
                sessions[access.session].note(access.key)
                store.run(ahead.round(access.time_s, n * ACCESS_S))
        outcomes = ahead.stats()
        return 1 - misses / len(part), outcomes.used / outcomes.issued if outcomes.issued else 1.0
