"""State that a child of a fork must not inherit."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from distier.domain.keys import Keyspace
from distier.drive.process import Counters, UseBuffer


@pytest.mark.parametrize("made", [Counters, UseBuffer])
def test_lock_held_at_a_fork_is_free_in_the_child(made: type[Counters] | type[UseBuffer]) -> None:
    thing = made()
    with thing._lock:
        pid = os.fork()
        if pid == 0:
            signal.alarm(5)
            with thing._lock:
                os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_child_of_a_fork_in_the_middle_of_a_note_finds_its_buffer_empty() -> None:
    """A signal handler forks between the look at the pending uses and the look at their age; the child continues there."""
    buffer, shard = UseBuffer(), Keyspace("t").shards[0]

    class Forks(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            buffer.after_fork_in_child()
            return found

    buffer.note_many(shard, {"a": 1}, 0.0)
    assert buffer.due(0.0) == []
    buffer._pending = Forks(buffer._pending)
    assert buffer.due(9.0) == []
    assert buffer.drain() == []
