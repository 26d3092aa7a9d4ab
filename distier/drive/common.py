"""What both drivers share: how calls become words, replies become values or errors, and when to try again."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.keys import Shard
from distier.effects import Command, RunScript
from distier.errors import ConfigError, Corrupt, DeadlineExceeded, DistierError, Full, Invalid, RedisUnavailable
from distier.lua import touch

Call = Command[Any] | RunScript[Any]

BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 0.25

# Replies that mean "not now": the server is starting, failing over, resharding, or a script runs too long.
_PASSING = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "READONLY",
    "UNKILLABLE",
    "NOREPLICAS",
)


def words(call: Call) -> tuple[Any, ...]:
    if isinstance(call, RunScript):
        return ("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
    return call.words


def lacks_script(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and (
        type(reply).__name__ == "NoScriptError" or str(reply).startswith("NOSCRIPT")
    )


def is_passing(reply: Any) -> bool:
    """Whether this reply is a refusal that is worth another try in a moment; nothing was executed."""
    return isinstance(reply, RedisError) and (
        _code(reply) in _PASSING or type(reply).__name__ in ("BusyLoadingError", "ReadOnlyError", "TryAgainError",
                                                             "MasterDownError", "ClusterDownError")
    )  # fmt: skip


def _code(error: RedisError) -> str:
    return str(error).partition(" ")[0].lstrip("-").rstrip(":")


def outcome(call: Call, reply: Any) -> Any:
    """The value of a reply, or the `DistierError` that it means, as a value."""
    if isinstance(reply, RedisError):
        return error_of(reply)
    try:
        return call.parse(reply)
    except DistierError as e:
        return e


def error_of(error: RedisError) -> DistierError:
    """Our error for an error reply, with Redis' own words chained."""
    code, text = _code(error), str(error)
    made: DistierError
    if is_passing(error):
        made = RedisUnavailable(f"Redis cannot answer now: {text}")
    elif type(error).__name__ == "OutOfMemoryError" or code == "OOM" or "OOM command not allowed" in text:
        made = Full(
            "Redis is at its maxmemory: writes are refused, reads and everything that frees memory work. "
            "Raise maxmemory, or lower the budgets of distier (`distier doctor`)"
        )
    elif code == "MISCONF":
        made = RedisUnavailable(f"Redis refuses writes because it cannot persist them: {text}")
    elif isinstance(error, AuthenticationError | NoPermissionError) or code in (
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
    ):
        made = ConfigError(f"Redis refuses this user: {text}. Check redis.username and redis.password, or the ACL")
    elif code == "WRONGTYPE" or "WRONGTYPE" in text:
        made = Corrupt(f"a key of this namespace has a foreign type; did something else write here? ({text})")
    else:
        made = Invalid(f"Redis refused a command: {text}")
    made.__cause__ = error
    return made


def time_left(end_s: float) -> float:
    """Seconds until `end_s` on the monotonic clock. Raises `DeadlineExceeded` if there are none."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the call's deadline has passed")
    return left_s


def _lost(error: Exception) -> DistierError:
    made = RedisUnavailable(f"Redis did not answer within the deadline: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


Talk = Generator[list[tuple[Any, ...]] | float, list[Any] | None, list[Any]]


def converse(calls: Sequence[Call], end_s: float) -> Talk:
    """How some calls to one shard are made until they are answered: yields words to send (and gets the raw replies, or
    has a redis-py `ConnectionError` or `TimeoutError` thrown in), or seconds to sleep. Returns values or errors.

    Tries again while there is time: calls that got no answer if they may be sent twice, calls that were refused for
    the moment always.
    """
    results: list[Any] = [None] * len(calls)
    todo = list(range(len(calls)))
    backoff_s = BACKOFF_FIRST_S
    while True:
        try:
            replies = yield from _send([calls[i] for i in todo])
        except (RedisConnectionError, RedisTimeoutError) as e:
            for i in todo:
                results[i] = _lost(e)
            todo = [i for i in todo if calls[i].retry]
        else:
            for i, reply in zip(todo, replies, strict=True):
                results[i] = outcome(calls[i], reply)
            todo = [i for i, reply in zip(todo, replies, strict=True) if is_passing(reply)]
        if not todo or time.monotonic() + backoff_s >= end_s:
            return results
        yield backoff_s
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


def _send(calls: Sequence[Call]) -> Generator[list[tuple[Any, ...]], list[Any] | None, list[Any]]:
    """Raw replies; scripts that the server does not know are loaded and sent again."""
    replies = (yield [words(call) for call in calls]) or []
    unknown = [i for i, reply in enumerate(replies) if lacks_script(reply)]
    if unknown:
        scripts = {c.script.sha: c.script.source for c in (calls[i] for i in unknown) if isinstance(c, RunScript)}
        loads: list[tuple[Any, ...]] = [("SCRIPT", "LOAD", source) for source in scripts.values()]
        fresh = (yield [*loads, *(words(calls[i]) for i in unknown)]) or []
        for i, reply in zip(unknown, fresh[len(loads) :], strict=True):
            replies[i] = reply
    return replies


def by_shard(calls: Sequence[Call]) -> list[list[int]]:
    """The positions of the calls of each shard."""
    groups: dict[Shard, list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(call.shard, []).append(i)
    return list(groups.values())


class Counters:
    """This process's own counters, by name. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, name: str, n: int = 1) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + n

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return {name: n for name, n in self._counts.items() if n}


class UseBuffer:
    """Uses noted in this process and not sent yet. A batch is due at `BATCH` modules or after `AGE_S` seconds: recency
    in Redis is late by that much, and a process that dies takes its last batch along."""

    BATCH = 256
    AGE_S = 1.0

    def __init__(self) -> None:
        self._pending: dict[Shard, dict[str, int]] = {}
        self._since: dict[Shard, float] = {}
        self._lock = threading.Lock()

    def note(self, shard: Shard, id: str, now_s: float, *, flush: bool) -> RunScript[dict[str, float]] | None:
        """Count one use; answers the script call for the shard's batch if it is due."""
        with self._lock:
            uses = self._pending.setdefault(shard, {})
            uses[id] = uses.get(id, 0) + 1
            since = self._since.setdefault(shard, now_s)
            due = flush or len(uses) >= self.BATCH or now_s - since >= self.AGE_S
            return self._take(shard) if due else None

    def _take(self, shard: Shard) -> RunScript[dict[str, float]] | None:
        uses = self._pending.pop(shard, None)
        self._since.pop(shard, None)
        return touch(shard, list(uses.items())) if uses else None

    def drain(self) -> Sequence[RunScript[dict[str, float]]]:
        """All that is pending, as script calls."""
        with self._lock:
            taken = [self._take(shard) for shard in list(self._pending)]
            return [call for call in taken if call is not None]
