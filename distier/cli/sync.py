"""`distier sync PREFIX DIR`: keep the modules of a prefix and the files of a directory equal."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import exits, output
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command("sync")(sync)


def sync(
    context: typer.Context,
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="The modules below PREFIX/.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory; it is made if it does not exist.")],
    pull: Annotated[bool, typer.Option("--pull", help="Change only the directory.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Change only the modules.")] = False,
    prefer: Annotated[
        Literal["store", "disk"] | None,
        typer.Option("--prefer", help="Which side wins if both have changed [default: neither]."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Skip matching paths; repeatable."),
    ] = None,
    ignore: Annotated[bool, typer.Option("--ignore/--no-ignore", help="Respect .gitignore and .distierignore.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on when either side changes, until Ctrl-C.")] = False,
) -> None:
    """Make the modules of a prefix and the files of a directory equal, in both directions.

    What has changed on one side since the last sync changes the other, also by deletion. What has changed on both is left
    alone and reported; exit code 10. DIR keeps in .distier-sync.json what both sides had.
    """
    session = session_of(context)
    if pull and push:
        raise typer.BadParameter("--pull cannot be combined with --push")
    if directory.exists() and not directory.is_dir():
        raise typer.BadParameter(f"{str(directory)!r} is not a directory")
    from .syncing import TO_DISK, TO_STORE, Sync, only_here
    from .tree import Tree

    allowed = TO_DISK if pull else TO_STORE if push else TO_DISK + TO_STORE
    tree = Tree(directory, exclude or [], output.say, ignore)
    with session.store(existing=pull) as store, nullcontext() if dry_run else only_here(directory):
        run = Sync(session, store, tree, prefix.rstrip("/") + "/" if prefix else "", allowed, prefer, dry_run)
        if watch and not dry_run:
            run.forever()
        run.once()
        run.summary()
    if run.left:
        raise typer.Exit(exits.IN_PART)
