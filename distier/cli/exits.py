"""Exit codes: one for each thing that a script may want to do about a failure."""

from __future__ import annotations

from typing import NamedTuple

from distier import errors

OK, FAILED, USAGE, NOT_FOUND, REDIS, ARCHIVE, CORRUPT, CONFLICT, FULL, INVALID, IN_PART = range(11)
INTERRUPTED = 130


class ExitCode(NamedTuple):
    code: int
    error: type[errors.DistierError] | None
    what: str


# Of several that match, the first counts: the special stand before the general.
EXITS = (
    ExitCode(OK, None, "done"),
    ExitCode(FAILED, None, "a check failed (doctor, fsck, demo, worker --once)"),
    ExitCode(USAGE, None, "wrong words, or a file that cannot be read or written"),
    ExitCode(NOT_FOUND, errors.NotFound, "there is no such module, or no such namespace"),
    ExitCode(ARCHIVE, errors.ArchiveUnavailable, "the archive does not answer: try again"),
    ExitCode(FULL, errors.Full, "no room: Redis is at maxmemory, or the budgets are full"),
    ExitCode(REDIS, errors.Unavailable, "Redis does not answer in time: try again"),
    ExitCode(CORRUPT, errors.Corrupt, "a copy does not match its checksum"),
    ExitCode(CONFLICT, errors.Conflict, "the module is at another version than expected"),
    ExitCode(INVALID, errors.Invalid, "configuration, id or content is invalid"),
    ExitCode(IN_PART, None, "done in part: some objects cannot be read or deleted"),
    ExitCode(INTERRUPTED, None, "interrupted (Ctrl-C)"),
)


def code_of(error: errors.DistierError) -> int:
    """The exit code that tells of this error."""
    for code, kind, _ in EXITS:
        if kind is not None and isinstance(error, kind):
            return code
    return INVALID


def table() -> str:
    """The codes for `--help`, in order."""
    return "\n".join(f"  {code:>3}  {what}" for code, _, what in sorted(EXITS, key=lambda e: e.code))
