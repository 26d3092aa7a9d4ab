"""The archive: named objects that are written once, listed in order, and never changed.

The greatest listed name wins, so this is all that an archive must be able to do. Nothing here needs
conditional writes, versioning or locks, and metadata is a convenience: real servers ignore or drop each of
them.

The one sharp rule: **a miss is proved, never assumed**. `get` answers None only if the store positively
says that there is no such object. A bucket or directory that is gone, a proxy that answers 404 and a closed
port are errors; taken for misses they would make every module look deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distier.domain.archived import Limits
from distier.errors import ConfigError, Corrupt, Invalid

MAX_KEY_BYTES = 1024  # of S3, its own prefix included
PROBE_PREFIX = "distier-probe/"


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it. `key` is relative to the store's prefix."""

    key: str
    size_bytes: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object as it was put. `metadata` has lower-case names, and may be empty: some servers drop it. `content_type` as
    the server says it; None where there is no such thing."""

    data: bytes
    metadata: Mapping[str, str]
    content_type: str | None = None


class Archive(Protocol):
    """What `stores/s3.py`, `directory.py` and `memory.py` offer, each to many threads at once.

    Keys are relative to the store's own prefix (`team/modules/a/b/@00000001-....md.xz`). Errors of all
    methods: `ArchiveUnavailable` for what may pass (no connection, timeout, 5xx, full disk), `ConfigError`
    for what a person must change (no such bucket, access denied), `Invalid` for a key or argument that can
    never work.
    """

    @property
    def name(self) -> str:
        """What messages call it, e.g. `s3://bucket/prefix`; holds no secret."""

    @property
    def keeps_metadata(self) -> bool:
        """False: metadata is not kept, and writers put a sidecar object beside each version."""

    @property
    def limits(self) -> Limits:
        """What a key may be. A key within them can be put, unless the archive is full or away."""

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """Store a whole object; it is durable when this returns. Readers see all of it or nothing.

        `metadata`: ASCII, names in lower case, 2 KB in all (S3's limits). A key names its content, so a
        repeated `put` writes the same bytes. If it does not, the store keeps one of the two whole (the
        first in a directory, the last in S3), never a mixture. Some servers (`rclone serve s3`) have a
        moment without the object while it is replaced: repeat a `put` whose outcome is unknown, and no
        other.
        """

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """The object, or None if the store says that it does not exist.

        Raises `Corrupt` if it has more than `max_bytes`; no more than that is read.
        """

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """Up to `limit` objects whose keys start with `prefix` and are greater than `start_after`; recursive.

        In ascending order of the whole key's UTF-8 bytes. Fewer than `limit` means that there are no more.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; keys that do not exist are fine. After an error any of them may be gone."""

    def check(self) -> None:
        """List, write, read and delete a probe; raises an error that says what is not possible."""

    def close(self) -> None:
        """Give back connections. Using the archive afterwards is a bug of the caller."""


def check_key(key: str) -> str:
    """`key` if every store can keep it, else `Invalid`: an S3 key is any text, a path is not."""
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError as e:
        raise Invalid(f"archive key {key!r} has a lone surrogate: it is no valid UTF-8") from e
    if not 1 <= size_bytes <= MAX_KEY_BYTES:
        raise Invalid(f"an archive key has 1 to {MAX_KEY_BYTES} bytes, not {size_bytes}: {key[:60]!r}")
    if any(segment in ("", ".", "..") for segment in key.split("/")) or "\0" in key:
        raise Invalid(f"archive key {key!r} is no relative path without '', '.', '..' and NUL")
    return key


def check_limit(limit: int) -> int:
    """`limit` if a listing can have it, else `Invalid`."""
    if limit < 1:
        raise Invalid(f"the limit of a listing is at least 1, not {limit}")
    return limit


def probe(archive: Archive) -> None:
    """`Archive.check` for any archive: the error of the step that failed, with the step's name in front."""
    key = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    data = key.encode()
    step = "list"
    try:
        archive.list(PROBE_PREFIX, limit=1)
        step = "write"
        archive.put(key, data, content_type="application/octet-stream", metadata={})
        step = "read"
        found = archive.get(key, max_bytes=len(data))
        step = "list"
        listed = archive.list(key)
        step = "delete"
        archive.delete([key])
        step = "read a deleted object in"
        left = archive.get(key, max_bytes=len(data))
    except ConfigError as e:
        raise ConfigError(f"can not {step} {archive.name}: {e}") from e
    if found is None or found.data != data:
        raise Corrupt(f"{archive.name} did not give back the probe {key} as it was written")
    if [one.key for one in listed] != [key]:
        raise ConfigError(
            f"{archive.name} does not list the probe {key} that it has: modules in it would seem not to exist"
        )
    if left is not None:
        raise ConfigError(f"{archive.name} still has the probe {key} after deleting it: write-once storage?")
