"""A pytest plugin: Anthropic's tests of its memory tool for local files run against `DistierMemoryTool`.

It replaces the two tools before the tests are imported. What a test does with the directory of the tool, it does with modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import suite_store
from suite_store import pytest_unconfigure as pytest_unconfigure

from distier import Store
from distier.integrations.anthropic import AsyncDistierMemoryTool, DistierMemoryTool

COUNT = iter(range(10**6))
shared: Callable[[], Store] = partial(suite_store.shared, "60s")
WITHOUT = r"symlink|permissive_umask"


class Place:
    """A path below the root of a tool, as far as the tests use one."""

    def __init__(self, id: str) -> None:
        self.id = id

    def __str__(self) -> str:
        return self.id

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.id}/{name}")

    def read_bytes(self) -> bytes:
        module = shared().get(self.id)
        assert module is not None
        return module.content

    def write_bytes(self, content: bytes) -> None:
        shared().put(self.id, content)

    def mkdir(self, **_: Any) -> None: ...

    def is_dir(self) -> bool:
        return True  # the top is always there


class AwaitedPlace(Place):
    """The same for the asyncio tool."""

    async def is_dir(self) -> bool:  # type: ignore[override]
        return super().is_dir()


class Standing(DistierMemoryTool):
    def __init__(self, base_path: str) -> None:
        self.base_path = f"s{next(COUNT)}"
        self.memory_root = Place(f"{self.base_path}/memories")
        super().__init__(shared(), root=f"{self.base_path}/memories")


class AsyncStanding(AsyncDistierMemoryTool):
    def __init__(self, base_path: str) -> None:
        self.base_path = f"s{next(COUNT)}"
        self.memory_root = AwaitedPlace(f"{self.base_path}/memories")
        super().__init__(shared(), root=f"{self.base_path}/memories")


def snapshot(base_path: str) -> dict[str, str]:
    """Return the text of every module below a root, by its path."""
    modules = shared().get_many(shared().list(f"{base_path}/"))
    return {id.removeprefix(f"{base_path}/"): module.text for id, module in modules.items() if module}


def pytest_configure() -> None:
    import anthropic.lib.tools._beta_builtin_memory_tool as module

    for name, standing in (
        ("BetaLocalFilesystemMemoryTool", Standing),
        ("BetaAsyncLocalFilesystemMemoryTool", AsyncStanding),
    ):
        setattr(module, name, standing)


async def awaited(base_path: str) -> dict[str, str]:
    return snapshot(base_path)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        for name, ours in (
            ("get_directory_snapshot", snapshot),
            ("async_get_directory_snapshot", awaited),
            ("Path", Place),
        ):
            if hasattr(item.module, name):
                setattr(item.module, name, ours)
        if re.search(WITHOUT, item.name):
            item.add_marker(pytest.mark.skip(reason="about links and modes of files"))
