"""What the sections share: stores of distier, peers whose package may be absent, and rows from races."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeVar

import distier
from benchmarks.ratios import Do, Race, race
from benchmarks.table import Table
from tests.servers import TestServer

NEAR, FAR = "distier", "distier, near cache off"
BYTES = 2000
SETTINGS: dict[str, Any] = {
    "counter": "estimate", "storage_tiers__hot__max_size": 10**9, "storage_tiers__hot__max_bytes": 10**9, "deadline": "60s",
}  # fmt: skip
T = TypeVar("T")
Open = Callable[[], AbstractContextManager[T]]


class Absent(Exception):
    """A peer that is not measured. The message says why."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a section measures. 0 calls: as many as fit in 8 ms."""

    rounds: int = 15
    calls: int = 0
    items: int = 1000


def text(n: int, size_bytes: int = BYTES) -> str:
    """Return a text of this size that differs for each `n`."""
    line = f"Note {n}: the agent found that step {n * 7} of the plan needs the file of step {n * 3}.\n"
    return (line * (size_bytes // len(line) + 1))[:size_bytes]


def package(name: str) -> Any:
    """Return a module of a peer. Raises `Absent` if its package is not installed."""
    try:
        return import_module(name)
    except ImportError as e:
        raise Absent(f"`{name}` cannot be imported: {e}") from e


def version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


def settings(server: TestServer, home: Path, *, near: bool) -> dict[str, Any]:
    """Return the settings of a namespace of its own for stores with and without a near cache."""
    name = "near" if near else "far"
    return SETTINGS | {
        "redis__url": server.socket_url, "namespace": name, "near__enabled": near,
        "storage_tiers__cold__directory": str(home / name),
    }  # fmt: skip


@contextmanager
def connected(server: TestServer, home: Path, *, near: bool) -> Iterator[distier.Store]:
    with distier.connect({}, **settings(server, home, near=near)) as store:
        yield store


def opened(stack: ExitStack, peers: Mapping[str, Open[T]], left_out: dict[str, str]) -> dict[str, T]:
    """Open the peers, and note in `left_out` why one is not measured."""
    found: dict[str, T] = {}
    for name, open_peer in peers.items():
        try:
            found[name] = stack.enter_context(open_peer())
        except Absent as e:
            left_out[name] = str(e)
            print(f"   {name} is not measured: {e}", flush=True)
    return found


def add_race(table: Table, operation: str, found: Race, cpu_us: Callable[[str], object] | None = None) -> None:
    """Add a row for each contender: its time, its ratio to distier, and its CPU time, which `cpu_us` measures otherwise."""
    for name in found.us:
        ratio, cpu = found.ratio(name, NEAR), (cpu_us or found.cpu_median)(name)
        table.add(operation, name, found.median(name), ratio if ratio >= 0.1 else f"{ratio:.1g}", cpu)


def race_all(table: Table, operations: Mapping[str, Mapping[str, Do]], effort: Effort) -> None:
    """Race the contenders, `operations[contender][operation]`, in each of the operations."""
    for operation in next(iter(operations.values())):
        found = race(
            {name: each[operation] for name, each in operations.items()}, rounds=effort.rounds, calls=effort.calls
        )
        add_race(table, operation, found)


HEAD = ("operation", "store", "us a call", "ratio to distier", "CPU us of the process")
