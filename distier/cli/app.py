"""The commands by name, and the global options, which may appear anywhere on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer

from . import (
    archive,
    explain,
    look,
    mcp,
    modules,
    operate,
    record,
    repair,
    search,
    sql,
    sync,
    top,
    traces,
    versions,
    web,
    window,
)
from .exits import table as exit_table
from .session import Session

# Global options, and whether a value follows. People type them anywhere before a bare `--` (`distier ls --json`); click
# accepts them only before the command, so `hoist` moves them there.
GLOBALS = {
    "--config": True, "-c": True, "--url": True, "--home": True, "--namespace": True, "-n": True,
    "--deadline": True, "--json": False, "--verbose": False, "-v": False,
}  # fmt: skip

HELP = "A tiered, distributed cache of modules that many LLM agents share: hot and warm in Redis, cold in an archive."
EPILOG = f"""\b
The options above may appear anywhere. Settings are read from --config, or
$DISTIER_CONFIG, or ./distier.yaml; DISTIER_* variables override the file, and
options override both. If no Redis is configured, distier starts a private
server in --home.

\b
Exit codes:
{exit_table()}
"""

app = typer.Typer(
    name="distier", help=HELP, epilog=EPILOG, rich_markup_mode=None, pretty_exceptions_enable=False,
    no_args_is_help=True, add_completion=True, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from distier import __version__

        print(f"distier {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML configuration file.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="URL of Redis: redis://HOST:PORT")] = None,
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="Directory of the embedded server and its archive.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace to use.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME", help="Time limit of a call: 500ms, 5s.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr and show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    context.obj = Session(config, url, home, namespace, deadline, json, verbose)


for module in (
    modules, versions, sync, window, operate, look, search, explain, record, traces, repair, archive, sql, top, web, mcp,
):  # fmt: skip
    module.register(app)


def command(argv: Sequence[str] = ()) -> Any:
    """Return the click command for `argv`.

    If `argv` names a command (see `hoist`), the result contains only that one: building all of them takes a tenth of a
    second.
    """
    asked = next((arg for arg in _after_globals(argv) if arg), "")
    alone = [info for info in app.registered_commands if info.name == asked]
    if not alone:
        return typer.main.get_command(app)
    one = copy(app)
    one.registered_commands, one.registered_groups = alone, []
    return typer.main.get_command(one)


def _after_globals(argv: Sequence[str]) -> Sequence[str]:
    """Return the arguments after the leading global options."""
    at = 0
    while at < len(argv) and argv[at].partition("=")[0] in GLOBALS:
        at += 1 + (GLOBALS[argv[at].partition("=")[0]] and "=" not in argv[at])
    return argv[at:]


def hoist(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the global options moved to the front."""
    front: list[str] = []
    rest: list[str] = []
    args = list(argv)
    while args:
        arg = args.pop(0)
        if arg == "--":
            return [*front, *rest, "--", *args]
        name = arg.partition("=")[0] if arg.startswith("--") else arg
        if name not in GLOBALS:
            rest.append(arg)
        else:
            front.append(arg)
            if GLOBALS[name] and name == arg and args:
                front.append(args.pop(0))
    return [*front, *rest]
