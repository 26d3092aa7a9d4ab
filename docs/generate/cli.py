"""`docs/reference/cli.md`: the help of every command, as the command line prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from distier.cli.app import command

WIDTH = 100

_HEAD = """\
# The command line

Written by `make docs` from the code; a test compares it.

Data goes to stdout and messages go to stderr. `--json` turns data into JSON, one line for each thing. [ERRORS.md](../ERRORS.md)
relates the exit codes to the errors of the library.
"""


def render() -> str:
    """The page, as Markdown."""
    return _HEAD + "".join(
        f"\n## {name}\n\n```text\n{said}\n```\n" for name, said in _helps("distier", command(), None)
    )


def _helps(name: str, group: Any, above: typer.Context | None) -> Iterator[tuple[str, str]]:
    """Each command by the words that are typed for it, with its help; the group first, then its commands by name."""
    word = name.rpartition(" ")[2]
    context = typer.Context(group, parent=above, info_name=word, terminal_width=WIDTH, **group.context_settings)
    yield name, "\n".join(line.rstrip() for line in group.get_help(context).splitlines())
    for below, inner in sorted(getattr(group, "commands", {}).items()):
        if not inner.hidden:
            yield from _helps(f"{name} {below}", inner, context)
