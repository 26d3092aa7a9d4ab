"""The command `search`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import output
from .session import session_of

DEADLINE_S = 600.0
"""A command has no index from before: it reads all records."""


def register(app: typer.Typer) -> None:
    app.command("search")(search)


def search(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="Words, all of which must occur.")],
    prefix: Annotated[str, typer.Option("--prefix", metavar="PREFIX", help="Only ids that begin with PREFIX.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Maximum number of modules.")] = 20,
) -> None:
    """Find modules by words of their ids, names, keywords and descriptions, the best ones first.

    'word*' is a beginning, keyword:pdf a whole keyword, name:pdf a word of the id or the name, description:pdf one of the
    description. To exclude a word, write -- before the first one: distier search -- pdf -draft
    """
    from distier.client.searching import search_plan
    from distier.views import view

    session = session_of(context)
    with session.look() as store:
        plan = search_plan(store.searching, " ".join(words), prefix, 0, limit)
        found = store.run(plan, deadline_s=DEADLINE_S)
    if session.json:
        for module in found.modules:
            output.emit(view(module))
        return
    for module in found.modules:
        told = module.description or module.name or ""
        print(f"{output.shown(module.id)}  {' '.join(told.split())}".rstrip())
    if found.total > len(found.modules):
        output.say(f"{len(found.modules)} of {output.counted(found.total, 'module')}; --limit shows more")
    elif not found.total:
        output.say("no module has all these words")
