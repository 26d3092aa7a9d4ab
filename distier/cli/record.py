"""The command `record`, and traces of living namespaces for `simulate` and `advise`."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .save import write_file
from .session import Session, duration_ms, session_of

if TYPE_CHECKING:
    from distier.policy.traces import Trace

STEP_S = 0.5
Row = tuple[float, str, int, int]
Live = Annotated[
    str | None,
    typer.Option("--live", metavar="DURATION", help="Instead of a trace: record this namespace's reads, for 30s, 10m."),
]


def register(app: typer.Typer) -> None:
    app.command("record")(record)


def record(
    context: typer.Context,
    duration: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long: 30s, 10m, 1h.")] = "1m",
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file instead of stdout.")
    ] = None,
) -> None:
    """Record the reads of all processes as a trace for `simulate` and `advise`: CSV `time,key,size,tokens`.

    Processes report uses once a second, so the order of reads within a second is not known. Ctrl-C ends the recording early,
    and what was recorded until then is written.
    """
    session = session_of(context)
    text = "".join(_lines(_recorded(session, duration)))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_file(out, text.encode())


def live_trace(session: Session, duration: str) -> Trace:
    """Record the namespace for some time, and return the trace.

    Raises:
        typer.BadParameter: Nothing was read meanwhile.
    """
    from distier.policy.traces import parse_trace

    rows = _recorded(session, duration)
    if not rows:
        raise typer.BadParameter(f"--live {duration}: no process read a module meanwhile")
    return parse_trace(_lines(rows))


def _recorded(session: Session, duration: str) -> list[Row]:
    from distier.observe.reads import Recording

    end_s = time.monotonic() + duration_ms(duration) / 1000
    with session.store(existing=True) as store:
        recording = Recording(store.space)
        store.run(recording.begin())
        try:
            while (left_s := end_s - time.monotonic()) > 0:
                time.sleep(min(STEP_S, left_s))
                store.run(recording.step())
        except KeyboardInterrupt:
            typer.echo("stopped: the trace ends here", err=True)
        finally:
            store.run(recording.end())
        return store.run(recording.rows())


def _lines(rows: list[Row]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in [("time", "key", "size", "tokens"), *((f"{at:.3f}", *rest) for at, *rest in rows)]:
        writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
