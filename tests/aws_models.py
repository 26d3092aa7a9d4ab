"""Read botocore's descriptions once. Each archive has its own session, and each session reads half a megabyte of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.loaders import JSONFileLoader

_load = JSONFileLoader.load_file


@cache
def _once(path: str) -> Any:
    return _load(JSONFileLoader(), path)


def share() -> None:
    """Share the descriptions in this process from now on."""
    JSONFileLoader.load_file = lambda _, file_path: _once(file_path)  # type: ignore[method-assign, assignment]
