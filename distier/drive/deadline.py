"""The end of a call, and what took its time."""

from __future__ import annotations

import time

from distier.errors import DeadlineExceeded

ARCHIVE = "the archive"
DISK = "this node's disk"
REST = "Redis, or the wait for a processor"


class End(float):
    """When a call must have ended, on the monotonic clock; and what took its time."""

    begun_s = 0.0
    spent: dict[str, float] | None = None


def note_spent(end_s: float, what: str, begun_s: float) -> None:
    """`what` has taken the call's time since `begun_s`."""
    if isinstance(end_s, End):
        spent = end_s.spent = end_s.spent or {}
        spent[what] = spent.get(what, 0.0) + time.monotonic() - begun_s


def time_left(end_s: float) -> float:
    """Seconds until `end_s` on the monotonic clock. Raises `DeadlineExceeded` if there are none."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded(f"the call's deadline has passed{most(end_s, REST)}")
    return left_s


def most(end_s: float, rest: str = "", *, but: str = "") -> str:
    """The end of a sentence: what most of a call's time went into, unless that is `but`, of which the sentence tells anyway.
    What was not noted was waiting for Redis: that is called `rest`."""
    if not isinstance(end_s, End):
        return ""
    what, seconds = max((end_s.spent or {}).items(), key=lambda item: item[1], default=("", 0.0))
    if seconds < (end_s - end_s.begun_s) / 2:
        what = rest
    return f"; most of its {end_s - end_s.begun_s:.3g} s went into {what}" if what and what != but else ""
