"""The command line parses arguments and prints results. `distier.client` and the plans do the work.

Results go to stdout and messages to stderr. `--json` prints results as JSON, one object per line. Every failure prints
one line on stderr and has its own exit code (`exits.py`). Importing this package costs almost nothing: each command
imports the client, rich and boto3 only when it needs them.
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
    """Run the command line and exit. This is the entry point of the `distier` script."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        # Ids are UTF-8 in every locale. Under an ASCII or Latin locale, file names would decode to other ids.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - the same program again
    gc.disable()  # imported objects stay alive: scanning them repeatedly takes a sixth of a short run
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def resume_gc() -> None:
    """Enable garbage collection once the imports are done, and exempt the imported objects from it."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code. Errors are reported on stderr."""
    from distier.errors import DistierError

    from . import output

    options = argv[: argv.index("--")] if "--" in argv else argv
    output.as_json = "--json" in options
    prepare_streams()
    try:
        code = _invoke(argv)
    except DistierError as e:
        from .exits import code_of

        output.report_error(e, traceback="--verbose" in options or "-v" in options)
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
    """Return the exit code after a failed write to stdout, the only file whose errors commands do not handle."""
    from .exits import USAGE
    from .output import print_error

    # Buffered output must not fail again at exit.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = io.TextIOWrapper(io.BytesIO())
    if isinstance(error, BrokenPipeError):
        return 141  # the reader closed the pipe (`| head`)
    print_error("OSError", f"cannot write to stdout: {error.strerror or error}", "", USAGE)
    return USAGE


def prepare_streams() -> None:
    """Make the standard streams ready for ids, which are UTF-8 in every locale.

    A stream that was closed before the start gets a replacement that rejects writes. Otherwise the next file or socket
    that this process opens would take its number and receive its output.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is fd
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

    if "_DISTIER_COMPLETE" in os.environ:  # the shell asks for completions; prints them and exits
        command().main(prog_name="distier")
    hoisted = hoist(argv)
    group = command(hoisted)
    try:
        # Not `main`: it returns one exit code for a closed pipe and for every other failure.
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
    """Report what is wrong with the arguments and which help to read."""
    context = getattr(error, "ctx", None)
    message = error.format_message()  # type: ignore[attr-defined]
    from .output import print_error

    if type(error).__name__ == "NoArgsIsHelpError":
        from . import output

        if not output.as_json:
            print(message, file=sys.stderr)
            return 2
        message = "Missing command."
    path = context.command_path if context else "distier"
    code = int(getattr(error, "exit_code", 2))
    print_error("UsageError", message, f"see `{path} --help`", code)
    return code
