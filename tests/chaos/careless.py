"""A worker that ignores leases. Leases save work and guard nothing, so several such workers at once must do no harm."""

from __future__ import annotations

from distier.domain.keys import Shard
from distier.worker import Worker


class Careless(Worker):
    """Maintains all shards, whichever worker has their leases."""

    def holds(self, shard: Shard) -> bool:
        return True

    @property
    def held(self) -> list[Shard]:
        return list(self.space.keys.shards)
