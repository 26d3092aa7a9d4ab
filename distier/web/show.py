"""How numbers, times and small pieces look on the page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from distier.views import span

from .html import Html, ident, tag, url


def number(n: float) -> str:
    return f"{n:,.0f}"


def counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def size(n: float) -> str:
    """Return bytes as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def moment(ms: float | None) -> Html:
    """Return a time of the server as UTC."""
    if not ms:
        return tag("span", "-")
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return tag("time", at.strftime("%Y-%m-%d %H:%M:%S"), datetime=at.isoformat(timespec="seconds"))


def ago(now_ms: float, ms: float | None) -> str:
    return f"{span(now_ms - ms)} ago" if ms else "-"


def tier(name: str) -> Html:
    return tag("span", name, class_=f"tier {name if name in ('hot', 'warm', 'cold', 'none') else 'other'}")


def module_link(root: str, id: str, shown: str | None = None) -> Html:
    return tag("a", ident(id) if shown is None else shown, href=url(root, "/module", id=id), class_="id")


def bar(part: float, label: str) -> Html:
    """Return a bar that is `part` full. An SVG, because inline styles are forbidden."""
    wide = round(100 * min(1.0, max(0.0, part)), 1)
    state = "over" if part > 1 else "high" if part >= 0.9 else "fine"
    fill = tag("rect", x=0, y=0, width=f"{wide}%", height="100%", class_=state)
    return tag("svg", fill, class_="bar", role="img", aria_label=label, preserveAspectRatio="none")


def table(label: str, head: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> Html:
    """Return a table that scrolls in itself on a narrow screen. Columns whose head begins with `>` are flush right."""
    if not rows:
        return tag("p", empty, class_="empty")

    def cls(name: str) -> str | None:
        return "n" if name.startswith(">") else None

    heads = [tag("th", name.removeprefix(">"), scope="col", class_=cls(name)) for name in head]
    body = [
        tag("tr", *(tag("td", cell, class_=cls(name)) for name, cell in zip(head, row, strict=True))) for row in rows
    ]
    made = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag("div", made, class_="scroll", role="region", aria_label=label, tabindex="0")


def facts(rows: Sequence[tuple[str, Any]]) -> Html:
    """Return pairs of a name and a value."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="facts")


def section(title: str, *children: Html | str | None, id: str | None = None) -> Html:
    return tag("section", tag("h2", title), *children, id=id)
