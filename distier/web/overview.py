"""The first view: is it healthy, how full is it, what moves, how often is the archive needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distier.views import budgets_view

from .html import Html, ident, join, tag, url
from .show import bar, counted, module_link, number, section, size, table, tier

if TYPE_CHECKING:
    from distier.plans.fleet.statistics import Stats

POLL = "every 2s"
BOXES = {"none": 10, "hot": 110, "warm": 210, "cold": 310}
"""Where the boxes of the flows begin, in a drawing that is 380 wide."""
BOX_WIDE, BOX_HIGH = 60, 34
ROOM = {0: 74, 1: 74, 2: 100, 3: 126}
"""The room above or below the boxes, by the longest way of an arrow there."""
STRONG = 60
"""From one move a second an arrow is drawn in its full colour."""


def overview(
    root: str, health: dict[str, Any], totals: dict[str, Any], stats: Stats, flows: Mapping[tuple[str, str], int],
    recent: list[dict[str, Any]],
) -> Html:  # fmt: skip
    reads = section("Reads of all processes", _reads(totals))
    left = tag("div", section("Tiers", _tiers(root, totals, stats)), reads)
    right = tag("div", section("Flows", _flows(flows)))
    state = tag(
        "div", _health(health), tag("div", left, right, class_="columns"),
        id="state", hx_get=url(root, "/"), hx_trigger=POLL, hx_select="#state", hx_swap="outerHTML",
    )  # fmt: skip
    chart = section(
        "Hit ratio",
        tag("p", "The part of the reads that needed no archive, in percent, while this server runs."),
        tag("div", id="chart", role="img", aria_label="Hit ratio over time, in percent; the totals are above"),
        tag("p", "There are no reads yet.", id="no-reads"),
    )
    below = tag("div", tag("div", chart), tag("div", _live(root, recent)), class_="columns")
    return join(tag("h1", "Overview"), state, below)


def unreadable(root: str, why: str) -> Html:
    """Return the overview while Redis cannot be read. It goes on asking."""
    text = tag("p", tag("strong", "Redis cannot be read. "), why, class_="bad note")
    poll = {"hx_get": url(root, "/"), "hx_trigger": POLL, "hx_select": "#state", "hx_swap": "outerHTML"}
    return join(tag("h1", "Overview"), tag("div", text, id="state", **poll))


def _health(health: dict[str, Any]) -> Html:
    bad = [c for c in health["checks"] if not c["ok"]]
    line = "Healthy" if not bad else f"{len(bad)} thing{'s' * (len(bad) != 1)} to look at"
    items = [
        tag("li", tag("b", "ok" if c["ok"] else "look", class_="mark"), tag("span", f"{c['check']}: {ident(c['text'])}"),
            class_="ok" if c["ok"] else "bad")
        for c in sorted(health["checks"], key=lambda c: bool(c["ok"]))
    ]  # fmt: skip
    good = "ok" if not bad else "bad"
    return tag(
        "section", tag("h2", line, class_=f"line {good}"), tag("ul", *items, class_="checks"), aria_label="Health"
    )


def _tiers(root: str, totals: dict[str, Any], stats: Stats) -> Html:
    if not totals["count"]:
        return tag("p", "The namespace is empty: no module has been put yet.", class_="empty")
    made = []
    for name in ("hot", "warm", "cold"):
        held = totals[name]
        bars = [
            tag("div", bar(b["part"], f"{b['name']}: {b['part']:.0%} of the budget"),
                tag("span", f"{_amount(b['unit'], b['used'])} of {_amount(b['unit'], b['max'])} {_unit(b['unit'])} "
                            f"({b['part']:.0%})"), class_="budget")
            for b in budgets_view(stats) if b["tier"] == name
        ]  # fmt: skip
        link = tag("a", counted(held["count"], "module"), href=url(root, "/modules", tier=name))
        more = [f", {number(held['tokens'])} tokens, {size(held['size_bytes'])}"]
        if name == "cold":
            more.append(
                f"; the archive has {counted(held['archived_count'], 'version')} in {size(held['stored_bytes'])}"
            )
        if held.get("ratio"):
            more.append(f", compressed {held['ratio']:.1f} times")
        made.append(tag("div", tag("p", tier(name), " ", link, *more), *bars, class_="tier-row"))
    waits = f"Not archived yet: {counted(totals['dirty_count'], 'version')}, {size(totals['dirty_bytes'])}. "
    oldest = tag("a", "Oldest first", href=url(root, "/modules", order="dirty")) if totals["dirty_count"] else None
    return join(*made, tag("p", waits, oldest))


def _amount(unit: str, n: float) -> str:
    return size(n) if unit == "bytes" else number(n)


def _unit(unit: str) -> str:
    return "" if unit == "bytes" else unit


def _reads(totals: dict[str, Any]) -> Html:
    reads, eviction = totals["reads"], totals["eviction"]
    if reads["hit_ratio"] is None:
        return tag("p", "Nothing has been read yet.", class_="empty")
    rows = [(tier(name), number(reads[name]), number(reads[f"{name}_tokens"])) for name in ("hot", "warm", "cold")]
    text = f"{reads['hit_ratio']:.1%} of all reads needed no archive. Eviction policy: {eviction['policy']}"
    if eviction["regret"]:
        text += f"; {number(eviction['regret'])} modules were wanted back within ten minutes after they were evicted"
    return join(tag("p", text + "."), table("Reads by tier", ("tier", ">reads", ">tokens"), rows, ""))


def _flows(flows: Mapping[tuple[str, str], int]) -> Html:
    """Return the moves of the last minute: arrows to the right above the boxes, to the left below, wider for more moves."""
    shown = {(a, b): n for (a, b), n in flows.items() if n and (_box(a), _box(b)) != ("", "") and _box(a) != _box(b)}
    merged: dict[tuple[str, str], int] = {}
    for (a, b), n in shown.items():
        merged[_box(a), _box(b)] = merged.get((_box(a), _box(b)), 0) + n
    words = ", ".join(f"{a} to {b} {number(n)}" for (a, b), n in sorted(merged.items(), key=lambda kv: -kv[1]))
    above = max((_steps(a, b) for a, b in merged if BOXES[a] < BOXES[b]), default=0)
    below = max((_steps(a, b) for a, b in merged if BOXES[a] > BOXES[b]), default=0)
    top = ROOM[above]
    arrows = [_arrow(a, b, n, top) for (a, b), n in merged.items()]
    parts = [shape for shapes, _ in arrows for shape in shapes]
    for name, x in BOXES.items():
        parts.append(tag("rect", x=x, y=top, width=BOX_WIDE, height=BOX_HIGH, rx=6, class_=f"box {name}"))
        parts.append(tag("text", name, x=x + BOX_WIDE / 2, y=top + 22, class_="name"))
    parts += [count for _, count in arrows]  # above all shapes
    label = f"Moves in the last minute: {words or 'none'}"
    drawing = tag(
        "svg", *parts, class_="flows", viewBox=f"0 0 380 {top + BOX_HIGH + ROOM[below]}", role="img", aria_label=label
    )
    text = f"Moves in the last minute: {words}." if words else "Nothing moved in the last minute."
    return join(drawing, tag("p", text))


def _box(name: str) -> str:
    return name if name in BOXES else "none"  # a deleted module leaves


def _steps(a: str, b: str) -> int:
    return abs(list(BOXES).index(a) - list(BOXES).index(b))


def _arrow(a: str, b: str, n: int, top: int) -> tuple[list[Html], Html]:
    """Return a curve from box to box, and its number. A longer way is a higher curve, which begins and ends further out, so
    that no two curves cross."""
    steps = _steps(a, b)
    right = BOXES[a] < BOXES[b]
    out, side = (-1, 1) if right else (1, -1)
    inset = side * (30 - 12 * steps)
    x1, x2 = BOXES[a] + BOX_WIDE / 2 + inset, BOXES[b] + BOX_WIDE / 2 - inset
    edge = top - 3 if right else top + BOX_HIGH + 3
    high = 30 + 34 * steps
    wide = round(min(12.0, 1.0 + 1.4 * math.log2(1 + n)), 1)
    tip = 4 + wide / 2
    end = edge + out * tip
    curve = f"M {x1} {edge} C {x1} {edge + out * high}, {x2} {edge + out * high}, {x2} {end}"
    head = f"{x2 - tip},{end} {x2 + tip},{end} {x2},{edge}"
    y = edge + out * (0.75 * high + wide / 2 + (4 if right else 12))
    strong = " strong" if n >= STRONG else ""
    shapes = [
        tag("path", d=curve, stroke_width=wide, class_=f"flow {'down' if right else 'up'}{strong}"),
        tag("polygon", points=head, class_=f"head {'down' if right else 'up'}{strong}"),
    ]
    return shapes, tag("text", number(n), x=(x1 + x2) / 2, y=round(y, 1), class_="count")


def _live(root: str, recent: list[dict[str, Any]]) -> Html:
    rows = [
        tag("tr", tag("td", _clock(e["at_ms"])), tag("td", f"{e['from']} → {e['to']}"), tag("td", e["reason"]),
            tag("td", module_link(root, e["id"]) if e["id"] else "(the shard)"))
        for e in recent
    ]  # fmt: skip
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("time", "move", "reason", "module"))))
    body = tag("tbody", *rows, id="moves", data_events=url(root, "/events"), data_module=url(root, "/module"))
    button = tag("button", "Pause", type="button", id="pause", class_="secondary outline", aria_pressed="false")
    said = tag("span", "", id="stream", role="status")
    moves = tag(
        "div", tag("table", head, body), class_="scroll moves", role="region", aria_label="Live moves", tabindex="0"
    )
    return section("Live moves", tag("p", button, " ", said, class_="controls"), moves)


def _clock(ms: int) -> str:
    seconds = ms // 1000
    return f"{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
