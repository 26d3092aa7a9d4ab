"""Helper threads of a driver, and a flag. Both are safe to use in signal handlers.

A signal handler or a finalizer runs between any two lines of the thread that it interrupts. If it calls a store, it must
not wait for a lock that this thread holds, because it would wait forever. `ThreadPoolExecutor.submit`, `Thread.start` and
`Event.wait` hold plain locks for a moment. This module uses only `SimpleQueue`, which is re-entrant, and single operations
on lists.

No thread can be started at the exit of the interpreter, or if the process has reached its limit of threads. The caller
then runs the work itself.
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
    """The state of the threads. They hold no reference to `Helpers`, so that it can be finalized."""

    def __init__(self, most: int) -> None:
        self.free = [None] * most  # one entry for each thread that may still be started
        self.idle: list[_Inbox] = []  # the inboxes of waiting threads
        self.backlog: SimpleQueue[_Work] = SimpleQueue()  # while all are busy
        self.ended = False

    def end(self) -> None:
        self.ended = True
        while (inbox := _popped(self.idle)) is not None:
            inbox.put(None)

    def distribute(self) -> None:
        """Pass the work in the backlog to idle threads."""
        while (inbox := _popped(self.idle)) is not None:
            try:
                inbox.put(self.backlog.get_nowait())
            except Empty:
                self.idle.append(inbox)
                if self.backlog.empty():  # otherwise work arrived while this inbox was not in the list
                    return


class Helpers:
    """Up to `most` threads, started when they are needed and then kept.

    They do not delay the end of the process. It is fork-safe: a child has no threads and starts its own.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._crew = _Crew(self._most)
        self._end = weakref.finalize(self, self._crew.end)
        self._end.atexit = False  # other exit handlers may still need them

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in a thread. If there is no thread and none can be started, the caller runs it before this returns."""
        if self._pid != os.getpid():
            self._reset()
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
        """Cancel work that has not started. The threads end after their current work."""
        crew = self._crew
        self._end()
        self._reset()  # for late callers
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
    # As `threading` does for its own threads, for debuggers, coverage and profilers.
    if (trace := threading.gettrace()) is not None:
        sys.settrace(trace)
    if (profile := threading.getprofile()) is not None:
        sys.setprofile(profile)
    inbox: _Inbox = SimpleQueue()
    work: _Work | None = first
    del first
    while work is not None:
        _do(work)
        del work  # keeps nothing alive while this thread waits
        try:
            work = crew.backlog.get_nowait()
        except Empty:
            crew.idle.append(inbox)
            if not crew.backlog.empty():  # work arrived in between, perhaps for this thread
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
    """An event that a signal handler may set in the thread that waits for it, unlike `threading.Event`."""

    def __init__(self) -> None:
        self._is_set = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._wakeups.put(None)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait up to `timeout_s` seconds until the flag is set. Returns whether it is set."""
        if not self._is_set:
            try:
                self._wakeups.get(timeout=timeout_s)
            except Empty:
                return self._is_set
            self._wakeups.put(None)  # for other waiting threads
        return True
