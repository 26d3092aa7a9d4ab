"""Which worker of a fleet maintains which shard: a pure function of who is alive, so that all workers come to the same answer.

Rendezvous hashing (Thaler and Ravishankar, 1996): each shard ranks the workers by a hash of both, and takes the first of them.
Alone it spreads few shards badly (3 workers of 4 shards may get 4, 0 and 0), so no worker takes more than an equal part,
rounded up, as in consistent hashing with bounded loads (Mirrokni et al., SODA 2018): a shard whose first choice is full takes
the next one. When a worker comes or goes, few shards change hands besides its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b


def assign(workers: Sequence[str], shards: int) -> dict[str, list[int]]:
    """The shards of each worker, at most `ceil(shards / workers)` each; with more workers than shards, some have none and
    stand by."""
    return {worker: list(mine) for worker, mine in _assign(tuple(workers), shards).items()}


@lru_cache(maxsize=4)  # asked at every beat, and the answer is nearly always the same
def _assign(workers: tuple[str, ...], shards: int) -> dict[str, list[int]]:
    most = -(-shards // max(1, len(workers)))
    taken: dict[str, list[int]] = {worker: [] for worker in workers}
    for shard in range(shards):
        for worker in sorted(taken, key=lambda w: _rank(w, shard)):
            if len(taken[worker]) < most:
                taken[worker].append(shard)
                break
    return taken


def _rank(worker: str, shard: int) -> bytes:
    return blake2b(f"{shard} {worker}".encode(), digest_size=8).digest()
