"""`steps`: what one crash-safe step of each verb costs: round trips, commands and scripts, and microseconds of the server.

The verbs, and how their modules are prepared, are those of `tests/guard/measure.py`, whose counts CI compares exactly.

The microseconds are the server's own. Those of scripts are in INFO's commandstats. Those of plain commands are not, because
there a command that a script called counts as one of its own: in every other round SLOWLOG has each command in order, and
what precedes a script was called by it. Both are not on at once, because logging takes time within scripts.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis

from benchmarks.table import Table
from distier import Store
from distier.client import make_space
from distier.config import Config
from distier.stores.memory import MemoryArchive
from distier.stores.redis import RedisExchange
from tests.guard.measure import MANY, PARTS, Counts, Tally, Verb, counted, prepare
from tests.servers import running_server

ROUNDS = 9
HOUSEKEEPING = ("SLOWLOG", "CONFIG", "CLIENT", "HELLO")
SHOWN = {
    "put new": "put", "put over hot": "put, replaces a version", "put, hot is full": "put, evicts one",
    "get hot": "get, hot", "get warm": "get, warm, the first time", "get warm again": "get, warm",
    "get cold": "get, cold: lease, fetch, warm copy", "get miss": "get, a miss", "promote warm": "promote a warm one",
    "promote cold": "promote a cold one", "demote to warm": "demote to warm", "demote to cold, clean": "demote to cold",
    "archive_now, one": "archive one (write-back)", "delete": "delete", "pin": "pin", "where": "where", "state": "state",
    "touch": "touch, one use",
}  # fmt: skip


class Words(Tally):
    """Also keeps the first word of each command that was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def start(self) -> None:
        self.words = []
        super().start()

    def sent(self, commands: Sequence[Any]) -> None:
        super().sent(commands)
        self.words += [str(words[0]) for words in commands]


class Step(NamedTuple):
    counts: Counts
    plain_us: list[float]
    scripts_us: list[float]


def steps() -> Table:
    table = Table(
        "One crash-safe step of each verb: round trips, and the server's time",
        ("verb", "round trips", "commands", "of them scripts", "archive", "us of plain commands", "us of scripts"),
        notes="Round trips, commands and requests to the archive are exact; `tests/guard/counts.json` has them, and CI "
        f"compares it. Microseconds are the server's own, medians of {ROUNDS} calls, on modules of 9 bytes. Uses are sent once "
        "a second, and not here.",
    )
    found: dict[str, Step] = {}
    tally = Words()
    with running_server("valkey", args=("--slowlog-max-len", "10000")) as server, server.client() as peer:
        with counted(server.socket_url, tally) as (config, archive):
            _unwatched()
            for namespace, verbs in PARTS.items():
                with _opened(config.with_overrides(namespace=namespace), archive, server.socket_url) as store:
                    for verb in verbs:
                        if verb[0] in SHOWN:
                            found[verb[0]] = _measured(store, verb, peer, tally)
    for name, shown in SHOWN.items():
        step = found[name]
        counts = (step.counts[k] for k in ("round_trips", "commands", "scripts", "archive"))
        plain_us, scripts_us = statistics.median(step.plain_us), statistics.median(step.scripts_us)
        table.add(shown, *counts, f"{plain_us:.0f}", f"{scripts_us:.0f}")
        table.figures[f"step {name} us"] = plain_us + scripts_us
    return table


def _unwatched() -> None:
    """Python calls are not counted here, which would take time."""
    sys.setprofile(None)
    threading.setprofile(None)


@contextmanager
def _opened(config: Config, archive: MemoryArchive, url: str) -> Iterator[Store]:
    space = make_space(config, archive)
    with Store(space, RedisExchange(config, url, space.process.forget), archive).open() as store:
        yield store


def _measured(store: Store, verb: Verb, peer: redis.Redis, tally: Words) -> Step:
    name, before, call = verb
    step = Step({}, [], [])
    for n in range(2 * ROUNDS + 2):
        ids = [f"step-{name.replace(' ', '-')}-{n}-{i}" for i in range(MANY)]
        store.archive_now()
        asyncio.run(prepare(store, before, ids))
        logged = n % 2 == 1
        peer.config_set("slowlog-log-slower-than", 0 if logged else -1)
        peer.slowlog_reset()
        peer.config_resetstat()
        tally.start()
        call(store, ids)
        step.counts.update(tally.stop())
        if n < 2:  # the first rounds load the scripts
            continue
        if logged:
            step.plain_us.append(plain_us(tally.words, peer.slowlog_get(10_000)))
        else:
            stats: Any = peer.info("commandstats")
            step.scripts_us.append(sum(one["usec"] for key, one in stats.items() if key.startswith("cmdstat_evalsha")))
    return step


def plain_us(words: Sequence[str], log: Any) -> float:
    """Return the microseconds of the plain commands among `words`, which were sent in this order. `log` is SLOWLOG's, with
    the newest first: the commands of a script precede it."""
    entries = [(entry["command"].decode(errors="replace").split(" ")[0].upper(), entry["duration"]) for entry in log]
    left = iter([entry for entry in reversed(entries) if entry[0] not in HOUSEKEEPING])
    total = 0.0
    for word in words:
        if word.startswith("EVALSHA"):
            next(entry for entry in left if entry[0] == word)
        else:
            served, us = next(left)
            assert served == word, (words, entries)
            total += us
    return total
