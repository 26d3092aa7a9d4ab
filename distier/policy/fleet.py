"""Which worker of a fleet maintains which shard: a pure function of the live workers, so that all workers agree.

This is rendezvous hashing (Thaler and Ravishankar, 1996): each shard ranks the workers by a hash of both, and takes the first
one. Alone it distributes few shards badly (3 workers may get 4, 0 and 0 of 4 shards). So no worker gets more than an equal
part, rounded up, as in consistent hashing with bounded loads (Mirrokni et al., SODA 2018): a shard whose first choice is full
takes the next one. When a worker joins or leaves, few shards other than its own move.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b


def assign(workers: Sequence[str], shards: int) -> dict[str, list[int]]:
    """Return the shards of each worker, at most `ceil(shards / workers)` each.

    With more workers than shards, some workers have none and are on standby.
    """
    return {worker: list(mine) for worker, mine in _assign(tuple(workers), shards).items()}


@lru_cache(maxsize=4)  # called at every heartbeat, almost always with the same arguments
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
