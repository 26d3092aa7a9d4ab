"""`churn`: the first table of `make bench`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from benchmarks.churn.caches import KINDS, LZ4, OURS
from benchmarks.churn.replay import Cell, Result, Work, buffers_for, fit, prepared, replay
from benchmarks.churn.traces import RECORDED, ZIPF, NoTrace, default_folder, trace_of
from benchmarks.table import Table

WARMUP_PART = 1 / 3
MEMORY = (0.05, 0.10)
DELAYS_S = (0.0, 0.02)
CLIENTS = (1, 4)
FAR_PART = 4
"""Behind a delay, one in four accesses is measured: a read that sleeps takes the time of a hundred others."""
ALIKE = 1.1
"""The part of the given memory up to which archive reads are compared with the goal."""
HEAD = (
    "trace", "Redis", "archive", "clients", "what", "archive reads an access", "mean us", "p99 us", "client CPU us",
    "server CPU us", "memory", "bytes lost", "reads", "time", "client CPU", "server CPU",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """`accesses` of each trace are replayed, `rounds` times; each `puts`-th access writes."""

    accesses: int = 3000
    rounds: int = 2
    puts: int = 0
    traces: Path = field(default_factory=default_folder)
    names: Sequence[str] = (*RECORDED, ZIPF)
    """The traces."""


def churn(options: Options) -> Table:
    table = Table("Churn: traces replayed with 5 and 10 % of the footprint in Redis", HEAD)
    sizes, skipped = [], []
    for name in options.names:
        try:
            trace = trace_of(name, options.accesses, options.traces)
        except NoTrace as e:
            print(f"   {e}", flush=True)
            skipped.append(str(e) + ".")
            continue
        with prepared(trace, int(len(trace.ids) * WARMUP_PART)) as work:
            told = [_cells(table, work, part, options) for part in MEMORY]
        sizes.append(
            f"{name}: {len(trace.ids)} accesses, {len(trace.sizes)} modules, {trace.footprint_bytes / 1e6:.1f} MB, "
            f"records {told[0] / 1e6:.2f} MB."
        )
    table.notes = " ".join((*sizes, *skipped, *_notes(options)))
    return table


def _notes(options: Options) -> Iterator[str]:
    yield (
        f"The first third of the accesses is the warm-up, which is not measured; where the archive is 20 ms away (a sleep "
        f"before each read of an object), 1 in {FAR_PART} of the others is. The rows of one client next to its archive are "
        f"medians of {options.rounds} rounds in turn, the others of one. Several clients have the accesses in turn."
    )
    yield (
        "The last four columns are ratios to `by hand, lz4` of the same round. CPU is process time: of the clients all "
        "threads, of the server all of it. A server that waits takes some CPU too, so its ratios at 20 ms are nearer to 1."
    )
    yield (
        "Memory is `used_memory` beyond that of the empty server, without the buffers of connections and the text of cached "
        "scripts, the mean while it was measured, as a part of what was given: 5 or 10 % of the footprint. By-hand caches "
        "have it as `maxmemory` with `allkeys-lru`, and what the buffers take in addition, which one replay with lz4 "
        "measures. distier: records are measured first; hot gets a tenth of the rest and warm nine tenths, divided by "
        "what a counted byte takes in Redis, which one replay measures. Where records leave less than a tenth, hot and warm "
        "get a tenth in addition. Archive reads are compared with the goal where distier takes at most 1.1 of the memory."
    )
    yield (
        "Both caches in a process may hold as much as Redis. distier's other settings are the defaults, except "
        "`events.max_length` 100 and the counter `estimate`. No server writes files. Bytes lost are those of modules that "
        "another content was read of, in the warm-up or when all were read at the end."
    )
    if options.puts:
        yield f"Each {options.puts}th access is a put that is archived before it returns."


def _cells(table: Table, work: Work, part: float, options: Options) -> int:
    """Add the rows of one trace and size of Redis. Returns the bytes of records."""
    memory = int(work.trace.footprint_bytes * part)
    budgets, records = fit(work, memory)
    buffers = {clients: buffers_for(work, memory, clients) for clients in CLIENTS}
    for delay_s, clients in product(DELAYS_S, CLIENTS):
        measured = work.measured // FAR_PART if delay_s else work.measured
        cell = Cell(memory, buffers[clients], delay_s, clients, measured, options.puts)
        often = options.rounds if (delay_s, clients) == (0, 1) else 1
        rounds = [{kind: replay(work, kind, cell, budgets) for kind in KINDS} for _ in range(often)]
        where = (work.trace.name, f"{part:.0%}", f"{delay_s * 1000:.0f} ms", clients)
        _rows(table, where, rounds, memory)
    return records


def _rows(table: Table, where: tuple[object, ...], rounds: Sequence[dict[str, Result]], memory: int) -> None:
    for kind in KINDS:
        found = [Figure(one[kind]) for one in rounds]
        base = [Figure(one[LZ4]) for one in rounds]

        def ratio(name: str) -> float:
            pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(found, base, strict=True)]
            return float(statistics.median(a / max(b, 1e-9) for a, b in pairs))

        values = {name: statistics.median(getattr(one, name) for one in found) for name in COLUMNS}
        taken = statistics.median(one[kind].memory_bytes for one in rounds) / memory
        lost = sum(one[kind].lost_bytes for one in rounds)
        ratios = {name: ratio(name) for name in ("reads", "mean_us", "client_us", "server_us")}
        table.add(*where, kind, *values.values(), taken, lost, *ratios.values())
        cell = " ".join(map(str, where))
        table.figures[f"churn lost {cell} {kind}"] = lost
        if kind == OURS:
            far = where[2] != "0 ms"
            table.figures |= {f"churn far time {cell}": ratios["mean_us"]} if far else {
                f"churn client {cell}": ratios["client_us"], f"churn server {cell}": ratios["server_us"]
            }  # fmt: skip
            if taken <= ALIKE:
                table.figures[f"churn reads {cell}"] = ratios["reads"]


class Figure:
    """What a row shows of one replay, for one access."""

    def __init__(self, found: Result) -> None:
        n = found.accesses
        self.reads = found.archive_reads / n
        self.mean_us = statistics.mean(found.us)
        self.p99_us = statistics.quantiles(found.us, n=100)[98]
        self.client_us = found.client_cpu_s / n * 1e6
        self.server_us = found.server_cpu_s / n * 1e6


COLUMNS = ("reads", "mean_us", "p99_us", "client_us", "server_us")
