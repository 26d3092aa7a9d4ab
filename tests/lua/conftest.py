"""The three servers that run the scripts, as `Exchange` objects: Valkey, the distribution's Redis, and fakeredis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distier.stores.redis import Exchange, RedisExchange
from tests.fakes import FakeExchange, small_config

REAL = ("valkey", "redis")


def _exchange(request: pytest.FixtureRequest) -> Iterator[Exchange]:
    if request.param == "fakeredis":
        yield FakeExchange()
        return
    server = request.getfixturevalue(f"{request.param}_server")  # skips with the reason if the server is not installed
    exchange = RedisExchange(small_config(), server.socket_url)
    yield exchange
    exchange.close()


exchange = pytest.fixture(params=[*REAL, "fakeredis"])(_exchange)
real_exchange = pytest.fixture(params=REAL)(_exchange)
