"""What a write says that others refused, or may have overtaken, and how often it tries."""

from __future__ import annotations

from distier.errors import Conflict

FENCED_MAX = 4


def conflict(id: str, version: str, expected: str) -> Conflict:
    """Return the error of a write that expected another version. `version` is the present one, empty for none."""
    now = f"is at version {version}" if version else "does not exist"
    return Conflict(f"module {id!r} {now}, the call expected {expected if expected != '-' else 'none'}")


def unsure(id: str) -> str:
    """Return the message of a write whose object may have been adopted."""
    return f"module {id!r} was changed by others during the write, which may or may not have been applied for a while; read it"


def unknown(id: str, version: str) -> str:
    """Return the message of a write that may have been applied before."""
    return (
        f"the connection was lost during a write of module {id!r}, and it is not known whether it was applied before version "
        f"{version}, which is there now: read the module, then decide"
    )


def unsettled(id: str) -> str:
    """Return the message of a write that found no room when it was sent again, after a reply to it was lost."""
    return (
        f"the connection was lost during a write of module {id!r}, and there was no room when it was sent again: it is not "
        "known whether it was applied before. Read the module, then decide"
    )
