"""What the fleet has learned: the script against a model, its bound in bytes, and its half-life."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distier import lua
from distier.domain.ids import encode_id
from distier.domain.keys import Shard
from distier.domain.learned import (
    WHOLE,
    Learned,
    field_of_keyword,
    generation_of,
    parse_learned,
    short,
    whole,
)
from distier.errors import Invalid
from distier.lua import Lesson
from distier.lua.learning import BYTES_A_MODULE
from distier.stores.redis import Exchange
from tests.lua.test_scripts_model import open_shard, run_script

SHARD = Shard("ns", 0, 1)
LIMITS = {"hot_tokens": 10**9, "hot_bytes": 10**9, "warm_modules": 10, "warm_bytes": 100, "warm_ttl_ms": 1_000_000}
MOST = 3
IDS = ["a", "skills/pdf", "skills/web/é {x}", "skills/web/2", "..", "A%2F b", "7:x"]
ids = st.sampled_from(IDS)
lessons = st.dictionaries(
    ids, st.tuples(st.integers(0, 3), st.dictionaries(ids, st.integers(1, 4), max_size=5)), max_size=5
)
write_ids = (f"{n:032x}" for n in itertools.count(1))


def ask(exchange: Exchange, *command: Any) -> Any:
    (reply,) = exchange.exchange(SHARD, [command], 10.0)
    assert not isinstance(reply, Exception), reply
    return reply


def fresh(exchange: Exchange, modules: int = 0) -> None:
    ask(exchange, "FLUSHALL")
    open_shard(exchange, SHARD, LIMITS)
    if modules:
        ask(exchange, "HSET", SHARD.usage, "cold_count", modules)


def known(exchange: Exchange, id: str) -> Learned | None:
    field = encode_id(id)
    state, value = ask(exchange, "HMGET", SHARD.learned, WHOLE, field)
    return parse_learned(field, value, generation_of(state))


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_short_form_of_a_follower_is_reversible(before: str, after: str) -> None:
    for field in (encode_id(before), field_of_keyword(before)):
        assert whole(field, short(field, after)) == after
        assert " " not in short(field, after)


@pytest.mark.parametrize(
    "value", [b"", b"x", b"0 x", b"0 1 a", b"0 1 :a", b"0 1 :%zz 3", b"0 1 9999:a 1x", b"\xff 1", b"0 1 x:y 1"]
)
def test_damaged_entry_is_nothing(value: bytes) -> None:
    assert parse_learned("a", value, 3) is None
    assert generation_of(b"x y") == generation_of(b" ") == generation_of(None) == 0


def test_keyword_field_is_no_id() -> None:
    with pytest.raises(Invalid):
        whole("", ":" + field_of_keyword("pdf"))
    with pytest.raises(Invalid):
        field_of_keyword("é" * 200)


@given(calls=st.lists(lessons, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_script_adds_and_keeps_the_strongest_followers(exchange: Exchange, calls: list[Any]) -> None:
    fresh(exchange)
    uses: Counter[str] = Counter()
    followers: dict[str, dict[str, int]] = {}
    for batch in calls:
        said = [Lesson(encode_id(id), MOST, n, seen) for id, (n, seen) in batch.items()]
        taught = run_script(exchange, lua.learn(SHARD, said, half_life_uses=10**6))
        for id, (n, seen) in batch.items():
            uses[id] += n
            mine = dict(Counter(followers.get(id, {})) + Counter(seen))
            entry = known(exchange, id)
            assert entry is not None
            assert entry.uses == uses[id]
            assert sorted(entry.followers.values(), reverse=True) == sorted(mine.values(), reverse=True)[:MOST]
            assert all(mine[follower] == count for follower, count in entry.followers.items())
            followers[id] = {follower: int(count) for follower, count in entry.followers.items()}
        assert taught.entries == len(uses)


def test_new_follower_replaces_an_old_one_with_the_same_count(exchange: Exchange) -> None:
    fresh(exchange)
    run_script(exchange, lua.learn(SHARD, [Lesson("a", 2, 1, {"x": 1, "y": 2})]))
    run_script(exchange, lua.learn(SHARD, [Lesson("a", 2, 1, {"new": 1})]))
    assert known(exchange, "a") == (2.0, {"y": 2.0, "new": 1.0})


def test_counts_are_halved_once_per_generation(exchange: Exchange) -> None:
    fresh(exchange)
    run_script(exchange, lua.learn(SHARD, [Lesson("a", 8, 4, {"x": 4})], half_life_uses=100))
    run_script(exchange, lua.learn(SHARD, [Lesson("b", 8, 300, {"y": 1})], half_life_uses=100))
    assert known(exchange, "a") == (2.0, {"x": 2.0})
    run_script(exchange, lua.learn(SHARD, [Lesson("a", 8, 1, {"x": 1})], half_life_uses=100))
    assert known(exchange, "a") == (3.0, {"x": 3.0})


def test_hash_stays_within_its_bytes_and_keeps_what_is_used(real_exchange: Exchange, report: Any) -> None:
    """The bound is what MEMORY USAGE says, over all modules of the namespace, with ids as long as real ones."""
    modules = 2000
    fresh(real_exchange, modules)
    chance = random.Random(1)
    names = [f"skills/{chance.choice(['pdf', 'web', 'sheets'])}/chapter-{n:04}.md" for n in range(modules)]
    for _ in range(12):
        order = chance.sample(range(modules), modules)
        for part in range(0, modules, 50):
            said = [Lesson(names[n], 8, 9 if n < 100 else 1, {names[(n + k) % modules]: 1 for k in range(1, 9)})
                    for n in order[part : part + 50]]  # fmt: skip
            taught = run_script(real_exchange, lua.learn(SHARD, said))
    used = ask(real_exchange, "MEMORY", "USAGE", SHARD.learned, "SAMPLES", 0)
    kept = [n for n in range(modules) if known(real_exchange, names[n]) is not None]
    report(f"{used / modules:.1f} bytes a module, {len(kept)} entries of {modules}, own account {taught.size_bytes}")
    assert used <= BYTES_A_MODULE * modules
    assert len(kept) >= modules // 5
    assert sum(n < 100 for n in kept) >= 90, "entries with many uses stay"


def test_small_namespace_may_learn_a_few_entries(exchange: Exchange) -> None:
    fresh(exchange, 3)
    for n in range(3):
        run_script(exchange, lua.learn(SHARD, [Lesson(f"m{n}", 8, 1, {f"m{n + 1}": 1})]))
    assert all(known(exchange, f"m{n}") for n in range(3))


def test_garbage_in_the_hash_is_overcome(exchange: Exchange) -> None:
    fresh(exchange)
    ask(exchange, "HSET", SHARD.learned, WHOLE, "x y z", "a", "what is this", "b", "")
    run_script(exchange, lua.learn(SHARD, [Lesson("a", 8, 1, {"x": 1}), Lesson("b", 8, 1, {"x": 1})]))
    assert known(exchange, "b") == (1.0, {"x": 1.0})
    assert generation_of(ask(exchange, "HGET", SHARD.learned, WHOLE)) == 0
