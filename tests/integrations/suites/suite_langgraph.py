"""A pytest plugin: LangGraph's own tests of its stores run against `DistierStore`.

The tests create `InMemoryStore`, `SqliteStore` and `AsyncSqliteStore`. This replaces them before the tests are imported.
`tests/integrations/test_suites.py` runs it in an sdist of LangGraph, with this folder on PYTHONPATH. It imports nothing of
distier's tests, because `tests` is LangGraph's package there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from itertools import count
from typing import Any

import pytest
from suite_store import DEADLINE, home, shared
from suite_store import pytest_unconfigure as pytest_unconfigure

import distier
from distier.integrations.langgraph import DistierStore

ROOTS = (f"s{n}" for n in count())
# Only where the store is said to have no index. In all other tests an `index` is ignored, as the interface says.
WITHOUT = {
    r"vector|embed_with_path|test_scores|test_non_ascii": "needs a vector index",
    r"sql_injection_vulnerability": "expects that the name of a filter is refused for what it means in SQL",
    r"nonnull_migrations|escape_glob|namespace_match_pattern|indexable_condition": "tests the SQL of SqliteStore",
}


class Standing(DistierStore):
    """Each has a root of its own on one store, and so is empty at first."""

    def __init__(self, store: Any = None, **_: Any) -> None:
        super().__init__(shared() if store is None else store, root=next(ROOTS))

    def setup(self) -> None: ...

    @classmethod
    @contextmanager
    def from_conn_string(cls, _: str, **__: Any) -> Iterator[DistierStore]:
        yield cls()


class AsyncStanding(DistierStore):
    async def setup(self) -> None: ...

    @classmethod
    @asynccontextmanager
    async def from_conn_string(cls, _: str, **__: Any) -> AsyncIterator[DistierStore]:
        shared()  # the server
        async with await distier.connect_async(home(), counter="estimate", deadline=DEADLINE) as store:
            yield cls(store, root=next(ROOTS))


def pytest_configure() -> None:
    for module, name, standing in (
        ("langgraph.store.memory", "InMemoryStore", Standing),
        ("langgraph.store.sqlite", "SqliteStore", Standing),
        ("langgraph.store.sqlite", "AsyncSqliteStore", AsyncStanding),
    ):
        setattr(import_module(module), name, standing)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for pattern, reason in WITHOUT.items():
            if re.search(pattern, item.name):
                item.add_marker(pytest.mark.skip(reason=reason))
