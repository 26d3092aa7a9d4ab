"""The command `fit`: modules for a context window."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from distier.views import view

from . import output
from .complete import complete_ids
from .modules import SomeIds, Zero
from .session import ids_from, session_of

if TYPE_CHECKING:
    from distier.domain.fitted import Fitted


def register(app: typer.Typer) -> None:
    app.command("fit")(fit)


def parse_tokens(text: str) -> int:
    """Return a number of tokens: `50000`, `50k` or `1.5M`, in powers of 1000.

    Raises:
        typer.BadParameter: The text is something else.
    """
    import re
    from decimal import Decimal

    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kKmM]?)", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of tokens such as 50000, 50k or 1.5M")
    return int(Decimal(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()])


def fit(
    context: typer.Context,
    ids: SomeIds = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TOKENS", help="Maximum number of tokens: 50000 or 50k.")
    ] = ...,  # type: ignore[assignment]
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix", metavar="PREFIX", help="Choose from all modules that `ls PREFIX` lists.",
            autocompletion=complete_ids,
        ),
    ] = None,
    required: Annotated[
        list[str] | None,
        typer.Option(
            "--required", metavar="ID", help="Module that must be in the window; repeatable.",
            autocompletion=complete_ids,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep", metavar="ID", help="Module that the window begins with, whole; repeatable, in order.",
            autocompletion=complete_ids,
        ),
    ] = None,
    zero: Zero = False,
) -> None:  # fmt: skip
    """Write the modules with the most value that fit into a context window.

    The value of a module is estimated from its uses and the time since the last one. Contents go to stdout, each ending with a
    line end. A module that does not fit whole is written as its outline, if it has one; stderr says which. With --json, what
    becomes of each module is printed, and nothing counts as used.
    """  # fmt: skip
    session = session_of(context)
    tokens = parse_tokens(budget)
    if bool(ids) == (prefix is not None):
        raise typer.BadParameter("give ids (- for stdin), or --prefix PREFIX")
    wanted = prefix if prefix is not None else ids_from(ids or [], zero)
    with session.store(existing=True) as store:
        if session.json:
            from distier.client.fitting import check_asked
            from distier.plans.get.fit import fit as fit_plan

            for choice in store.run(
                fit_plan(store.space, check_asked(wanted, tokens, required or (), keep or ()))
            ).choices:
                output.emit(view(choice))
            return
        fitted = store.fit(wanted, tokens, required=required or (), keep=keep or ())
        for choice in fitted:
            sys.stdout.buffer.write(choice.content if choice.content.endswith(b"\n") else choice.content + b"\n")
        sys.stdout.buffer.flush()
        output.say(_summary(fitted))
        for choice in fitted.left_out:
            if choice.reason == "missing":
                session.missing(store, choice.id)
    session.end()


def _summary(fitted: Fitted) -> str:
    outlines = [choice.id for choice in fitted if choice.form == "outline"]
    left_out = len(fitted.left_out)
    parts = [f"{output.number(fitted.tokens)} of {output.counted(fitted.budget_tokens, 'token')}"]
    parts.append(output.counted(len(fitted), "module"))
    if outlines:
        parts.append(f"as outlines: {', '.join(map(output.shown, outlines))}")
    if left_out:
        parts.append(f"{output.number(left_out)} left out (--json says why)")
    return f"distier: {'; '.join(parts)}"
