"""Seeded interleavings of all scenarios on Valkey, in a separate file, so that each server has a core."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .many import explore_all, running_lab


@pytest.mark.timeout(7200)
def test_interleavings(report: Callable[[str], None]) -> None:
    with running_lab("valkey") as lab:
        explore_all(lab, report)
