"""Seeded interleavings of all scenarios on Redis; a file of its own, so that the servers have a core each."""

from __future__ import annotations

import pytest

from .many import explore_all, running_lab


@pytest.mark.timeout(7200)
def test_interleavings(capsys: pytest.CaptureFixture[str]) -> None:
    with running_lab("redis") as lab:
        explore_all(lab, capsys)
