"""The threads of a driver, and a flag: without locks, after forks, and if no thread can be started."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, NoReturn

import pytest

from distier.stores.threads import Flag, Helpers

LONG_S = 30.0


def no_threads(*_: Any) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_tasks_over_the_maximum_wait_and_all_are_done() -> None:
    helpers, running, most, lock = Helpers(3), 0, 0, threading.Lock()

    def work() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return threading.get_ident()

    for _ in range(3):
        futures = [helpers.submit(work) for _ in range(20)]
        idents = {future.result(LONG_S) for future in futures}
        assert 1 <= len(idents) <= 3 and threading.get_ident() not in idents
    assert 2 <= most <= 3


def test_tasks_that_wait_for_each_other_get_two_threads() -> None:
    """This holds also after one thread has had much to do while others waited."""
    helpers = Helpers(2)
    for _ in range(50):
        helpers.submit(int).result(LONG_S)
        met = threading.Barrier(2)
        for future in [helpers.submit(lambda met=met: met.wait(LONG_S)) for _ in range(2)]:  # type: ignore[misc]
            future.result(LONG_S)


def test_no_task_is_lost_when_many_threads_submit() -> None:
    helpers = Helpers(3)
    done: list[int] = []

    def submit(n: int) -> None:
        for i in range(300):
            if i % 3:
                helpers.submit(partial(done.append, n))
            else:
                helpers.submit(partial(done.append, n)).result(LONG_S)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S * 2)
    helpers.submit(int).result(LONG_S)
    end_s = time.monotonic() + LONG_S
    while len(done) < 1200 and time.monotonic() < end_s:
        time.sleep(0.01)
    assert len(done) == 1200


def test_exception_of_a_task_is_raised_for_its_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        Helpers(1).submit(lambda: 1 / 0).result(LONG_S)


def test_caller_runs_the_task_if_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", no_threads)
    helpers = Helpers(2)
    me = threading.get_ident()
    assert [helpers.submit(threading.get_ident).result(LONG_S) for _ in range(5)] == [me] * 5
    with pytest.raises(ZeroDivisionError):
        helpers.submit(lambda: 1 / 0).result(LONG_S)


def test_existing_thread_is_used_if_no_other_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = Helpers(2)
    there = helpers.submit(threading.get_ident).result(LONG_S)
    monkeypatch.setattr(_thread, "start_new_thread", no_threads)
    assert helpers.submit(threading.get_ident).result(LONG_S) == there


def test_waiting_tasks_are_cancelled_at_close() -> None:
    helpers, go_on = Helpers(1), threading.Event()
    first, second = helpers.submit(lambda: go_on.wait(LONG_S)), helpers.submit(int)
    while not first.running():
        time.sleep(0.001)
    helpers.close()
    go_on.set()
    assert first.result(LONG_S)
    with pytest.raises(CancelledError):
        second.result(LONG_S)


def test_child_of_a_fork_has_its_own_threads() -> None:
    helpers = Helpers(1)
    assert helpers.submit(int).result(LONG_S) == 0
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            os._exit(0 if helpers.submit(os.getpid).result() == os.getpid() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_flag_wakes_all_waiting_threads_and_stays_set() -> None:
    flag, woken = Flag(), []
    threads = [threading.Thread(target=lambda: woken.append(flag.wait(LONG_S))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not flag.wait(0.01) and not flag.is_set()
    flag.set()
    for thread in threads:
        thread.join(LONG_S)
    assert woken == [True] * 3 and flag.wait(LONG_S) and flag.is_set()


def test_signal_handler_can_set_the_flag_its_thread_waits_for() -> None:
    flag = Flag()
    before = signal.signal(signal.SIGALRM, lambda *_: flag.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert flag.wait(LONG_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
