"""The archive: named objects that are written once, listed in order, and never changed.

The greatest listed name wins, so an archive needs no other operations: no conditional writes, no versioning and no
locks. Metadata is a convenience. Real servers ignore or drop each of these features.

The one strict rule: **a miss is proved, never assumed**. `get` returns None only if the store positively reports that
the object does not exist. A missing bucket or directory, a proxy that replies 404 and a closed port are errors. Treated
as misses, they would make every module look deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from distier.domain.archived import Limits
from distier.domain.objects import Fetched, Listed
from distier.errors import ConfigError, Corrupt, Invalid

MAX_KEY_BYTES = 1024  # limit of S3, including the archive's own prefix
PROBE_PREFIX = "distier-probe/"


class Archive(Protocol):
    """The protocol of `stores/s3/`, `directory.py` and `memory.py`. All methods are thread-safe.

    Keys are relative to the store's own prefix (`team/modules/a/b/@00000001-....md.xz`).

    All methods may raise these errors:
        ArchiveUnavailable: A failure that may pass: no connection, a timeout, 5xx, a full disk.
        ConfigError: A failure that a person must fix: no such bucket, access denied.
        Invalid: A key or an argument that can never work.
    """

    @property
    def name(self) -> str:
        """The archive's name in messages, such as `s3://bucket/prefix`. It contains no secret."""

    @property
    def keeps_metadata(self) -> bool:
        """Whether metadata is kept. If not, writers put a sidecar object next to each version."""

    @property
    def limits(self) -> Limits:
        """The limits for keys. A key within them can be put unless the archive is full or unavailable."""

    def put(self, key: str, data: bytes, *, content_type: str, metadata: Mapping[str, str]) -> None:
        """Store a whole object. It is durable when this returns, and readers see all of it or nothing.

        A key names its content, so a repeated `put` writes the same bytes. If the bytes differ, the store keeps one of
        the two contents, never a mixture: a directory keeps the first, S3 the last. On some servers (`rclone serve s3`)
        the object is missing for a moment while it is replaced. Repeat a `put` only if its outcome is unknown.

        Args:
            key: The object's key.
            data: Its whole content.
            content_type: Its content type.
            metadata: ASCII text with names in lower case, at most 2 KB in total (the limits of S3).
        """

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        """Return the object, or None if the store reports that it does not exist.

        Raises:
            Corrupt: The object has more than `max_bytes`. No more than that is read.
        """

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Listed]:
        """Return up to `limit` objects whose keys start with `prefix` and are greater than `start_after`, at any depth.

        They are in ascending order of the UTF-8 bytes of the whole key. Fewer than `limit` objects mean that there are
        no more.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects. Keys that do not exist are ignored. After an error any of the objects may be gone."""

    def check(self) -> None:
        """List, write, read and delete a probe. The error of the step that failed names the step."""

    def close(self) -> None:
        """Close all connections. The caller must not use the archive afterwards."""


def check_key(key: str) -> str:
    """Return `key` if every store can keep it. An S3 key is any text, but a path is not.

    Raises:
        Invalid: A store cannot keep it.
    """
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError as e:
        raise Invalid(f"archive key {key!r} has a lone surrogate, which is not valid UTF-8") from e
    if not 1 <= size_bytes <= MAX_KEY_BYTES:
        raise Invalid(f"an archive key must have 1 to {MAX_KEY_BYTES} bytes, not {size_bytes}: {key[:60]!r}")
    if any(segment in ("", ".", "..") for segment in key.split("/")) or "\0" in key:
        raise Invalid(f"archive key {key!r} must be a relative path without '', '.', '..' and NUL")
    return key


def check_limit(limit: int) -> int:
    """Return `limit` if it is valid for a listing.

    Raises:
        Invalid: It is less than 1.
    """
    if limit < 1:
        raise Invalid(f"the limit of a listing must be at least 1, not {limit}")
    return limit


def restore(archive: Archive, key: str, *, days: int, tier: str) -> bool:
    """Ask an archive for a readable copy of an object. Returns whether it can be read now.

    Only archives with slow storage classes have a method `restore` with these arguments. All others can always read.

    Raises:
        Corrupt: There is no such object.
    """
    ask: Callable[..., bool] | None = getattr(archive, "restore", None)
    return ask is None or ask(key, days=days, tier=tier)


def probe(archive: Archive) -> None:
    """Implement `Archive.check` for any archive.

    Raises:
        ConfigError: A step failed for a reason that a person must fix. The message starts with the step.
        Corrupt: The archive returned other bytes than were written.
        ArchiveUnavailable: The archive is unavailable.
    """
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
        raise ConfigError(f"cannot {step} {archive.name}: {e}") from e
    if found is None or found.data != data:
        raise Corrupt(f"{archive.name} did not return the probe {key} as it was written")
    if [one.key for one in listed] != [key]:
        raise ConfigError(f"{archive.name} does not list the existing probe {key}: its modules would seem not to exist")
    if left is not None:
        raise ConfigError(f"{archive.name} still has the probe {key} after deleting it (is it write-once storage?)")
