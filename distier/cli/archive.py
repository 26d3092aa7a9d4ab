"""Commands that work on the archive alone, without Redis: manifest rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from . import output
from .session import Session, session_of

if TYPE_CHECKING:
    from distier.drive.sync import SyncDriver
    from distier.plans.common.namespace import Namespace

DEADLINE_S = 24 * 3600.0
"""Time limit of a whole command, in seconds. Each request still has its own timeout."""


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
