"""`distier archive export`: the archive as a tar file."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, cast

import typer

from . import exits, output
from .archive import DEADLINE_S
from .session import session_of


def export(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The tar file to write; - for stdout.")],
    prefix: Annotated[str, typer.Option("--prefix", help="Only modules whose ids start with this.")] = "",
) -> None:
    """Write all versions, tombstones and metadata into a tar file.

    Unpacked, it is an archive in a directory, which storage_tiers.cold.directory can name. Exits with code 10 if an object is
    missing in it. An existing file is replaced when the new one is complete.
    """
    from distier.plans.recovery.export import Exported
    from distier.plans.recovery.export import export as export_plan
    from distier.plans.recovery.walk import Skipped

    session, skipped = session_of(context), Skipped()
    partial = None if file == "-" else Path(f"{file}.partial-{os.getpid()}")
    try:
        with session.store(existing=True) as store:
            sink = cast("IO[bytes]", sys.stdout.buffer if partial is None else partial.open("xb"))
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:

                def write(one: object) -> None:
                    if isinstance(one, Exported):
                        info = tarfile.TarInfo(one.key)
                        info.size, info.mtime, info.mode = len(one.data), one.modified_ms / 1000, 0o644
                        tar.addfile(info, io.BytesIO(one.data))

                n = store.run(
                    export_plan(store.space, skipped, prefix=prefix), deadline_s=DEADLINE_S, on_progress=write
                )
            sink.flush()
            if partial is not None:
                os.fsync(sink.fileno())
                sink.close()
                partial.replace(file)
    except OSError as e:
        raise typer.BadParameter(f"cannot write {file}: {e.strerror or e}") from None
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()
    for name, why in skipped.why.items():
        output.say(f"distier: {output.shown(name)}: {why}")
    if partial is not None:
        missing = {name: str(why) for name, why in skipped.why.items()}
        session.print_result({"objects": n, "missing": missing}, f"{output.counted(n, 'object')} exported")
    if skipped.why:
        raise typer.Exit(exits.IN_PART)
