"""`distier archive export` and `distier archive import`: the archive as a tar file."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from . import exits, output
from .archive import DEADLINE_S, archive_alone
from .session import session_of

if TYPE_CHECKING:
    from distier.plans.common.namespace import Namespace
    from distier.plans.recovery.importing import Imported

TOGETHER, TOGETHER_BYTES = 32, 16 << 20
"""The most objects, and the most bytes, that an import has in memory before it writes them."""


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


def import_(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The tar file of an export; - for stdin.")],
) -> None:
    """Write an export into an archive that the namespace has not used yet. Needs no Redis.

    The namespace may have another name than the exported one. If the import is stopped, run it again. Afterwards a Redis
    without the namespace gets its records by itself, or at once by `distier rescue`.
    """
    from distier.plans.recovery.importing import check_unused, write_objects
    from distier.plans.recovery.rebuild import rebuild

    session, foreign = session_of(context), list[str]()
    n, batch, last, size = 0, list["Imported"](), list["Imported"](), 0
    with archive_alone(session) as (space, driver):
        driver.run(check_unused(space))
        for one in _members(space, file, foreign):
            if one.last:
                last.append(one)
                continue
            batch.append(one)
            size += len(one.data)
            if len(batch) >= TOGETHER or size >= TOGETHER_BYTES:
                n += driver.run(write_objects(space, batch))
                batch, size = [], 0
        n += driver.run(write_objects(space, batch))
        if not n:
            raise typer.BadParameter(f"{file} has no module: it is no export")
        driver.run(rebuild(space, records=False))
        n += driver.run(write_objects(space, last))
        archive = driver.archive.name
    for name in foreign:
        output.say(f"distier: {output.shown(name)}: not imported: no export has an object of that name")
    text = f"{output.counted(n, 'object')} imported into namespace {space.namespace!r} in {archive}"
    session.print_result({"objects": n, "archive": archive, "foreign": foreign}, text)
    if foreign:
        raise typer.Exit(exits.IN_PART)


def _members(space: Namespace, file: str, foreign: list[str]) -> Iterator[Imported]:
    """Iterate over the objects of a tar file. `foreign` gets the names of others."""
    from distier.plans.recovery.importing import place

    most = 2 * space.config.max_module_bytes + (1 << 20)
    try:
        source = cast("IO[bytes]", sys.stdin.buffer) if file == "-" else Path(file).open("rb")  # noqa: SIM115
        with source, tarfile.open(fileobj=cast("IO[bytes]", ending := _Ending(source)), mode="r|") as tar:
            for info in tar:
                if info.isdir():
                    continue
                found = place(space, info.name.removeprefix("./")) if info.isfile() and info.size <= most else None
                body = tar.extractfile(info) if found is not None else None
                if found is None or body is None:
                    foreign.append(info.name)
                else:
                    yield found._replace(data=body.read())
            while ending.read(1 << 20):
                pass
        if ending.last != _END:  # tarfile takes a file that ends between two members for a whole one
            raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, EOFError) as e:
        raise typer.BadParameter(f"{file} is damaged, or no tar file: {e}") from None
    except OSError as e:
        raise typer.BadParameter(f"cannot read {file}: {e.strerror or e}") from None


_END = bytes(1024)
"""How a tar file ends."""


class _Ending:
    """A stream that remembers the last bytes that were read."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.last = source, b""

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.last = (self.last + data)[-len(_END) :]
        return data
