"""The command `archive pack`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import exits, output
from .archive import DEADLINE_S
from .counting import counting
from .session import duration_ms, session_of

if TYPE_CHECKING:
    from distier.plans.fleet.packing import Packed

AGE_MS_MIN = 20 * 60_000
"""Longer than any call takes: a listing of a module could miss a version that is packed while it runs."""


def pack(
    context: typer.Context,
    min_age: Annotated[
        str, typer.Option("--min-age", metavar="TIME", help="Pack versions that are at least this old: 20m, 1d.")
    ] = "20m",
    everything: Annotated[
        bool, typer.Option("--all", help="Also pack what is too little for a whole pack yet, and join small packs.")
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Nobody else uses the namespace now, so --min-age may be under 20m.")
    ] = False,
) -> None:
    """Pack small versions into .tar.xz objects of about 2 MiB now, as a worker does once a day.

    A pack takes about half of what its versions take as objects of their own, and `tar xJf` opens it. Safe to interrupt
    and rerun. Exits with code 10 if an object could not be read or deleted; all others are packed.
    """
    from distier.plans.fleet.packing import pack_all

    session, age_ms = session_of(context), duration_ms(min_age)
    if age_ms < AGE_MS_MIN and not alone:
        raise typer.BadParameter("--min-age must be at least 20m; with --alone, if nobody else uses the namespace, 0s")
    with session.store(existing=True) as store, counting("packing") as say:

        def progress(done: Packed) -> None:
            say(f"{output.counted(done.members, 'version')} in {output.counted(done.packs, 'pack')}")

        done = store.run(
            pack_all(store.space, min_age_ms=age_ms, everything=everything), deadline_s=DEADLINE_S, on_progress=progress
        )
    for name, why in done.skipped.items():
        output.say(f"distier: {output.shown(name)}: {why}")
    session.print_result(_row(done), _text(done))
    if done.skipped:
        raise typer.Exit(exits.IN_PART)


def _row(done: Packed) -> dict[str, Any]:
    fields = ("members", "packs", "replaced", "objects", "content_bytes", "packed_bytes", "skipped")
    return {name: getattr(done, name) for name in fields}


def _text(done: Packed) -> str:
    if not done.packs:
        return "nothing was packed: what is not packed is too new, too large or too little for a pack"
    ratio = done.content_bytes / done.packed_bytes if done.packed_bytes else 0.0
    text = f"{output.counted(done.members, 'version')} in {output.counted(done.packs, 'new pack')}: "
    text += f"{output.size(done.content_bytes)} in {output.size(done.packed_bytes)} ({ratio:.1f}x)"
    return text + (f"; {output.counted(done.replaced, 'pack')} replaced" if done.replaced else "")
