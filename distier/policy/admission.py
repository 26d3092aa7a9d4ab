"""How warm decides whether a copy is worth what would leave for it, and how a shard learns how strict to be.

Under `lru`, a module has to have a part of the uses for each byte that the modules that would leave have together. That is the
order of GDSF (Cherkasova 1998) with equal costs. How large a part is best depends on the workload: all of the uses is nearly
LFU, none of them is LRU. Where uses come in bursts, LFU keeps out what is needed next. Where they do not, LRU only exchanges
modules of equal worth.

So each shard changes this part by what it regrets, as ARC (Megiddo and Modha, FAST 2003) moves the border between its lists.
It keeps *ghosts*, ids without contents, of a sample of all ids:

- of those that were refused lately. A read of one of them would have found a copy if warm were less strict.
- of those that were evicted lately. A read of one of them would have found its copy if warm had not admitted others.

The scripts keep the ghosts and the part (`remember_ghost` and `learn_from_ghost` in `prelude_moves.lua`). A process skips a
copy that would be refused anyway, but not one of the sample: the shard has to hear of those.
"""

from __future__ import annotations

from distier.domain.schema import GHOSTS_PART


def is_sampled(id: str) -> bool:
    """Return whether a shard keeps ghosts of this id, as `is_sampled` in `prelude_moves.lua` does."""
    return sum(id.encode()[-16:]) % GHOSTS_PART == 0
