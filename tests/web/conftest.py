"""A store, the page over it in the same process, and a page that a real server serves to a browser."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distier import Store, connect
from tests.conftest import empty
from tests.servers import TestServer, available_kinds, poll

BASE = "http://127.0.0.1:8080"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def needs(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'distier[web]' httpx2 playwright")


@pytest.fixture
def one_server(request: pytest.FixtureRequest) -> TestServer:
    """An empty server of the kind that is there: the page asks both the same."""
    kinds = available_kinds()
    kind = next((kind for kind in ("valkey", "redis") if not kinds[kind]), None)
    if kind is None:
        pytest.skip("; ".join(kinds.values()))
    found: TestServer = request.getfixturevalue(f"{kind}_server")
    empty(found)
    return found


@pytest.fixture
def open_page_store(one_server: TestServer, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open(**given: Any) -> Store:
        settings: dict[str, Any] = {
            "redis__url": one_server.url, "namespace": "w", "near__enabled": False, "deadline": "20s",
            "storage_tiers__cold__directory": tmp_path / "cold",
        }  # fmt: skip
        stores.append(connect({"counter": "estimate"}, **(settings | given)))
        return stores[-1]

    yield open
    for store in stores:
        store.close()


@pytest.fixture
def store(open_page_store: Callable[..., Store]) -> Store:
    needs("starlette", "httpx2")
    return open_page_store()


@contextmanager
def client(app: Any, **given: Any) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with TestClient(app, base_url=given.pop("base_url", BASE), **given) as made:
        yield made


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an app on a free port of loopback, from a thread; yield its URL."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        poll(lambda: server.started, what="the start of the page's server")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
