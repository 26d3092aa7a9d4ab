"""Checks of the arguments that callers pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distier.config import Config
from distier.domain.ids import check_id
from distier.domain.module import Event, Landed, Moved
from distier.errors import DistierError, Invalid
from distier.observe.hooks import MetricsHook
from distier.plans.put.prepare import Item

Source = str | Path | Mapping[str, Any] | Config | None
Listener = Callable[[Event], None]
Landings = list[Landed | DistierError]
Moves = list[Moved | DistierError]


def check_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids as a list. Raises `Invalid`, also for a single str, whose characters would pass as ids."""
    if isinstance(ids, str):
        raise Invalid("ids must be a sequence of module ids, not a single str")
    return [check_id(id) for id in ids]


def check_items(items: Iterable[Item]) -> list[Item]:
    """Return the items as a list. Raises `Invalid` for anything that is not an `Item`."""
    wanted = list(items)
    for item in wanted:
        if not isinstance(item, Item):
            raise Invalid(f"put_many takes one distier.Item(id, content, ...) per module, not {type(item).__name__}")
    return wanted


def check_ttl_ms(ttl: float) -> int:
    """Return a pin's `ttl` (in seconds) in milliseconds, at least 1. Raises `Invalid`."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= 366 * 86400:
        raise Invalid(f"ttl must be a number of seconds, greater than 0 and at most 366 days; not {ttl!r}")
    return max(1, int(ttl * 1000))


def check_event(event: str) -> None:
    """Raises `Invalid` for a name that `on` does not know."""
    if event not in ("tier_change", "event"):
        raise Invalid(f"event must be 'tier_change' or 'event', not {event!r}")


def check_hooks(hooks: Sequence[MetricsHook]) -> tuple[MetricsHook, ...]:
    """Return the hooks as a tuple. Raises `Invalid`, also for a hook that is not in a sequence."""
    found = tuple(hooks) if isinstance(hooks, Iterable) else None
    if found is None or not all(callable(getattr(h, name, None)) for h in found for name in ("count", "observe")):
        raise Invalid(f"metrics must be a sequence of objects with the methods count and observe, not {hooks!r:.80}")
    return found


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of a method that used its deprecated name."""
    warnings.warn(f"{old}() is deprecated: call {new}()", DeprecationWarning, stacklevel=3)
