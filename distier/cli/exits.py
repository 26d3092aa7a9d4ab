"""Exit codes: one for each reaction that a script may have to a failure."""

from __future__ import annotations

from typing import NamedTuple

from distier import errors

OK, FAILED, USAGE, NOT_FOUND, REDIS, ARCHIVE, CORRUPT, CONFLICT, FULL, INVALID, IN_PART = range(11)
INTERRUPTED = 130


class ExitCode(NamedTuple):
    code: int
    error: type[errors.DistierError] | None
    what: str


# The first match counts, so special errors precede general ones.
EXITS = (
    ExitCode(OK, None, "done"),
    ExitCode(FAILED, None, "a check failed (doctor, fsck, demo, worker --once)"),
    ExitCode(USAGE, None, "wrong arguments, or a file that cannot be read or written"),
    ExitCode(NOT_FOUND, errors.NotFound, "the module or the namespace does not exist"),
    ExitCode(ARCHIVE, errors.ArchiveUnavailable, "the archive is unavailable: try again"),
    ExitCode(FULL, errors.Full, "no room: Redis is at maxmemory, or the budgets are full"),
    ExitCode(REDIS, errors.Unavailable, "Redis is unavailable or too slow: try again"),
    ExitCode(CORRUPT, errors.Corrupt, "a copy does not match its checksum"),
    ExitCode(CONFLICT, errors.Conflict, "the module is at another version than expected"),
    ExitCode(INVALID, errors.Invalid, "configuration, id or content is invalid"),
    ExitCode(IN_PART, None, "partly done: some objects cannot be read or deleted"),
    ExitCode(INTERRUPTED, None, "interrupted (Ctrl-C)"),
)


def code_of(error: errors.DistierError) -> int:
    """Return the exit code for an error."""
    for code, kind, _ in EXITS:
        if kind is not None and isinstance(error, kind):
            return code
    return INVALID


def table() -> str:
    """Return the list of exit codes for `--help`, in ascending order."""
    return "\n".join(f"  {code:>3}  {what}" for code, _, what in sorted(EXITS, key=lambda e: e.code))
