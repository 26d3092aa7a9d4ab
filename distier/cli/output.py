"""What is written, and how: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distier.domain.module import Event, Landed, Module, Moved, Placement
from distier.domain.order import Order
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

    from distier.plans.fleet.statistics import Stats

Row = Mapping[str, Any]

_HINTS: tuple[tuple[type[DistierError], str], ...] = (
    (NotFound, ""),
    (ArchiveUnavailable, "`distier doctor` checks the archive; what is hot or warm can be read without it"),
    (Full, ""),  # its messages say what to do
    (Unavailable, "`distier doctor` checks Redis; `distier config show` says which one is meant"),
    (Conflict, "read it again (`distier where ID`), then decide"),
    (Corrupt, ""),
)


as_json = False
"""Whether `--json` was given: then errors are JSON too, on stderr. Set by `run`."""


def say(text: str) -> None:
    """Talk: to stderr. Nobody may be there to hear it, which must not fail what is talked about."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # what is still buffered must not fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def emit(row: Row) -> None:
    """Data: one JSON object on its own line."""
    print(json.dumps(row, ensure_ascii=False, separators=(", ", ": ")))


def complain(error: BaseException, *, traceback: bool = False) -> None:
    """One line for what went wrong, one for what to do."""
    if traceback:
        import traceback as tb

        tb.print_exception(error)
    from .exits import code_of

    code = code_of(error) if isinstance(error, DistierError) else 1
    hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")
    if isinstance(error, Conflict) and "pinned" in str(error):
        hint = ""
    tell_error(type(error).__name__, str(error) or type(error).__name__, f"hint: {hint}" if hint else "", code)


def tell_error(kind: str, message: str, hint: str, code: int) -> None:
    """An error: for people two lines, with `--json` one object on a line of its own."""
    if as_json:
        told = {"error": kind, "message": message, "hint": hint.removeprefix("hint: "), "exit_code": code}
        say(json.dumps(told, ensure_ascii=False))
        return
    say(f"distier: {message}")
    if hint:
        say(f"  {hint}")


def shown(id: str) -> str:
    """An id for people: on a terminal, control characters in it must not act; elsewhere, it must stay one line, see
    `session.ids_from`."""
    if sys.stdout.isatty():
        return id if id.isprintable() else repr(id)[1:-1]
    return json.dumps(id, ensure_ascii=False) if needs_quotes(id) else id


def needs_quotes(id: str) -> bool:
    """Whether a line with this id as it is would be read as something else."""
    return not id.strip() or "\n" in id or "\r" in id or id.startswith("\ufeff") or (id[0] == id[-1] == '"')


def long_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> Iterator[str]:
    """Aligned lines, as `table`, but nothing is cut: on a terminal that is too narrow, columns of `spare` are left out, the
    first ones first, and what is still too long runs on."""
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


# -- numbers for people --------------------------------------------------------------------------------------------


def size(size_bytes: float) -> str:
    """`1.2 MiB`, in powers of 1024, as budgets are written."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1023.5:
            digits = f"{size_bytes:.0f}" if unit == "B" or size_bytes >= 99.5 else f"{size_bytes:.1f}"
            return f"{digits.removesuffix('.0')} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def counted(n: int, thing: str) -> str:
    """`1 module`, `1,200 modules`."""
    return f"{number(n)} {thing}{'s' * (n != 1)}"


def number(n: float) -> str:
    return f"{n:,.0f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def moment(ms: int | None) -> str:
    """A local time for people."""
    return "" if ms is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


# -- things as rows for JSON ----------------------------------------------------------------------------------------


def row(thing: Module | Landed | Placement | Moved | Event) -> dict[str, Any]:
    """The fields of a value in their own names; versions as `epoch-ver`, no content."""
    fields = {name: getattr(thing, name) for name in type(thing).__dataclass_fields__ if name != "content"}
    made = {name.rstrip("_"): str(v) if isinstance(v, Order) else v for name, v in fields.items()}
    if isinstance(thing, Placement):
        made["ratio"] = thing.ratio
    if isinstance(thing, Module):
        made |= {"keywords": list(thing.keywords), "meta": dict(thing.meta)}
    return made


def stats_row(stats: Stats) -> dict[str, Any]:
    def fields(of: Any) -> dict[str, Any]:
        return {name: getattr(of, name) for name in type(of).__dataclass_fields__}

    return {
        "count": stats.count,
        "hot": fields(stats.hot),
        "warm": fields(stats.warm) | {"ratio": stats.warm.ratio},
        "cold": fields(stats.cold) | {"ratio": stats.cold.ratio},
        "dirty_count": stats.dirty_count,
        "dirty_bytes": stats.dirty_bytes,
        "dirty_deletions": stats.dirty_deletions,
        "epochs": [fields(incarnation) for incarnation in stats.epochs],
        "shares": [fields(quota) for quota in stats.quotas],
        "node": stats.node,
        "nodes": {name: held._asdict() for name, held in sorted(stats.nodes.items())},
    }


# -- tables -----------------------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table; a column whose name starts with `>` is set to the right."""
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
    """Print rich things on stdout; as wide as they are where nobody is looking."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str))


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Aligned `name  value` lines; those without a value are left out."""
    rows = [(name, value) for name, value in rows if value]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
