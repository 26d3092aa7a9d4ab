"""A budget of archive reads: a token bucket, with the time as an argument."""

from __future__ import annotations


class ReadBudget:
    """At most `per_s` reads a second on average, and one second's reads (one at least) at once.

    Args:
        per_s: reads a second; 0 allows none.
        now_s: the time at the start, in seconds of any clock that never goes back.
    """

    def __init__(self, per_s: float, now_s: float) -> None:
        self.per_s = per_s
        self._most = max(per_s, 1.0) if per_s > 0 else 0.0
        self._left = self._most
        self._at_s = now_s

    def left(self, now_s: float) -> int:
        """Return how many reads are allowed now."""
        self._left = min(self._most, self._left + max(0.0, now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        return max(0, int(self._left))

    def spend(self, reads: int) -> None:
        self._left -= reads
