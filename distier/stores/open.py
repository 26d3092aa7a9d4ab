"""Which archive a configuration means. boto3 is imported only if it is S3: that takes as long as the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distier.errors import ConfigError

from .archive import Archive


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
