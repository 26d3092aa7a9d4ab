"""distier: a Redis-backed, tiered, distributed cache of modules that many LLM agents share.

import distier

with distier.connect() as store:                  # an embedded server; or connect("redis://host"), connect("conf.yaml")
    store.put("skills/pdf", text)
    module = store.get("skills/pdf")              # module.text, module.tokens, module.tier; None on a miss
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distier.plans.fleet.statistics import Stats
    from distier.plans.put.prepare import Content, Durability, Item
    from distier.policy.predict import Context, Prediction

    from .client import AsyncSession, AsyncStore, Session, Store, connect, connect_async
    from .config import Config, load_config
    from .domain.described import Described, Found, Listed
    from .domain.fitted import Choice, Fitted
    from .domain.module import Event, HistoryEntry, Landed, Module, Moved, Part, Placement, Tier
    from .domain.order import Order
    from .domain.tokens import TokenCounter
    from .errors import (
        ArchiveTimeout,
        ArchiveUnavailable,
        ConfigError,
        Conflict,
        Corrupt,
        DeadlineExceeded,
        DistierError,
        Full,
        Invalid,
        NeedsRestore,
        NotFound,
        OutOfStep,
        Recovering,
        RedisUnavailable,
        Unavailable,
    )
    from .worker import Worker

_MODULE_OF = {
    "AsyncSession": "client", "AsyncStore": "client", "Session": "client", "Store": "client",
    "connect": "client", "connect_async": "client",
    "Config": "config", "load_config": "config",
    "Described": "domain.described", "Found": "domain.described", "Listed": "domain.described",
    "Choice": "domain.fitted", "Fitted": "domain.fitted",
    "Event": "domain.module", "HistoryEntry": "domain.module", "Landed": "domain.module",
    "Module": "domain.module", "Moved": "domain.module",
    "Part": "domain.module", "Placement": "domain.module", "Tier": "domain.module", "Order": "domain.order",
    "TokenCounter": "domain.tokens",
    "ArchiveTimeout": "errors", "ArchiveUnavailable": "errors", "ConfigError": "errors", "Conflict": "errors",
    "Corrupt": "errors", "DeadlineExceeded": "errors", "DistierError": "errors", "Full": "errors", "Invalid": "errors",
    "NeedsRestore": "errors", "NotFound": "errors", "OutOfStep": "errors", "Recovering": "errors", "RedisUnavailable": "errors",
    "Unavailable": "errors", "Stats": "plans.fleet.statistics", "Content": "plans.put.prepare",
    "Durability": "plans.put.prepare", "Item": "plans.put.prepare", "Context": "policy.predict",
    "Prediction": "policy.predict", "Worker": "worker",
}  # fmt: skip

__all__ = [
    "ArchiveTimeout", "ArchiveUnavailable", "AsyncSession", "AsyncStore", "Choice", "Config", "ConfigError", "Conflict",
    "Content", "Context", "Corrupt", "DeadlineExceeded", "Described", "DistierError", "Durability", "Event", "Fitted",
    "Found", "Full",
    "HistoryEntry", "Invalid", "Item", "Landed", "Listed", "Module", "Moved", "NeedsRestore", "NotFound", "Order", "OutOfStep",
    "Part", "Placement", "Prediction", "Recovering", "RedisUnavailable", "Session", "Stats", "Store", "Tier", "TokenCounter",
    "Unavailable", "Worker", "connect",
    "connect_async", "load_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import distier` alone stays fast."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'distier' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
