"""What the plugins of this folder share: one embedded server for a run of a suite, and a store on it.

It imports nothing of distier's tests, because `tests` is the suite's package there. A plugin also imports the hook, so
that pytest finds it there.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import distier
from distier.embedded import Home, stop_server

DEADLINE = "20s"
_OPENED = ExitStack()


@cache
def home() -> Path:
    path = Path(tempfile.mkdtemp(prefix="distier-suite-", dir="/tmp"))
    _OPENED.callback(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def shared(deadline: str = DEADLINE) -> distier.Store:
    """Return the store, which starts the server when it is first needed."""
    store = distier.connect(home(), counter="estimate", deadline=deadline)
    _OPENED.callback(stop_server, Home(home()))
    return _OPENED.enter_context(store)


def pytest_unconfigure() -> None:
    _OPENED.close()
