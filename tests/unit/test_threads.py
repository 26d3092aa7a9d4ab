"""Threads of a driver, and a flag: without locks, over forks, and where no thread can be started."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from typing import Any, NoReturn

import pytest

from distier.stores.threads import Flag, Helpers

LONG_S = 30.0


def no_threads(*_: Any) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_at_most_so_many_run_at_once_and_all_is_done() -> None:
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


def test_two_tasks_that_wait_for_each_other_get_a_thread_each() -> None:
    """Also after one thread has had much to do while others waited."""
    helpers = Helpers(2)
    for _ in range(50):
        helpers.submit(int).result(LONG_S)
        met = threading.Barrier(2)
        for future in [helpers.submit(lambda met=met: met.wait(LONG_S)) for _ in range(2)]:  # type: ignore[misc]
            future.result(LONG_S)


def test_what_is_raised_is_raised_for_whoever_asked() -> None:
    with pytest.raises(ZeroDivisionError):
        Helpers(1).submit(lambda: 1 / 0).result(LONG_S)


def test_where_no_thread_can_be_started_the_caller_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", no_threads)
    helpers = Helpers(2)
    me = threading.get_ident()
    assert [helpers.submit(threading.get_ident).result(LONG_S) for _ in range(5)] == [me] * 5
    with pytest.raises(ZeroDivisionError):
        helpers.submit(lambda: 1 / 0).result(LONG_S)


def test_a_thread_that_lives_is_used_where_no_other_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = Helpers(2)
    there = helpers.submit(threading.get_ident).result(LONG_S)
    monkeypatch.setattr(_thread, "start_new_thread", no_threads)
    assert helpers.submit(threading.get_ident).result(LONG_S) == there


def test_what_nobody_has_begun_is_cancelled_at_the_end() -> None:
    helpers, go_on = Helpers(1), threading.Event()
    first, second = helpers.submit(lambda: go_on.wait(LONG_S)), helpers.submit(int)
    while not first.running():
        time.sleep(0.001)
    helpers.close()
    go_on.set()
    assert first.result(LONG_S)
    with pytest.raises(CancelledError):
        second.result(LONG_S)


def test_a_child_has_threads_of_its_own() -> None:
    helpers = Helpers(1)
    assert helpers.submit(int).result(LONG_S) == 0
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            os._exit(0 if helpers.submit(os.getpid).result(10) == os.getpid() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_flag_wakes_all_who_wait_and_stays_set() -> None:
    flag, woken = Flag(), []
    threads = [threading.Thread(target=lambda: woken.append(flag.wait(LONG_S))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not flag.wait(0.01) and not flag.is_set()
    flag.set()
    for thread in threads:
        thread.join(LONG_S)
    assert woken == [True] * 3 and flag.wait(LONG_S) and flag.is_set()


def test_a_signal_handler_may_set_the_flag_that_its_thread_waits_for() -> None:
    flag = Flag()
    before = signal.signal(signal.SIGALRM, lambda *_: flag.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert flag.wait(LONG_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
