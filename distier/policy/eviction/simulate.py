"""One tier under an eviction policy, without a server: for `distier simulate`, for tests, and to choose a policy."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Generic, TypeVar

from distier.policy.eviction.rank import Policy, Ranked
from distier.policy.eviction.s3fifo import SMALL_SHARE

K = TypeVar("K")

USES_EACH = 10
SAMPLED_MIN = 1000
"""Under policies that halve ranks, uses are halved after ten of them for each module in the tier, not before a thousand, as the
scripts do it."""


class Tier(Generic[K]):
    """A tier of `capacity` bytes, to which each miss adds its module.

    Time is the number of accesses, in ms: ranks depend on its order only.
    """

    def __init__(self, policy: Policy, capacity: int, *, started_ms: float = 1.7e12) -> None:
        self.policy, self.capacity, self.used = policy, capacity, 0
        self.sizes: dict[K, int] = {}
        self.uses: dict[K, float] = {}
        self.hits = self.misses = self.hit_bytes = self.missed_bytes = 0
        self._ranks: dict[K, float] = {}
        self._queues: tuple[list[tuple[float, int, K]], list[tuple[float, int, K]]] = (
            [],
            [],
        )  # ranks below 0, and others
        self._small = self._pushed = 0
        self._floor, self._now, self._sampled = 0.0, started_ms, 0
        self._ghosts: OrderedDict[K, None] = OrderedDict()

    def access(self, key: K, size: int) -> bool:
        """Read a module, which enters the tier at a miss if it fits at all. Returns whether it was there."""
        self._now += 1
        uses = self.uses[key] = self.uses.get(key, 0.0) + 1
        self._sample()
        was = self._ranks.get(key)
        if was is not None:
            self.hits, self.hit_bytes = self.hits + 1, self.hit_bytes + size
            self._set(key, self.policy.rank(Ranked(uses, self.sizes[key], self._now, self._floor, was)))
            return True
        self.misses, self.missed_bytes = self.misses + 1, self.missed_bytes + size
        self.insert(key, size)
        return False

    def insert(self, key: K, size: int) -> bool:
        """Add a module that is not in the tier, and evict others for it.

        Returns False where it is too large for the tier, or ranks lower than one of those that would leave for it.
        """
        if size > self.capacity:
            return False
        uses = max(self.uses.get(key, 1.0), 1.0)
        rank = self.policy.rank(Ranked(uses, size, self._now, self._floor, known=key in self._ghosts))
        victims: list[tuple[float, int, K]] = []
        free = self.capacity - self.used
        while free < size:
            was, _, other = victim = self._next_victim()
            free += self.sizes[other]
            if self.policy.admits_all:
                self._evict(other, was)
                continue
            victims.append(victim)
            if was >= rank:
                for was, _, other in victims:
                    self._push(other, was)
                return False
        for was, _, other in victims:
            self._evict(other, was)
        self._ghosts.pop(key, None)
        self.sizes[key], self.used = size, self.used + size
        self._set(key, rank)
        return True

    def __contains__(self, key: K) -> bool:
        return key in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    def _set(self, key: K, rank: float) -> None:
        was = self._ranks.get(key)
        if rank == was:
            return
        self._small += (rank < 0) - (was is not None and was < 0)
        self._ranks[key] = rank
        self._push(key, rank)

    def _push(self, key: K, rank: float) -> None:
        self._pushed += 1
        heapq.heappush(self._queues[rank >= 0], (rank, self._pushed, key))

    def _next_victim(self) -> tuple[float, int, K]:
        """Take the first in line from its queue, with its rank."""
        while True:
            small = self._small > SMALL_SHARE * len(self._ranks) or self._small == len(self._ranks)
            queue = self._queues[not small]
            first = heapq.heappop(queue)
            rank, _, key = first
            if self._ranks.get(key) != rank:
                continue  # it was used since, or has left
            spared = self.policy.spared(rank, self._now) if self.policy.spared else None
            if spared is not None:
                self._now += 0.001
                self._set(key, spared)
                continue
            return first

    def _evict(self, key: K, rank: float) -> None:
        del self._ranks[key]
        self._small -= rank < 0
        self.used -= self.sizes.pop(key)
        self._floor = max(self._floor, rank)
        if self.policy.kept_uses < 1 and key in self.uses:
            self.uses[key] *= self.policy.kept_uses
        if self.policy.ghosts and rank < 0:
            self._ghosts[key] = None
            while len(self._ghosts) > len(self._ranks):
                self._ghosts.popitem(last=False)

    def _sample(self) -> None:
        self._sampled += 1
        if not self.policy.halves or self._sampled < max(SAMPLED_MIN, USES_EACH * len(self._ranks)):
            return
        self._sampled = 0
        self.uses = {key: uses / 2 for key, uses in self.uses.items() if uses >= 1}
        for key, rank in list(self._ranks.items()):
            self._set(key, rank / 2)
