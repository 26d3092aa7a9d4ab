"""The command line: words in, words out. What it does is in `distier.client` and the plans.

Data goes to stdout, talk to stderr; `--json` turns data into JSON, a line for each thing. Every fault ends in one line
on stderr and an exit code of its own (`exits.py`). Importing this costs next to nothing: the client, rich and boto3 are
imported by the commands that need them.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point `distier`: runs the words of the command line and ends the process."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        # Ids are UTF-8, also where the locale is ASCII or Latin: names of files and ids could not be told apart otherwise.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - this very program
    gc.disable()  # what is imported stays: to look through it time and again takes a sixth of a short run
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def all_is_loaded() -> None:
    """From here on memory is collected as ever."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def run(argv: Sequence[str]) -> int:
    """Run a command line; its exit code. Errors have been told on stderr."""
    from distier.errors import DistierError

    from . import output

    words = argv[: argv.index("--")] if "--" in argv else argv
    output.as_json = "--json" in words
    prepare_streams()
    try:
        code = _invoke(argv)
    except DistierError as e:
        from .exits import code_of

        output.complain(e, traceback="--verbose" in words or "-v" in words)
        code = code_of(e)
    except KeyboardInterrupt:
        code = 130
    except OSError as e:
        return _cannot_write(e)
    try:
        sys.stdout.flush()
    except OSError as e:
        return _cannot_write(e)
    return code


def _cannot_write(error: OSError) -> int:
    """End after stdout, the only file that commands do not look after themselves, could not be written."""
    from .exits import USAGE
    from .output import tell_error

    # What is still buffered must not fail again at exit.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = io.TextIOWrapper(io.BytesIO())
    if isinstance(error, BrokenPipeError):
        return 141  # the reader has had enough (`| head`)
    tell_error("OSError", f"cannot write to stdout: {error.strerror or error}", "", USAGE)
    return USAGE


def prepare_streams() -> None:
    """Make the standard streams fit for what is written: ids are UTF-8, whatever the locale says. A stream that was closed
    before the start gets its place back, so that no file or socket of ours is taken for it, and refuses what is written."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdout = sys.stdout or io.TextIOWrapper(io.BufferedWriter(_Closed()))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.BytesIO())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


class _Closed(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _invoke(argv: Sequence[str]) -> int:
    import typer
    from typer.exceptions import TyperException

    from .app import command, hoist

    if "_DISTIER_COMPLETE" in os.environ:  # the shell asks what could come next; answers and exits
        command().main(prog_name="distier")
    hoisted = hoist(argv)
    group = command(hoisted)
    try:
        # Not `main`: it makes one exit code of a closed pipe and of every other failure.
        with group.make_context("distier", hoisted) as context:
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
    from .output import tell_error

    if type(error).__name__ == "NoArgsIsHelpError":
        from . import output

        if not output.as_json:
            print(message, file=sys.stderr)
            return 2
        message = "Missing command."
    path = context.command_path if context else "distier"
    code = int(getattr(error, "exit_code", 2))
    tell_error("UsageError", message, f"see `{path} --help`", code)
    return code
