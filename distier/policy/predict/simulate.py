"""A cache in memory, replayed with and without prediction, to see what prediction is worth on a trace.

The cache is an LRU list over all sessions. A predicted module that is not in it is brought in at once, like a module that was
just used, and is marked until its first use. If it leaves the cache before that, it was wasted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from distier.policy.predict.predictor import Predictor, Walk

SESSIONS_MAX = 4096


class Access(NamedTuple):
    """One access of a trace: when (s), which module, how large it is (in the unit of the budget), in which session."""

    time_s: float
    key: str
    size: int = 1
    session: Hashable = 0


class Result(NamedTuple):
    """What a replay found. `reads` are the reads of the archive: misses, and predicted modules that were brought in."""

    accesses: int
    hits: int
    reads: int
    issued: int
    used: int

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def precision(self) -> float:
        """The part of the predicted modules that were used before they left; 1 if there were none."""
        return self.used / self.issued if self.issued else 1.0


def replay(
    trace: Iterable[Access],
    budget: int,
    predictor: Predictor | None = None,
    on_miss: Callable[[str], object] = lambda _: None,
) -> Result:
    """Replay a trace through an LRU cache of `budget`, with prediction if there is a predictor.

    `on_miss` is called with the key of each access that missed.
    """
    sizes: dict[str, int] = {}
    cache: OrderedDict[str, int] = OrderedDict()
    walks: OrderedDict[Hashable, Walk] = OrderedDict()
    held = accesses = hits = reads = issued = used = 0

    def bring(key: str, size: int) -> bool:
        nonlocal held
        if size > budget:
            return False
        while held + size > budget:
            gone, its_size = cache.popitem(last=False)
            held -= its_size
            if predictor is not None:
                predictor.wasted(gone)
        cache[key] = size
        held += size
        return True

    for now_s, key, size, session in trace:
        accesses += 1
        sizes[key] = size
        if key in cache:
            hits += 1
            cache.move_to_end(key)
        else:
            reads += 1
            on_miss(key)
            bring(key, size)
        if predictor is None:
            continue
        walk = walks.get(session)
        if walk is None:
            walk = walks[session] = Walk()
            predictor.begin(walk)
            if len(walks) > SESSIONS_MAX:
                walks.popitem(last=False)
        walks.move_to_end(session)
        used += predictor.observe(walk, key, now_s)
        for prediction in predictor.next_of(walk, now_s, cache.__contains__):
            if bring(prediction.id, sizes.get(prediction.id, 1)):
                predictor.issue(prediction)
                issued += 1
                reads += 1
    return Result(accesses, hits, reads, issued, used)
