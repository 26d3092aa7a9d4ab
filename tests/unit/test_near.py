"""The near cache without a server: its budgets, its tickets, and every order in which events may arrive.

`Arrivals` tests the argument at the top of `distier/near.py`. It models a server with an event loop (replies of a turn
before its pushes), a network that delays, loses and breaks, reads with replies that overtake pushes, and this process's
own writes. The real cache and the real tracker (without its thread) run against this model.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from distier.config import Config
from distier.domain.keys import Shard
from distier.domain.module import Module
from distier.domain.order import Order
from distier.domain.tokens import token_counter
from distier.drive.process import Counters, UseBuffer
from distier.near import ENTRY_BYTES, Near, NearCache, Reading, Ticket, Tracker
from distier.near.tracker import _ids_of, _TrackedServer
from distier.near.wire import RefusedTracking
from distier.plans.common.namespace import Namespace

STALENESS_S = 5.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def module(id: str, *, version: int = 1, size_bytes: int = 10, tokens: int = 1, tier: Any = "hot", meta: Any = None,
    expires_ms: int | None = None,
):  # fmt: skip
    return Module(
        id, b"x" * size_bytes, "text/plain", tokens, "given", (), meta or {}, Order(1, version, "0" * 32),
        "", tier, 0, 0, expires_ms=expires_ms,
    )  # fmt: skip


def cache_of(clock: Clock | None = None, **other: int) -> NearCache:
    limits: dict[str, Any] = {"max_tokens": 1000, "max_bytes": 1000_000, "max_entries": 100} | other
    clock = clock or Clock()

    def remaining_s(module: Module) -> float:
        """Return what is left of a TTL, as if the server's clock were this one."""
        return (module.expires_ms or 0) / 1000 - clock.now_s

    cache = NearCache(**limits, staleness_s=STALENESS_S, clock=clock, remaining_s=remaining_s)
    cache.go_live()
    return cache


def keep(cache: NearCache, *modules: Module) -> list[bool]:
    done = []
    for m in modules:
        ticket = cache.begin(m.id)
        assert ticket is not None
        done.append(cache.fill(ticket, m))
    return done


def held(cache: NearCache) -> str:
    return "".join(id for id in "abcdefgh" if id in cache)


# -- budgets and eviction order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "one"),
    [
        ({"max_entries": 3}, {}),
        ({"max_tokens": 30}, {"tokens": 10}),
        ({"max_bytes": 3 * (ENTRY_BYTES + 100)}, {"size_bytes": 100}),
    ],
    ids=["entries", "tokens", "bytes"],
)
def test_each_budget_holds_by_evicting_the_least_recently_used(limits: dict[str, int], one: dict[str, int]) -> None:
    cache = cache_of(None, **limits)
    keep(cache, module("a", **one), module("b", **one), module("c", **one))
    assert held(cache) == "abc"
    assert cache.get("a") and cache.get("c") and cache.get("a")
    keep(cache, module("d", **one))
    assert held(cache) == "acd"
    keep(cache, module("e", **one))
    assert held(cache) == "ade"
    assert (cache.tokens, len(cache)) == (3 * one.get("tokens", 1), 3)
    assert cache.size_bytes == 3 * (ENTRY_BYTES + one.get("size_bytes", 10))


def test_one_large_module_evicts_several() -> None:
    cache = cache_of(max_tokens=10)
    keep(cache, *(module(id, tokens=2) for id in "abcde"))
    keep(cache, module("f", tokens=7))
    assert held(cache) == "ef" and cache.tokens == 9


def test_module_larger_than_a_budget_is_not_held_and_evicts_nothing() -> None:
    cache = cache_of(max_tokens=10, max_bytes=5000)
    assert keep(cache, module("a"), module("b", tokens=11), module("c", size_bytes=5000)) == [True, False, False]
    assert held(cache) == "a"


def test_meta_counts_towards_the_bytes() -> None:
    cache = cache_of(max_bytes=50_000)
    assert keep(cache, module("a", meta={"k": "v" * 60_000})) == [False]


def test_new_version_replaces_the_old_one_in_the_sums() -> None:
    cache = cache_of()
    keep(cache, module("a", tokens=5), module("a", tokens=3, version=2))
    found = cache.get("a")
    assert found and found.version.ver == 2 and (cache.tokens, len(cache)) == (3, 1)


def test_each_use_is_taken_exactly_once_despite_eviction() -> None:
    cache = cache_of(max_entries=2)
    keep(cache, module("a"), module("b"))
    for id in "abbax":
        cache.get(id)
    keep(cache, module("c"), module("d"))
    cache.invalidate("cd")
    cache.get("c")
    assert cache.take_uses() == {"a": 2, "b": 2}
    assert not cache.take_uses()


def test_threads_lose_no_hit() -> None:
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        _threads_hit()
    finally:
        sys.setswitchinterval(switch_s)


def _threads_hit() -> None:
    cache = cache_of(max_entries=5)
    keep(cache, *(module(id) for id in "abcd"))
    n, taken, running = 150_000, Counter[str](), threading.Event()

    def hit(id: str) -> None:
        hits[id] = sum(cache.get(id) is not None for _ in range(n))

    def take() -> None:
        while not running.is_set():
            taken.update(cache.take_uses())

    hits: dict[str, int] = {}
    threads = [threading.Thread(target=hit, args=(id,)) for id in "abcd"]
    taker = threading.Thread(target=take)
    for thread in [*threads, taker]:
        thread.start()
    for thread in threads:
        thread.join()
    running.set()
    taker.join()
    taken.update(cache.take_uses())
    assert taken == hits == dict.fromkeys("abcd", n)


# -- tickets -----------------------------------------------------------------------------------------------------------


def begun(cache: NearCache, id: str) -> Ticket:
    ticket = cache.begin(id)
    assert ticket is not None
    return ticket


def test_invalidation_during_a_read_prevents_the_fill() -> None:
    cache = cache_of()
    ticket = begun(cache, "a")
    other = begun(cache, "b")
    cache.invalidate(["a"])
    assert not cache.fill(ticket, module("a")) and cache.fill(other, module("b"))
    assert held(cache) == "b"


def test_reads_of_one_id_share_a_ticket_so_that_a_crowd_is_not_starved() -> None:
    cache = cache_of()
    first, second = begun(cache, "a"), begun(cache, "a")
    assert cache.fill(first, module("a")) and held(cache) == "a"
    third = begun(cache, "a")
    assert not cache.fill(second, module("a", version=0)), "its ticket ended with the fill"
    cache.invalidate(["a"])
    assert not cache.fill(third, module("a")) and held(cache) == ""


def test_failed_reading_releases_its_tickets() -> None:
    cache = cache_of()
    with pytest.raises(ZeroDivisionError), Reading(cache, ["a", "b"]) as reading:
        reading.fill({"a": None, "b": module("b")})
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Reading(cache, ["a", "c"]):
        raise ZeroDivisionError
    assert held(cache) == "b" and not cache._reading


@pytest.mark.parametrize("event", ["doubt_all", "lost", "go_live"])
def test_ticket_from_before_a_flush_or_reconnect_does_not_fill(event: str) -> None:
    cache = cache_of()
    keep(cache, module("a"))
    ticket = begun(cache, "b")
    getattr(cache, event)()
    assert held(cache) == "" and not cache.fill(ticket, module("b"))
    cache.go_live()
    assert not cache.fill(ticket, module("b")) and held(cache) == ""
    assert cache.get("a") is None and cache.suspect("a"), "its version may still be the current one"
    assert (cache.tokens, len(cache), cache.suspects) == (2, 2, 2)


def test_suspect_is_not_served_and_counts_against_the_budgets() -> None:
    cache = cache_of(max_entries=2)
    keep(cache, module("a"), module("b"))
    cache.invalidate(["a", "x"])
    assert cache.get("a") is None and "a" not in cache and held(cache) == "b"
    assert cache.suspect("a") == module("a") and cache.suspect("b") is None and cache.suspect("x") is None
    assert (len(cache), cache.suspects, cache.tokens) == (2, 1, 2)
    keep(cache, module("c"))
    assert cache.suspect("a") is None and held(cache) == "bc", "it was the least recently used"


def test_suspect_is_fresh_again_after_a_read_with_a_valid_ticket() -> None:
    cache = cache_of()
    keep(cache, module("a"))
    cache.invalidate(["a"])
    with Reading(cache, ["a"]) as reading:
        cache.invalidate(["a"])  # while the record is read
        reading.fill({"a": reading.suspects["a"]})
    assert cache.get("a") is None and cache.suspect("a")
    with Reading(cache, ["a", "b"]) as reading:
        assert list(reading.suspects) == ["a"]
        reading.fill({"a": reading.suspects["a"], "b": None})
    assert held(cache) == "a" and (len(cache), cache.suspects, cache.tokens) == (1, 0, 1)


def test_result_of_an_invalidated_read_is_kept_as_a_suspect_unless_a_fresh_one_came_first() -> None:
    cache = cache_of()
    late, now = begun(cache, "a"), module("a", version=2)
    cache.invalidate(["a"])
    assert not cache.fill(late, module("a")) and cache.suspect("a") == module("a")
    keep(cache, now)
    assert not cache.fill(late, module("a")) and cache.get("a") == now and cache.suspects == 0


def test_own_write_drops_the_suspect() -> None:
    cache = cache_of()
    keep(cache, module("a"))
    before = begun(cache, "a")
    cache.invalidate(["a"])
    cache.start_writing(["a"])
    assert cache.suspect("a") is None and not cache.fill(before, module("a")) and len(cache) == 0


def test_no_ticket_before_tracking_is_confirmed() -> None:
    cache = NearCache(max_tokens=1, max_bytes=5000, max_entries=1, staleness_s=1)
    assert cache.begin("a") is None
    cache.go_live()
    keep(cache, module("a"))
    cache.lost()
    assert cache.begin("a") is None and cache.get("a") is None


def test_no_fill_during_a_write() -> None:
    cache = cache_of()
    keep(cache, module("a"))
    before = begun(cache, "a")
    cache.start_writing(["a"])
    cache.start_writing(["a", "b"])
    assert held(cache) == "" and cache.begin("a") is None and not cache.fill(before, module("a"))
    cache.end_writing(["a"])
    assert cache.begin("a") is None and cache.begin("b") is None
    cache.end_writing(["a", "b"])
    assert keep(cache, module("a", version=2)) == [True] and not cache._writing


# -- age ---------------------------------------------------------------------------------------------------------------


def test_hit_ends_when_the_last_confirmation_is_too_old() -> None:
    clock = Clock()
    cache = cache_of(clock)
    keep(cache, module("a"))
    clock.now_s += STALENESS_S - 0.01
    assert cache.get("a")
    clock.now_s += 0.01
    assert cache.get("a") is None and not cache.is_fresh
    cache.confirm(clock.now_s - 1)
    assert cache.get("a"), "it was not dropped: nothing was missed"
    cache.confirm(clock.now_s - 3)
    clock.now_s += 3.9
    assert cache.get("a"), "an earlier confirmation takes nothing back"
    clock.now_s += 0.1
    assert cache.get("a") is None


def test_confirmation_of_a_lost_connection_is_ignored() -> None:
    cache = cache_of()
    cache.lost()
    cache.confirm(2000.0)
    assert not cache.is_fresh


def test_age_is_checked_before_the_entry_is_read() -> None:
    """A thread that sleeps between the two must not pair an old entry with a new confirmation."""
    clock = Clock()
    cache = cache_of(clock)
    keep(cache, module("a", version=1))
    clock.now_s += 100  # a black hole; the connection is lost, and found again, while a reader is between the two

    class Slow(dict[str, Module]):
        def get(self, id: str, default: Any = None) -> Any:
            found = super().get(id)
            cache.confirm(clock.now_s)
            return found

    cache._modules = Slow(cache._modules)
    assert cache.get("a") is None


def test_module_used_often_enough_for_hot_is_suspected_unless_hot() -> None:
    cache = cache_of()
    keep(cache, module("a", tier="warm"), module("b", tier="warm"), module("c"), module("d", tier="cold"))
    cache.doubt_promotable(["a", "c", "d", "x"])
    assert held(cache) == "bc" and cache.suspect("a") and cache.suspect("d")


# -- returned modules --------------------------------------------------------------------------------------------------


def test_meta_cannot_be_changed_under_other_readers() -> None:
    cache = cache_of()
    meta = {"a": 1, "tags": ["x", {"y": [2]}]}
    with Reading(cache, ["a", "b"]) as reading:
        reading.fill({"a": module("a", meta=copy.deepcopy(meta)), "b": module("b")})
    a: Any = cache.get("a")
    b: Any = cache.get("b")
    assert a and b and a.meta == meta and json.loads(json.dumps(a.meta)) == meta and b.meta == {}
    for change in (
        lambda: a.meta.update(b=1), lambda: a.meta["tags"].append(1), lambda: a.meta["tags"][1].clear(),
        lambda: b.meta.setdefault("k", 1), lambda: a.meta["tags"][1]["y"].sort(), lambda: a.meta["tags"].__iadd__([1]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="copy"):
            change()
    mine = copy.deepcopy(a.meta)
    mine["tags"][1]["y"].append(3)
    assert a.meta == meta


def test_keys_are_decoded_to_ids_and_foreign_ones_skipped() -> None:
    keys = [b"distier:{t}:module:a/b", b"distier:{t.3}:module:a%2F%2Fb", b"distier:{t}:module:%C3%BC",
            b"distier:{t}:module:%ff%", b"distier:{t}:module:\xff", b"distier:{t}:module:a:module:b"]  # fmt: skip
    assert list(_ids_of(keys)) == ["a/b", "a//b", "ü", "a:module:b"]


# -- the tracker's conversation ----------------------------------------------------------------------------------------


@dataclass
class Wire:
    """Keeps what the tracker sends. Tests pass the replies to `_take`."""

    sent: deque[tuple[Any, ...]] = field(default_factory=deque)
    greeting: tuple[tuple[Any, ...], ...] = (("HELLO", 3),)

    def send(self, command: Any, timeout_s: float) -> None:
        self.sent.append(tuple(command))


def space_of(**settings: Any) -> Namespace:
    return Namespace(Config(**settings), token_counter("estimate"), False)


def tracker_of(cache: NearCache, space: Namespace | None = None) -> Tracker:
    return Tracker(cache, space or space_of(), list, Counters(), UseBuffer())


def peer_of(tracker: Tracker, *shards: Shard) -> Any:
    """Another server that this tracker follows, without a socket."""
    peer = _TrackedServer(Wire(), shards)  # type: ignore[arg-type]
    tracker._peers = [*tracker._peers, peer]
    return peer


def push(*keys: str) -> Any:
    return hiredis.PushNotification([b"invalidate", [f"distier:{{default}}:module:{k}".encode() for k in keys]])


FLUSHED = hiredis.PushNotification([b"invalidate", None])
HELLO = {b"server": b"redis", b"proto": 3}


def subscribed(cache: NearCache, space: Namespace | None = None) -> tuple[Tracker, Any]:
    cache.lost()
    tracker = tracker_of(cache, space)
    peer = peer_of(tracker)
    tracker._subscribe(peer)
    peer.wire.sent.clear()
    tracker._take(peer, dict(HELLO))
    tracker._take(peer, b"OK")
    return tracker, peer


def test_tracker_subscribes_to_the_records_of_every_shard() -> None:
    tracker = tracker_of(cache_of(), space_of(namespace="n", shards=2))
    peer = peer_of(tracker)
    tracker._subscribe(peer)
    assert list(peer.wire.sent) == [
        ("HELLO", 3),
        ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "distier:{n.0}:module:", "PREFIX", "distier:{n.1}:module:"),
    ]


def test_push_drops_its_ids_and_an_unknown_push_drops_all() -> None:
    cache = cache_of()
    tracker, peer = subscribed(cache)
    assert tracker.status == "on"
    for unknown in (FLUSHED, hiredis.PushNotification([b"invalidate"]), hiredis.PushNotification([b"news", b"x"])):
        keep(cache, module("a"), module("b"), module("c"))
        tracker._take(peer, push("a", "x"))
        assert held(cache) == "bc"
        tracker._take(peer, unknown)
        assert held(cache) == ""


@pytest.mark.parametrize(
    ("hello", "tracking", "why"),
    [
        ([b"proto", 2], b"OK", "RESP3"),
        ({b"proto": 2}, b"OK", "RESP3"),
        (ResponseError("unknown command 'HELLO'"), b"OK", "unknown command"),
        (HELLO, ResponseError("NOPERM this user has no permissions to run 'client|tracking'"), "NOPERM"),
        (HELLO, b"QUEUED", "QUEUED"),
    ],
)
def test_refused_tracking_gives_the_reason_and_never_goes_live(hello: Any, tracking: Any, why: str) -> None:
    cache = cache_of()
    cache.lost()
    tracker = tracker_of(cache)
    peer = peer_of(tracker)
    tracker._subscribe(peer)
    with pytest.raises(RefusedTracking, match=why):
        tracker._take(peer, hello)
        tracker._take(peer, tracking)
    assert not cache.is_live


def test_loading_server_is_not_reported_as_refusing() -> None:
    tracker = tracker_of(cache_of())
    peer = peer_of(tracker)
    tracker._subscribe(peer)
    tracker._take(peer, dict(HELLO))
    with pytest.raises(ResponseError, match="LOADING"):
        tracker._take(peer, ResponseError("LOADING Redis is loading the dataset in memory"))


@pytest.mark.parametrize("reply", [ResponseError("LOADING"), ResponseError("BUSY script"), b"PANG", [b"pong", b""]])
def test_only_pong_is_a_heartbeat(reply: Any) -> None:
    cache = cache_of()
    tracker, peer = subscribed(cache)
    tracker._ping(peer, 2000.0)
    with pytest.raises(RedisConnectionError):
        tracker._take(peer, reply)


def test_pong_does_not_vouch_for_pushes_of_its_own_turn() -> None:
    """PING arrives while the server executes a turn in which a record was changed. PONG is written first."""
    clock = Clock()
    cache = cache_of(clock)
    tracker, peer = subscribed(cache)
    keep(cache, module("a"))
    tracker._ping(peer, clock.now_s)
    tracker._take(peer, b"PONG")
    clock.now_s += 3  # here "a" is changed
    changed_s = clock.now_s
    clock.now_s += 1
    tracker._ping(peer, clock.now_s)
    tracker._take(peer, b"PONG")  # and the network swallows everything that follows
    clock.now_s = changed_s + STALENESS_S
    assert cache.get("a") is None


def test_unsolicited_reply_ends_the_connection() -> None:
    tracker, peer = subscribed(cache_of())
    with pytest.raises(RedisConnectionError):
        tracker._take(peer, b"PONG")


def test_due_uses_are_sent_and_promotable_modules_dropped() -> None:
    cache = cache_of()
    tracker, peer = subscribed(cache)
    keep(cache, module("a", tier="warm"), module("b"))
    for _ in range(3):
        cache.get("a")
    tracker._send_uses(0.0)
    assert not peer.wire.sent and tracker._counters.snapshot() == {"hits.near": 3}
    tracker._send_uses(1e9)
    (evalsha,) = peer.wire.sent
    assert evalsha[0] == "EVALSHA" and evalsha[-2:] == ("a", 3)
    tracker._take(peer, ResponseError("NOSCRIPT No matching script"))
    assert [c[:2] for c in peer.wire.sent] == [evalsha[:2], ("SCRIPT", "LOAD"), evalsha[:2]]
    tracker._take(peer, b"sha")
    tracker._take(peer, [b"OK", [b"5"]])
    assert held(cache) == "b" and "touches.lost" not in tracker._counters.snapshot()


@pytest.mark.parametrize("reply", [ResponseError("NOPERM"), [b"RECOVERING"], ResponseError("NOSCRIPT")])
def test_refused_uses_are_lost_and_nothing_else(reply: Any) -> None:
    cache = cache_of()
    tracker, peer = subscribed(cache)
    keep(cache, module("a"))
    cache.get("a")
    tracker._send_uses(1e9)
    while peer.sent:
        tracker._take(peer, reply)
    assert tracker._counters.snapshot() == {"hits.near": 1, "touches.lost": 1} and held(cache) == "a"


def test_near_cache_is_off_by_configuration_or_without_a_server() -> None:
    near = Near(space_of(near={"enabled": False}), "redis://127.0.0.1:1", Counters(), UseBuffer())
    assert near.status == "off: near.enabled is false"
    bare = Near(space_of(), None, Counters(), UseBuffer())
    assert bare.status == "off: there is no server to follow"
    for off in (near, bare):
        with off.reading(["a"]) as reading, off.writing(["a", 3, None]):
            reading.fill({"a": module("a")})
        assert off.get("a") is None and off.stats().count == 0 and off._tracker._thread is None
        off.close()


# -- pending uses ------------------------------------------------------------------------------------------------------


def test_batches_are_bounded_and_none_is_lost() -> None:
    shard = space_of().keys.shards[0]
    uses = UseBuffer()
    many = {f"m{i}": i + 1 for i in range(UseBuffer.PENDING_MAX + 7)}
    uses.note_many(shard, many, 0.0)
    call = uses.note(shard, "m5", 0.5, flush=False)
    assert call is not None, "there is more than may wait"
    calls = [call, *uses.due(0.5), *uses.due(1.0), *uses.drain()]
    sent = Counter[str]()
    for c in calls:
        pairs = dict(zip(c.args[::2], c.args[1::2], strict=True))
        assert 0 < len(pairs) <= UseBuffer.BATCH
        sent.update({str(k): int(v) for k, v in pairs.items()})
    assert sent == Counter(many) + Counter({"m5": 1})
    assert "m5" in call.args, "a flush returns its own count"
    assert not uses.drain() and not uses.due(1e9)


def test_batch_is_due_after_a_second() -> None:
    shard = space_of().keys.shards[0]
    uses = UseBuffer()
    uses.note_many(shard, {"a": 2}, 10.0)
    assert not uses.due(10.9) and uses.note(shard, "b", 10.9, flush=False) is None
    (call,) = uses.due(11.0)
    assert set(call.args) == {"a", 2, "b", 1}


def test_uses_of_a_quiet_second_are_kept_and_bounded() -> None:
    shard = space_of().keys.shards[0]
    uses = UseBuffer()
    for i in range(3 * UseBuffer.NOTES_MAX):
        assert uses.note(shard, f"m{i % 5}", 10.0 + i / 1e4, flush=False) is None
        assert len(uses._notes) <= UseBuffer.NOTES_MAX
    call = uses.note(shard, "m0", 11.0, flush=False)
    assert call is not None and sum(int(n) for n in call.args[1::2]) == 3 * UseBuffer.NOTES_MAX + 1
    assert uses.note(shard, "m1", 11.5, flush=False) is None and uses.note(shard, "m1", 12.6, flush=False) is not None


# -- a signal handler or a finaliser within any of its own lines -------------------------------------------------------


def test_write_within_its_own_lines_leaves_nothing_old() -> None:
    clock = Clock()
    cache = cache_of(clock)
    keep(cache, module("a"), module("b"))
    ticket = cache.begin("c")
    assert ticket is not None
    with cache._lock:  # the state of the lock at the interruption
        assert cache.begin("a") is None and not cache.fill(ticket, module("c")) and cache.take_uses() == {}
        cache.start_writing(["a"])
        cache.end_writing(["a"])
        assert held(cache) == "" and cache.get("a") is None
    assert cache.get("a") is None
    assert not cache.fill(ticket, module("c")), "it was read before, or at the same time"
    cache.confirm(clock.now_s)
    assert held(cache) == "" and cache.suspect("a") is None, "an interrupted change may have left anything"
    keep(cache, module("a", version=2))
    assert held(cache) == "a"


@pytest.mark.parametrize("invalidate", [lambda c: c.invalidate(["a"]), NearCache.doubt_all, NearCache.lost])
def test_invalidation_within_its_own_lines_takes_effect(invalidate: Any) -> None:
    cache = cache_of(Clock())
    keep(cache, module("a"))
    with cache._lock:
        invalidate(cache)
        cache.confirm(1e6)
        assert cache.get("a") is None
    assert cache.is_live == (invalidate is not NearCache.lost)
    cache.go_live()
    assert held(cache) == "" and cache.is_fresh


def test_uses_and_counts_within_their_own_lines_are_kept() -> None:
    shard = space_of().keys.shards[0]
    uses, counters = UseBuffer(), Counters()
    with uses._lock, counters._lock:
        assert uses.note(shard, "a", 0.0, flush=True) is None and not uses.due(9.0) and not uses.drain()
        uses.note_many(shard, {"a": 2}, 0.0)
        for _ in range(Counters.NOTES_MAX + 1):
            counters.add("x", 2)
    (call,) = uses.due(9.0)
    assert call.args == ("a", 3) and counters.snapshot() == {"x": 2 * Counters.NOTES_MAX + 2}


# -- every order of arrivals -------------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c"])
PICKS = st.integers(0, 3)


def some(things: list[Any], pick: int) -> Any:
    return things[pick % len(things)]


@dataclass
class Read:
    id: str
    ticket: Ticket | None
    suspect: Module | None
    saw: int | None = None  # the version, once Redis has executed the read

    @property
    def result(self) -> Module:
        """The suspect, if the record still has its version; otherwise the content comes from Redis."""
        assert self.saw
        same = self.suspect is not None and self.suspect.version.ver == self.saw
        return self.suspect if same and self.suspect else module(self.id, version=self.saw)


@dataclass
class Write:
    id: str
    version: int | None = None


class Arrivals(RuleBasedStateMachine):
    """See the top of this file. Versions count up from 1; `born[id][v]` is the time when version v + 1 replaced v."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = cache_of(self.clock, max_entries=2)
        self.cache.lost()
        self.now: dict[str, int] = dict.fromkeys("abc", 1)
        self.ended: dict[tuple[str, int], float] = {}
        self.acked: dict[str, int] = dict.fromkeys("abc", 0)
        self.reads: list[Read] = []
        self.writes: list[Write] = []
        self.tracker: Tracker | None = None
        self.revalidated = 0
        self._no_wire()

    def _no_wire(self) -> None:
        self.peer: Any = None
        self.tracking = False  # as the server sees it
        self.severed = False  # nothing arrives any more, and the client does not know
        self.turn: list[Any] = []  # replies of this turn of the server's loop
        self.pushes: list[Any] = []  # and its pushes, which are written after them
        self.stream: deque[Any] = deque()

    # the server

    def _change(self, id: str) -> int:
        self.ended[id, self.now[id]] = self.clock.now_s
        self.now[id] += 1
        if self.tracking:
            self.pushes.append(push(id))
        return self.now[id]

    @rule(id=IDS)
    def somebody_writes(self, id: str) -> None:
        self._change(id)

    @rule(id=IDS)
    def somebody_moves(self, id: str) -> None:
        """The module moves to another tier: its record is written, and its version stays."""
        if self.tracking:
            self.pushes.append(push(id))

    @rule()
    def somebody_flushes(self) -> None:
        tracking, self.tracking = self.tracking, False
        for id in self.now:
            self._change(id)
        self.tracking = tracking
        if tracking:
            self.pushes.append(FLUSHED)

    @precondition(lambda self: self.peer and self.peer.wire.sent)
    @rule()
    def server_executes(self) -> None:
        command = self.peer.wire.sent.popleft()
        if command[0] == "CLIENT":
            self.tracking = True
        reply = {"HELLO": dict(HELLO), "CLIENT": b"OK", "PING": b"PONG"}[command[0]]
        self.turn.append(reply)

    @rule()
    def turn_ends(self) -> None:
        if not self.severed:
            self.stream += self.turn + self.pushes
        self.turn, self.pushes = [], []

    # the tracker's connection

    @precondition(lambda self: self.tracker is None)
    @rule()
    def connect(self) -> None:
        self._no_wire()
        self.tracker = tracker_of(self.cache)
        self.peer = peer_of(self.tracker)
        self.tracker._subscribe(self.peer)

    @precondition(lambda self: self.peer and self.peer.wire.sent)
    @rule()
    def server_replies_to_all(self) -> None:
        while self.peer.wire.sent:
            self.server_executes()
        self.turn_ends()

    @precondition(lambda self: self.stream)
    @rule(n=st.integers(1, 4))
    def arrive(self, n: int) -> None:
        assert self.tracker
        while self.stream and n:
            self.tracker._take(self.peer, self.stream.popleft())
            n -= 1

    @precondition(lambda self: self.tracker and self.cache.is_live and not self.peer.heartbeats)
    @rule()
    def ping(self) -> None:
        assert self.tracker
        self.tracker._ping(self.peer, self.clock.now_s)

    @precondition(lambda self: self.tracker is not None)
    @rule()
    def sever(self) -> None:
        self.severed, self.tracking = True, False

    @precondition(lambda self: self.tracker is not None)
    @rule()
    def notice(self) -> None:
        self.tracker = None
        self.cache.lost()
        self._no_wire()

    # this process

    @rule(id=IDS)
    def read_at_once(self, id: str) -> None:
        ticket = self.cache.begin(id)
        self._fill(Read(id, ticket, self.cache.suspect(id), self.now[id]))

    def _fill(self, read: Read) -> None:
        if read.ticket and read.saw:
            self.revalidated += self.cache.fill(read.ticket, read.result) and read.result is read.suspect

    @rule(id=IDS)
    def read_begins(self, id: str) -> None:
        self.reads.append(Read(id, self.cache.begin(id), self.cache.suspect(id)))

    @precondition(lambda self: any(r.saw is None for r in self.reads))
    @rule(pick=PICKS)
    def read_is_executed(self, pick: int) -> None:
        read = some([r for r in self.reads if r.saw is None], pick)
        read.saw = self.now[read.id]

    @precondition(lambda self: any(r.saw is not None for r in self.reads))
    @rule(pick=PICKS)
    def read_ends(self, pick: int) -> None:
        read = some([r for r in self.reads if r.saw is not None], pick)
        self.reads.remove(read)
        self._fill(read)

    @rule(id=IDS)
    def write_begins(self, id: str) -> None:
        self.cache.start_writing([id])
        self.writes.append(Write(id))

    @precondition(lambda self: any(w.version is None for w in self.writes))
    @rule(pick=PICKS)
    def write_is_executed(self, pick: int) -> None:
        write = some([w for w in self.writes if w.version is None], pick)
        write.version = self._change(write.id)

    @precondition(lambda self: self.writes)
    @rule(pick=PICKS)
    def write_ends(self, pick: int) -> None:
        """The write is acknowledged if it was executed. Otherwise it failed and may be executed later by
        `somebody_writes`.
        """
        write = some(self.writes, pick)
        self.writes.remove(write)
        self.cache.end_writing([write.id])
        if write.version:
            self.acked[write.id] = max(self.acked[write.id], write.version)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, STALENESS_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    # what must hold at every moment

    @invariant()
    def no_hit_is_too_old(self) -> None:
        for id in "abc":
            found = self.cache.get(id)
            if found is None:
                continue
            ver = found.version.ver
            assert ver >= self.acked[id], "older than this process's own write"
            ended_s = self.ended.get((id, ver), float("inf"))
            assert self.clock.now_s - ended_s < STALENESS_S, f"{id} v{ver} was replaced at {ended_s}"

    @invariant()
    def when_all_has_arrived_the_cache_is_right(self) -> None:
        if self.cache.is_live and self.tracking and not (self.turn or self.pushes or self.stream or self.severed):
            for id, held_now in self.cache._modules.items():
                assert held_now.version.ver == self.now[id]

    @invariant()
    def budgets(self) -> None:
        assert len(self.cache) <= 2 and self.cache.tokens == len(self.cache) == len(self.cache._costs)
        assert self.cache._modules.keys() | self.cache._suspects.keys() == self.cache._costs.keys()
        assert not self.cache._modules.keys() & self.cache._suspects.keys()


Arrivals.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestArrivals = Arrivals.TestCase


# How often each step is tried in long walks. Hypothesis explores corner cases and seldom gets far with a live cache.
STEPS = {
    "somebody_writes": 5, "somebody_moves": 4, "somebody_flushes": 0.2, "server_executes": 4, "server_replies_to_all": 4,
    "turn_ends": 4, "connect": 4, "arrive": 9, "ping": 5, "sever": 0.2, "notice": 0.4, "read_at_once": 6, "read_begins": 4,
    "read_is_executed": 4, "read_ends": 4, "write_begins": 1.5, "write_is_executed": 2, "write_ends": 2,
    "time_passes": 4,
}  # fmt: skip


def possible(machine: Arrivals, step: str) -> bool:
    tracker = machine.tracker
    return {
        "server_executes": bool(machine.peer and machine.peer.wire.sent),
        "server_replies_to_all": bool(machine.peer and machine.peer.wire.sent),
        "connect": tracker is None,
        "arrive": bool(machine.stream),
        "ping": bool(tracker and machine.cache.is_live and not machine.peer.heartbeats),
        "sever": tracker is not None,
        "notice": tracker is not None,
        "read_is_executed": any(r.saw is None for r in machine.reads),
        "read_ends": any(r.saw is not None for r in machine.reads),
        "write_is_executed": any(w.version is None for w in machine.writes),
        "write_ends": bool(machine.writes),
    }.get(step, True)


@pytest.mark.parametrize("seed", range(20))
def test_long_walks_keep_every_invariant(seed: int) -> None:
    hits, suspects = walk(seed)
    assert hits > 100, "the walks never came to a live cache"
    assert suspects > 3, "the walks never revalidated anything"


def test_walks_catch_a_suspect_that_is_served_without_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = NearCache.get

    def get(cache: NearCache, id: str) -> Module | None:
        return real(cache, id) or cache.suspect(id)

    monkeypatch.setattr(NearCache, "get", get)
    with pytest.raises(AssertionError, match=r"was replaced at|older than"):
        walk(0)


def walk(seed: int) -> tuple[int, int]:
    """Take long random walks. Returns the number of hits, and of suspects that became fresh again."""
    rng = random.Random(seed)
    hits = suspects = 0
    for _ in range(15):
        machine = Arrivals()
        for _ in range(300):
            (step,) = rng.choices(list(STEPS), list(STEPS.values()))
            if not possible(machine, step):
                continue
            arguments: dict[str, Any] = {
                "somebody_writes": {"id": rng.choice("aab")}, "somebody_moves": {"id": rng.choice("aab")},
                "read_at_once": {"id": rng.choice("aab")},
                "read_begins": {"id": rng.choice("aab")}, "write_begins": {"id": rng.choice("aab")},
                "arrive": {"n": rng.choice([1, 1, 2, 4])}, "time_passes": {"seconds": rng.choice([0.5, 1.0, 2.0, 4.0])},
                "read_is_executed": {"pick": rng.randrange(4)}, "read_ends": {"pick": rng.randrange(4)},
                "write_is_executed": {"pick": rng.randrange(4)}, "write_ends": {"pick": rng.randrange(4)},
            }  # fmt: skip
            getattr(machine, step)(**arguments.get(step, {}))
            machine.no_hit_is_too_old()
            machine.when_all_has_arrived_the_cache_is_right()
            machine.budgets()
            hits += len(machine.cache._hits)
        suspects += machine.revalidated
    return hits, suspects


# -- several masters -------------------------------------------------------------------------------------------------


def cluster_of_two(cache: NearCache) -> tuple[Tracker, Any, Any]:
    """A tracker that follows two masters with a shard each; neither has replied yet."""
    cache.lost()
    tracker = tracker_of(cache, space_of(shards=2))
    one, two = (peer_of(tracker, shard) for shard in tracker._space.keys.shards)
    for peer in (one, two):
        tracker._subscribe(peer)
        tracker._take(peer, dict(HELLO))
    return tracker, one, two


def test_cache_is_live_once_all_masters_track() -> None:
    cache = cache_of()
    tracker, one, two = cluster_of_two(cache)
    tracker._take(one, b"OK")
    assert (cache.is_live, tracker.status) == (False, "off: not used yet")
    tracker._take(two, b"OK")
    assert (cache.is_live, tracker.status) == (True, "on")


def test_age_of_a_hit_follows_the_slowest_master() -> None:
    clock = Clock()
    cache = cache_of(clock)
    tracker, one, two = cluster_of_two(cache)
    for peer in (one, two):
        tracker._take(peer, b"OK")
    keep(cache, module("a"))
    for _ in range(3):  # only one of them replies
        tracker._ping(one, clock.now_s)
        tracker._take(one, 13)
        clock.now_s += STALENESS_S / 2
    assert not cache.is_fresh and cache.get("a") is None
    for _ in range(2):
        tracker._ping(two, clock.now_s)
        tracker._take(two, 13)
    assert not cache.is_fresh, "two heartbeats at one moment: the first of them is of no earlier turn"
    tracker._ping(one, clock.now_s)
    tracker._take(one, 13)
    assert cache.is_fresh


def test_heartbeat_asks_each_master_for_its_shards_and_waits_for_all() -> None:
    clock = Clock()
    cache = cache_of(clock)
    cache.lost()
    tracker = tracker_of(cache, space_of(shards=3))
    peer = peer_of(tracker, *tracker._space.keys.shards[:2])
    tracker._subscribe(peer)
    tracker._take(peer, dict(HELLO))
    tracker._take(peer, b"OK")
    peer.wire.sent.clear()
    tracker._ping(peer, clock.now_s)
    assert list(peer.wire.sent) == [("HLEN", "distier:{default.0}:epoch"), ("HLEN", "distier:{default.1}:epoch")]
    tracker._take(peer, 13)
    assert peer.heartbeats == 1 and peer.vouched_s == float("-inf")


@pytest.mark.parametrize(
    "reply",
    [
        ResponseError("MOVED 1 h:1"),
        ResponseError("ASK 1 h:1"),
        ResponseError("CLUSTERDOWN"),
        b"PONG",
        ResponseError("LOADING"),
    ],
)
def test_master_that_lost_its_shard_ends_the_connection(reply: Any) -> None:
    cache = cache_of()
    tracker, one, two = cluster_of_two(cache)
    for peer in (one, two):
        tracker._take(peer, b"OK")
    tracker._ping(two, 0.0)
    with pytest.raises(RedisConnectionError, match="HLEN"):
        tracker._take(two, reply)


def test_uses_go_to_the_master_of_their_shard() -> None:
    cache = cache_of()
    tracker, one, two = cluster_of_two(cache)
    for peer in (one, two):
        tracker._take(peer, b"OK")
        peer.wire.sent.clear()
    ids = {tracker._space.shard(id).index: id for id in "abcdefgh"}
    keep(cache, module(ids[1]))
    cache.get(ids[1])
    tracker._send_uses(1e9)
    assert not one.wire.sent and two.wire.sent[0][-2:] == (ids[1], 1)


def test_module_with_a_ttl_is_fresh_only_while_no_hit_can_outlive_it():
    clock = Clock()
    cache = cache_of(clock)
    ends_s = clock.now_s + 3 * STALENESS_S
    keep(cache, module("a", expires_ms=round(ends_s * 1000)))
    keep(cache, module("b"))
    seen_s = clock.now_s
    while clock.now_s < ends_s + STALENESS_S:
        if cache.get("a") is not None:
            seen_s = clock.now_s
        assert cache.get("b") is not None
        clock.now_s += STALENESS_S / 4
        cache.confirm(clock.now_s)
    assert ends_s - 2 * STALENESS_S <= seen_s < ends_s
    assert cache.suspect("a") is not None, "the next read compares it, and looks at the server's clock"


def test_module_near_the_end_of_its_ttl_is_kept_as_a_suspect_only():
    clock = Clock()
    cache = cache_of(clock)
    assert keep(cache, module("a", expires_ms=round((clock.now_s + STALENESS_S / 2) * 1000))) == [False]
    assert cache.get("a") is None
    assert cache.suspect("a") is not None
