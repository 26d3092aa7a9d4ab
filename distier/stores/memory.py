"""An archive in this process's memory, for unit tests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distier.domain.archived import Limits
from distier.domain.objects import Fetched, Listed
from distier.errors import Corrupt

from .archive import check_key, check_limit, probe


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    metadata: dict[str, str]
    modified_ms: int


class MemoryArchive:
    """Keeps objects in a dict; the first put of a key stays. `modified_ms` counts puts, because tests use no wall clock."""

    name = "memory:"
    limits = Limits()

    def __init__(self, *, keeps_metadata: bool = True) -> None:
        self.keeps_metadata = keeps_metadata
        self._objects: dict[str, _Object] = {}
        self._puts = itertools.count(1)
        self._lock = threading.RLock()

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Archive.put`."""
        kept = dict(metadata) if self.keeps_metadata else {}
        with self._lock:
            self._objects.setdefault(check_key(key), _Object(bytes(data), kept, next(self._puts)))

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """See `Archive.get`."""
        found = self._objects.get(check_key(key))
        if found is None:
            return None
        if len(found.data) > max_bytes:
            raise Corrupt(f"{key} in {self.name} has {len(found.data)} bytes, more than {max_bytes}")
        return Fetched(found.data, dict(found.metadata))

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """See `Archive.list`."""
        after = start_after.encode()
        with self._lock:
            keys = [k for k in list(self._objects) if k.startswith(prefix) and k.encode() > after]
            keys.sort(key=str.encode)
            page = [(k, self._objects[k]) for k in keys[: check_limit(limit)]]
        return [Listed(k, len(found.data), found.modified_ms) for k, found in page]

    def delete(self, keys: Sequence[str]) -> None:
        """See `Archive.delete`."""
        with self._lock:
            for key in keys:
                self._objects.pop(check_key(key), None)

    def check(self) -> None:
        """See `Archive.check`."""
        probe(self)

    def close(self) -> None:
        """Do nothing."""
