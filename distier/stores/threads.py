"""Threads that serve a driver, and a flag, neither of which takes a lock that a signal handler could meet.

A signal handler or a finaliser runs between any two lines of the thread that it interrupts. If it calls a store, it must not
wait for what that thread holds, which would be for good. `ThreadPoolExecutor.submit`, `Thread.start` and `Event.wait` hold
plain locks for a moment; what is here is made of `SimpleQueue`, which is re-entrant, and of single operations on lists.

At the exit of the interpreter, or where a process may have no more threads, no thread can be started. Then whoever submits
something runs it itself.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Work = tuple["Future[Any]", Callable[[], Any]]


class Helpers:
    """At most `most` threads, started when they are needed and kept. They do not hold up the end of the process. Safe over
    fork: a child has none, and starts its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._free = [None] * self._most  # one for each thread that may still be started
        self._waiting: list[None] = []  # one for each thread that waits for work
        self._end = weakref.finalize(self, _end, self._work, self._most)
        self._end.atexit = False  # other handlers of the exit may still need them

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """`function` in a thread; run by the caller, before this returns, if no thread can be started."""
        if self._pid != os.getpid():
            self._start_anew()
        future: Future[T] = Future()
        self._work.put((future, function))
        if not _took(self._waiting) and _took(self._free) and not self._start():
            self._help(future)
        return future

    def _start(self) -> bool:
        try:
            _thread.start_new_thread(_serve, (self._work, self._waiting))
        except RuntimeError:
            self._free.append(None)
            return len(self._free) < self._most  # a thread that is busy now will come to it
        return True

    def _help(self, future: Future[Any]) -> None:
        """Do what is waiting, in order, until that is done."""
        while not future.done():
            try:
                work = self._work.get_nowait()
            except Empty:
                return
            if work is not None:
                _do(work)

    def close(self) -> None:
        """What nobody has begun is cancelled; threads end when they have done what they are at."""
        while self._pid == os.getpid():
            try:
                work = self._work.get_nowait()
            except Empty:
                break
            if work is not None:
                work[0].cancel()
        self._end()
        self._start_anew()  # for whoever comes late


def _took(tokens: list[None]) -> bool:
    try:
        tokens.pop()
    except IndexError:
        return False
    return True


def _serve(queue: SimpleQueue[_Work | None], waiting: list[None]) -> None:
    # As `threading` does for its own threads: for debuggers, coverage, profilers.
    if (trace := threading.gettrace()) is not None:
        sys.settrace(trace)
    if (profile := threading.getprofile()) is not None:
        sys.setprofile(profile)
    while True:
        try:
            work = queue.get_nowait()
        except Empty:
            waiting.append(None)
            work = queue.get()
        if work is None:
            return
        _do(work)
        del work  # nothing of it is kept while this waits


def _do(work: _Work) -> None:
    future, function = work
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as e:
            future.set_exception(e)


def _end(queue: SimpleQueue[_Work | None], most: int) -> None:
    for _ in range(most):
        queue.put(None)


class Flag:
    """As `threading.Event`, which must not be set by a signal handler of the thread that waits for it."""

    def __init__(self) -> None:
        self._is_set = False
        self._told: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._told.put(None)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is set now."""
        if not self._is_set:
            try:
                self._told.get(timeout=timeout_s)
            except Empty:
                return self._is_set
            self._told.put(None)  # for others who wait
        return True
