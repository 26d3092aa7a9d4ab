"""botocore reads half a megabyte of descriptions for each session, and an archive has a session of its own: in tests they are
read once."""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.loaders import JSONFileLoader

_load = JSONFileLoader.load_file


@cache
def _once(path: str) -> Any:
    return _load(JSONFileLoader(), path)


def share() -> None:
    """From now on, in this process."""
    JSONFileLoader.load_file = lambda _, file_path: _once(file_path)  # type: ignore[method-assign, assignment]
