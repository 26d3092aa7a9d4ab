"""A worker that takes no notice of leases. They save work and guard nothing, so several of these at once must do no harm."""

from __future__ import annotations

from distier.domain.keys import Shard
from distier.worker import Worker


class Careless(Worker):
    """Maintains all shards, whoever has their leases."""

    def holds(self, shard: Shard) -> bool:
        return True

    @property
    def held(self) -> list[Shard]:
        return list(self.space.keys.shards)
