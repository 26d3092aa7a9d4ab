"""Which archive and which disk a configuration means. boto3 is imported only if it is S3: that takes as long as the rest; and
LMDB only where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distier.config import Config
from distier.errors import ConfigError

from .archive import Archive

if TYPE_CHECKING:
    from .local import LocalStore


def open_archive(*, url: str | None = None, directory: Path | None = None, **s3_options: Any) -> Archive:
    """The archive at `url` (`s3://bucket/prefix`) or in `directory`: exactly one of them.

    `s3_options` are the keyword arguments of `S3Archive`. Raises `ConfigError` for anything else.
    """
    if (url is None) == (directory is None):
        raise ConfigError("the archive needs either a url (s3://bucket/prefix) or a directory")
    if directory is not None:
        if s3_options:
            raise ConfigError(f"an archive in a directory has no options {sorted(s3_options)}: they are S3's")
        from .directory import DirectoryArchive

        return DirectoryArchive(directory)
    assert url is not None
    from .s3 import S3Archive

    return S3Archive(url, **s3_options)


def open_local(config: Config) -> LocalStore | None:
    """This node's disk with its copies, where the configuration wants one. Raises `ConfigError`."""
    warm = config.storage_tiers.warm
    if not warm.is_local:
        return None
    from .local import LocalStore

    return LocalStore(
        config.warm_directory, namespace=config.namespace, max_modules=warm.max_modules, max_bytes=warm.max_bytes,
        ttl_ms=warm.ttl_ms, level=warm.compression_level if warm.compression == "lz4" else None, node=config.node,
    )  # fmt: skip
