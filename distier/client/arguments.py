"""What callers pass, checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distier.config import Config
from distier.domain.ids import check_id
from distier.domain.module import Event, Landed, Moved
from distier.errors import DistierError, Invalid
from distier.plans.put.prepare import Item

Source = str | Path | Mapping[str, Any] | Config | None
Listener = Callable[[Event], None]
Landings = list[Landed | DistierError]
Moves = list[Moved | DistierError]


def check_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str):
        raise Invalid("ids is a sequence of module ids, not one str")
    return [check_id(id) for id in ids]


def check_items(items: Iterable[Item]) -> list[Item]:
    wanted = list(items)
    for item in wanted:
        if not isinstance(item, Item):
            raise Invalid(f"put_many takes distier.Item(id, content, ...) of each module, not {type(item).__name__}")
    return wanted


def check_ttl_ms(ttl: float) -> int:
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= 366 * 86400:
        raise Invalid(f"a pin's ttl is a number of seconds, more than 0 and at most a year; not {ttl!r}")
    return max(1, int(ttl * 1000))


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of a method under its deprecated name."""
    warnings.warn(f"{old}() is deprecated: call {new}()", DeprecationWarning, stacklevel=3)
