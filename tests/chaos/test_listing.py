"""A directory archive is listed while versions come and go: every listing has the objects that existed all the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from distier.stores import directory
from distier.stores.directory import DirectoryArchive


def test_listing_has_each_version_or_a_greater_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A bug that `failover.py` found: a sweep between reading the names and reading the files hid a module."""
    archive = DirectoryArchive(tmp_path)
    old, new = (f"h/modules/x/@00000001-{n:014d}-aaaaaaaa.txt.xz" for n in (1, 2))
    archive.put(old, b"1", content_type="application/x-xz", metadata={})
    stat, swept = directory._stat, list[bool]()

    def after_a_sweep(*args: object):
        if not swept:
            swept.append(True)
            archive.put(new, b"2", content_type="application/x-xz", metadata={})
            archive.delete([old])
        return stat(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(directory, "_stat", after_a_sweep)
    assert [entry.key for entry in archive.list("h/modules/x/@")] == [new]
    assert swept
