"""Eviction policies: the Lua rank of each is its Python rank, and a change of the policy ranks what is there."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distier import lua
from distier.domain.keys import Shard
from distier.lua import Move
from distier.policy.eviction.rank import Ranked
from distier.policy.eviction.table import POLICIES, lua_ranks
from distier.stores.redis import Exchange
from tests.lua.test_scripts_model import open_shard, run_script
from tests.lua.test_scripts_text import put

SHARD = Shard("ns", 0, 1)
LIMITS = {"hot_tokens": 10, "hot_bytes": 100, "warm_modules": 3, "warm_bytes": 100, "warm_ttl_ms": 1_000_000}
RANKED = [name for name in POLICIES if name != "lru"]

times = st.integers(1_750_000_000_000_000, 2_500_000_000_000_000).map(lambda us: us / 1000)
entered = st.builds(lambda at, uses, small: at * 4 + uses - (2.0**52 if small else 0), st.integers(0, 2**50), st.integers(0, 3),
                    st.booleans())  # fmt: skip
ranked = st.builds(
    Ranked,
    uses=st.floats(1, 1e6),
    size=st.floats(1, 1e9),
    now=times,
    floor=st.floats(0, 1e6),
    was=st.none() | entered | st.floats(0, 1e6).map(float),
    more=st.integers(0, 5).map(float),
    known=st.booleans(),
)


def evaluate(exchange: Exchange, policy: str, expression: str, args: list[str]) -> str:
    source = (
        f"local policy = ARGV[1]\n{lua_ranks()}\nlocal function n(i) return tonumber(ARGV[i]) end\nreturn {expression}"
    )
    reply = exchange.exchange(SHARD, [("EVAL", source, 0, policy, *args)], 10.0)[0]
    assert isinstance(reply, bytes), reply
    return reply.decode()


@pytest.mark.parametrize("policy", RANKED)
def test_lua_and_python_give_the_same_rank(exchange: Exchange, policy: str) -> None:
    call = "string.format('%.17g', rank_of(n(2), n(3), n(4), n(5), n(6), n(7), ARGV[8] == '1'))"

    @settings(max_examples=60, deadline=None, database=None)
    @given(m=ranked)
    def check(m: Ranked) -> None:
        args = ["nil" if value is None else repr(float(value)) for value in m[:-1]]
        assert float(evaluate(exchange, policy, call, [*args, str(int(m.known))])) == POLICIES[policy].rank(m)

    check()


@pytest.mark.parametrize("policy", [name for name in RANKED if POLICIES[name].spared])
def test_lua_and_python_spare_the_same(exchange: Exchange, policy: str) -> None:
    spared = POLICIES[policy].spared
    assert spared is not None

    @settings(max_examples=60, deadline=None, database=None)
    @given(rank=entered, now=times)
    def check(rank: float, now: float) -> None:
        reply = evaluate(
            exchange, policy, "string.format('%.17g', spared_rank(n(2), n(3)) or 1/0)", [repr(rank), repr(now)]
        )
        found = float(reply)
        assert (None if math.isinf(found) else found) == spared(rank, now)

    check()


def scores(exchange: Exchange, tier: str) -> dict[str, float]:
    flat = exchange.exchange(SHARD, [("ZRANGE", SHARD.ranks(tier), 0, -1, "WITHSCORES")], 10.0)[0]
    assert isinstance(flat, list)
    pairs = flat if flat and isinstance(flat[0], list) else [flat[i : i + 2] for i in range(0, len(flat), 2)]
    return {bytes(id).decode(): float(score) for id, score in pairs}


@pytest.mark.parametrize("policy", RANKED)
def test_changed_policy_ranks_what_is_there(exchange: Exchange, policy: str) -> None:
    exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
    open_shard(exchange, SHARD, {**LIMITS, "hot_tokens": 1000})
    for id in ("a", "b"):
        run_script(exchange, put(id, "hot"))
    run_script(exchange, put("c", "warm"))
    assert scores(exchange, "hot") == scores(exchange, "warm") == {}, "lru needs no ranks"
    run_script(exchange, lua.touch(SHARD, [("a", 3)]))

    run_script(exchange, lua.open_shard(SHARD, [], eviction=policy))
    assert run_script(exchange, lua.rank(SHARD, ["a", "missing"])) == lua.Ranking(1, complete=False)
    run_script(exchange, put("d", "hot"))  # what comes in the meantime gets its rank at once
    assert run_script(exchange, lua.rank(SHARD, ["a", "b", "c"])) == lua.Ranking(2, complete=True)
    assert scores(exchange, "hot").keys() == {"a", "b", "d"}
    assert scores(exchange, "warm").keys() == {"c"}

    run_script(exchange, lua.open_shard(SHARD, [], eviction="lru"))
    assert scores(exchange, "hot") == scores(exchange, "warm") == {}
    assert run_script(exchange, lua.rank(SHARD, ["a"])) == lua.Ranking(0, complete=True)


def test_order_of_gdsf_is_that_of_uses_for_size(exchange: Exchange) -> None:
    exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
    open_shard(exchange, SHARD, {**LIMITS, "hot_tokens": 1000}, "gdsf")
    for id in ("often", "once", "twice"):
        run_script(exchange, put(id, "hot"))
    run_script(exchange, lua.touch(SHARD, [("often", 5), ("twice", 2), ("once", 1)]))
    assert list(scores(exchange, "hot")) == ["once", "twice", "often"]


def test_evicted_module_keeps_most_of_its_uses(exchange: Exchange) -> None:
    exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
    open_shard(exchange, SHARD, LIMITS, "gdsf")
    run_script(exchange, put("a", "hot"))
    run_script(exchange, lua.touch(SHARD, [("a", 7)]))
    record = exchange.exchange(SHARD, [("HGET", SHARD.module("a"), "tok")], 10.0)[0]
    assert isinstance(record, bytes)
    run_script(exchange, lua.demote(SHARD, "evict", [Move("a", record.decode(), "warm", "raw", b"f" * 9)]))
    seen = run_script(exchange, lua.where(SHARD, "a"))
    assert seen is not None
    assert seen.uses == 7 * POLICIES["gdsf"].kept_uses
    floor = exchange.exchange(SHARD, [("HGET", SHARD.epoch, "hot_floor")], 10.0)[0]
    assert isinstance(floor, bytes)
    assert float(floor) > 0
