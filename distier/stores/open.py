"""Opens the archive and the local store of a configuration.

boto3 is imported only for S3, because that takes as long as all other imports together; LMDB only for a local store.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distier.config import Config
from distier.config.urls import ARCHIVES_GROUP
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
        return _opener("file")(directory)
    assert url is not None
    return _opener(url.partition("://")[0].lower())(url, **s3_options)


ARCHIVES: dict[str, str] = {
    "s3": "distier.stores.s3:S3Archive",
    "file": "distier.stores.directory:DirectoryArchive",
}
"""The built-in archive classes by the scheme of their URL, as `module:class`. Other packages add classes as entry points of
the group `distier.archives`, named by the scheme. Such a class takes the URL and the options of S3."""


def schemes() -> list[str]:
    """Return the schemes of all archives that are installed, in order."""
    return sorted({*ARCHIVES, *(point.name for point in entry_points(group=ARCHIVES_GROUP))})


def _opener(scheme: str) -> Callable[..., Archive]:
    """Return the archive class of a scheme.

    Raises:
        ConfigError: No installed archive has this scheme.
    """
    if scheme in ARCHIVES:
        module, _, name = ARCHIVES[scheme].partition(":")
        found: Callable[..., Archive] = getattr(import_module(module), name)
        return found
    for point in entry_points(group=ARCHIVES_GROUP, name=scheme):
        loaded: Callable[..., Archive] = point.load()
        return loaded
    raise ConfigError(f"there is no archive for {scheme}://; installed archives: {', '.join(schemes())}")


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
