"""Miss ratios of LRU at every budget, from one pass over the accesses and a sample of the modules.

SHARDS with a fixed size: Waldspurger, Park, Garthwaite, Ahmad, "Efficient MRC construction with SHARDS", FAST 2015. A module is
sampled if the hash of its key is below a threshold, so all accesses of a module are sampled or none. Its *reuse distance* is
the size of what was used since its last use, itself included; that of the sample, divided by the rate, estimates that of all.
When the sample exceeds its maximum, the modules with the greatest hash leave it, and the threshold sinks to that hash. An
access has the weight 1/rate of its time, which is the paper's rescaling of counts in another order.

SHARDS-adj: the sum of the weights should be the number of accesses. The difference goes to the smallest distance, because it
comes from modules that are used much and are in the sample by chance, or are not.

The distance of the sample has steps of a module divided by the rate. So a budget that holds fewer modules than some 100
divided by the rate is estimated badly.

Distances are in bytes and in tokens at once, because a budget may be either. They are kept in buckets 1/128 of an octave wide,
so that memory is bounded whatever the sizes are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from hashlib import blake2b
from math import log2
from typing import NamedTuple

SAMPLES_MAX = 8192
"""The modules in the sample, some 3 MB. The paper's mean error with as many is 0.003."""
SPACE = 1 << 24
"""The number of hash values; the paper's P."""
STEPS = 128
"""Buckets for each doubling of the distance: one is 0.5 % wide."""


class Misses(NamedTuple):
    """Estimated misses at a budget: their number, bytes and tokens."""

    objects: float
    size_bytes: float
    tokens: float


def hash_of(key: str) -> int:
    """Return the hash that decides about the sampling of a key, from 0 to `SPACE` - 1. It is the same in every process."""
    return int.from_bytes(blake2b(key.encode(errors="surrogatepass"), digest_size=4).digest(), "big") % SPACE


class Shards:
    """A sampled miss-ratio curve of LRU."""

    def __init__(self, samples_max: int = SAMPLES_MAX) -> None:
        self.accesses = self._bytes = 0
        self._tokens = 0.0
        self._max, self._threshold = samples_max, SPACE
        self._hashes: list[tuple[int, str]] = []  # a heap with the greatest hash first
        self._last: dict[str, int] = {}  # the slot of the last use of each sampled module
        self._sizes: dict[str, tuple[float, float]] = {}
        self._stacks = (_Sums(2 * samples_max + 2), _Sums(2 * samples_max + 2))
        self._next = 0
        self._curves: tuple[dict[int, list[float]], dict[int, list[float]]] = ({}, {})
        self._weight, self._weight_bytes, self._weight_tokens = 0.0, 0.0, 0.0

    @property
    def rate(self) -> float:
        """The fraction of all modules that is sampled now."""
        return self._threshold / SPACE

    @property
    def sampled(self) -> int:
        """The number of modules in the sample."""
        return len(self._last)

    def access(self, key: str, size_bytes: int, tokens: float = 0.0) -> None:
        """Count one access. `size_bytes` and `tokens` are those of the module."""
        self.accesses += 1
        self._bytes += size_bytes
        self._tokens += tokens
        hashed = hash_of(key)
        if hashed >= self._threshold:
            return
        weight = SPACE / self._threshold
        self._weight += weight
        self._weight_bytes += weight * size_bytes
        self._weight_tokens += weight * tokens
        last, sizes = self._last.get(key), (float(size_bytes), float(tokens))
        if last is not None:
            for stack, curve, mine in zip(self._stacks, self._curves, sizes, strict=True):
                since = stack.total() - stack.until(last) + mine
                bucket = curve.setdefault(_bucket(since * weight), [0.0, 0.0, 0.0])
                for i, amount in enumerate((1.0, *sizes)):
                    bucket[i] += weight * amount
            self._forget(key)
        else:
            heapq.heappush(self._hashes, (-hashed, key))
        self._use(key, sizes)
        if len(self._last) > self._max:
            self._shrink()

    def misses(self, budget: float, *, in_tokens: bool = False) -> Misses:
        """Return the estimated misses of LRU with a budget in bytes, or in tokens."""
        curve, end = self._curves[in_tokens], _bucket(budget)
        hits = [sum(amounts[i] for at, amounts in curve.items() if at <= end) for i in range(3)]
        missing = (
            self.accesses - self._weight, self._bytes - self._weight_bytes, self._tokens - self._weight_tokens
        )  # fmt: skip
        totals = (self.accesses, self._bytes, self._tokens)
        # The correction of SHARDS-adj adds to the hits; it may be negative.
        return Misses(*(
            min(max(total - hit - more, 0.0), total) for total, hit, more in zip(totals, hits, missing, strict=True)
        ))  # fmt: skip

    def _use(self, key: str, sizes: tuple[float, float]) -> None:
        if self._next == self._stacks[0].size:
            self._compact()
        self._last[key], self._sizes[key] = self._next, sizes
        for stack, amount in zip(self._stacks, sizes, strict=True):
            stack.add(self._next, amount)
        self._next += 1

    def _forget(self, key: str) -> None:
        slot, sizes = self._last.pop(key), self._sizes.pop(key)
        for stack, amount in zip(self._stacks, sizes, strict=True):
            stack.add(slot, -amount)

    def _compact(self) -> None:
        """Give the sampled modules the first slots, in the order of their last uses."""
        order = sorted(self._last, key=self._last.__getitem__)
        self._last = {key: slot for slot, key in enumerate(order)}
        self._next = len(order)
        for i, stack in enumerate(self._stacks):
            stack.fill(self._sizes[key][i] for key in order)

    def _shrink(self) -> None:
        """Take the modules with the greatest hash out of the sample."""
        self._threshold = -self._hashes[0][0]
        while self._hashes and -self._hashes[0][0] >= self._threshold:
            self._forget(heapq.heappop(self._hashes)[1])


def _bucket(amount: float) -> int:
    return int(STEPS * log2(max(amount, 1.0)))


class _Sums:
    """Sums of the amounts in the first slots. Fenwick, "A new data structure for cumulative frequency tables", 1994."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._tree = [0.0] * (size + 1)
        self._total = 0.0

    def add(self, slot: int, amount: float) -> None:
        self._total += amount
        at = slot + 1
        while at <= self.size:
            self._tree[at] += amount
            at += at & -at

    def until(self, slot: int) -> float:
        """Return the sum of the slots up to this one."""
        at, found = slot + 1, 0.0
        while at:
            found += self._tree[at]
            at &= at - 1
        return found

    def total(self) -> float:
        return self._total

    def fill(self, amounts: Iterable[float]) -> None:
        """Replace all amounts by these, in the first slots."""
        self.__init__(self.size)  # type: ignore[misc]
        for slot, amount in enumerate(amounts):
            self.add(slot, amount)
