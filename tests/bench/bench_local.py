"""The node's disk against diskcache and against LMDB and lz4 by hand: `make bench`. Prints; asserts nothing about time.

What a warm get costs beyond its record read is `read_local` alone, on a record that was read before: beside the whole get and
the record read, over a unix socket.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diskcache  # type: ignore[import-untyped]  # a peer, for comparison only
import lmdb
import lz4.block
import pytest

import distier
from distier.domain.module import Record, parse_record
from distier.domain.order import Order
from distier.effects import Plan
from distier.plans.read import read_local
from distier.plans.records import fields_command
from distier.stores.local import LocalStore
from tests.bench.bench_read import SETTINGS, SIZES, text
from tests.servers import running_server

ROUNDS, CALLS = 15, 2000


def each_us(*functions: Callable[[], Any], calls: int = CALLS) -> list[float]:
    """The best round of each, of rounds that take turns, in us a call: the machine is shared."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            found.append((time.perf_counter() - start) / calls * 1e6)
    return [min(found) for found in times]


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> Iterator[int]:
    yield SIZES[request.param]


def test_warm_get_beyond_the_record_read(tmp_path: Path, size: int) -> None:
    body = text(size).encode()
    warm = {"placement": "local", "directory": tmp_path / "warm", "max_modules": 10_000}
    with running_server("valkey") as server:
        tiers: Any = SETTINGS["storage_tiers"]
        settings = {**SETTINGS, "storage_tiers": {**tiers, "warm": warm}}
        with distier.connect(
            settings, redis__url=server.socket_url, storage_tiers__cold__directory=tmp_path / "cold", counter="estimate",
            storage_tiers__promotion_threshold=10**9,
        ) as store:  # fmt: skip
            store.put("a", body)
            store.flush()
            store.demote("a")
            shard = store.space.shard("a")
            fields = store.run(_fields(shard, "a"))
            record = parse_record("a", fields)
            assert record is not None
            local = store._driver.local
            assert local is not None

            def record_only() -> None:
                store.run(_fields(shard, "a"))

            def beyond() -> None:
                store.run(read_local(store.space, shard, record))

            whole, alone, more, disk = each_us(
                lambda: store.get("a"), record_only, beyond, lambda: local.get(record), calls=300
            )  # fmt: skip
            print(
                f"\n{size:7} B  get {whole:7.1f} us   its record read {alone:6.1f}   read_local {more:6.1f}   "
                f"LocalStore.get {disk:6.1f}", end="",
            )  # fmt: skip


def _fields(shard: Any, id: str) -> Plan[dict[bytes, bytes]]:
    return (yield from fields_command(shard, id))


def test_against_others(tmp_path: Path, size: int) -> None:
    body = text(size).encode()
    record = Record(
        "a", "cold", Order(1, 1, "0" * 32), len(body), 1, "estimate",
        hashlib.sha256(body).hexdigest(), "text/plain", b"", b"", True, 1, None, 0, "", 0, 0, 0, None, None, None,
    )  # fmt: skip
    store = LocalStore(tmp_path / "warm", namespace="b", max_modules=10_000, max_bytes=1 << 30, ttl_ms=10**9)
    store.put(record, body)
    cache = diskcache.Cache(str(tmp_path / "diskcache"))
    cache.set("a", body)
    env = lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 30, sync=False)
    block = lz4.block.compress(body, mode="high_compression", compression=9)
    with env.begin(write=True) as txn:
        txn.put(b"a", block)

    def by_hand() -> bytes:
        with env.begin() as txn:
            return lz4.block.decompress(txn.get(b"a"))  # type: ignore[no-any-return]

    def by_hand_checked() -> str:
        return hashlib.sha256(by_hand()).hexdigest()

    ours, disk, raw, checked = each_us(lambda: store.get(record), lambda: cache.get("a"), by_hand, by_hand_checked)
    print(
        f"\n{size:7} B  get    LocalStore {ours:7.1f} us   diskcache {disk:7.1f}   lmdb+lz4 {raw:6.1f}   "
        f"with SHA-256 {checked:6.1f}", end="",
    )  # fmt: skip

    def put_by_hand() -> None:
        with env.begin(write=True) as txn:
            txn.put(b"a", lz4.block.compress(body, mode="high_compression", compression=9))

    ours, disk, raw = each_us(
        lambda: store.put(record, body), lambda: cache.set("a", body), put_by_hand, calls=20
    )  # fmt: skip
    print(f"\n{size:7} B  put    LocalStore {ours:7.1f} us   diskcache {disk:7.1f}   lmdb+lz4 {raw:6.1f}", end="")
    store.close()
    cache.close()
    env.close()
