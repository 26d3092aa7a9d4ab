"""Which modules are evicted from a tier that is full.

Redis returns candidates in the order of eviction (hot: least recently used first; warm: first due first). The policy takes
the shortest prefix that makes enough room. It takes them strictly in order, even if one large module would replace ten
small ones. This keeps the promise of LRU: recently used modules stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A module that may be evicted, with its size and whether it is clean."""

    id: str
    write_id: str
    tokens: int
    size_bytes: int
    clean: bool


class Need(NamedTuple):
    """The room that eviction must make: `amount` in tokens or modules, and `size_bytes`. Negative values are free room."""

    amount: int
    size_bytes: int

    @property
    def met(self) -> bool:
        return self.amount <= 0 and self.size_bytes <= 0


def select_for_eviction(candidates: Sequence[Candidate], need: Need, *, by_count: bool = False) -> list[Candidate]:
    """Return the first candidates that together meet `need`, or all of them if they do not suffice.

    Args:
        candidates: In the order of eviction.
        need: The room to make, in tokens and bytes, or in modules and bytes with `by_count`.
        by_count: Whether `need.amount` counts modules.
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
    """Return the part of `need` that `chosen` does not meet."""
    amount = len(chosen) if by_count else sum(c.tokens for c in chosen)
    return Need(need.amount - amount, need.size_bytes - sum(c.size_bytes for c in chosen))
