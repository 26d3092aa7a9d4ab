"""An archive of another package is found by the scheme of its URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from distier.config import load_config
from distier.errors import ConfigError
from distier.stores.open import ARCHIVES, open_archive, schemes

PACKAGE = """
from distier.stores.memory import MemoryArchive

class ToyArchive(MemoryArchive):
    def __init__(self, url, **options):
        super().__init__()
        self.url, self.options = url, options
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package as pip would: a module, and metadata with its entry point."""
    (tmp_path / "toyarchive.py").write_text(PACKAGE)
    described = tmp_path / "toyarchive-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: toyarchive\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[distier.archives]\ntoy = toyarchive:ToyArchive\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("toy")
def test_installed_package_adds_a_scheme() -> None:
    assert schemes() == sorted([*ARCHIVES, "toy"])
    config = load_config({"redis": {"url": "redis://h"}, "storage_tiers": {"cold": {"url": "toy://shelf"}}})
    archive = open_archive(url=config.storage_tiers.cold.url, region="here")
    archive.put("a", b"x", content_type="text/plain", metadata={})
    assert archive.get("a", max_bytes=1).data == b"x"  # type: ignore[union-attr]
    assert (archive.url, archive.options) == ("toy://shelf", {"region": "here"})  # type: ignore[attr-defined]


def test_unknown_scheme_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no archive for toy://; installed archives: file, s3"):
        open_archive(url="toy://shelf")
    with pytest.raises(ConfigError, match="must be s3://bucket/prefix"):
        load_config({"redis": {"url": "redis://h"}, "storage_tiers": {"cold": {"url": "toy://shelf"}}})
