"""What an eviction policy is: a rank for each module of a tier. The module with the lowest rank leaves first.

A rank changes when the module enters the tier and when it is used, never otherwise, so a sorted set can keep the order. Each
policy is one file, with its rank once as a Python function, for simulations and tests, and once as a Lua expression with the
same variables, for the server. A property test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Ranked(NamedTuple):
    """What a rank is computed from. The Lua expressions have these names as their variables.

    Attributes:
        uses: How often the module was used, at least 1. It survives evictions, if not whole, and is halved from time to
            time.
        size: Its bytes in the tier (see `size_of`), at least 1.
        now: The time in ms; on the server, the clock of the shard, which never goes back.
        floor: The greatest rank of a module that was evicted from this tier.
        was: Its rank before this use; None where it enters the tier.
        more: The uses since then; 0 where it is stored again.
        known: Whether it enters the tier soon after it was evicted from it (only if the policy keeps `ghosts`).
    """

    uses: float
    size: float
    now: float
    floor: float = 0.0
    was: float | None = None
    more: float = 1.0
    known: bool = False


class Policy(NamedTuple):
    """An eviction policy.

    Attributes:
        name: Its name in `storage_tiers.hot.eviction_policy`.
        what: What it evicts, for the documentation.
        rank: The rank of a module that enters the tier or is used.
        lua: The same as a Lua expression.
        admits_all: Whether a copy that a read leaves is admitted whatever its rank. Otherwise it must rank higher than each
            module that would leave for it.
        kept_uses: The fraction of its uses that a module keeps when it is evicted.
        halves: Whether uses are halved after ten of them for each module in Redis, and ranks with them: for policies that would
            otherwise keep for ever what was popular once.
        spared: The new rank of a module that is first in line and stays nevertheless; None where it leaves. Only for
            policies of several queues.
        lua_spared: The same as a Lua expression of `rank` and `now`.
        ghosts: Whether the policy remembers which modules were evicted lately.
    """

    name: str
    what: str
    rank: Callable[[Ranked], float]
    lua: str
    admits_all: bool = False
    kept_uses: float = 1.0
    halves: bool = False
    spared: Callable[[float, float], float | None] | None = None
    lua_spared: str = ""
    ghosts: bool = False


def size_of(amount: int, size_bytes: int, amount_limit: int, bytes_limit: int) -> float:
    """Return the size of a module in the unit of the budget that it strains more, converted to bytes.

    Args:
        amount: Its tokens in hot; 1 in warm, whose first budget is a number of modules.
        size_bytes: Its bytes in the tier.
        amount_limit: The budget of the tier in tokens or modules.
        bytes_limit: The budget of the tier in bytes.
    """
    return max(size_bytes, amount * (bytes_limit / max(amount_limit, 1)), 1.0)
