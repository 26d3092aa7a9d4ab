"""State that a child of a fork must not inherit."""

from __future__ import annotations

import os
import signal

import pytest

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
