"""A pytest plugin: Deep Agents' tests of its `StoreBackend` run against `DistierBackend`.

It replaces that class, and LangGraph's store below it, before the tests are imported. What a test looks up in the store, it
finds among the modules. With `suite_langgraph` in place of this plugin, their own `StoreBackend` runs on our LangGraph store.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import deepagents.backends
import deepagents.backends.store
import langgraph.store.memory
import pytest
from suite_store import pytest_unconfigure as pytest_unconfigure
from suite_store import shared

from distier.integrations.deepagents import DistierBackend

ROOTS = (f"s{n}" for n in count())
WITHOUT = {
    r"legacy_list": "about files that an older StoreBackend stored",
    r"factory|namespace_is_required|_namespaces|non_string_component|wildcard_namespace|namespace_error"
    r"|middleware_with_store_backend": ("about how StoreBackend computes its namespace; a DistierBackend has a root"),
    r"single_batch_call": "counts the calls of LangGraph's store, which is not used",
    r"literal_key|wildcard_missing": "about a path that does not begin with '/', which is refused",
}


class Kept:
    """What the tests do with an `InMemoryStore`, done with modules. Each has a root of its own, and so is empty at first."""

    def __init__(self) -> None:
        self.root = next(ROOTS)

    def put(self, namespace: tuple[str, ...], key: str, value: dict[str, Any]) -> None:
        shared().put("/".join((self.root, *namespace)) + key, value["content"])

    def get(self, namespace: tuple[str, ...], key: str) -> Any:
        module = shared().get("/".join((self.root, *namespace)) + key)
        return None if module is None else SimpleNamespace(value={"content": module.text})

    async def aget(self, namespace: tuple[str, ...], key: str) -> Any:
        return self.get(namespace, key)

    def search(self, namespace: tuple[str, ...]) -> list[Any]:
        prefix = "/".join((self.root, *namespace))
        return [SimpleNamespace(key=id.removeprefix(prefix)) for id in shared().list(f"{prefix}/")]


class Standing(DistierBackend):
    """The namespace of a `StoreBackend` becomes the end of the root."""

    def __init__(self, *, store: Kept | None = None, namespace: Callable[[Any], tuple[str, ...]]) -> None:
        super().__init__(shared(), root="/".join(((store or Kept()).root, *namespace(None))))


def pytest_configure() -> None:
    langgraph.store.memory.InMemoryStore = Kept  # type: ignore[assignment,misc]
    for module in (deepagents.backends, deepagents.backends.store):
        setattr(module, "StoreBackend", Standing)  # noqa: B010 (typed or not, by what is installed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for pattern, reason in WITHOUT.items():
            if re.search(pattern, item.name):
                item.add_marker(pytest.mark.skip(reason=reason))
