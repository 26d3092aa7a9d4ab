"""What an archive returns: objects, and entries of a listing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing. `key` is relative to the store's prefix."""

    key: str
    size_bytes: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object as it was put.

    The names in `metadata` are lower-case. It may be empty, because some servers drop it. `content_type` is what the
    server reports; None if the store keeps no content types.
    """

    data: bytes
    metadata: Mapping[str, str]
    content_type: str | None = None
