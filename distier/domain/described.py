"""Descriptions of modules: what the record says, without the content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .content_types import extension_for
from .frozen import frozen
from .module import Record, Tier
from .order import Order

DESCRIBED = (
    "tier", "epoch", "ver", "tok", "seen", "bytes", "tokens", "counter", "sha256", "type", "keywords", "meta", "clean",
    "created", "updated", "transform", "ttl",
)  # fmt: skip
"""The fields of a record that a description is made of."""


@frozen
@dataclass(frozen=True, slots=True)
class Described:
    """What a module is, without its content. Times are in milliseconds since the Unix epoch.

    `tier` is what the record names; a clean warm copy may have expired since. `sha256` is that of the content. `clean` means
    that this version is archived. `name` and `description` are those of `meta`, where `distier put` keeps the front matter of
    skills and prompts. `expires_ms` is None for a module without TTL.
    """

    id: str
    version: Order
    tier: Tier
    clean: bool
    content_type: str
    size_bytes: int
    tokens: int
    counter: str
    sha256: str
    keywords: tuple[str, ...]
    meta: Mapping[str, Any]
    created_ms: int
    updated_ms: int
    transform: str | None = None
    expires_ms: int | None = None

    @property
    def name(self) -> str | None:
        return self._told("name")

    @property
    def description(self) -> str | None:
        return self._told("description")

    @property
    def extension(self) -> str:
        """The extension of the content type, such as `md`; also that of the module's objects in the archive."""
        return extension_for(self.content_type)

    def _told(self, field: str) -> str | None:
        value = self.meta.get(field)
        return value if isinstance(value, str) else None


@frozen
@dataclass(frozen=True, slots=True)
class Listed:
    """A page of a listing: the modules in the order of the bytes of their ids, and what continues it.

    `after` is the argument `after` of the next page; None at the end. A page that filters may have fewer modules than its
    limit, and still continue.
    """

    modules: tuple[Described, ...]
    after: str | None


@frozen
@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search: the best modules, the best one first, and how many there are in all.

    `total` is that of the index. A module that was deleted a moment ago is counted, and not among `modules`.
    """

    modules: tuple[Described, ...]
    total: int


def described(record: Record) -> Described:
    """Return the description in a record of a module that exists. Raises `Corrupt` if it is damaged."""
    keywords, meta = record.described()
    return Described(
        record.id, record.order, record.live_tier(), record.clean, record.content_type, record.size_bytes, record.tokens,
        record.counter, record.sha256, keywords, meta, record.created_ms, record.updated_ms, record.transform,
        record.expires_ms,
    )  # fmt: skip
