"""Measure the manifest and packs: requests, wall time and CPU of write-back, rescue, sweep and durable puts with and without a
manifest; how small real modules become in packs and as warm copies with a dictionary, and what reads of them cost.

python -m benchmarks.archive [MODULES]      BENCH_CORPORA: a directory of .tar.xz with real modules
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.archive import dictionaries, packs
from benchmarks.archive.measured import LATENCY_S, measured
from distier import Item, Store, connect
from distier.plans.fleet.sweep import sweep, sweep_listed
from distier.plans.recovery.rescue import rescue
from tests.servers import KINDS, TestServer, running_server

MODULES = 20_000
PUTS = 60
PAGE = Path(__file__).parent.parent.parent / "docs" / "ARCHIVE_BENCH.md"
WORDS = (
    "read",
    "the",
    "file",
    "and",
    "return",
    "its",
    "lines",
    "then",
    "call",
    "a",
    "tool",
    "that",
    "formats",
    "each",
    "page",
)


def text(i: int) -> str:
    return f"# module {i}\n" + " ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(60))


def fill(store: Store, modules: int) -> None:
    for start in range(0, modules, 500):
        store.put_many(
            [Item(f"skills/s{i % 997}/m{i}.md", text(i), tokens=70) for i in range(start, min(start + 500, modules))]
        )


def measure(server: TestServer, home: Path, modules: int, manifest: bool) -> dict[str, dict[str, Any]]:
    settings: dict[str, Any] = {
        "redis__url": server.url, "namespace": "bench", "storage_tiers__cold__directory": home / "cold",
        "storage_tiers__cold__manifest": manifest, "storage_tiers__hot__max_size": 100 * modules, "near__enabled": False,
        "deadline": "60s",
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    with connect({"counter": "estimate"}, **settings) as store:
        fill(store, modules)
        with measured(store) as found["write-back"]:
            store.archive_now(deadline_s=3600)
        store.run(sweep(store.space), deadline_s=3600)
        step = sweep_listed if manifest else sweep
        with measured(store) as found["sweep with nothing to do"]:
            store.run(step(store.space), deadline_s=3600)
        with server.client() as raw:
            raw.flushall()
        with measured(store) as found["rescue"]:
            assert store.run(rescue(store.space), deadline_s=3600).adopted == modules
        times = []
        with measured(store, LATENCY_S) as found["durable put at 20 ms"]:
            for i in range(PUTS):
                began = time.perf_counter()
                store.put(f"durable/{i}", text(i), tokens=70, durability="archived")
                times.append(time.perf_counter() - began)
        found["durable put at 20 ms"]["wall_s"] = statistics.median(times)
    found["size"] = {"bytes": sum(p.stat().st_size for p in (home / "cold/bench/manifest").rglob("run-*.gz"))}
    return found


def table(modules: int, without: dict[str, Any], listed: dict[str, Any]) -> str:
    lines = [
        "| step | requests without, with | wall time with / without | CPU with / without |",
        "|---|---|---|---|",
    ]
    for name, old in without.items():
        new = listed[name]
        if "wall_s" not in old:
            continue
        requests = [
            ", ".join(f"{n:,} {verb.upper()}" for verb in ("put", "get", "list", "delete") if (n := each.get(verb, 0)))
            for each in (old, new)
        ]
        ratios = (f"{new[key] / old[key]:.2f}" if old[key] else "" for key in ("wall_s", "cpu_s"))
        lines.append(f"| {name} | {' &rarr; '.join(requests)} | {' | '.join(ratios)} |")
    size = listed["size"]["bytes"] / modules
    return "\n".join([*lines, "", f"The manifest has {size:.0f} bytes for each module."])


def main() -> None:
    modules = int(sys.argv[1]) if len(sys.argv) > 1 else MODULES
    found = []
    for manifest in (False, True):
        with (
            running_server(KINDS[0], args=("--appendonly", "no", "--save", "")) as server,
            tempfile.TemporaryDirectory() as home,
        ):
            found.append(measure(server, Path(home), modules, manifest))
    print(
        f"{modules} modules, seconds: "
        + "; ".join(
            f"{name} {old['wall_s']:.2f} -> {found[1][name]['wall_s']:.2f}"
            for name, old in found[0].items()
            if "wall_s" in old
        )
    )
    text = PAGE_TEXT.format(
        modules=f"{modules:,}", table=table(modules, *found), packs=measure_packs(), dictionaries=measure_dictionaries()
    )
    PAGE.write_text(text)


def of_corpora(
    server: TestServer, measure_one: Callable[[TestServer, Path, packs.Rounds], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Measure each corpus in a directory of its own. Returns the figures by its name; none where there are no corpora."""
    directory = os.environ.get("BENCH_CORPORA")
    found: dict[str, dict[str, float]] = {}
    for name, rounds in packs.corpora(Path(directory) if directory else None):
        with tempfile.TemporaryDirectory() as home:
            found[name] = measure_one(server, Path(home), rounds)
        print(name, found[name])
    return found


def measure_dictionaries() -> str:
    """Return the section about dictionaries."""
    with running_server(KINDS[0], args=("--appendonly", "no", "--save", "")) as server:
        found = of_corpora(server, lambda server, home, rounds: dictionaries.measure(server, home, rounds[0]))
    if not found:
        return "The corpora are not here (`BENCH_CORPORA`), so nothing was learned from them."
    reader = statistics.median(r["make for a reader us"] / r["make plain for a reader us"] for r in found.values())
    extra = statistics.median(r["make for a reader us"] - r["make plain for a reader us"] for r in found.values())
    return DICTIONARIES_TEXT.format(table=dictionaries.table(found), reader=f"{reader:.0f}", extra=f"{extra:.0f}")


def measure_packs() -> str:
    """Return the section about packs."""
    with running_server(KINDS[0], args=("--appendonly", "no", "--save", "")) as server:
        sizes = of_corpora(server, packs.ratios)
        with tempfile.TemporaryDirectory() as home:
            read = packs.reads(server, Path(home), text)
    print(read)
    table = packs.table(sizes) if sizes else "The corpora are not here (`BENCH_CORPORA`), so they were not packed."
    puts = read["write-back"].get("put", 0), read["packing"].get("put", 0)
    return PACKS_TEXT.format(
        table=table, modules=f"{packs.MODULES:,}", ratio=f"{read['packed'] / read['single']:.2f}",
        kib=f"{read['content of a pack'] / 1024:.0f}", before=f"{read['objects before']:,}", after=f"{read['objects after']:,}",
        puts=f"{puts[0]:,}", more=f"{puts[1]:,}", cpu=f"{read['packing']['cpu_s'] / packs.MODULES * 1000:.1f}",
    )  # fmt: skip


PAGE_TEXT = """# Costs of the archive

`make bench-archive` writes this page. It compares a directory archive with and without its
[manifest](ARCHIVE.md#the-manifest) (`cold.manifest`), {modules} modules of about 300 bytes, one process and one server on
one machine. Times are ratios within one run. `&rarr;` separates the requests to the archive without and with the manifest.

{table}

A write-back also puts a sidecar for each module here, because a directory keeps no metadata. Under "durable put", the
archive takes 20 ms longer for each request, {puts} puts were made, and the time is their median: the row is put while the
epochs are listed.

## Packs

{packs}
## Dictionaries

{dictionaries}""".replace("{puts}", str(PUTS))

PACKS_TEXT = """How many times smaller than its content a corpus is in the archive. What is larger
than 256 KiB is no member of a pack, and is counted with them. `*_versions` has all versions of its modules, one after the
other, with `cold.keep_versions` 10,000.

{table}

{modules} modules of about 1.2 kB, written back with {puts} PUT (a sidecar each, in a directory) and packed with {more} PUT:
{before} objects became {after}, packs and indexes. Packing took {cpu} ms of CPU a module. A read of a cold module whose pack
has {kib} KiB of contents, and whose archive takes 20 ms for a request, took {ratio} times as long as that of a single object
(medians of 60 `get` each; no neighbour was read before).
"""

DICTIONARIES_TEXT = """How many times smaller than its content a warm copy is, of modules of at most 64 KiB that were not
there when the worker learned its dictionary from the others of the corpus. "Demoted" copies are made at level 9; those that a
read of a cold module leaves are made faster, plain or with a dictionary. The other columns are ratios to plain copies: the
time to make a demoted copy, to open one, and that of a read of a cold or warm module by one client, with a directory archive
(medians of 200). The last one is the CPU time of the worker for one learning.

{table}

A copy that a read leaves takes {reader} times as long to make as a plain one, which is made in lz4's fast mode. That is what
makes cold reads of a near archive slower: {extra} us a read here, so a hundredth of one from an archive 20 ms away.
"""

if __name__ == "__main__":
    main()
