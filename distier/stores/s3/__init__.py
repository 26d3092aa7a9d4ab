"""Archives on S3 and compatible servers."""

from __future__ import annotations

from distier.stores.s3.archive import S3Archive

__all__ = [
    "S3Archive",
]
