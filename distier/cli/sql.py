"""The command `sql`: questions about what is archived, answered by DuckDB from the manifest."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distier.errors import ConfigError, Invalid

from . import output
from .archive import archive_alone
from .session import session_of

if TYPE_CHECKING:
    from distier.domain.manifest import Row

COLUMNS = {
    "id": "VARCHAR", "version": "VARCHAR", "current": "BOOLEAN", "deleted": "BOOLEAN", "tokens": "BIGINT", "bytes": "BIGINT",
    "archived_bytes": "BIGINT", "type": "VARCHAR", "keywords": "VARCHAR[]", "meta": "VARCHAR", "created": "BIGINT",
    "updated": "BIGINT", "expires": "BIGINT", "sha256": "VARCHAR", "counter": "VARCHAR", "key": "VARCHAR", "pack": "VARCHAR",
}  # fmt: skip
"""The columns of `versions` and their types; `created`, `updated` and `expires` become timestamps."""
TABLES = """
    create table versions as
    select * replace (epoch_ms(created) as created, epoch_ms(updated) as updated, epoch_ms(expires) as expires)
    from read_json(?, format = 'newline_delimited', columns = {columns});
    create view modules as select * exclude (current, deleted) from versions where current;
"""
EXAMPLE = "select id, tokens, archived_bytes from modules order by tokens desc limit 10"


def register(app: typer.Typer) -> None:
    app.command("sql")(sql)


def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(metavar="[QUERY]", help="A statement of DuckDB's SQL; - reads stdin.")] = "",
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
) -> None:
    """Ask the archive's manifest with SQL, without Redis. Needs the extra `analytics` (DuckDB).

    The table `versions` has every version, and the view `modules` the current version of each module. Without a query,
    their columns are printed. `copy modules to 'modules.parquet'` writes a file for other tools. Times are in UTC.
    """
    session = session_of(context)
    if csv and session.json:
        raise typer.BadParameter("--csv cannot be combined with --json")
    try:
        import duckdb
    except ImportError as e:
        raise ConfigError("`distier sql` needs the extra `analytics`: pip install 'distier[analytics]'") from e
    statement = sys.stdin.read() if query == "-" else query or "describe versions"
    with tempfile.TemporaryDirectory(prefix="distier-sql-") as directory:
        path = Path(directory) / "versions.jsonl"
        with archive_alone(session) as (space, driver), path.open("w", encoding="utf-8") as file:
            from distier.plans.get.archive import list_versions

            def write(groups: Sequence[Sequence[Row]]) -> None:
                file.writelines(_line(row, current=row is rows[-1]) for rows in groups for row in rows)

            driver.run(list_versions(space), on_progress=write)
        with duckdb.connect(":memory:") as connection:
            columns = ", ".join(f"{name}: '{type}'" for name, type in COLUMNS.items())
            create, view = TABLES.replace("{columns}", f"{{{columns}}}").split(";")[:2]
            connection.execute(create, [str(path)])
            connection.execute(view)
            try:
                found = connection.execute(statement)
                names = [column[0] for column in found.description or ()]
                rows = found.fetchall() if names else []
            except duckdb.Error as e:
                raise Invalid(f"the query failed: {e}; an example: {EXAMPLE}") from e
    if csv:
        import csv as writers

        writer = writers.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_plain(value) for value in row] for row in rows)
    elif session.json:
        for row in rows:
            output.emit(dict(zip(names, map(_plain, row), strict=True)))
    else:
        output.show(output.table(_heads(names, rows), [[_text(value) for value in row] for row in rows]))


def _line(row: Row, *, current: bool) -> str:
    known = dict(row.known)
    epoch, _, rest = row.key.rpartition("/")[2][1:].partition("-")
    version = f"{int(epoch)}-{int(rest.partition('-')[0])}"
    named = {
        "id": row.id,
        "version": version,
        "key": row.key,
        "deleted": row.deleted,
        "expires": row.expires_ms,
        "current": current and not row.deleted and (row.expires_ms is None or row.expires_ms > time.time() * 1000),
    }
    return json.dumps({name: (known | named).get(name) for name in COLUMNS}, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date | datetime) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return output.shown(value) if isinstance(value, str) and value else str(value)


def _heads(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the heads of the columns; those of numbers are right-aligned."""
    first = rows[0] if rows else [None] * len(names)
    return [f">{name}" if isinstance(value, int | float) else name for name, value in zip(names, first, strict=True)]
