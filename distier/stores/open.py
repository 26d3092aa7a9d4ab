"""Opens the archive and the local store of a configuration.

boto3 is imported only for S3, because that takes as long as all other imports together; LMDB only for a local store.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distier.config import Config
from distier.errors import ConfigError

from .archive import Archive

if TYPE_CHECKING:
    from .local import LocalStore


def open_archive(*, url: str | None = None, directory: Path | None = None, **s3_options: Any) -> Archive:
    """Open the archive at `url` or in `directory`, of which exactly one must be given.

    Args:
        url: `s3://bucket/prefix`.
        directory: The directory.
        s3_options: Keyword arguments of `S3Archive`.

    Raises:
        ConfigError: The arguments do not fit together, or the archive cannot be used.
    """
    if (url is None) == (directory is None):
        raise ConfigError("the archive needs either a url (s3://bucket/prefix) or a directory")
    if directory is not None:
        if s3_options:
            raise ConfigError(f"an archive in a directory does not support the S3 options {sorted(s3_options)}")
        from .directory import DirectoryArchive

        return DirectoryArchive(directory)
    assert url is not None
    from .s3 import S3Archive

    return S3Archive(url, **s3_options)


def open_local(config: Config) -> LocalStore | None:
    """Open the store of warm copies on this node's disk. Returns None if the configuration uses none.

    Raises:
        ConfigError: The directory cannot be used.
    """
    warm = config.storage_tiers.warm
    if not warm.is_local:
        return None
    from .local import LocalStore

    return LocalStore(
        config.warm_directory, namespace=config.namespace, max_modules=warm.max_modules, max_bytes=warm.max_bytes,
        ttl_ms=warm.ttl_ms, level=warm.compression_level if warm.compression == "lz4" else None, node=config.node,
    )  # fmt: skip
