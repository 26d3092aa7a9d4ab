"""Many small worlds on one real server: the commands of all worlds for one step are sent together.

A run of the explorer is a generator that yields the commands of its next step and receives their replies. `run_all` runs
some hundred of them concurrently, so that one round trip serves all. They do not notice each other, because each has its
own namespace. A logical database (SELECT) is one server of a world: the primary, its replica, or an old partitioned
primary.

The scripts are the real ones except for two functions of the prelude. These read the incarnation of the server and its
clock from a key that belongs to the world (`<epoch key>:clock`), so that every world has its own, and time passes only when
something happens.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any

import hiredis
from redis.exceptions import ResponseError

from distier.effects import Script
from distier.lua import VERBS, script

DATABASES = 5
WINDOW = 48
"""The number of runs in progress at once."""

Sent = list[tuple[int, tuple[Any, ...]]]  # (database, command)
Steps = Generator[Sent, list[Any], Any]
Patch = tuple[str, str, str]
"""(verb, snippet, replacement); the verb `prelude` is part of all scripts."""

CLOCK: tuple[Patch, ...] = (
    (
        "prelude",
        "local info = redis.pcall('INFO', 'replication')",
        "local info = 'master_replid:' .. redis.call('HGET', KEYS[1] .. ':clock', 'replid')",
    ),
    (
        "prelude",
        "local t = call('TIME')\n",
        "local t = {call('HINCRBY', KEYS[1] .. ':clock', 'seconds', 1), 0}\n",
    ),
)


@cache
def patched(patches: tuple[Patch, ...] = ()) -> dict[str, Script]:
    """Return the scripts by verb, with the world's own clock and incarnation, and with `patches`.

    Each snippet must exist exactly once in its script, and one of the prelude in at least one script: a patch that finds
    nothing would make a mutant without a bug.
    """
    found, missing = {}, {snippet for _, snippet, _ in patches}
    for verb in VERBS:
        source = script(verb).source.decode()
        for name, snippet, instead in (*CLOCK, *patches):
            if name in ("prelude", verb):
                n = source.count(snippet)
                assert n == 1 or (n == 0 and name == "prelude"), f"{verb}.lua has {snippet!r} {n} times"
                source = source.replace(snippet, instead)
                missing -= {snippet} if n else set()
        raw = source.encode()
        found[verb] = Script(verb, raw, sha1(raw, usedforsecurity=False).hexdigest())
    assert not missing, f"no script has {missing}"
    return found


class Wire:
    """One server, with a raw connection to each logical database."""

    def __init__(self, path: Path) -> None:
        self._sockets = []
        self._readers = []
        for database in range(DATABASES):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(30)
            s.connect(str(path))
            self._sockets.append(s)
            self._readers.append(hiredis.Reader(replyError=ResponseError, protocolError=RuntimeError))
            self.talk([(database, ("HELLO", 3)), (database, ("SELECT", database))])
        self.round_trips = 0

    def talk(self, sent: Sent) -> list[Any]:
        """Send commands and return their replies in order; error replies are values."""
        by_database: dict[int, list[int]] = {}
        for i, (database, _) in enumerate(sent):
            by_database.setdefault(database, []).append(i)
        for database, positions in by_database.items():
            self._sockets[database].sendall(b"".join([hiredis.pack_command(sent[i][1]) for i in positions]))
        replies: list[Any] = [None] * len(sent)
        for database, positions in by_database.items():
            gets, receive, feed = (
                self._readers[database].gets,
                self._sockets[database].recv,
                self._readers[database].feed,
            )
            for i in positions:
                reply = gets()
                while reply is False:
                    data = receive(1 << 18)
                    assert data, "the server closed the connection"
                    feed(data)
                    reply = gets()
                replies[i] = reply
        return replies

    def load(self, scripts: Iterable[Script | bytes]) -> list[str]:
        """Load scripts with SCRIPT LOAD; return the SHA-1 of each."""
        sources = [s if isinstance(s, bytes) else s.source for s in scripts]
        replies = self.talk([(0, ("SCRIPT", "LOAD", source)) for source in sources])
        errors = [r for r in replies if isinstance(r, Exception)]
        assert not errors, errors
        return [r.decode() for r in replies]

    def empty(self) -> None:
        self.talk([(0, ("FLUSHALL",))])

    def close(self) -> None:
        for s in self._sockets:
            s.close()


@contextmanager
def wire_to(path: Path) -> Iterator[Wire]:
    wire = Wire(path)
    try:
        yield wire
    finally:
        wire.close()


def run_all(wire: Wire, runs: Iterator[Steps], done: Callable[[Any], None], *, window: int = WINDOW) -> None:
    """Run all of `runs` to their ends, `window` at a time; call `done` with each result."""
    going: list[tuple[Steps, Sent]] = []
    while True:
        while len(going) < window:
            run = next(runs, None)
            if run is None:
                break
            _advance(run, None, going, done)
        if not going:
            return
        replies = wire.talk([command for _, sent in going for command in sent])
        now, going, at = going, [], 0
        for run, sent in now:
            _advance(run, replies[at : at + len(sent)], going, done)
            at += len(sent)


def _advance(run: Steps, replies: Any, going: list[tuple[Steps, Sent]], done: Callable[[Any], None]) -> None:
    try:
        going.append((run, run.send(replies)))
    except StopIteration as stop:
        done(stop.value)
