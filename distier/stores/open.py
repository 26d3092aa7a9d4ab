"""Which archive and which disk a configuration means. boto3 is imported only if it is S3: that takes as long as the rest; and
LMDB only where it is used."""

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
    """The archive at `url` (`s3://bucket/prefix`) or in `directory`: exactly one of them.

    `s3_options` are the keyword arguments of `S3Archive`. Raises `ConfigError` for anything else.
    """
    if (url is None) == (directory is None):
        raise ConfigError("the archive needs either a url (s3://bucket/prefix) or a directory")
    if directory is not None:
        if s3_options:
            raise ConfigError(f"an archive in a directory has no options {sorted(s3_options)}: they are S3's")
        return _opener("file")(directory)
    assert url is not None
    return _opener(url.partition("://")[0].lower())(url, **s3_options)


ARCHIVES: dict[str, str] = {
    "s3": "distier.stores.s3:S3Archive",
    "file": "distier.stores.directory:DirectoryArchive",
}
"""The kinds of archives that come with distier, by the scheme of their URL: a module and the class in it. Other packages add
theirs as entry points of the group `distier.archives`, named by the scheme; the class takes the URL and the options of S3."""


def schemes() -> list[str]:
    """Return the schemes of all archives that are installed, in order."""
    return sorted({*ARCHIVES, *(point.name for point in entry_points(group=ARCHIVES_GROUP))})


def _opener(scheme: str) -> Callable[..., Archive]:
    """The class of an archive. Raises `ConfigError` for a scheme that nobody has."""
    if scheme in ARCHIVES:
        module, _, name = ARCHIVES[scheme].partition(":")
        found: Callable[..., Archive] = getattr(import_module(module), name)
        return found
    for point in entry_points(group=ARCHIVES_GROUP, name=scheme):
        loaded: Callable[..., Archive] = point.load()
        return loaded
    raise ConfigError(f"there is no archive for {scheme}://; installed are {', '.join(schemes())}")


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
