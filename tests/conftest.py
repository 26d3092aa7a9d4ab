"""Fixtures for all tests: real servers, one of each kind for the session, emptied for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from . import children
from .servers import KINDS, Kind, Reaper, TestServer, available_kinds, running_server, short_directory

settings.register_profile("here", deadline=None)  # a busy machine makes any example slow
settings.load_profile("here")


def pytest_configure() -> None:
    children.default_signals()
    children.mark()


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail if a process is left. This fixture is set up first and so ends last, when each test has ended its processes."""
    yield
    found = children.left_in_the_end()
    assert not found, "still alive, and killed now:\n" + "\n".join(found.values())


def _session_server(kind: Kind) -> Iterator[TestServer]:
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    with running_server(kind, tcp=True) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[TestServer]:
    """The Valkey that distier embeds; skip with a reason if it is not installed."""
    yield from _session_server("valkey")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[TestServer]:
    """The distribution's Redis; skip with a reason if it is not installed."""
    yield from _session_server("redis")


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest) -> TestServer:
    """Each kind in turn. It still holds the data of earlier tests; the server of `redis_url` is empty."""
    found: TestServer = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def redis_url(server: TestServer) -> str:
    """The TCP URL of an empty server of each kind in turn: no keys, no scripts, no memory limit."""
    empty(server)
    return server.url


def empty(server: TestServer) -> None:
    """Remove what other tests left: keys, scripts, functions, the memory limit."""
    with server.client() as client:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.flushall()
        client.script_flush()
        client.function_flush()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Report what a test counted. The lines appear at the end of the run, even if tests run in several processes, whose own
    output is hidden."""
    return lambda text: record_property("reported", text)


LONGEST = (
    "/test_many_", "/test_explorer.py", "/test_archive_faults.py", "/test_snippets.py", "chaos/test_failover.py",
    "/test_nodes.py", "/test_conformance.py", "mcp/test_server.py", "/test_browser.py", "/test_archive_page.py",
)  # fmt: skip
"""Files that take a minute or more."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the long mode in the short one, and put the longest files first. Otherwise one process would still
    run them after the others have finished."""
    if os.environ.get("CHAOS") != "long":
        late = [item for item in items if _is_long(item)]
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if item not in late]
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


def _is_long(item: pytest.Item) -> bool:
    """Whether a test is marked as long, or waits for elections of a cluster on the second kind of server."""
    fixtures = getattr(item, "fixturenames", ())
    return item.get_closest_marker("slow") is not None or ("takes_seconds" in fixtures and "[redis" in item.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    texts_of: dict[str, list[str]] = {}
    for outcome in ("passed", "failed"):
        for phase in terminalreporter.getreports(outcome):
            texts_of.setdefault(phase.nodeid.partition("::")[0], []).extend(
                text for name, text in phase.user_properties if name == "reported" and phase.when == "call"
            )
    for file, texts in sorted(texts_of.items()):
        if texts:
            terminalreporter.write_sep("-", file)
            terminalreporter.write_line("\n".join(texts))


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary directory with a path short enough for a unix socket."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def reaper() -> Iterator[Reaper]:
    """Call `reaper.watch(home)` before an embedded server starts there: it is stopped even if pytest is killed."""
    reaper = Reaper()
    yield reaper
    reaper.close()
