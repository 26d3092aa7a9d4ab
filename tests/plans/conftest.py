"""Worlds on a real server if one is installed: it runs the real scripts, in a twentieth of the time of fakeredis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import DATABASES, lent
from tests.servers import available_kinds, running_server


@pytest.fixture(scope="session", autouse=True)
def worlds_on_a_server() -> Iterator[None]:
    if available_kinds()["valkey"]:
        yield  # fakeredis is good enough
        return
    with (
        running_server("valkey", args=("--appendonly", "no", "--databases", str(DATABASES))) as server,
        lent(server.socket),
    ):
        yield
