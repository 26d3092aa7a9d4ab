"""A table of `make bench`: rows for the page, and the figures that are compared with the goals."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Table:
    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    """The figures by name that are compared with the goals."""

    def add(self, *cells: object) -> None:
        self.rows.append(tuple(cell_of(cell) for cell in cells))
        print("   " + " | ".join(self.rows[-1]), flush=True)


def cell_of(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    return str(value)
