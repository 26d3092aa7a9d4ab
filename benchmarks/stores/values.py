"""LangChain's key-value stores: `DistierByteStore` next to those that people use today."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ratios import Do
from benchmarks.stores.opened import FAR, HEAD, NEAR, Effort, Open, connected, opened, package, race_all, text
from benchmarks.table import Table
from tests.servers import TestServer, poll, running_server

MANY = 100
KEYS = [f"k{n:03}" for n in range(MANY)]


@contextmanager
def of_distier(server: TestServer, home: Path, near: bool) -> Iterator[Any]:
    adapter = package("distier.integrations.langchain")
    with connected(server, home, near=near) as store:
        yield adapter.DistierByteStore(store)


@contextmanager
def in_memory() -> Iterator[Any]:
    yield package("langchain_core.stores").InMemoryByteStore()


@contextmanager
def of_files(home: Path) -> Iterator[Any]:
    yield package("langchain_classic.storage").LocalFileStore(home / "files")


@contextmanager
def of_redis(server: TestServer) -> Iterator[Any]:
    made = package("langchain_community.storage.redis").RedisStore
    with server.client() as connection:
        yield made(client=connection, namespace="peer")


def operations(store: Any) -> dict[str, Do]:
    texts = cycle([[(key, text(n + shift).encode()) for n, key in enumerate(KEYS)] for shift in (0, MANY)])
    return {
        f"mset of {MANY}": lambda: store.mset(next(texts)),
        f"mget of {MANY}": lambda: store.mget(KEYS),
    }


def byte_stores(effort: Effort, left_out: dict[str, str]) -> Table:
    table = Table("LangChain's store of bytes: values of 2 kB", HEAD)
    with running_server("valkey") as server, TemporaryDirectory() as tmp, ExitStack() as stack:
        home = Path(tmp)
        peers: dict[str, Open[Any]] = {
            NEAR: lambda: of_distier(server, home, True), FAR: lambda: of_distier(server, home, False),
            "InMemoryByteStore": in_memory, "LocalFileStore": lambda: of_files(home),
            "RedisStore of langchain-community": lambda: of_redis(server),
        }  # fmt: skip
        found = opened(stack, peers, left_out)
        measured = {name: operations(store) for name, store in found.items()}
        for name, store in found.items():
            store.mset([(key, text(n).encode()) for n, key in enumerate(KEYS)])
            assert store.mget(KEYS) == [text(n).encode() for n in range(MANY)], name
        race_all(table, {name: {"mset of 100": each["mset of 100"]} for name, each in measured.items()}, effort)
        cache = found[NEAR]._bridge.store.near.cache
        poll(lambda: (found[NEAR].mget(KEYS), len(cache) >= MANY)[1], what="a near cache with all values")
        race_all(table, {name: {"mget of 100": each["mget of 100"]} for name, each in measured.items()}, effort)
    table.notes = (
        "`LocalFileStore` truncates and writes each file, without an fsync. Its time to write depends on what else uses the "
        "disk: runs on this machine differed by a factor of ten. `RedisStore` sends one MSET or MGET, and distier a script for "
        "several modules."
    )
    return table
