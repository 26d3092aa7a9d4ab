"""The command line: words in, words out. What it does is in `distier.client` and the plans.

Data goes to stdout, talk to stderr; `--json` turns data into JSON, a line for each thing. Every fault ends in one line
on stderr and an exit code of its own (`exits.py`). Importing this costs next to nothing: the client, rich and boto3 are
imported by the commands that need them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point `distier`: runs the words of the command line and ends the process."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run a command line; its exit code. Errors have been told on stderr."""
    from distier.errors import DistierError

    verbose = "--verbose" in argv or "-v" in argv
    try:
        code = _invoke(argv)
        sys.stdout.flush()
        return code
    except DistierError as e:
        from .exits import code_of
        from .output import complain

        complain(e, traceback=verbose)
        return code_of(e)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has had enough (`| head`). What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _invoke(argv: Sequence[str]) -> int:
    import typer
    from typer.exceptions import TyperException

    from .app import command, hoist

    group = command()
    if "_DISTIER_COMPLETE" in os.environ:  # the shell asks what could come next; answers and exits
        group.main(prog_name="distier")
    try:
        # Not `main`: it makes one exit code of a closed pipe and of every other failure.
        with group.make_context("distier", hoist(argv)) as context:
            group.invoke(context)
        return 0
    except typer.Exit as e:
        return e.exit_code
    except typer.Abort:
        return 130
    except TyperException as e:
        return _usage(e)


def _usage(error: Exception) -> int:
    """Tell what is wrong with the words, and where to read on."""
    context = getattr(error, "ctx", None)
    message = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    path = context.command_path if context else "distier"
    print(f"distier: {message}\n  see `{path} --help`", file=sys.stderr)
    return int(getattr(error, "exit_code", 2))
