"""Short deadlines for the calls that a fault has to fail. All other calls of a test have the time that a busy machine needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def short_deadline(store: Any, deadline_s: float) -> Iterator[None]:
    """Let the calls of a store (or of a `Face`) that begin in this context end after `deadline_s` seconds."""
    driver = getattr(store, "store", store)._driver
    usual_s, driver.deadline_s = driver.deadline_s, deadline_s
    try:
        yield
    finally:
        driver.deadline_s = usual_s
