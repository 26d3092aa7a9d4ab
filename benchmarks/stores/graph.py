"""LangGraph's long-term memory: `DistierStore` next to the stores that people use today."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.ratios import Do
from benchmarks.stores.opened import FAR, HEAD, NEAR, Absent, Effort, Open, connected, opened, package, race_all, text
from benchmarks.table import Table
from tests.servers import TestServer, poll, running_server

MANY = 100
SPACE = ("users", "ada")
SEARCHED = f"search of a namespace with {MANY}"


@contextmanager
def of_distier(server: TestServer, home: Path, near: bool) -> Iterator[Any]:
    adapter = package("distier.integrations.langgraph")
    with connected(server, home, near=near) as store:
        memory = adapter.DistierStore(store)
        yield memory


@contextmanager
def in_memory() -> Iterator[Any]:
    yield package("langgraph.store.memory").InMemoryStore()


@contextmanager
def of_sqlite(home: Path) -> Iterator[Any]:
    with package("langgraph.store.sqlite").SqliteStore.from_conn_string(str(home / "store.sqlite")) as store:
        store.setup()
        yield store


@contextmanager
def of_valkey() -> Iterator[Any]:
    """langgraph-checkpoint-aws: it needs no module of the server. It has a server of its own, because it scans all keys."""
    made = package("langgraph_checkpoint_aws.store.valkey.store").ValkeyStore
    client = package("valkey").Valkey
    with running_server("valkey") as server, client(unix_socket_path=str(server.socket)) as connection:
        yield made(connection)


@contextmanager
def of_redis() -> Iterator[Any]:
    """langgraph-checkpoint-redis."""
    made = package("langgraph.store.redis").RedisStore
    with running_server("valkey") as server, server.client() as connection:
        store = made(conn=connection)
        try:
            store.setup()
            store.put(SPACE, "x", {"n": 1})
        except Exception as e:  # whatever it makes of a server without the modules
            why = "it needs the modules for JSON and search, which Valkey, and Redis without its modules, lack"
            raise Absent(f"{why} ({str(e).strip()})") from e
        yield store


def operations(store: Any, many: int = MANY) -> dict[str, Do]:
    types, numbers = package("langgraph.store.base"), count()
    gets = [types.GetOp(SPACE, f"n{n:03}") for n in range(many)]
    return {
        "put": lambda: store.put(("users", "bob"), "note", {"text": text(next(numbers))}),
        "get": lambda: store.get(SPACE, "n042"),
        f"batch of {many} gets": lambda: store.batch(gets),
        SEARCHED: lambda: store.search(SPACE, limit=many),
    }


def fill(store: Any, items: int, many: int = MANY) -> None:
    """Put the items that are read, and others in namespaces with 100 each."""
    put = package("langgraph.store.base").PutOp
    where = [(SPACE, f"n{n:03}", n) for n in range(many)]
    where += [(("others", f"u{n // MANY}"), f"n{n:03}", n) for n in range(items - many)]
    store.batch([put(space, key, {"text": text(n)}) for space, key, n in where])


def check(name: str, each: dict[str, Do], many: int = MANY) -> None:
    """Every contender must return the same: what is measured is the same job."""
    want = {f"n{n:03}": text(n) for n in range(many)}
    for operation in (f"batch of {many} gets", SEARCHED):
        found = {item.key: item.value["text"] for item in each[operation]()}  # type: ignore[attr-defined]
        assert found == want, f"{name}, {operation}: {len(found)} of {many}"


def graph_stores(effort: Effort, left_out: dict[str, str]) -> Table:
    table = Table("LangGraph's store: items of 2 kB", HEAD)
    with running_server("valkey") as server, TemporaryDirectory() as tmp, ExitStack() as stack:
        home = Path(tmp)
        peers: dict[str, Open[Any]] = {
            NEAR: lambda: of_distier(server, home, True), FAR: lambda: of_distier(server, home, False),
            "InMemoryStore": in_memory, "SqliteStore": lambda: of_sqlite(home),
            "ValkeyStore of langgraph-checkpoint-aws": of_valkey, "RedisStore of langgraph-checkpoint-redis": of_redis,
        }  # fmt: skip
        found = opened(stack, peers, left_out)
        measured = {name: operations(store) for name, store in found.items()}
        for name, store in found.items():
            fill(store, effort.items)
            check(name, measured[name])
        warm(found[NEAR], measured[NEAR])
        race_all(table, measured, effort)
    table.notes = (
        f"{effort.items:,} items in all. Each contender returned the same items before it was measured. `SqliteStore` is a "
        "file, and each of its puts waits for the disk; the servers of the others write their append-only file without "
        "waiting (`appendfsync no`)."
    )
    return table


def warm(memory: Any, each: dict[str, Do]) -> None:
    """Read until the near cache holds what is read."""
    cache = memory._bridge.store.near.cache
    poll(lambda: (each[f"batch of {MANY} gets"](), len(cache) >= MANY)[1], what="a near cache with all items")
