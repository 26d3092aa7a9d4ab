"""The scripts as texts: their headers, their flags and the function library; and calls that fail before they write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import pytest
from redis.exceptions import ResponseError

from distier import lua
from distier.domain.keys import Shard
from distier.domain.order import Order
from distier.drive.conversation import command_of
from distier.effects import RunScript
from distier.errors import Corrupt, DistierError, Invalid, Recovering
from distier.lua import VERBS, Limit, Move
from distier.lua.loader import FIRST, PRELUDE
from distier.stores.redis import Exchange
from tests.fakes import dump
from tests.lua.test_scripts_model import open_shard, run_script, untimed

MAX_LINES = 66
LOOKS = {"range", "state", "where"}
TAKES_MEMORY = {"put", "promote", "install", "touch", "adopt", "enlist", "rank", "learn", "dictionary"}
# All other scripts free memory, or are necessary for that and take hardly any.
LIMITS = {"hot_tokens": 10, "hot_bytes": 100, "warm_modules": 3, "warm_bytes": 100, "warm_ttl_ms": 1_000_000}
SHARD = Shard("ns", 0, 1)
FOREIGN = {
    "string": ("RPUSH", "foreign"),
    "hash": ("SET", "foreign"),
    "zset": ("SET", "foreign"),
    "stream": ("SET", "x"),
}


def text(verb: str) -> str:
    return resources.files("distier.lua").joinpath(f"{verb}.lua").read_text("utf-8")


@pytest.mark.parametrize("verb", VERBS)
def test_every_script_has_a_complete_header(verb: str) -> None:
    lines = text(verb).splitlines()
    header = [line for line in lines if line.startswith("-- ")]
    assert lines[0].startswith("-- flags:")
    for word in ("KEYS", "RETURNS", "KEEPS"):
        assert any(line.startswith(f"-- {word}") for line in header), f"{verb}.lua has no {word} in its header"
    if "ARGV[" in text(verb):
        assert any(line.startswith("-- ARGV") for line in header)
    assert len(lines) <= MAX_LINES


def test_every_lua_file_is_a_verb() -> None:
    names = {p.name.removesuffix(".lua") for p in resources.files("distier.lua").iterdir() if p.name.endswith(".lua")}
    assert names == {*VERBS, *FIRST.values(), *PRELUDE}


@pytest.mark.parametrize("verb", VERBS)
def test_flags_fit_the_effect_of_the_script(verb: str) -> None:
    """Scripts that free memory run at `maxmemory`, scripts that take memory are refused, and read-only scripts cannot write."""
    flags = set(lua.flags_of(verb).split(",")) - {""}
    assert flags == ({"no-writes"} if verb in LOOKS else set() if verb in TAKES_MEMORY else {"allow-oom"})


@pytest.mark.parametrize("verb", VERBS)
def test_no_script_searches_keys_or_runs_unbounded(verb: str) -> None:
    code = "\n".join(line.partition("--")[0] for line in text(verb).splitlines())
    assert not re.search(r"call\('(KEYS|SCAN|FLUSHALL|FLUSHDB|EVAL)'", code)


def test_script_sha_is_that_of_the_server(real_exchange: Exchange) -> None:
    for verb in VERBS:
        script = lua.script(verb)
        assert ask(real_exchange, ("SCRIPT", "LOAD", script.source)) == script.sha.encode()


# -- refused before anything is written --------------------------------------------------------------------------


def ask(exchange: Exchange, command: Sequence[Any]) -> Any:
    reply = exchange.exchange(SHARD, [tuple(command)], 10.0)[0]
    assert not isinstance(reply, Exception), reply
    return reply


def state(exchange: Exchange) -> dict[str, Any]:
    return untimed(dump(lambda commands: exchange.exchange(SHARD, commands, 10.0)))


def write_id(id: str) -> str:
    return id.encode().hex().rjust(32, "0")


def order(id: str) -> Order:
    """The position of a module's version after `fill`."""
    return Order(1, 3 + ["hot", "hot2", "warm", "warm-dirty", "gone", "cold"].index(id), write_id(id))


def fill(exchange: Exchange, verb: str = "") -> None:
    """Modules in every state: hot, warm, cold, clean, dirty, deleted, pinned, used; hot and warm are full. For `rank`, the
    eviction policy was just changed."""
    ask(exchange, ("FLUSHALL",))
    open_shard(exchange, SHARD, LIMITS)
    run_script(exchange, put("deleted", "hot"))
    run_script(exchange, lua.delete(SHARD, "deleted", write_id("d")))
    for id, tier in [("hot", "hot"), ("hot2", "hot"), ("warm", "warm"), ("warm-dirty", "warm"), ("gone", "warm")]:
        assert isinstance(run_script(exchange, put(id, tier)), lua.Put)
        if id in ("warm", "gone"):
            run_script(exchange, lua.archived(SHARD, id, order(id), 5))
    cold = put("cold", "warm", moves=[Move("gone", write_id("gone"), "cold")])
    assert isinstance(run_script(exchange, cold), lua.Put)
    run_script(exchange, lua.archived(SHARD, "cold", order("cold"), 5))
    run_script(exchange, lua.demote(SHARD, "x", [Move("cold", write_id("cold"), "cold")]))
    install = lua.install(SHARD, "gone", write_id("gone"), "raw", b"frame", "get")
    assert isinstance(run_script(exchange, install).change, lua.Applied)
    ask(exchange, ("DEL", SHARD.frame("gone")))
    run_script(exchange, lua.pin(SHARD, "hot2", 1_000_000))
    run_script(exchange, lua.touch(SHARD, [("hot", 1), ("warm", 1)]))
    ask(exchange, ("SET", SHARD.lease("hot"), "me"))
    ask(exchange, ("ZREM", SHARD.chunk(""), "hot2"))  # as in layout 1
    ask(exchange, ("ZADD", SHARD.expiring, 1, "hot"))  # its version had a TTL, and was replaced
    if verb == "rank":
        ask(exchange, ("HSET", SHARD.epoch, "eviction", "gdsf"))
    ask(
        exchange, ("HSET", SHARD.module("cold"), "reserved", f"1-99-0-{write_id('newer')}")
    )  # a durable write is in progress


def put(
    id: str, tier: str, name: str = "", moves: Sequence[Move] = (), reserved: tuple[int, int] | None = None
) -> RunScript[Any]:
    return lua.put(
        SHARD, id, write_id(name or id), tier=tier, expected="", tokens=4, size_bytes=5, body=b"bytes",
        codec="" if tier == "hot" else "raw", fields=("type", "t/x"), moves=moves, reserved=reserved,
    )  # fmt: skip


def write(id: str) -> lua.Write:
    return lua.Write(id, write_id(id + "+"), "hot", "", "", "", 0, 4, 5, b"", ("content", b"bytes"))


def down(id: str, to: str = "warm") -> Move:
    return Move(id, write_id(id), to, "raw" if to == "warm" else "", b"frame" if to == "warm" else b"")


ROOM = [down("warm", "cold"), down("hot")]

CALLS: dict[str, Callable[[], RunScript[Any]]] = {
    "put hot, evicting": lambda: put("new", "hot", moves=ROOM),
    "put warm, evicting": lambda: put("new", "warm", moves=[down("warm", "cold")]),
    "put over hot": lambda: put("hot", "hot", "newer"),
    "put over warm": lambda: put("warm-dirty", "warm", "newer"),
    "put many": lambda: lua.put_many(SHARD, [write("hot"), write("warm"), write("new"), write("deleted")]),
    "promote, evicting": lambda: lua.promote(
        SHARD, "warm-dirty", write_id("warm-dirty"), b"bytes", "up", [down("hot")]
    ),
    "install, evicting": lambda: lua.install(
        SHARD, "cold", write_id("cold"), "raw", b"f", "get", [down("warm", "cold")]
    ),
    "demote": lambda: lua.demote(SHARD, "down", ROOM),
    "archived hot": lambda: lua.archived(SHARD, "hot", order("hot"), 9),
    "archived warm": lambda: lua.archived(SHARD, "warm-dirty", order("warm-dirty"), 9),
    "archived deleted": lambda: lua.archived(SHARD, "deleted", Order(1, 2, write_id("d")), 0),
    "delete": lambda: lua.delete(SHARD, "hot", write_id("d2")),
    "touch": lambda: lua.touch(SHARD, [("hot", 1), ("warm", 2), ("warm-dirty", 1)]),
    "pin": lambda: lua.pin(SHARD, "hot", 1000),
    "unpin": lambda: lua.pin(SHARD, "hot2", 0),
    "expire": lambda: lua.expire(SHARD, ["gone", "warm", "hot"]),
    "range": lambda: lua.read_range(SHARD, "hot", 1, 2, 1),
    "lapse": lambda: lua.lapse(SHARD, ["hot", "warm"], 0),
    "age": lambda: lua.age(SHARD, 0),
    "release": lambda: lua.release(SHARD, SHARD.lease("hot"), "me"),
    "rank": lambda: lua.rank(SHARD, ["hot", "warm"]),
    "open": lambda: lua.open_shard(SHARD, [Limit("hot_tokens", 11, True)]),
    "where": lambda: lua.where(SHARD, "hot"),
    "state": lambda: lua.state(SHARD),
    "reserve": lambda: lua.reserve(SHARD, "hot"),
    "put archived": lambda: put("cold", "hot", "newer", moves=ROOM, reserved=(1, 99)),
    "delete archived": lambda: lua.delete(SHARD, "cold", write_id("newer"), reserved=(1, 99)),
    "adopt": lambda: lua.adopt(SHARD, 1, [found("warm"), found("other"), found("cold", "deleted"), found("x", "none")]),
    "redirty": lambda: lua.redirty(SHARD, "warm", write_id("warm")),
    "refer": lambda: lua.refer(SHARD, [lua.Reference("cold", order("cold"), "^1.7-0123abcd", 9)]),
    "mend": lambda: lua.mend(SHARD, ["hot", "warm", "cold", "gone"], repair=True),
    "reindex": lambda: lua.reindex(SHARD, ["hot", "warm", "cold", "gone"], repair=True),
    "account": lambda: lua.account(SHARD, {"hot_count": 1}, ["hot"], "0-0", repair=True),
    "ledger": lambda: lua.ledger(
        SHARD, 0, write_id("l"), {"total": "4 4 4 4", "0": "1 2 3 4", "next.0": "4 4 4 4"}, above=0
    ),
    "limit": lambda: lua.limit(SHARD, 7, (50, 500, 50, 500)),
    "claim": lambda: lua.claim(SHARD, "me", 10_000),
    "enlist": lambda: lua.enlist(SHARD, ["hot", "hot2", "none"]),
    "learn": lambda: lua.learn(SHARD, [lua.Lesson("hot", 8, 1, {"warm": 2})]),
    "heartbeat": lambda: lua.heartbeat(SHARD, "me", 10_000),
    "dictionary": lambda: lua.use_dictionary(SHARD, "0123abcd", b"bytes"),
}
REPAIRS = {"mend", "reindex", "account"}  # they write only if there is a defect


def found(id: str, kind: str = "content") -> lua.Adoption:
    return lua.Adoption(id, 1, 1000, write_id("n"), kind, 4, 5, 9, fields=("type", "t/x"))


def test_every_script_has_a_call_below() -> None:
    tried = {call().script.name for call in CALLS.values()}
    assert tried == set(VERBS)


@pytest.mark.parametrize("name", CALLS)
def test_call_writes_when_nothing_is_wrong(exchange: Exchange, name: str) -> None:
    """Otherwise the tests below would prove nothing."""
    fill(exchange, name)
    before = state(exchange)
    call = CALLS[name]()
    reply = run_script(exchange, call)
    assert not isinstance(reply, lua.Over | lua.Refused)
    if name not in {"where", "state", "pin", "range", *REPAIRS}:
        assert state(exchange) != before, reply


@pytest.mark.parametrize("name", CALLS)
def test_key_of_foreign_type_fails_the_call_before_any_write(real_exchange: Exchange, name: str) -> None:
    """Redis does not undo what a script wrote before it failed: scripts look at every key before they write."""
    fill(real_exchange, name)
    kept = dump(lambda commands: real_exchange.exchange(SHARD, commands, 10.0))
    partial = []
    for i, key in enumerate(CALLS[name]().keys):
        type = kept[key][0] if key in kept else "string" if re.search(r":(warm|done|lease):", key) else "hash"
        fill(real_exchange, name)
        ask(real_exchange, ("DEL", key))
        verb, value = FOREIGN[type]
        ask(real_exchange, (verb, key, value))
        before = state(real_exchange)
        try:
            run_script(real_exchange, CALLS[name]())
        except DistierError as e:
            if not isinstance(e, Corrupt):
                partial.append(f"key {i + 1} ({key}): {type} makes {e!r}")
            if state(real_exchange) != before:
                partial.append(f"key {i + 1} ({key}): wrote before it failed: {changed(before, state(real_exchange))}")
    assert not partial, "\n".join(partial)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


REFUSING = sorted(set(CALLS) - {"open", "release", "where"})


@pytest.mark.parametrize("name", REFUSING)
def test_call_to_another_layout_writes_nothing(real_exchange: Exchange, name: str) -> None:
    fill(real_exchange, name)
    ask(real_exchange, ("HSET", SHARD.epoch, "layout", "99"))
    before = state(real_exchange)
    with pytest.raises(Invalid, match="key layout 99"):
        run_script(real_exchange, CALLS[name]())
    assert state(real_exchange) == before


@pytest.mark.parametrize("name", REFUSING)
def test_call_to_shard_without_epoch_writes_nothing(real_exchange: Exchange, name: str) -> None:
    fill(real_exchange, name)
    ask(real_exchange, ("DEL", SHARD.epoch))
    before = state(real_exchange)
    with pytest.raises(Recovering):
        run_script(real_exchange, CALLS[name]())
    assert state(real_exchange) == before


def test_open_refuses_another_layout_or_shard_count(real_exchange: Exchange) -> None:
    fill(real_exchange)
    before = state(real_exchange)
    other = lua.open_shard(Shard("ns", 0, 2), [])
    with pytest.raises(Invalid, match="was made with shards=1"):
        run_script(real_exchange, RunScript(SHARD, other.script, SHARD.fixed, other.args, other.parse))
    ask(real_exchange, ("HSET", SHARD.epoch, "layout", "99"))
    with pytest.raises(Invalid, match="has key layout 99, but this distier knows layout 2"):
        run_script(real_exchange, lua.open_shard(SHARD, []))
    ask(real_exchange, ("HSET", SHARD.epoch, "layout", "2"))
    assert state(real_exchange) == before


def test_epoch_is_installed_only_as_claimed(real_exchange: Exchange) -> None:
    """An epoch is installed in the incarnation that it was claimed for, if it is greater than the stored epoch and there was
    no FLUSHALL since the look before the claim."""
    fill(real_exchange)
    ask(real_exchange, ("HSET", SHARD.epoch, "replid", "of an earlier incarnation"))

    def opened(**claim: Any) -> lua.Opened | lua.Unclaimed:
        return run_script(real_exchange, lua.open_shard(SHARD, [], **claim))

    look = opened(opening="one")
    assert isinstance(look, lua.Unclaimed) and look.opening == "one" and look.epoch == 1
    assert opened(opening="two") == look, "the first look stays"
    good = {"epoch": 5, "replid": look.replid, "opening": "one"}
    for wrong in ({"replid": "of another incarnation"}, {"epoch": 1}, {"opening": "two"}):
        assert isinstance(opened(**good | wrong), lua.Unclaimed), wrong
    ask(real_exchange, ("FLUSHALL",))
    for _ in range(2):
        assert opened(**good) == lua.Unclaimed(look.replid, "", 0), "an old claim begins no new look"
    assert isinstance(opened(opening="three"), lua.Unclaimed)
    assert isinstance(opened(**good), lua.Unclaimed)
    installed = opened(**good | {"opening": "three"})
    assert isinstance(installed, lua.Opened) and installed.epoch == 5


def test_at_maxmemory_only_scripts_that_take_memory_are_refused(real_exchange: Exchange) -> None:
    fill(real_exchange)
    ask(real_exchange, ("CONFIG", "SET", "maxmemory", "1"))
    try:
        for name, make in CALLS.items():
            call = make()
            reply = real_exchange.exchange(SHARD, [command_of(call)], 10.0)[0]
            if isinstance(reply, ResponseError) and "NOSCRIPT" in type(reply).__name__.upper() + str(reply):
                real_exchange.exchange(SHARD, [("SCRIPT", "LOAD", call.script.source)], 10.0)
                reply = real_exchange.exchange(SHARD, [command_of(call)], 10.0)[0]
            refused = isinstance(reply, Exception)
            assert refused == (call.script.name in TAKES_MEMORY), f"{name}: {reply!r}"
    finally:
        ask(real_exchange, ("CONFIG", "SET", "maxmemory", "0"))
