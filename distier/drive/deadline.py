"""The deadline of a call, and what took its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distier.errors import DeadlineExceeded

ARCHIVE = "the archive"
DISK = "this node's disk"
REST = "Redis, or the wait for a processor"


class End(float):
    """When a call must have ended, in seconds of the monotonic clock.

    `begun_s` is when it began. `spent` are the seconds that each part of the call took so far, by the name of the part.
    """

    begun_s = 0.0
    spent: dict[str, float] | None = None
    on_progress: Callable[[Any], object] | None = None
    """The caller's function for `Progress`."""


def report_progress(end_s: float, value: object) -> None:
    """Call the caller's function for `Progress`, if there is one."""
    if isinstance(end_s, End) and end_s.on_progress is not None:
        end_s.on_progress(value)


def note_spent(end_s: float, what: str, begun_s: float) -> None:
    """Note that `what` has taken the call's time since `begun_s`."""
    if isinstance(end_s, End):
        spent = end_s.spent = end_s.spent or {}
        spent[what] = spent.get(what, 0.0) + time.monotonic() - begun_s


def time_left(end_s: float) -> float:
    """Return the seconds until `end_s` on the monotonic clock. Raises `DeadlineExceeded` if none are left."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded(f"the call's deadline has passed{main_cost(end_s, REST)}")
    return left_s


def main_cost(end_s: float, rest: str = "", *, but: str = "") -> str:
    """Return the end of an error message: what took most of the call's time.

    Args:
        end_s: the call's end.
        rest: the name for the time that was not noted, which is the wait for Redis.
        but: the part that the message names already; the result is empty if that took most of the time.
    """
    if not isinstance(end_s, End):
        return ""
    what, seconds = max((end_s.spent or {}).items(), key=lambda item: item[1], default=("", 0.0))
    if seconds < (end_s - end_s.begun_s) / 2:
        what = rest
    return f"; most of its {end_s - end_s.begun_s:.3g} s went into {what}" if what and what != but else ""
