"""Outcomes of moves and refusals of scripts, as enums. Scripts return their values, and people read them."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of one move of a module between tiers."""

    MOVED = "moved"
    ALREADY = "already"
    """The module was in that tier before."""
    CHANGED = "changed"
    """Another version was written meanwhile."""
    PINNED = "pinned"
    DIRTY = "dirty"
    """The version is not archived, so its only copy must stay in Redis."""
    NO_ROOM = "no room"
    NO_ROOM_TOGETHER = "no room next to the other modules of this call"
    NOT_ADMITTED = "not admitted"
    """The modules that would have to leave are used as often as this one."""
    TOO_LARGE_FOR_HOT = "too large for hot"
    TOO_LARGE_FOR_WARM = "too large for warm"
    EVICTED = "evicted by others"
    UNAVAILABLE = "unavailable"
    """Redis did not answer; the read that requested the move succeeded without it."""

    @property
    def is_there(self) -> bool:
        """Whether the module is in the requested tier now."""
        return self is MOVED or self is ALREADY


MOVED, ALREADY, CHANGED = Outcome.MOVED, Outcome.ALREADY, Outcome.CHANGED
"""Aliases for code that runs on every read: in Python 3.11, access to a member through its class is a function call."""


class Refusal(StrEnum):
    """Why a script changed nothing."""

    CONFLICT = "CONFLICT"
    """The module is not at the version that the call expects."""
    UNVERIFIED = "UNVERIFIED"
    """The record comes from an older epoch, and must be compared with the archive first."""
    FENCED = "FENCED"
    """The shard is in a newer epoch than the position of the write."""
    SUPERSEDED = "SUPERSEDED"
    """A newer version took effect before this one."""
    DELETED_SINCE = "DELETED_SINCE"
    """Superseded, and another client has deleted the module meanwhile."""
    UNHELD = "UNHELD"
    """The write no longer holds its position."""
    UNKNOWN = "UNKNOWN"
    """The server no longer knows whether this write was applied before."""
    BUSY = "BUSY"
    """Another durable write holds a position in front of the module."""
    TOO_LARGE = "TOO_LARGE"
    """The module is larger than the whole tier."""
    NOT_ADMITTED = "NOT_ADMITTED"
    """The modules that would have to leave are used as often as this one."""
    ALREADY = "ALREADY"
    CHANGED = "CHANGED"
    MISSING = "MISSING"
    STALE = "STALE"
