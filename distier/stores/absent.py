"""The absence of an archive, or of Redis, for commands that use only the other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from distier.domain.archived import Limits
from distier.domain.objects import Fetched, Listed
from distier.errors import ArchiveUnavailable, RedisUnavailable

if TYPE_CHECKING:
    from distier.domain.keys import Shard
    from distier.stores.redis.protocol import Batch
    from distier.stores.redis.wire import RawCommand


class AbsentArchive:
    """An archive that raises `ArchiveUnavailable` for every request."""

    name = "none"
    limits = Limits()
    keeps_metadata = True

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Archive.put`."""
        self._refuse()

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """See `Archive.get`."""
        self._refuse()

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """See `Archive.list`."""
        self._refuse()

    def delete(self, keys: Sequence[str]) -> None:
        """See `Archive.delete`."""
        self._refuse()

    def check(self) -> None:
        """See `Archive.check`."""
        self._refuse()

    def close(self) -> None:
        """See `Archive.close`."""

    def _refuse(self) -> NoReturn:
        raise ArchiveUnavailable(
            "this needs the archive, but none is configured: set storage_tiers.cold.url or storage_tiers.cold.directory"
        )


class AbsentExchange:
    """A Redis that raises `RedisUnavailable` for every command, for plans that read the archive alone."""

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> NoReturn:
        """See `Exchange.exchange`."""
        raise RedisUnavailable("this works on the archive alone, and uses no Redis")

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> NoReturn:
        """See `Exchange.exchange_many`."""
        raise RedisUnavailable("this works on the archive alone, and uses no Redis")

    def drop(self) -> None:
        """See `Exchange.drop`."""

    def close(self) -> None:
        """See `Exchange.close`."""
