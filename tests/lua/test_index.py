"""The index of ids: complete and in order whatever comes and goes, and small."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest

from distier import lua
from distier.domain.keys import Shard
from distier.lua import Write
from distier.stores.redis import Exchange
from tests.fakes import dump
from tests.lua.test_scripts_model import indexed, open_shard, run_script

SHARD = Shard("ns", 0, 1)
LIMITS = {"hot_tokens": 10**9, "hot_bytes": 10**9, "warm_modules": 10, "warm_bytes": 100, "warm_ttl_ms": 1_000_000}
IDS = [f"skills/{kind}/{n:04}" for kind in ("pdf tools", "web", "é") for n in range(400)]
BYTES_A_MODULE = 60
write_ids = (f"{n:032x}" for n in itertools.count(1))


def put(exchange: Exchange, ids: Iterable[str]) -> None:
    for batch in itertools.batched(ids, 50) if hasattr(itertools, "batched") else _batched(list(ids)):
        writes = [Write(id, next(write_ids), "hot", "", "", "", 0, 1, 1, b"", ("content", b"x")) for id in batch]
        run_script(exchange, lua.put_many(SHARD, writes))


def _batched(ids: list[str]) -> Iterable[list[str]]:
    return (ids[i : i + 50] for i in range(0, len(ids), 50))


def delete(exchange: Exchange, ids: Iterable[str]) -> None:
    for id in ids:
        run_script(exchange, lua.delete(SHARD, id, next(write_ids)))


def found(exchange: Exchange) -> list[str]:
    return indexed(dump(lambda commands: exchange.exchange(SHARD, commands, 10.0)), SHARD)


def in_order(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=str.encode)


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_index_has_all_modules_in_order(exchange: Exchange, order: str) -> None:
    ids = in_order(IDS)
    if order != "ascending":
        ids.reverse()
    rng = random.Random(1)
    if order == "random":
        rng.shuffle(ids)
    exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
    open_shard(exchange, SHARD, LIMITS)
    put(exchange, ids)
    assert found(exchange) == in_order(ids)
    gone = rng.sample(ids, 900)
    delete(exchange, gone)
    assert found(exchange) == in_order(set(ids) - set(gone))
    put(exchange, gone[:300])
    assert found(exchange) == in_order({*ids} - {*gone[300:]})
    delete(exchange, set(ids) - set(gone[300:]))
    assert found(exchange) == []
    assert exchange.exchange(SHARD, [("EXISTS", SHARD.ids)], 10.0) == [0], "no chunk but the first is left"


@pytest.mark.parametrize("order", ["ascending", "random"])
def test_index_is_small(real_exchange: Exchange, order: str, report: object) -> None:
    ids = in_order(IDS)
    if order == "random":
        random.Random(2).shuffle(ids)
    real_exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
    open_shard(real_exchange, SHARD, LIMITS)
    put(real_exchange, ids)
    firsts = [m.decode() for m in real_exchange.exchange(SHARD, [("ZRANGE", SHARD.ids, 0, -1)], 10.0)[0]]
    keys = [SHARD.ids, SHARD.chunk(""), *(SHARD.chunk(first) for first in firsts)]
    used = sum(real_exchange.exchange(SHARD, [("MEMORY", "USAGE", key) for key in keys], 10.0))
    assert used / len(ids) <= BYTES_A_MODULE
    report(f"{order}: {used / len(ids):.1f} bytes a module, ids of {sum(map(len, ids)) / len(ids):.0f} characters")  # type: ignore[operator]
