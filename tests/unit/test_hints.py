"""drive/hints.py: a hint without a reply delays no read, and for a while no more hints go to that shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from distier.domain.keys import Keyspace
from distier.drive.hints import HINTS_OFF_MAX_S, HINTS_OFF_S, Off, with_hints
from distier.drive.replies import Call
from distier.effects import Command
from distier.errors import RedisUnavailable

A, B = Keyspace("t", 2).shards


def hint(shard: Any, name: str) -> Command[Any]:
    return Command(shard, ("SET", name), str, hint=0.25)


def read(shard: Any, name: str) -> Command[Any]:
    return Command(shard, ("GET", name), str)


class Server:
    """Returns the name of each call. Calls to `paused` shards that are not reads get no reply until their deadline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.paused: set[Any] = set()
        self.asked: list[list[str]] = []
        self.off: dict[Any, Off] = {}
        monkeypatch.setattr("distier.drive.hints.time.monotonic", lambda: self.now_s)

    def __call__(self, *calls: Call) -> list[Any]:
        asking = with_hints(calls, self.now_s + 10, self.off)
        try:
            some, end_s = next(asking)
            while True:
                some, end_s = asking.send(self._results(some, end_s))
        except StopIteration as stop:
            return [type(result) if isinstance(result, Exception) else result for result in stop.value]

    def _results(self, calls: Sequence[Any], end_s: float) -> list[Any]:
        self.asked.append([call.args[1] for call in calls])
        silent = [call.shard in self.paused and bool(call.hint) for call in calls]
        if True not in silent:
            return [call.args[1] for call in calls]
        self.now_s = end_s
        # There is one connection to each server: a call behind a silent one waits too.
        return [RedisUnavailable("no reply") if call.shard in self.paused else call.args[1] for call in calls]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def test_read_behind_a_silent_hint_is_made_again_without_it(server: Server) -> None:
    server.paused = {A}
    assert server(hint(A, "use"), read(A, "frame")) == [RedisUnavailable, "frame"]
    assert server.asked == [["use", "frame"], ["frame"]]
    assert server.now_s == 1000.25


def test_hints_back_off_longer_each_time(server: Server) -> None:
    server.paused = {A}
    pauses = []
    assert server(hint(A, "use")) == [RedisUnavailable]
    server.asked.clear()
    server.paused.clear()
    assert server(hint(A, "use")) == ["use"], "one late reply may be chance"
    server.paused = {A}
    server(hint(A, "use"))
    for _ in range(8):
        server(hint(A, "use"))
        pauses.append(server.off[A].pause_s)
        server.asked.clear()
        assert server(hint(A, "use"), read(A, "frame")) == [RedisUnavailable, "frame"]
        assert server.asked == [["frame"]]
        assert server(hint(A, "use")) == [RedisUnavailable]
        server.now_s += pauses[-1]
    assert pauses[:3] == [HINTS_OFF_S, 2 * HINTS_OFF_S, 4 * HINTS_OFF_S] and pauses[-1] == HINTS_OFF_MAX_S
    server.paused.clear()
    assert server(hint(A, "use")) == ["use"]
    assert not server.off, "the next pause is short again"


def test_hints_to_other_shards_continue(server: Server) -> None:
    server.paused = {A}
    for _ in range(3):
        assert server(hint(A, "a"), hint(B, "b")) == [RedisUnavailable, "b"]
    assert server.asked == [["a", "b"], ["a", "b"], ["b"]]
    assert set(server.off) == {A}


def test_refused_hint_causes_no_backoff(server: Server) -> None:
    asking = with_hints([hint(A, "use")], server.now_s + 10, server.off)
    next(asking)
    with pytest.raises(StopIteration):
        asking.send([RedisUnavailable("NOREPLICAS")])
    assert not server.off
