"""Loading what the first put needs, before it: the tables of the token counter, and the text of its script."""

from __future__ import annotations

import _thread
import weakref
from contextlib import suppress

from distier.domain.tokens import O200k, TokenCounter
from distier.lua.loader import script
from distier.stores.threads import Flag

LOAD_AFTER_S = 0.25
"""How long after `connect` the tables are loaded, in seconds. A process that has ended or closed its store by then never loads
them. Loading stops the other threads for about 50 ms."""


class Preload:
    """Loads the tables of a counter in a thread, `LOAD_AFTER_S` after it is made, unless it is stopped before.

    The thread holds no reference to the store and does not delay the end of the process. A forked child has no such thread: its
    first put loads the tables. Only distier's own counter is loaded, because another one may not be safe to load in a thread.
    """

    def __init__(self, owner: object, counter: TokenCounter) -> None:
        self._stopping = Flag()
        if isinstance(counter, O200k) and not counter.is_loaded:
            weakref.finalize(owner, self._stopping.set).atexit = False  # for a store that is dropped without `close`
            with suppress(RuntimeError):  # no thread can be started: the process ends, or has too many
                _thread.start_new_thread(_load_later, (self._stopping, counter))

    def stop(self) -> None:
        self._stopping.set()


def _load_later(stopping: Flag, counter: O200k) -> None:
    if not stopping.wait(LOAD_AFTER_S):
        with suppress(Exception):  # the first put meets the same error, and reports it
            counter.count(b"a first text")
            script("put")
