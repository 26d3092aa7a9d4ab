"""The masters of slots, and the calls that follow a redirection: functions of values."""

from __future__ import annotations

from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from distier.domain.keys import Keyspace
from distier.stores.redis.nodes import ends_unsettled, next_step, without_asking
from distier.stores.redis.topology import Routes, parse_slots, redirect_of

A, B, C, D = (("h", port) for port in (1, 2, 3, 4))
ASKED = ("asked", 9)


def row(first: int, last: int, *nodes: tuple[str, int]) -> list[Any]:
    return [first, last, *([host.encode(), port, b"id", []] for host, port in nodes)]


TWO = parse_slots([row(100, 200, B, D), row(0, 99, A, C)], ASKED)


def test_slots_are_found_and_gaps_have_no_master() -> None:
    assert [TWO.owner(slot) for slot in (0, 99, 100, 200, 201, 16383)] == [A, A, B, B, None, None]
    assert TWO.masters == (A, B) and TWO.nodes == (A, B, C, D)
    assert (TWO.replicas_of(A), TWO.replicas_of(B), TWO.replicas_of(C)) == ((C,), (D,), ())


@pytest.mark.parametrize("name", [b"", None, b"?"])
def test_node_without_a_name_gets_the_address_that_reached_it(name: bytes | None) -> None:
    assert parse_slots([[0, 1, [name, 7, b"id", []]]], ASKED).owner(0) == ("asked", 7)


@pytest.mark.parametrize("reply", [b"OK", [[0]], [[0, 1]], [[b"x", 1, [b"h", 1]]], 7, [[0, 1, [b"h", b"x"]]]])
def test_invalid_slots_reply_is_an_error(reply: Any) -> None:
    with pytest.raises(RedisConnectionError):
        parse_slots(reply, ASKED)


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("namespace", ["team", "a.b-c_9", "x" * 64])
def test_slot_of_a_shard_is_that_of_its_keys(namespace: str, count: int) -> None:
    for shard in Keyspace(namespace, count).shards:
        for key in (*shard.fixed, shard.module("a/b"), shard.frame("ü{x}"), shard.lease("a"), shard.done):
            assert key_slot(key.encode()) == shard.slot


def test_redirections_are_parsed() -> None:
    assert redirect_of(ResponseError("MOVED 7 h:1"), ASKED) == ("MOVED", A)
    assert redirect_of(ResponseError("ASK 7 :5"), ASKED) == ("ASK", ("asked", 5))
    assert redirect_of(ResponseError("MOVED 7 ::1:5"), ASKED) == ("MOVED", ("::1", 5))
    assert (
        redirect_of(ResponseError("TRYAGAIN x"), ASKED) is None
        and redirect_of(ResponseError("MOVED 7"), ASKED) is None
        and redirect_of(b"MOVED 7 h:1", ASKED) is None
    )


def test_after_moved_all_later_commands_are_sent_again() -> None:
    commands = [("GET", "a"), ("EVALSHA", "b"), ("WAIT", 1, 1), ("SCAN", 0)]
    replies = [b"1", ResponseError("MOVED 7 h:2"), 0, [b"0", []]]
    step = next_step(commands, replies, A)
    assert step and (step.address, list(step.commands), list(step.indexes), step.asking) == (
        B,
        commands[1:],
        [1, 2, 3],
        False,
    )


def test_after_ask_only_refused_commands_are_sent_after_asking() -> None:
    ask = ResponseError("ASK 7 h:2")
    step = next_step([("GET", "a"), ("GET", "b"), ("GET", "c")], [ask, b"1", ask], A)
    assert step and step.address == B and step.asking and list(step.indexes) == [0, 2]
    assert list(step.commands) == [("ASKING",), ("GET", "a"), ("ASKING",), ("GET", "c")]
    noperm = ResponseError("NOPERM asking")
    found = without_asking([b"OK", b"x", noperm, ResponseError("MOVED 7 h:1"), b"OK", ResponseError("NOSCRIPT x")])
    assert found[:2] == [b"x", noperm] and str(found[2]).startswith("TRYAGAIN")


def test_unsettled_commands_are_tried_again_later() -> None:
    left = ends_unsettled([b"1", ResponseError("MOVED 7 h:1")])
    assert left[0] == b"1" and str(left[1]).startswith("TRYAGAIN")


def test_change_of_master_is_noticed_after_a_gap() -> None:
    routes = Routes([A])
    assert routes.owner(5) is None
    assert routes.learn(TWO, A) is False, "nothing was known before"
    assert routes.owner(5) == A
    gap = parse_slots([row(100, 200, B)], ASKED)
    assert routes.learn(gap, B) is False and routes.owner(5) is None
    assert routes.learn(parse_slots([row(0, 200, B)], ASKED), B) is True
    assert routes.learn(parse_slots([row(0, 200, B)], ASKED), B) is False
    assert routes.moved(5, C) is True and routes.stale and routes.owner(5) == C
    assert routes.moved(5, C) is False
    assert routes.to_ask()[0] == C, "the node that a redirection named is asked first"


def test_order_of_nodes_to_ask() -> None:
    routes = Routes([A, ("seed", 1)])
    routes.learn(TWO, C)
    assert routes.to_ask() == (C, A, B, D, ("seed", 1))
    routes.suspect(C)
    assert routes.stale and routes.to_ask() == (A, B, D, C, ("seed", 1)), (
        "the silent node is asked last, except for the one of the url"
    )
