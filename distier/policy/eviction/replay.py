"""A trace through eviction policies, and bounds that no policy can pass.

The bounds are on what a policy can reach that may also refuse to keep a module:

- *infinite cache*: the first access of each module is a miss (compulsory misses), and no other.
- *MIN*, where all modules have one size: evict what is used last, Belady, "A study of replacement algorithms for a
  virtual-storage computer", IBM Systems Journal 5(2), 1966. This is the optimum itself.
- *PFOO-L*, with sizes, where the optimum is NP-hard: Berger, Beckmann, Harchol-Balter, "Practical bounds on optimal caching
  with variable object sizes", SIGMETRICS 2018. An interval between two accesses of a module needs its size times its length.
  All hits together have the capacity times the length of the trace. The intervals that are worth most for their needs take it.
  The optimum has at least as many misses, usually more.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from distier.policy.eviction.rank import Policy
from distier.policy.eviction.simulate import Tier
from distier.policy.predict import Predictor
from distier.policy.predict.simulate import Access, Result
from distier.policy.predict.simulate import replay as replay_ahead
from distier.policy.traces import Trace

COMPULSORY = "infinite cache"
MIN = "MIN"
PFOO_L = "PFOO-L"


class Missed(NamedTuple):
    """What was missed: accesses, their bytes, and their tokens (None if the trace has none)."""

    objects: float
    size_bytes: float
    tokens: float | None = None


def accessed(trace: Trace) -> Missed:
    """Return what is missed without a cache: everything."""
    tokens = None if trace.tokens is None else trace.total(trace.tokens)
    return Missed(len(trace.accesses), trace.total(trace.sizes), tokens)


def replay(trace: Trace, policy: Policy, capacity: int) -> Missed:
    """Return what a tier of `capacity` bytes misses under a policy. It takes 1 to 5 seconds per million accesses."""
    tier: Tier[int] = Tier(policy, capacity)
    missed = array("q", bytes(8 * len(trace.sizes)))
    sizes, access = trace.sizes, tier.access
    for i in trace.accesses:
        if not access(i, sizes[i]):
            missed[i] += 1
    return _missed(trace, missed)


def replay_predicted(trace: Trace, capacity: int) -> tuple[Missed, Result]:
    """Replay a trace through LRU with prediction. Returns what its reads missed, and what became of the predictions."""
    times, names = [0] * len(trace.sizes), {str(i): i for i in range(len(trace.sizes))}

    def note(key: str) -> None:
        times[names[key]] += 1

    accesses = (
        Access(at_s, str(i), trace.sizes[i], session)
        for i, at_s, session in zip(trace.accesses, trace.times_s, trace.sessions, strict=True)
    )
    found = replay_ahead(accesses, capacity, Predictor(), note)
    return _missed(trace, times), found


def _missed(trace: Trace, times: Sequence[int]) -> Missed:
    def total(of: Sequence[float]) -> float:
        return sum(n * amount for n, amount in zip(times, of, strict=True))

    return Missed(sum(times), total(trace.sizes), None if trace.tokens is None else total(trace.tokens))


def compulsory(trace: Trace) -> Missed:
    """Return what an infinite cache misses: the first access of each module."""
    return _missed(trace, [1] * len(trace.sizes))


def bound(trace: Trace, capacity: int) -> tuple[str, Missed]:
    """Return the name of the bound that applies to the trace, and what no policy can miss less than."""
    if len(set(trace.sizes)) == 1:
        return MIN, belady(trace, capacity // trace.sizes[0])
    return PFOO_L, pfoo_l(trace, capacity)


def next_uses(trace: Trace) -> array[int]:
    """Return for each access the position of the next access of its module; the length of the trace if there is none."""
    end = len(trace.accesses)
    last, found = [end] * len(trace.sizes), array("q", bytes(8 * end))
    for at in range(end - 1, -1, -1):
        i = trace.accesses[at]
        found[at], last[i] = last[i], at
    return found


def belady(trace: Trace, room: int) -> Missed:
    """Return what MIN misses with room for this number of modules of one size."""
    end = len(trace.accesses)
    held: dict[int, int] = {}  # the next use of each module that is there
    queue: list[tuple[int, int]] = []
    missed = [0] * len(trace.sizes)
    for at, following in enumerate(next_uses(trace)):
        i = trace.accesses[at]
        missed[i] += i not in held
        held.pop(i, None)
        if following == end or not room:
            continue
        held[i] = following
        heapq.heappush(queue, (-following, i))
        while len(held) > room:
            use, other = heapq.heappop(queue)
            if held.get(other) == -use:
                del held[other]
    return _missed(trace, missed)


def pfoo_l(trace: Trace, capacity: int) -> Missed:
    """Return lower bounds of missed objects, bytes and tokens, each on its own."""
    end, sizes = len(trace.accesses), trace.sizes
    intervals = [
        (trace.accesses[at], following - at)
        for at, following in enumerate(next_uses(trace))
        if following < end and sizes[trace.accesses[at]] <= capacity
    ]
    room = capacity * (end - 1)

    def least(worth: Sequence[float]) -> float:
        """Return what is missed where the hits are worth most: a fractional knapsack."""
        free, total = float(room), trace.total(worth)
        # By need for each unit of worth, in ascending order.
        ordered = sorted((sizes[i] * length / worth[i], i, length) for i, length in intervals if worth[i])
        for _, i, length in ordered:
            need = sizes[i] * length
            if need > free:
                return max(total - worth[i] * free / need, 0.0)
            free, total = free - need, total - worth[i]
        return max(total, 0.0)

    tokens = None if trace.tokens is None else least(trace.tokens)
    return Missed(least([1] * len(sizes)), least(sizes), tokens)
