"""Which modules leave a tier when room is missing.

Redis names candidates in the order in which they should go (hot: least recently used first; warm: due first); the
policy takes the shortest run of them that makes enough room. Taking them strictly in order, even where one large
module would do for ten small ones, keeps LRU's promise: what was used last stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A module that may leave: what it holds, and how."""

    id: str
    write_id: str
    tokens: int
    size_bytes: int
    clean: bool


class Need(NamedTuple):
    """What must go at least: `amount` of the first measure and `size_bytes` of the second. Negative: free."""

    amount: int
    size_bytes: int

    @property
    def met(self) -> bool:
        return self.amount <= 0 and self.size_bytes <= 0


def select_for_eviction(candidates: Sequence[Candidate], need: Need, *, by_count: bool = False) -> list[Candidate]:
    """The first candidates that together meet `need` (tokens and bytes, or modules and bytes with `by_count`).

    All of them if they do not suffice: the caller compares.
    """
    chosen: list[Candidate] = []
    for candidate in candidates:
        if need.met:
            break
        chosen.append(candidate)
        amount = 1 if by_count else candidate.tokens
        need = Need(need.amount - amount, need.size_bytes - candidate.size_bytes)
    return chosen


def still_missing(chosen: Sequence[Candidate], need: Need, *, by_count: bool = False) -> Need:
    """What `chosen` leaves of `need`."""
    amount = len(chosen) if by_count else sum(c.tokens for c in chosen)
    return Need(need.amount - amount, need.size_bytes - sum(c.size_bytes for c in chosen))
