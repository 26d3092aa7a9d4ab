"""Traces of accesses: lines of CSV, `time,key,size[,session]`, with or without a header."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from distier.errors import Invalid

COLUMNS = ("time", "key", "size", "session")
"""The columns of a trace without a header. With one, `key` must be there, and `tokens` may be."""
ACCESSES_MAX = 50_000_000
"""A trace of that length takes 2.4 GB of memory."""


class Trace(NamedTuple):
    """A trace.

    A module has one size, the largest that the trace has for it: a simulation has no versions, and with changing sizes its
    bounds would not hold.

    Attributes:
        names: The key of each module.
        accesses: The position in `names` of each access.
        sizes: The bytes of each module, at least 1.
        tokens: The tokens of each module; None if they are not known.
    """

    names: list[str]
    accesses: array[int]
    sizes: list[int]
    tokens: list[float] | None
    times_s: array[float] = array("d")
    """The time of each access; 0 if it is not known."""
    sessions: array[int] = array("q")
    """The session of each access, as a number; 0 if there are no sessions."""

    @property
    def footprint(self) -> int:
        """The bytes of all modules."""
        return sum(self.sizes)

    def total(self, of: Iterable[float]) -> float:
        """Return the sum over all accesses of what each module has in `of`."""
        amounts = list(of)
        return sum(amounts[i] for i in self.accesses)


def parse_trace(lines: Iterable[str], tokens_per_byte: float | None = None) -> Trace:
    """Return the trace in these lines.

    Args:
        lines: Lines of CSV. A trace without sizes has modules of one byte.
        tokens_per_byte: The tokens of a byte, for a trace without a column `tokens`.

    Raises:
        Invalid: a line has no key, or a size that is no whole number from 0; the message has its number. Or there is no access.
    """
    rows = csv.reader(lines)
    positions: dict[str, int] = {}
    accesses, sizes, counts = array("q"), list[int](), list[float]()
    times_s, sessions, numbers = array("d"), array("q"), dict[str, int]()
    columns: dict[str, int] = {}
    for row in _numbered(rows):
        number, cells = row
        if not columns:
            columns = _columns(cells)
            if "key" not in columns:
                raise Invalid(f"line {number} of the trace is {','.join(cells)!r:.80}: a header needs a column `key`")
            if _is_header(cells):
                continue
        key = _cell(cells, columns, "key", number)
        size = _amount(_cell(cells, columns, "size", number), "size", number) if "size" in columns else 1
        i = positions.setdefault(key, len(positions))
        if i == len(sizes):
            sizes.append(1)
            counts.append(0.0)
        sizes[i] = max(sizes[i], size)
        if "tokens" in columns:
            counts[i] = max(counts[i], _amount(_cell(cells, columns, "tokens", number), "tokens", number))
        accesses.append(i)
        times_s.append(_time(_cell(cells, columns, "time", number)) if "time" in columns else 0.0)
        session = _cell(cells, columns, "session", number) if "session" in columns else ""
        sessions.append(numbers.setdefault(session, len(numbers)))
        if len(accesses) > ACCESSES_MAX:
            raise Invalid(f"the trace has more than {ACCESSES_MAX:,} accesses: use a part of it")
    if not accesses:
        raise Invalid("the trace has no accesses: it needs lines of `time,key,size`")
    known = counts if "tokens" in columns else None
    if known is None and tokens_per_byte is not None:
        known = [size * tokens_per_byte for size in sizes]
    return Trace(list(positions), accesses, sizes, known, times_s, sessions)


def _numbered(rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, with the numbers of their lines."""
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            if row:
                yield number, row
    except csv.Error as e:
        raise Invalid(f"line {number + 1} of the trace is no CSV: {e}") from e


def _is_header(cells: list[str]) -> bool:
    return any(cell.strip().lower() in ("key", "size") for cell in cells)


def _columns(cells: list[str]) -> dict[str, int]:
    """Return the positions of the columns by name, from the first line."""
    if not _is_header(cells):
        return {name: i for i, name in enumerate(COLUMNS[: len(cells)])}
    return {cell.strip().lower(): i for i, cell in enumerate(cells)}


def _cell(cells: list[str], columns: dict[str, int], name: str, number: int) -> str:
    at = columns[name]
    if at >= len(cells):
        raise Invalid(f"line {number} of the trace has no column `{name}`: {','.join(cells)!r:.80}")
    return cells[at].strip()


def _time(text: str) -> float:
    """Return a time in seconds; 0 for one that is no number, because only predictions by the hour need it."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if abs(seconds) < 1e12 else 0.0


def _amount(text: str, name: str, number: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Invalid(
            f"line {number} of the trace: {name} must be a whole number of at most 15 digits, not {text!r:.40}"
        )
    return int(text)
