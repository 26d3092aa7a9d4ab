"""How the commands print: results on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distier.errors import (
    ArchiveUnavailable,
    Conflict,
    Corrupt,
    DistierError,
    Full,
    NotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from rich.table import Table


Row = Mapping[str, Any]

_HINTS: tuple[tuple[type[DistierError], str], ...] = (
    (NotFound, ""),
    (ArchiveUnavailable, "`distier doctor` checks the archive; hot and warm modules can be read without it"),
    (Full, ""),  # the message itself says what to do
    (Unavailable, "`distier doctor` checks Redis; `distier config show` shows which server is used"),
    (Conflict, "read the module again (`distier where ID`), then retry with its new version"),
    (Corrupt, ""),
)


as_json = False
"""Whether `--json` was given. If so, errors on stderr are JSON too. `run` sets it."""


def say(text: str) -> None:
    """Print a message on stderr. A closed stderr must not fail the command."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # buffered output must not fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def flush() -> None:
    """Write what was printed now: the command goes on, and its reader waits for it."""
    sys.stdout.flush()


def emit(row: Row) -> None:
    """Print one JSON object on its own line."""
    print(json.dumps(row, ensure_ascii=False, separators=(", ", ": ")))


def report_error(error: BaseException, *, traceback: bool = False) -> None:
    """Print one line that says what went wrong, and one that says what to do."""
    if traceback:
        import traceback as tb

        tb.print_exception(error)
    from .exits import code_of

    code = code_of(error) if isinstance(error, DistierError) else 1
    hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")
    if isinstance(error, Conflict) and "pinned" in str(error):
        hint = ""
    print_error(type(error).__name__, str(error) or type(error).__name__, f"hint: {hint}" if hint else "", code)


def print_error(kind: str, message: str, hint: str, code: int) -> None:
    """Print an error on stderr: up to two lines of text, or one JSON object with `--json`."""
    if as_json:
        row = {"error": kind, "message": message, "hint": hint.removeprefix("hint: "), "exit_code": code}
        say(json.dumps(row, ensure_ascii=False))
        return
    say(f"distier: {message}")
    if hint:
        say(f"  {hint}")


def shown(id: str) -> str:
    """Return an id in the form to print.

    On a terminal, its control characters must have no effect. Elsewhere it must fit on one line, so that
    `session.ids_from` can read it back.
    """
    if sys.stdout.isatty():
        return id if id.isprintable() else repr(id)[1:-1]
    return json.dumps(id, ensure_ascii=False) if needs_quotes(id) else id


def needs_quotes(id: str) -> bool:
    """Return whether a line with this unquoted id would be read back as something else."""
    return not id.strip() or "\n" in id or "\r" in id or id.startswith("\ufeff") or (id[0] == id[-1] == '"')


def long_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> Iterator[str]:
    """Yield aligned lines without truncating a cell.

    On a narrow terminal, the columns in `spare` are dropped, the first one first. Lines that are still too long wrap.
    """
    at = list(range(len(columns)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    cells = [[name.lstrip(">") for name in columns], *rows]
    widths = [max(len(line[i]) for line in cells) for i in at]
    for name in spare:
        if sum(widths[i] + 2 for i in at) - 2 > width:
            at.remove(list(columns).index(name))
    for line in cells:
        parts = (f"{line[i]:>{widths[i]}}" if columns[i][0] == ">" else f"{line[i]:<{widths[i]}}" for i in at)
        yield "  ".join(parts).rstrip()


# -- numbers in readable form --------------------------------------------------------------------------------------


def size(size_bytes: float) -> str:
    """Return a size like `1.2 MiB`, in powers of 1024 like the budgets."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1023.5:
            digits = f"{size_bytes:.0f}" if unit == "B" or size_bytes >= 99.5 else f"{size_bytes:.1f}"
            return f"{digits.removesuffix('.0')} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def counted(n: int, thing: str) -> str:
    """Return a count with its noun: `1 module`, `1,200 modules`."""
    return f"{number(n)} {thing}{'s' * (n != 1)}"


def number(n: float) -> str:
    return f"{n:,.0f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def moment(ms: int | None) -> str:
    """Return a time as local date and time; empty for None."""
    return "" if ms is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


# -- values as rows for JSON ----------------------------------------------------------------------------------------


# -- tables -----------------------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """Return a plain table. A column whose name starts with `>` is right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False, show_edge=False
    )
    for name in columns:
        made.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    for cells in rows:
        made.add_row(*(Text(cell) for cell in cells))
    return made


def show(*things: Any) -> None:
    """Print rich renderables on stdout, at full width if stdout is not a terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str))


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Return aligned `name  value` lines, without the rows that have no value."""
    rows = [(name, value) for name, value in rows if value]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
