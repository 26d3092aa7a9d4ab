"""fsspec's own suite, which the package ships, passes against `DistierFileSystem`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed (the extra `fsspec`)")

from fsspec.tests import abstract

from distier.integrations.fsspec import DistierFileSystem


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture
    def fs(self, settings: dict[str, Any]) -> Iterator[DistierFileSystem]:
        fs = DistierFileSystem({}, settings, skip_instance_cache=True)
        yield fs
        fs.close()

    @pytest.fixture
    def fs_path(self) -> str:
        return "suite"

    @pytest.fixture
    def fs_join(self) -> Any:
        return posixpath.join

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, Fixtures): ...


class TestGet(abstract.AbstractGetTests, Fixtures): ...


class TestPut(abstract.AbstractPutTests, Fixtures): ...


class TestOpen(abstract.AbstractOpenTests, Fixtures): ...


class TestPipe(abstract.AbstractPipeTests, Fixtures): ...
