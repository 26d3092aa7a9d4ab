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
_Inbox = SimpleQueue["_Work | None"]


class _Crew:
    """What the threads know; not `Helpers`, which must not be held by them."""

    def __init__(self, most: int) -> None:
        self.free = [None] * most  # one for each thread that may still be started
        self.idle: list[_Inbox] = []  # of threads that wait, each for its own
        self.backlog: SimpleQueue[_Work] = SimpleQueue()  # while all are busy
        self.ended = False

    def end(self) -> None:
        self.ended = True
        while (inbox := _popped(self.idle)) is not None:
            inbox.put(None)

    def distribute(self) -> None:
        """Give what is in the backlog to threads that are idle."""
        while (inbox := _popped(self.idle)) is not None:
            try:
                inbox.put(self.backlog.get_nowait())
            except Empty:
                self.idle.append(inbox)
                if self.backlog.empty():  # else it came while this one was neither idle nor given anything
                    return


class Helpers:
    """At most `most` threads, started when they are needed and kept. They do not hold up the end of the process. Safe over
    fork: a child has none, and starts its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._crew = _Crew(self._most)
        self._end = weakref.finalize(self, self._crew.end)
        self._end.atexit = False  # other handlers of the exit may still need them

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """`function` in a thread; run by the caller, before this returns, if there is no thread and none can be started."""
        if self._pid != os.getpid():
            self._start_anew()
        crew = self._crew
        future: Future[T] = Future()
        work = (future, function)
        try:
            crew.idle.pop().put(work)
        except IndexError:
            self._none_idle(crew, work)
        return future

    def _none_idle(self, crew: _Crew, work: _Work) -> None:
        if self._started(crew, work):
            return
        if len(crew.free) == self._most:  # there are no threads
            _do(work)
        else:
            crew.backlog.put(work)
            crew.distribute()  # one may have become idle in between

    def _started(self, crew: _Crew, work: _Work) -> bool:
        try:
            crew.free.pop()
        except IndexError:
            return False
        try:
            _thread.start_new_thread(_serve, (crew, work))
        except RuntimeError:
            crew.free.append(None)
            return False
        return True

    def close(self) -> None:
        """What nobody has begun is cancelled; threads end when they have done what they are at."""
        crew = self._crew
        self._end()
        self._start_anew()  # for whoever comes late
        while True:
            try:
                crew.backlog.get_nowait()[0].cancel()
            except Empty:
                return


def _popped(idle: list[_Inbox]) -> _Inbox | None:
    try:
        return idle.pop()
    except IndexError:
        return None


def _serve(crew: _Crew, first: _Work) -> None:
    # As `threading` does for its own threads: for debuggers, coverage, profilers.
    if (trace := threading.gettrace()) is not None:
        sys.settrace(trace)
    if (profile := threading.getprofile()) is not None:
        sys.setprofile(profile)
    inbox: _Inbox = SimpleQueue()
    work: _Work | None = first
    del first
    while work is not None:
        _do(work)
        del work  # nothing of it is kept while this waits
        try:
            work = crew.backlog.get_nowait()
        except Empty:
            crew.idle.append(inbox)
            if not crew.backlog.empty():  # something has come in between, maybe for this one
                crew.distribute()
            if crew.ended:
                crew.end()
            work = inbox.get()


def _do(work: _Work) -> None:
    future, function = work
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as e:
            future.set_exception(e)


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
