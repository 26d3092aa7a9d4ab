"""docs/POLICIES.md: how to choose a policy, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.table import Table
from distier.policy.eviction.table import POLICIES

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = Path(__file__).with_name("guide.md")


def write_page(tables: Sequence[Table], plots: Callable[[Path], list[str]], notes: Sequence[str]) -> None:
    described = "\n".join(
        ["| policy | what leaves first |", "|---|---|", *(f"| `{p.name}` | {p.what} |" for p in POLICIES.values())]
    )
    parts = [GUIDE.read_text().format(rows=described), "## What was measured\n", " ".join(notes) + "\n"]
    for table in tables:
        parts += [f"### {table.title}\n", _markdown(table)]
        if table.figures:
            parts += ["\n".join(f"- {name}: {value:.2f}" for name, value in table.figures.items()) + "\n"]
        if table.notes:
            parts.append(table.notes + "\n")
    names = plots(DOCS / "images" / "policies")
    if names:
        parts += ["### Miss ratio against budget, simulated\n"]
        parts += [
            f"![Miss ratio of each policy against the budget, {name}](images/policies/{name}.svg)\n" for name in names
        ]
    (DOCS / "POLICIES.md").write_text("\n".join(parts))


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table.rows)]) + "\n"
