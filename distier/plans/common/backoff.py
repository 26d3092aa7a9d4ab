"""Waiting for others: for longer each time, and for one holder of something not for ever."""

from __future__ import annotations

from distier.effects import NewToken, Plan, Sleep

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.25


def back_off(attempt: int, max_s: float = BACKOFF_MAX_S) -> Plan[float]:
    """Wait for a random part of a time that doubles with each attempt. Returns the seconds waited.

    The part is random because all clients of a server that came back act at once: after different pauses one of them is alone,
    and the others find its result.
    """
    chance = int((yield from NewToken())[:4], 16) / 65536
    seconds: float = chance * min(BACKOFF_FIRST_S * 2 ** min(attempt, 16), max_s)
    yield Sleep(seconds)
    return seconds


class Patience:
    """How long this call has waited for the present holder of something: a lease, a position, the right to claim.

    Another holder gets the whole time again. Only own pauses are counted, so a clock that jumps does not matter.
    """

    def __init__(self, limit_s: float, max_s: float = BACKOFF_MAX_S) -> None:
        self._limit_s, self._max_s = limit_s, max_s
        self._holder: object = None
        self._waited_s = 0.0
        self.waits = 0

    def is_over(self, holder: object) -> bool:
        """Whether `holder` was waited for long enough: it may be dead."""
        if holder != self._holder:
            self._holder, self._waited_s = holder, 0.0
        return self._waited_s >= self._limit_s

    def wait(self) -> Plan[None]:
        """Wait for a moment, a longer one each time."""
        self.waits += 1
        self._waited_s += yield from back_off(self.waits, self._max_s)

    def waited(self, seconds: float) -> None:
        """Count a pause that the caller made itself."""
        self._waited_s += seconds
