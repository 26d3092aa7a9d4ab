"""Commands that work on the archive alone, without Redis: `manifest rebuild`, and the group `archive`, which reads it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distier.domain.ids import check_id
from distier.errors import DistierError, NotFound

from . import exits, output
from .session import Session, session_of

if TYPE_CHECKING:
    from distier.drive.sync import SyncDriver
    from distier.plans.common.namespace import Namespace
    from distier.plans.get.archive import Archived

DEADLINE_S = 24 * 3600.0
"""Time limit of a whole command, in seconds. Each request still has its own timeout; a repair waits for Redis that long."""


def register(app: typer.Typer) -> None:
    manifest = typer.Typer(no_args_is_help=True, help="Manage the list of what is archived.")
    manifest.callback()(lambda: None)  # makes it a group, although it has only one command
    manifest.command("rebuild")(rebuild)
    app.add_typer(manifest, name="manifest")


@contextmanager
def archive_alone(session: Session) -> Iterator[tuple[Namespace, SyncDriver]]:
    """Yield the namespace, and a driver that has the archive and no Redis."""
    from distier.client import archive_of, make_space
    from distier.drive.sync import SyncDriver
    from distier.stores.absent import AbsentExchange

    config = session.config()
    archive = archive_of(config)
    driver = SyncDriver(AbsentExchange(), archive, deadline_s=DEADLINE_S)
    try:
        yield make_space(config, archive), driver
    finally:
        driver.close()


def rebuild(context: typer.Context) -> None:
    """Rebuild the manifest from the archive's objects. Needs no Redis; agents may keep working.

    The manifest lists what is archived. It is written with each version and kept by the worker, so this is only needed
    for an archive that distier wrote before it had a manifest, or to repair a damaged one at once.
    """
    from distier.plans.recovery.rebuild import rebuild as rebuild_plan

    session = session_of(context)
    with archive_alone(session) as (space, driver):
        n = driver.run(rebuild_plan(space, records=False))
        name = driver.archive.name
    text = f"the manifest of namespace {space.namespace!r} in {name} lists {output.counted(n, 'version')}"
    session.print_result({"versions": n, "archive": name}, text)


Prefix = Annotated[str, typer.Argument(metavar="[PREFIX]", help="Beginning of the ids [default: all].")]
At = Annotated[
    str | None,
    typer.Option(
        "--at", metavar="TIME", help="As it was at that time: ISO 8601 such as 2026-11-28T06:00, local without a zone."
    ),
]
Version = Annotated[
    str | None, typer.Option("--version", metavar="VERSION", help="This version, as `history` shows it.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Module id.")]


def register_reading(archive: typer.Typer) -> None:
    """Add the commands that read the archive, to the group `archive`."""
    for name, function in (
        ("ls", ls),
        ("tree", tree),
        ("du", du),
        ("cat", cat),
        ("history", history),
        ("restore", restore),
        ("index", index),
    ):
        archive.command(name)(function)


def parse_time(text: str | None) -> int | None:
    """Return a time in milliseconds since the Unix epoch. Raises `typer.BadParameter`."""
    if text is None:
        return None
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"--at must be a time such as 2026-11-28T06:00 or 2026-11-28, not {text!r}") from None


def _each(session: Session, prefix: str, at: str | None, act: Callable[[Archived], None]) -> tuple[int, str]:
    """Call `act` with each module. Returns how many there are, and the namespace."""
    from distier.plans.get.archive import list_archive

    at_ms = parse_time(at)

    def some(found: list[Archived]) -> None:
        for module in found:
            act(module)

    with archive_alone(session) as (space, driver):
        return driver.run(list_archive(space, prefix, at_ms), on_progress=some), space.namespace


def ls(context: typer.Context, prefix: Prefix = "", at: At = None) -> None:
    """List the modules in the archive, without Redis: now, or with --at as they were then.

    How far back that goes depends on storage_tiers.cold.keep_versions: a version that was swept is not seen.
    """
    session = session_of(context)

    def show(module: Archived) -> None:
        if session.json:
            output.emit(module._asdict())
        else:
            print(output.shown(module.id))

    _each(session, prefix, at, show)


def tree(context: typer.Context, prefix: Prefix = "", at: At = None) -> None:
    """Show the modules in the archive as a tree, with their sizes there."""
    session, found = session_of(context), dict[str, int]()
    _each(session, prefix, at, lambda module: found.__setitem__(module.id, module.archived_bytes))
    if session.json:
        for id, size_bytes in sorted(found.items()):
            output.emit({"id": id, "archived_bytes": size_bytes})
        return
    above: list[str] = []
    for id, size_bytes in sorted(found.items(), key=lambda item: item[0].split("/")):
        *folders, name = id.split("/")
        same = next(
            (i for i, (a, b) in enumerate(zip(above, folders, strict=False)) if a != b), min(len(above), len(folders))
        )
        for depth in range(same, len(folders)):
            print(f"{'  ' * depth}{output.shown(folders[depth])}/")
        print(f"{'  ' * len(folders)}{output.shown(name)}  {output.size(size_bytes)}")
        above = folders


def du(context: typer.Context, prefix: Prefix = "", at: At = None) -> None:
    """Show how much the archive holds, by the first part of the ids below PREFIX."""
    session = session_of(context)
    sums: dict[str, list[int]] = {}

    def add(module: Archived) -> None:
        part = f"{prefix}{module.id.removeprefix(prefix).partition('/')[0]}"
        part += "/" if module.id != part else ""
        row = sums.setdefault(part, [0, 0, 0])
        for i, n in enumerate((1, module.archived_bytes, module.size_bytes or 0)):
            row[i] += n

    n, _ = _each(session, prefix, at, add)
    for part, (count, archived_bytes, size_bytes) in sorted(sums.items(), key=lambda item: -item[1][1]):
        if session.json:
            output.emit({"prefix": part, "modules": count, "archived_bytes": archived_bytes, "bytes": size_bytes})
        else:
            print(f"{output.size(archived_bytes):>10}  {output.counted(count, 'module'):>15}  {output.shown(part)}")
    if not session.json:
        total = sum(row[1] for row in sums.values())
        print(f"{output.size(total):>10}  {output.counted(n, 'module'):>15}  total")


def cat(context: typer.Context, id: Id, version: Version = None, at: At = None) -> None:
    """Write a module from the archive to stdout, without Redis."""
    from distier.plans.get.archive import read_archived

    session, at_ms = session_of(context), parse_time(at)
    if version is not None and at is not None:
        raise typer.BadParameter("--version cannot be combined with --at")
    with archive_alone(session) as (space, driver):
        module = driver.run(read_archived(space, check_id(id), version, at_ms))
        if module is None:
            raise NotFound(f"the archive of namespace {space.namespace!r} has no such version of module {id!r}")
    sys.stdout.buffer.write(module.content)
    sys.stdout.buffer.flush()


def history(
    context: typer.Context,
    id: Id,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of versions.")] = 100,
) -> None:
    """Show the versions of a module in the archive, the newest first, without Redis."""
    from distier.plans.get.archive import archived_history

    from .versions import print_history

    session = session_of(context)
    with archive_alone(session) as (space, driver):
        found = driver.run(archived_history(space, check_id(id), limit))
        if not found:
            raise NotFound(f"the archive of namespace {space.namespace!r} has no module {id!r}")
    print_history(session, found)


def restore(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to write to.")],
    prefix: Prefix = "",
    at: At = None,
) -> None:
    """Write the modules in the archive to files in DIR, named by their ids, without Redis: now, or as they were at a time.

    Exits with code 10 if a module could not be restored. All others are.
    """
    from distier.plans.get.archive import read_archived

    from .save import save

    session = session_of(context)
    found: list[Archived] = []
    _each(session, prefix, at, found.append)
    written = 0
    with archive_alone(session) as (space, driver):
        for one in found:
            try:
                module = driver.run(read_archived(space, one.id, one.version))
                if module is None:
                    raise NotFound(f"version {one.version} of module {one.id!r} was swept since the listing; try again")
                save(directory, one.id, one.id, module.content)
                written += 1
            except DistierError as e:
                session.failed(e)
    session.print_result(
        {"restored": written, "failed": len(found) - written, "directory": str(directory)},
        f"{output.counted(written, 'module')} restored to {directory}",
    )
    if written < len(found):
        raise typer.Exit(exits.IN_PART)


def index(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to FILE instead of the archive.")
    ] = None,
) -> None:
    """Write index.html, a page that shows the archive in a browser, without Redis.

    A worker does so after a sweep if something has changed. Rows come from the manifest.
    """
    from distier.browse import page_key
    from distier.plans.recovery.browse import page_of, write_page

    session = session_of(context)
    with archive_alone(session) as (space, driver):
        page = driver.run(write_page(space) if file is None else page_of(space))
        where = f"{driver.archive.name}/{page_key(space.namespace)}"
    if file is not None:
        from .save import write_file

        where = str(file)
        try:
            write_file(file, page.data)
        except OSError as e:
            raise typer.BadParameter(f"cannot write {where!r}: {e.strerror}") from None
    session.print_result(
        {"modules": page.modules, "versions": page.versions, "complete": page.complete, "page": where},
        f"{where} shows {output.counted(page.versions, 'version')} of {output.counted(page.modules, 'module')}",
    )
