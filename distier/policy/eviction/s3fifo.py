"""Three queues: a small one for what is new, the main one, and the ghosts of what left the small one unused.

Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. A rank holds the queue (below 0: the small one), the
time at which the module entered it, in microseconds, and in its two lowest bits the uses since then, 3 at most. A module that
is first in line and was used stays (`spared`): from the small queue it goes to the main one, and in the main one to its end,
with a use less. Modules leave the small queue while it has more than a tenth of all, otherwise the main one.
"""

from distier.policy.eviction.rank import Policy, Ranked

SMALL = 2.0**52
"""What a rank in the small queue lies below the rank with the same time in the main one. Times stay below that until 2058."""
SMALL_SHARE = 0.1
SPARED_USES = 2
"""The uses in the small queue that bring a module into the main one."""


def entered(now: float) -> float:
    """Return the rank in the main queue of a module that enters it at this time in ms, without uses."""
    return max(float(int((now - 1.7e12) * 1000)), 0.0) * 4


def rank(m: Ranked) -> float:
    if m.was is None:
        return entered(m.now) - (0.0 if m.known else SMALL)
    return m.was + min(3 - m.was % 4, m.more)


def spared(rank: float, now: float) -> float | None:
    """Return the new rank of a module that is first in line; None where it leaves."""
    uses = rank % 4
    if rank < 0:
        return entered(now) if uses >= SPARED_USES else None
    return entered(now) + uses - 1 if uses >= 1 else None


_ENTERED = "math.max(math.floor((now - 1.7e12) * 1000), 0) * 4"
POLICY = Policy(
    "s3fifo",
    "new ones that were not used again, then old ones (three queues)",
    rank,
    f"was and was + math.min(3 - was % 4, more) or {_ENTERED} - (known and 0 or 2 ^ 52)",
    admits_all=True,
    spared=spared,
    lua_spared=f"rank < 0 and (rank % 4 >= 2 and {_ENTERED}) or rank >= 0 and rank % 4 >= 1 and {_ENTERED} + rank % 4 - 1",
    ghosts=True,
)
