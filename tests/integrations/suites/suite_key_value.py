"""A pytest plugin: py-key-value's tests of every store (`tests/stores/base.py`) against `DistierStore`, in their repository.

`tests/stores/memory/test_memory.py` tests the store `MemoryStore` with them, so this puts ours in its place.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from suite_store import pytest_unconfigure as pytest_unconfigure
from suite_store import shared

from distier.integrations.key_value import DistierStore

COUNT = iter(range(10**6))


class Standing(DistierStore):
    """Each has a root of its own on one store, and so is empty at first."""

    def __init__(self, max_entries_per_collection: int | None = None, *, seed: Any = None) -> None:
        super().__init__(shared(), root=f"s{next(COUNT)}", seed=seed)


# When this is imported, because a conftest of theirs imports the module. The real one needs another extra of py-key-value.
for name in ("key_value.aio.stores.memory", "key_value.aio.stores.memory.store"):
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name])["MemoryStore"] = Standing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "not_unbounded" in item.name:  # their Redis, S3 and disk stores skip it too
            item.add_marker(pytest.mark.skip(reason="entries that leave hot and warm stay in the archive"))
