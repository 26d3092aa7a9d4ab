"""Output of the demo: a live table on a terminal, plain lines elsewhere, and the report at the end."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distier.demo import AgentRow, Progress, Report, Settings, run
from distier.domain.module import Event
from distier.plans.fleet.statistics import Stats
from distier.views import stats_view, view

from . import output

LINE_EVERY_S = 2.0
PROBLEMS_SHOWN = 10


def run_demo(settings: Settings, *, as_json: bool, details: bool = False) -> bool:
    """Run the demo, show its progress and print its report. Returns whether all checks passed."""
    home = settings.home
    try:
        with _interrupted_once(), _view() as view:
            report = run(settings, view.update)
    except KeyboardInterrupt:
        output.say(f"distier demo: interrupted; {f'its data is kept in {home}' if home else 'its data is deleted'}")
        raise
    if as_json:
        output.emit(report_row(report))
    else:
        output.show(*(details_view(report) if details else ()), *report_view(report))
        if home is not None:
            output.say(f"the data is kept in {home}; inspect it with `distier --home {home} stats`")
    return report.good


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Make SIGTERM clean up like Ctrl-C, and ignore further signals.

    The cleanup takes two seconds. A second signal must not cut it short, because a server would keep running.
    """
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    before = {end: signal.signal(end, interrupt) for end in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


# -- while it runs ------------------------------------------------------------------------------------------------------


@contextmanager
def _view() -> Iterator[LiveView | LineView]:
    if not sys.stderr.isatty():
        yield LineView()
        return
    view = LiveView()
    console = Console(stderr=True)
    with Live(console=console, transient=True, get_renderable=view.table, refresh_per_second=4):
        yield view


class LineView:
    """Prints a line for every new phase, and every `LINE_EVERY_S` seconds during a long one."""

    def __init__(self) -> None:
        self._phase = ""
        self._printed_s = 0.0

    def update(self, p: Progress) -> None:
        now_s = time.monotonic()
        if p.phase == self._phase and now_s - self._printed_s < LINE_EVERY_S:
            return
        self._phase, self._printed_s = p.phase, now_s
        output.say("  ".join(part for part in (f"distier demo: {p.phase}", _done(p), _line(p)) if part))


class LiveView:
    """A table that is redrawn in place. It also reads the servers' state between updates, as in a long step."""

    def __init__(self) -> None:
        self._latest = Progress("starting")

    def update(self, p: Progress) -> None:
        self._latest = p

    def table(self) -> RenderableType:
        p = self._latest
        return live_table(p.again() if p.again else p)


def _done(p: Progress) -> str:
    return f"{p.done:.0f} of {p.total:.0f}" if p.total else ""


def _line(p: Progress) -> str:
    if p.stats is None:
        return ""
    s = p.stats
    tiers = (
        f"hot {s.hot.count} ({s.hot.tokens:,} of {s.hot.max_tokens:,} tokens), warm {s.warm.count}, cold {s.cold.count}"
    )
    return f"{tiers}; {p.rate:.0f} ops/s" if p.rate else tiers


def live_table(p: Progress) -> RenderableType:
    """Return the current state: the phase, the tiers with their budgets, and the latest moves."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text("distier demo", "bold"), Text(p.phase), ProgressBar(p.total or 1, p.done, 24) if p.total else "", _done(p)
    )
    if p.stats is None:
        return head
    moved = sum(p.moves.values())
    rate = f", {p.rate:,.0f}/s" if p.rate else ""
    foot = f"{p.operations:,} operations{rate}   {moved:,} moves   {p.samples:,} samples of the budgets"
    last = [Text(_move(event), "dim", no_wrap=True, overflow="ellipsis") for event in p.last_moves]
    return Group(head, "", _tiers(p.stats), "", Text(foot, "dim"), *last)


def _move(e: Event) -> str:
    where = f"{e.from_} > {e.to}"
    return f"{where:<12}  {e.reason:<9} {output.shown(e.id)}"


def _tiers(s: Stats) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("tier", ">modules", ">tokens", ">stored", ">ratio", "budget"):
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    hot, warm, cold, n = s.hot, s.warm, s.cold, output.number
    warm_share = max(warm.count / warm.max_modules, warm.stored_bytes / warm.max_bytes) if warm.max_modules else 0
    rows = (
        ("hot", "red", n(hot.count), n(hot.tokens), output.size(hot.size_bytes), "", hot.tokens / max(1, hot.max_tokens)),
        ("warm", "yellow", n(warm.count), n(warm.tokens), output.size(warm.stored_bytes), output.ratio(warm.ratio),
         warm_share),
        ("cold", "blue", n(cold.count), n(cold.tokens), output.size(cold.stored_bytes), output.ratio(cold.ratio), None),
    )  # fmt: skip
    for tier, colour, count, tokens, stored, ratio, share in rows:
        table.add_row(Text(tier, f"bold {colour}"), count, tokens, stored, ratio, _gauge(share, colour))
    return table


def _gauge(share: float | None, colour: str) -> RenderableType:
    if share is None:
        return Text("the archive: all of it", "dim")
    grid = Table.grid(padding=(0, 1))
    style = {"complete_style": colour, "finished_style": colour}
    grid.add_row(ProgressBar(1.0, min(share, 1.0), 18, **style), Text(f"{share:.0%}"))  # type: ignore[arg-type]
    return grid


# -- the report ---------------------------------------------------------------------------------------------------------


AGENTS_SHOWN = 4


def report_view(r: Report) -> list[RenderableType]:
    """Return the report, which ends with the verdict. It fits on 80 columns and 24 lines if all checks passed."""
    assert r.stats is not None
    s = r.settings
    tokens = r.stats.hot.tokens + r.stats.warm.tokens + r.stats.cold.tokens
    head = (
        f"{r.modules:,} modules of the standard library, {output.size(r.size_bytes)}, {tokens / 1e6:.1f} M tokens\n"
        f"{s.agents} agents and 1 worker for {r.work_s:.0f} s: {r.operations:,} operations, "
        f"{r.operations / r.work_s:,.0f}/s; {r.total_s:.0f} s in all"
    )
    checks = [Text.assemble((" ok  " if ok else "FAIL ", "bold green" if ok else "bold red"), what)
              for ok, what in r.checks()]  # fmt: skip
    problems = [Text(f"     {problem.text}", "red") for problem in r.problems[:PROBLEMS_SHOWN]]
    if len(r.problems) > PROBLEMS_SHOWN:
        problems.append(Text(f"     and {len(r.problems) - PROBLEMS_SHOWN} more", "red"))
    lines = [*head.splitlines(), *_agents(r), *_sums(r), *_last(r)]
    shown = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
    return [*shown, *checks, *problems, _verdict(r)]


def _verdict(r: Report) -> Text:
    bad = [ok for ok, _ in r.checks()].count(False)
    if r.good:
        return Text("passed: every byte is where it should be, and no budget was exceeded", "bold green")
    return Text(f"FAILED: {output.counted(bad, 'check')} of {len(r.checks())} failed", "bold red")


def _agents(r: Report) -> list[str]:
    """Return a row for each of the first agents, and a line that counts the others."""
    if not r.agents:
        return []
    n = output.number
    rows = []
    more = len(r.agents) - AGENTS_SHOWN + 1 if len(r.agents) > AGENTS_SHOWN else 0
    for a in r.agents[: len(r.agents) - more]:
        p50, p99 = (_time(percentile(list(a.times_us), share)) for share in (0.5, 0.99))
        rate = f"{a.hits / a.reads:.0%}" if a.reads else ""
        rows.append((a.name, n(a.operations), n(a.reads), rate, n(a.writes), p50, p99))
    columns = ("agent", ">operations", ">reads", ">near or hot", ">writes", ">get p50", ">p99")
    return [*output.long_rows(columns, rows, ()), *([f"and {more} others"] if more else [])]


def _sums(r: Report) -> list[str]:
    """Return one line each for the hit rate over time, read latency, peak usage, and the most frequent moves."""
    assert r.stats is not None
    lines = []
    if r.hit_rates:
        lines.append("near or hot, over time: " + " ".join(f"{rate:.0%}" for rate in r.hit_rates))
    gets = [(tier, times) for tier in TIERS if (times := r.times_us.get(f"get {tier}"))]
    if gets:
        lines.append("get p50: " + ", ".join(f"{tier} {_time(percentile(times, 0.5))}" for tier, times in gets))
    if line := _predicted(r):
        lines.append(line)
    full = ", ".join(f"{name} {used / most:.0%}" for name, (used, most) in r.peaks.items())
    lines.append(f"fullest: {full}")
    moves = ", ".join(f"{output.number(n)} {a} > {b}" for (a, b), n in _by_tiers(r).most_common(4))
    lines.append(f"moves: {moves or 'none'}")
    return lines


def _predicted(r: Report) -> str:
    """Return what prediction brought: how many modules came before they were asked for, and how many of those were used."""
    n = output.number
    issued, used = (sum(pair[i] for pair in r.predicted.values()) for i in (0, 1))
    if not issued:
        return ""
    sources = ", ".join(f"{name} {n(u)}/{n(i)}" for name, (i, u) in sorted(r.predicted.items()) if i)
    return f"loaded ahead: {output.counted(issued, 'module')}, {used / issued:.0%} of them used ({sources})"


def _by_tiers(r: Report) -> Counter[tuple[str, str]]:
    sums: Counter[tuple[str, str]] = Counter()
    for (a, b, _), n in r.moves.items():
        sums[a, b] += n
    return sums


def _last(r: Report) -> list[str]:
    moves = [f"  {_move(event)}" for event in r.last_moves[-2:]]
    return ["the last moves of the work, and why:", *moves] if moves else []


def details_view(r: Report) -> list[RenderableType]:
    """Return all measurements, which take more than one screen."""
    return [_calls(r), "", _budgets(r), "", _moves(r), ""]


def percentile(times_us: list[int], share: float) -> int:
    """Return the smallest time that a fraction `share` of `times_us` does not exceed, in microseconds; 0 for no times."""
    ordered = sorted(times_us)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def _time(us: int) -> str:
    if us < 100:
        return f"{us} us" if us else "<1 us"
    return f"{us / 1000:.2f} ms" if us < 10_000 else f"{us / 1000:.0f} ms"


TIERS = ("near", "hot", "warm", "cold")
CALLS = ("get near", "get hot", "get warm", "get cold", "get miss", "get_many", "put", "delete", "promote", "demote")


def _calls(r: Report) -> RenderableType:
    gets = sum(len(times) for kind, times in r.times_us.items() if kind.startswith("get "))
    rows = []
    for kind in CALLS:
        times = r.times_us.get(kind, [])
        if times:
            share = f"{len(times) / gets:.0%}" if kind.startswith("get ") else ""
            note = "of 8 modules" if kind == "get_many" else ""
            p50, p99 = (_time(percentile(times, p)) for p in (0.5, 0.99))
            rows.append((kind, output.number(len(times)), share, p50, p99, note))
    return output.table(("call", ">count", ">share", ">p50", ">p99", ""), rows)


def _budgets(r: Report) -> RenderableType:
    assert r.stats is not None
    ratios = {"hot tokens": "", "warm modules": "", "warm bytes": f"lz4 {output.ratio(r.stats.warm.ratio)}"}
    rows = [
        (name, output.number(most), output.number(used), f"{used / most:.1%}", ratios.get(name, ""))
        for name, (used, most) in r.peaks.items()
    ]
    cold = r.stats.cold
    rows.append(("archive bytes", "none", output.number(cold.stored_bytes), "", f"xz {output.ratio(cold.ratio)}"))
    return output.table(("budget", ">limit", ">most seen", ">share", "ratio"), rows)


def _moves(r: Report) -> RenderableType:
    rows = [(f"{a} > {b}", reason, output.number(n)) for (a, b, reason), n in r.moves.most_common(9)]
    rest = sum(r.moves.values()) - sum(n for _, n in r.moves.most_common(9))
    if rest:
        rows.append(("others", "", output.number(rest)))
    return output.table(("move", "reason", ">count"), rows)


def _agent_row(a: AgentRow) -> dict[str, Any]:
    times = {"p50_us": percentile(list(a.times_us), 0.5), "p99_us": percentile(list(a.times_us), 0.99)}
    counts = {name: getattr(a, name) for name in ("name", "operations", "reads", "hits", "writes")}
    return counts | times


def report_row(r: Report) -> dict[str, Any]:
    """Return the report as a row for JSON, with times in microseconds."""
    times = {
        kind: {"count": len(t), "p50_us": percentile(t, 0.5), "p99_us": percentile(t, 0.99)}
        for kind, t in r.times_us.items()
    }
    return {
        "good": r.good, "modules": r.modules, "size_bytes": r.size_bytes, "operations": r.operations,
        "load_s": round(r.load_s, 3), "work_s": round(r.work_s, 3), "check_s": round(r.check_s, 3),
        "total_s": round(r.total_s, 3), "agents": [_agent_row(a) for a in r.agents],
        "hit_rates": [round(rate, 4) for rate in r.hit_rates],
        "last_moves": [view(e) for e in r.last_moves],
        "hits": r.hits, "calls": times,
        "predicted": {name: {"issued": i, "used": u} for name, (i, u) in r.predicted.items()}, "counts": r.counts,
        "moves": [{"from": a, "to": b, "reason": why, "count": n} for (a, b, why), n in r.moves.most_common()],
        "budgets": {name: {"most_seen": used, "limit": most} for name, (used, most) in r.peaks.items()},
        "samples": r.samples, "stats": stats_view(r.stats) if r.stats else None, "worker": r.worker,
        "checks": [{"ok": ok, "what": what} for ok, what in r.checks()], "problems": [p.text for p in r.problems],
    }  # fmt: skip
