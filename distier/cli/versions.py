"""Commands about older versions of a module: history, rollback, diff."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distier.domain.difference import diff_lines
from distier.errors import NotFound
from distier.views import view

from . import exits, output
from .complete import complete_ids
from .modules import IfVersion, Level
from .session import Session, session_of

if TYPE_CHECKING:
    from distier.domain.module import HistoryEntry

Id = Annotated[str, typer.Argument(metavar="ID", help="Module id.", autocompletion=complete_ids)]


def register(app: typer.Typer) -> None:
    for function in (history, rollback, diff):
        app.command(function.__name__)(function)


def history(
    context: typer.Context,
    id: Id,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of versions.")] = 100,
) -> None:
    """Show the versions of a module, the newest first.

    The archive keeps storage_tiers.cold.keep_versions of them; the default keeps only the current one.
    """
    session = session_of(context)
    with session.store(existing=True) as store:
        found = store.history(id, limit=limit)
    if not found:
        raise NotFound(f"there is no version of module {id!r} in namespace {store.space.namespace!r}")
    print_history(session, found)


def print_history(session: Session, found: list[HistoryEntry]) -> None:
    """Print versions, one a line."""
    if session.json:
        for entry in found:
            output.emit(view(entry))
    else:
        print("\n".join(_history_lines(found)))


def _history_lines(found: list[HistoryEntry]) -> Iterator[str]:
    rows = [
        (
            str(entry.version),
            "current" if entry.current else "deleted" if entry.deleted else "",
            "" if entry.archived else "not archived",
            output.moment(entry.updated_ms or None),
            "" if entry.deleted else f"{output.number(entry.tokens)} tokens",
            "" if entry.deleted else output.size(entry.size_bytes),
            entry.sha256[:12],
            f"expires {output.moment(entry.expires_ms)}" if entry.expires_ms else "",
        )
        for entry in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True) if width).rstrip()


def rollback(
    context: typer.Context,
    id: Id,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Version to go back to, as `history` shows it.")],
    if_version: IfVersion = None,
    durability: Level = None,
) -> None:
    """Put an older version of a module again, as a new version. Also brings a deleted module back."""
    session = session_of(context)
    with session.store(existing=True) as store:
        landed = store.rollback(id, version, if_version=if_version, durability=durability)
    session.print_result(view(landed), f"{output.shown(id)}: version {version} is version {landed.version} now")


def diff(
    context: typer.Context,
    id: Id,
    older: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Older version [default: the one before].")
    ] = None,
    newer: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Newer version [default: the current one].")
    ] = None,
) -> None:
    """Show what changed between two versions of a module, as a unified diff.

    Exits with code 0 if the contents are equal, and 1 if they differ.
    """
    session = session_of(context)
    with session.store(existing=True) as store:
        if older is None:
            archived = [entry for entry in store.history(id, limit=100) if not entry.deleted]
            if len(archived) < 2:
                raise NotFound(
                    f"module {id!r} has no earlier version: `distier history {id}` lists those that are kept"
                )
            older = str(archived[1].version)
        before, after = store.get(id, version=older), store.get(id, version=newer)
    for module, version in ((before, older), (after, newer or "current")):
        if module is None:
            raise NotFound(f"module {id!r} has no version {version}: `distier history {id}` lists those that are kept")
    assert before is not None and after is not None
    lines = diff_lines(before, after, output.shown(id))
    if session.json:
        row: dict[str, Any] = {
            "id": id,
            "from": str(before.version),
            "to": str(after.version),
            "diff": "\n".join(lines),
        }
        output.emit(row)
    elif lines:
        print("\n".join(lines))
    if before.content != after.content:
        raise typer.Exit(exits.FAILED)
