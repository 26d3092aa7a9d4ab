"""`make bench-policies`: compares the eviction policies, and writes docs/POLICIES.md and its plots.

python -m benchmarks.policies                                  # all, about a quarter of an hour on two cores
python -m benchmarks.policies --accesses 3000 --trace zipf     # printed, nothing is written
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.churn.traces import ZIPF, NoTrace, Trace, default_folder, trace_of
from benchmarks.policies import peers, prefetch
from benchmarks.policies.late import late
from benchmarks.policies.page import write_page
from benchmarks.policies.server import archived, replay
from benchmarks.table import Table
from distier.policy.eviction.simulate import Tier
from distier.policy.eviction.table import POLICIES

RECORDED = ("nasa_day", "git_caffeine", "c2k_web12", "mooncake_conv", "c2k_orm_busy")
SIZED = ("nasa_day", "git_caffeine", ZIPF)
EACH_BYTES = 1000
"""The size of each module of a trace without sizes."""
PARTS = (0.01, 0.05, 0.10)
PLOTTED = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
SERVER_PART = 0.05
ALL = 10**9
LATE_FACTOR = 3
"""Uses that are not reported yet weigh less in a longer replay."""
ZIPF_ACCESSES = 60_000


def traced(name: str, accesses: int, folder: Path) -> Trace:
    """Return a trace, whose modules have a size."""
    trace = trace_of(name, min(accesses, ZIPF_ACCESSES) if name == ZIPF else accesses, folder)
    if max(trace.sizes.values()) > 1:
        return trace
    return Trace(name, trace.ids, dict.fromkeys(trace.sizes, EACH_BYTES))


def miss_ratio(trace: Trace, policy: str, part: float) -> float:
    tier: Tier[str] = Tier(POLICIES[policy], int(trace.footprint_bytes * part))
    for id in trace.ids:
        tier.access(id, trace.sizes[id])
    return tier.misses / len(trace.ids)


def simulated(traces: Sequence[Trace], curves: dict[str, dict[str, list[float]]]) -> Table:
    """Replay whole traces through one simulated tier, and through libcachesim's policies."""
    table = Table(
        "Simulated: misses an access, whole traces, one tier",
        ("trace", "budget", *POLICIES, "best of libcachesim", "it is", "regret of gdsf, points", "gdsf / lru"),
    )
    regrets, worse, ratios = [], [], []
    for trace in traces:
        for part in PARTS:
            found = {name: curves[trace.name][name][PLOTTED.index(part)] for name in POLICIES}
            best, name = _best_peer(trace, part)
            regret = max(0.0, (found["gdsf"] - best) * 100) if name else None
            ratio = found["gdsf"] / found["lru"]
            table.add(
                trace.name, f"{part:.0%}", *(f"{n:.4f}" for n in found.values()), f"{best:.4f}" if name else "-", name or "-",
                "-" if regret is None else regret, ratio,
            )  # fmt: skip
            worse.append((found["gdsf"] - found["lru"]) * 100)
            regrets += [] if regret is None else [regret]
            ratios += [ratio] if trace.name in SIZED and trace.name != ZIPF else []
    table.figures |= {"worst gdsf over lru, points": max(worse)}
    if regrets:
        table.figures["mean regret, points"] = statistics.mean(regrets)
    if ratios:
        table.figures["gdsf / lru, sized, mean"] = statistics.mean(ratios)
    return table


def _best_peer(trace: Trace, part: float) -> tuple[float, str]:
    if not peers.is_installed():
        return 0.0, ""
    numbers = {id: n for n, id in enumerate(trace.sizes)}
    with tempfile.TemporaryDirectory() as tmp:
        file = Path(tmp) / "trace.json"
        file.write_text(json.dumps([[numbers[id] for id in trace.ids], list(trace.sizes.values())]))
        found = {name: peers.misses(file, int(trace.footprint_bytes * part), name) for name in peers.POLICIES}
    misses, name = min((n, name) for name, n in found.items() if n is not None)
    return misses / len(trace.ids), name


def real(traces: Sequence[Trace]) -> Table:
    """Replay a part of each trace through the real server."""
    table = Table(
        f"Real server: misses an access, {SERVER_PART:.0%} of the footprint in one tier",
        ("trace", "accesses", "tier", "LRU, simulated", *POLICIES, "gdsf / LRU", "gdsf, simulated"),
    )
    for trace in traces:
        budget = int(trace.footprint_bytes * SERVER_PART)
        plain, expected = miss_ratio(trace, "lru", SERVER_PART), miss_ratio(trace, "gdsf", SERVER_PART)
        with archived(trace) as archive:
            for tier in ("warm", "hot"):
                found = {}
                for policy in POLICIES:
                    outcome = replay(trace, archive, policy, tier, budget)
                    found[policy] = outcome.misses / outcome.accesses
                table.add(
                    trace.name, len(trace.ids), tier, f"{plain:.4f}", *(f"{n:.4f}" for n in found.values()),
                    found["gdsf"] / plain, f"{expected:.4f}",
                )  # fmt: skip
                table.figures[f"gdsf / LRU, {trace.name} {tier}"] = found["gdsf"] / plain
    table.notes = (
        "`warm` has no compression here and hot no room, or hot takes a module at its first use and warm has no room, so that "
        "one tier has the whole budget, as when simulated. `lru` is less than LRU: warm admits a copy only if it is used more "
        "for its size than what would leave (decisions 33 and 45)."
    )
    return table


def curves_of(traces: Sequence[Trace]) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for trace in traces:
        found[trace.name] = {name: [miss_ratio(trace, name, part) for part in PLOTTED] for name in POLICIES}
        print("   curves of", trace.name, flush=True)
    return found


def plot(curves: Mapping[str, Mapping[str, Sequence[float]]], folder: Path) -> list[str]:
    """Write a plot of miss ratio against budget for each trace. Returns their names; none without matplotlib."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("svg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        print("   no plots: matplotlib is not installed (group bench)")
        return []
    matplotlib.rcParams["svg.hashsalt"] = "distier"
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for trace, by_policy in curves.items():
        figure, axes = pyplot.subplots(figsize=(5.5, 3.2), layout="constrained")
        for policy, ratios in by_policy.items():
            axes.plot([part * 100 for part in PLOTTED], ratios, marker=".", label=policy)
        axes.set(
            title=trace, xscale="log", xlabel="budget, % of the footprint", ylabel="misses an access", ylim=(0, None)
        )
        axes.set_xticks([part * 100 for part in PLOTTED], [f"{part * 100:g}" for part in PLOTTED])
        axes.legend(fontsize="small")
        figure.savefig(folder / f"{trace}.svg", metadata={"Date": None})
        pyplot.close(figure)
        names.append(trace)
    return names


def load(names: Sequence[str], accesses: int, folder: Path) -> tuple[list[Trace], list[str]]:
    traces, skipped = [], []
    for name in names:
        try:
            traces.append(traced(name, accesses, folder))
        except NoTrace as e:
            print(f"   {e}", flush=True)
            skipped.append(str(e))
    return traces, skipped


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("--accesses", type=int, default=8_000, help="accesses of each trace on the real server")
    parser.add_argument("--trace", action="append", help="only this trace; nothing is written")
    parser.add_argument("--traces", type=Path, default=default_folder(), help="folder of recorded traces")
    chosen = parser.parse_args(argv)
    names, begin = chosen.trace or [*RECORDED, ZIPF], time.monotonic()
    whole, skipped = load(names, ALL, chosen.traces)
    curves = curves_of(whole)
    walks = {
        name: prefetch.accesses_of(name, chosen.traces, EACH_BYTES)
        for name in names
        if name in {t.name for t in whole} - {ZIPF}
    }
    tables = [
        simulated(whole, curves), real(load(names, chosen.accesses, chosen.traces)[0]),
        late(whole, load(names, LATE_FACTOR * chosen.accesses, chosen.traces)[0]), prefetch.simulated(walks),
        prefetch.real(walks, chosen.accesses),
    ]  # fmt: skip
    for table in tables:
        for name, value in table.figures.items():
            print(f"   {name}: {value:.3f}")
    if not chosen.trace:
        took = f"{datetime.date.today():%Y-%m-%d}, in {time.monotonic() - begin:.0f} s."
        write_page(tables, lambda folder: plot(curves, folder), [took, *skipped])
    return 0


if __name__ == "__main__":
    sys.exit(main())
