"""What both drivers share: how calls become words, replies become values or errors, and when to try again."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.keys import Shard
from distier.effects import Command, Effect, LocalDelete, LocalHas, Peers, PeerSilent, Plan, RunScript
from distier.errors import (
    ConfigError,
    Corrupt,
    DeadlineExceeded,
    DistierError,
    Full,
    Invalid,
    RedisUnavailable,
    Unavailable,
)
from distier.lua import touch
from distier.stores.redis import Answer, Batch

if TYPE_CHECKING:
    from distier.stores.local import LocalStore  # LMDB is loaded only where it is used

Call = Command[Any] | RunScript[Any]
Recover = Callable[[Shard], Plan[Any]]

RECOVERIES_MAX = 4

REPLICA_WAIT_MS = 1000
_SHORT = "UNREPLICATED"
BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 0.25

# How servers say that the ACL forbids a command in a script: Redis 7.0, and those after it.
_ACL_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")

# Replies that mean "not now": the server is starting, failing over, resharding, or a script runs too long.
_PASSING = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "READONLY",
    "UNBLOCKED",
    "UNKILLABLE",
    "NOREPLICAS",
)


def words(call: Call) -> tuple[Any, ...]:
    """The words of a call, made for each time that it is sent: a write says whether it may have been applied before."""
    if not isinstance(call, RunScript):
        return call.words
    head = (call.script.command, call.script.sha, len(call.keys), *call.keys, *call.args)
    sending = call.sending
    return head if sending is None else (*head, sending.since if sending.lost else "")


def note_lost(calls: Iterable[Call]) -> None:
    """No reply to these calls came: they may have been executed."""
    for call in calls:
        if isinstance(call, RunScript) and call.sending is not None:
            call.sending.lost = True


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


def _may_pass(reply: RedisError) -> bool:
    return is_passing(reply) or lacks_script(reply)


def is_redirection(reply: Any) -> bool:
    """Whether a node of a cluster says that another one serves this key."""
    return isinstance(reply, RedisError) and _code(reply) in ("MOVED", "ASK")


def _code(error: RedisError) -> str:
    return str(error).partition(" ")[0].lstrip("-").rstrip(":")


def outcome(call: Call, reply: Any) -> Any:
    """The value of a reply, or the `DistierError` that it means, as a value."""
    if isinstance(reply, RedisError):
        return error_of(reply)
    try:
        return understood(call, reply)
    except DistierError as e:
        return e


def understood(call: Call, reply: Any) -> Any:
    """The value of a reply. Raises `Corrupt` where it is none that distier's own data can give."""
    try:
        return call.parse(reply)
    except DistierError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as e:
        raise Corrupt(
            f"a key of namespace {call.shard.namespace!r} holds what distier never wrote there ({e!s:.100}); did something "
            "else write here? Run `distier fsck`"
        ) from e


def error_of(error: RedisError) -> DistierError:
    """Our error for an error reply, with Redis' own words chained."""
    code, text = _code(error), str(error)
    made: DistierError
    if code == "TRYAGAIN":
        made = RedisUnavailable(
            f"the slot of this shard is on its way to another master: its writes and misses wait until it has arrived ({text})"
        )
    elif lacks_script(error):
        made = RedisUnavailable(
            f"Redis forgets scripts as soon as they are loaded: does something call SCRIPT FLUSH all the time? ({text})"
        )
    elif is_passing(error):
        made = RedisUnavailable(f"Redis cannot answer now: {text}")
    elif is_redirection(error):
        made = ConfigError("this server is a node of a Redis Cluster: write redis.url as cluster://host:port,host:port")
    elif "cluster support disabled" in text:
        made = ConfigError("this server is no node of a Redis Cluster: write redis.url as redis://host:port/db")
    elif type(error).__name__ == "OutOfMemoryError" or code == "OOM" or "OOM command not allowed" in text:
        made = Full(
            "Redis is at its maxmemory: writes are refused, reads and everything that frees memory work. "
            "Raise maxmemory, or lower the budgets of distier (`distier doctor`)"
        )
    elif code == _SHORT:
        made = RedisUnavailable(
            f"the write was applied, but is not replicated: {text.removeprefix(_SHORT).strip()}; it can still be lost "
            "with the primary"
        )
    elif code == "MISCONF":
        made = RedisUnavailable(f"Redis refuses writes because it cannot persist them: {text}")
    elif (
        isinstance(error, AuthenticationError | NoPermissionError)
        or code
        in (
            "NOAUTH",
            "WRONGPASS",
            "NOPERM",
        )
        or any(words in text for words in _ACL_IN_SCRIPT)
    ):
        made = ConfigError(f"Redis refuses this user: {text}. Check redis.username and redis.password, or the ACL")
    elif code == "WRONGTYPE" or "WRONGTYPE" in text:
        made = Corrupt(f"a key of this namespace has a foreign type; did something else write here? ({text})")
    elif "user_script" in text and "attempt to" in text:  # Lua met no number where there should be one
        made = Corrupt(f"a key of this namespace holds what distier never wrote there; run `distier fsck` ({text})")
    else:
        made = Invalid(f"Redis refused a command: {text}")
    made.__cause__ = error
    return made


OFFLOAD_BYTES = 128 * 1024
"""Computations over less than this take less time than handing them to a thread."""


ARCHIVE = "the archive"
DISK = "this node's disk"
REST = "Redis, or the wait for a processor"


class End(float):
    """When a call must have ended, on the monotonic clock; and what took its time."""

    begun_s = 0.0
    spent: dict[str, float] | None = None


def note_spent(end_s: float, what: str, begun_s: float) -> None:
    """`what` has taken the call's time since `begun_s`."""
    if isinstance(end_s, End):
        spent = end_s.spent = end_s.spent or {}
        spent[what] = spent.get(what, 0.0) + time.monotonic() - begun_s


def time_left(end_s: float) -> float:
    """Seconds until `end_s` on the monotonic clock. Raises `DeadlineExceeded` if there are none."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded(f"the call's deadline has passed{most(end_s, REST)}")
    return left_s


def most(end_s: float, rest: str = "", *, but: str = "") -> str:
    """The end of a sentence: what most of a call's time went into, unless that is `but`, of which the sentence tells anyway.
    What was not noted was waiting for Redis: that is called `rest`."""
    if not isinstance(end_s, End):
        return ""
    what, seconds = max((end_s.spent or {}).items(), key=lambda item: item[1], default=("", 0.0))
    if seconds < (end_s - end_s.begun_s) / 2:
        what = rest
    return f"; most of its {end_s - end_s.begun_s:.3g} s went into {what}" if what and what != but else ""


def lost(error: Exception, end_s: float = 0.0) -> DistierError:
    """No answer. Also where the two sides cannot agree on TLS: that a server shows a wrong certificate will not pass."""
    made: DistierError
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        made = ConfigError(
            f"the server's certificate is not trusted: {error}. Check redis.ca_file and the host in redis.url"
        )
    elif "unknown command 'SENTINEL'" in str(error):
        made = ConfigError(
            "this server is no sentinel: name sentinels (their port is 26379 by default), or write redis.url as "
            "redis://host:port/db"
        )
    else:
        made = RedisUnavailable(
            f"Redis did not answer within the deadline: {type(error).__name__}: {error}{most(end_s)}"
        )
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
        except AuthenticationError as e:  # to redis-py a ConnectionError, but no patience helps
            for i in todo:
                results[i] = error_of(e)
            return results
        except (RedisConnectionError, RedisTimeoutError) as e:
            note_lost(calls[i] for i in todo)
            for i in todo:
                # The last try may have no time for more than a timeout: what an earlier one met tells more.
                told = isinstance(getattr(results[i], "__cause__", None), RedisConnectionError)
                if not (told and isinstance(e, RedisTimeoutError)):
                    results[i] = lost(e, end_s)
            todo = [i for i in todo if calls[i].retry and not isinstance(results[i], ConfigError)]
        else:
            again = []
            for i, reply in zip(todo, replies, strict=True):
                results[i] = outcome(calls[i], reply)
                if isinstance(reply, RedisError) and _may_pass(reply) and not calls[i].hint:
                    again.append(i)
            todo = again
        if not todo or time.monotonic() + backoff_s >= end_s:
            return results
        yield backoff_s
        if time.monotonic() >= end_s:  # slept too long: what was wrong says more than that there is no time left
            return results
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


@dataclass(slots=True)
class Unfinished:
    """A conversation that goes on by itself, with `ask`."""

    talk: Talk
    ask: list[tuple[Any, ...]] | float


def first_answered(
    calls: Sequence[Call], answer: list[Any] | RedisConnectionError | RedisTimeoutError, end_s: float
) -> list[Any] | Unfinished:
    """What the first answer to some calls comes to: nearly always it is all, and there is no conversation."""
    if isinstance(answer, list) and not any(isinstance(reply, RedisError) for reply in answer):
        return [outcome(call, reply) for call, reply in zip(calls, answer, strict=True)]
    talk = converse(calls, end_s)
    next(talk)
    try:
        return Unfinished(talk, talk.send(answer) if isinstance(answer, list) else talk.throw(answer))
    except StopIteration as stop:
        return cast(list[Any], stop.value)


Together = Generator[list[Batch], list[Answer], list[list[Any] | Unfinished]]


def converse_together(groups: Sequence[Sequence[Call]], end_s: float) -> Together:
    """The conversations of several shards, each step of all of them in one exchange, for as long as nobody has to wait: yields
    batches, gets their answers. Returns results, or what is left of a conversation that has to wait for its server."""
    results: list[Any] = [None] * len(groups)
    talks = [converse(calls, end_s) for calls in groups]
    asks: dict[int, Any] = {i: next(talk) for i, talk in enumerate(talks)}
    while asks:
        answers = yield [(groups[i][0].shard, ask) for i, ask in asks.items()]
        asked, asks = list(asks), {}
        for i, answer in zip(asked, answers, strict=True):
            try:
                ask = talks[i].throw(answer) if isinstance(answer, RedisError) else talks[i].send(answer)
            except StopIteration as stop:
                results[i] = stop.value
            else:
                if isinstance(ask, float):
                    results[i] = Unfinished(talks[i], ask)
                else:
                    asks[i] = ask
    return results


def _send(calls: Sequence[Call]) -> Generator[list[tuple[Any, ...]], list[Any] | None, list[Any]]:
    """Raw replies; scripts that the server does not know are loaded and sent again, both in one packet: where somebody empties
    the server's cache all the time (`SCRIPT FLUSH`), there would be none of it left a round trip later."""
    replies = yield from _send_once(calls)
    unknown = [i for i, reply in enumerate(replies) if lacks_script(reply)]
    if unknown:
        some = [calls[i] for i in unknown]
        load = _load(some)
        again = yield from _send_once(some, load)
        refused = next((reply for reply in again[: len(load)] if isinstance(reply, RedisError)), None)
        for i, reply in zip(unknown, again[len(load) :], strict=True):
            replies[i] = refused if refused is not None and lacks_script(reply) else reply
    return replies


def _load(calls: Sequence[Call]) -> list[tuple[Any, ...]]:
    scripts = {call.script.sha: call.script.source for call in calls if isinstance(call, RunScript)}
    return [("SCRIPT", "LOAD", source) for source in scripts.values()]


def _send_once(
    calls: Sequence[Call], before: Sequence[tuple[Any, ...]] = ()
) -> Generator[list[tuple[Any, ...]], list[Any] | None, list[Any]]:
    """Raw replies, first those to what goes `before`; behind a call that needs replicas goes a WAIT, over the same
    connection."""
    needs = [call.replicas if isinstance(call, RunScript) else 0 for call in calls]
    if not any(needs):
        return (yield [*before, *(words(call) for call in calls)]) or []
    batch: list[tuple[Any, ...]] = [*before]
    for call, n in zip(calls, needs, strict=True):
        batch += [words(call), ("WAIT", n, REPLICA_WAIT_MS)] if n else [words(call)]
    received = iter((yield batch) or [])
    replies = [next(received) for _ in before]
    for n in needs:
        reply = next(received)
        got = next(received) if n else 0
        short = n and not isinstance(reply, RedisError) and (isinstance(got, RedisError) or got < n)
        replies.append(ResponseError(f"{_SHORT} {got} of {n} replicas have the write") if short else reply)
    return replies


def by_shard(calls: Sequence[Call]) -> list[list[int]]:
    """The positions of the calls of each shard."""
    groups: dict[Shard, list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(call.shard, []).append(i)
    return list(groups.values())


# -- hints -----------------------------------------------------------------------------------------------------------

HINTS_OFF_S = 1.0
HINTS_OFF_MAX_S = 30.0

Hinted = Generator[tuple[Sequence[Call], float], list[Any], list[Any]]


class Off(NamedTuple):
    """A shard whose server did not answer hints in time, as while it pauses writes. Once may be chance; from the second time on
    none is sent until `until_s`, for twice as long each time, until one is answered."""

    until_s: float
    pause_s: float


def with_hints(calls: Sequence[Call], end_s: float, off: dict[Shard, Off]) -> Hinted:
    """How calls of which some are hints are made: yields calls and their end, gets their values or errors. The others are made
    again without the hints where those were not answered in time: they are reads. `off` is kept between calls."""
    now_s, wait_s = time.monotonic(), calls[0].hint
    sent: Sequence[int] = range(len(calls))
    if off:
        sent = [i for i in sent if not calls[i].hint or now_s >= off.get(calls[i].shard, _READY).until_s]
    results: list[Any] = [RedisUnavailable("Redis did not answer hints lately; this one was not sent")] * len(calls)
    if sent:
        answers = yield [calls[i] for i in sent], min(end_s, now_s + wait_s)
        for i, answer in zip(sent, answers, strict=True):
            results[i] = answer
    late_s = time.monotonic() - now_s - wait_s
    if late_s < 0 and not off:
        return results
    again = []
    for i in sent:
        shard, failed = calls[i].shard, isinstance(results[i], Unavailable)
        if not calls[i].hint:
            again += [i] if failed and late_s >= 0 else []
        elif not failed:
            off.pop(shard, None)
        elif late_s >= 0:
            before, ended_s = off.get(shard), time.monotonic()
            pause_s = min(before.pause_s * 2, HINTS_OFF_MAX_S) if before else HINTS_OFF_S / 2
            off[shard] = Off(ended_s + pause_s if before else ended_s, pause_s)
    if again:
        answers = yield [calls[i] for i in again], end_s
        for i, answer in zip(again, answers, strict=True):
            results[i] = answer
    return results


_READY = Off(0.0, 0.0)


# A fork may come while another thread has one of the locks: nobody would ever give it back in the child.
_LOCKED: weakref.WeakSet[Counters | UseBuffer] = weakref.WeakSet()


def _unlock() -> None:
    for locked in list(_LOCKED):
        locked.after_fork_in_child()


os.register_at_fork(after_in_child=_unlock)

TURN_S = 0.2
"""Longer than anybody has one of these locks, unless it was interrupted with it."""


class Counters:
    """This process's own counters, by name. Thread-safe, and safe for a signal handler or a finaliser in the middle of any of
    its own lines: what is added is noted first, by one operation, and summed up by whoever has the lock. Who is interrupted
    with it sums up what was noted meanwhile."""

    NOTES_MAX = 512

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._notes: deque[tuple[str, int]] = deque()
        self._lock: Any = threading.RLock()
        _LOCKED.add(self)

    def add(self, name: str, n: int = 1) -> None:
        self._notes.append((name, n))
        if len(self._notes) >= self.NOTES_MAX:
            self._sum_up()

    def snapshot(self) -> dict[str, int]:
        self._sum_up()
        return {name: n for name, n in self._counts.copy().items() if n}

    def _sum_up(self) -> None:
        lock = self._lock  # the same one to the end: a signal handler may fork in between, and the child has a new one
        if lock._is_owned():
            return
        try:
            if lock.acquire(timeout=TURN_S):
                while self._notes:
                    name, n = self._notes.popleft()
                    self._counts[name] = self._counts.get(name, 0) + n
        finally:
            if lock._is_owned():  # also where it was interrupted by an exception just after it got the lock
                lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()


class PeerTable:
    """Other nodes with copies on their disks, as the heartbeat last found them, less those that were asked and kept silent.
    Values are replaced whole: threads need no lock."""

    SILENT_S = 10.0

    def __init__(self) -> None:
        self._nodes: tuple[str, ...] = ()
        self._silent_until_s: dict[str, float] = {}

    def found(self, nodes: Sequence[str]) -> None:
        self._nodes = tuple(nodes)
        self._silent_until_s = {n: s for n, s in self._silent_until_s.items() if n in nodes}

    def ready(self, now_s: float) -> tuple[str, ...]:
        if not self._silent_until_s:
            return self._nodes
        return tuple(n for n in self._nodes if self._silent_until_s.get(n, 0.0) <= now_s)

    def silent(self, node: str, now_s: float) -> None:
        self._silent_until_s = self._silent_until_s | {node: now_s + self.SILENT_S}


class UseBuffer:
    """Uses noted in this process and not sent yet. They are due after `AGE_S` seconds, or when there are `PENDING_MAX`
    modules, and go in batches of `BATCH`: recency in Redis is late by that much, and a process that dies takes them along.
    Not due at `BATCH` already: who reads a thousand modules time and again would send a thousand uses each time, and now
    sends their sums once a second. Thread-safe."""

    BATCH = 256
    PENDING_MAX = 4096
    AGE_S = 1.0

    def __init__(self) -> None:
        self._pending: dict[Shard, dict[str, int]] = {}
        self._since: dict[Shard, float] = {}
        self._notes: deque[tuple[Shard, Sequence[str] | Mapping[str, int], float]] = deque()
        self._lock: Any = threading.RLock()
        _LOCKED.add(self)

    def note(
        self, shard: Shard, id: str | Sequence[str], now_s: float, *, flush: bool
    ) -> RunScript[dict[str, float]] | None:
        """Count one use, or one of each; answers the script call for the shard's batch if it is due. That batch has this use
        in it. None to a signal handler or finaliser that interrupts this very line: its use goes with the next batch."""
        self._notes.append((shard, (id,) if isinstance(id, str) else id, now_s))
        lock = self._lock
        if lock._is_owned():
            return None
        try:
            if not lock.acquire(timeout=TURN_S):
                return None
            self._gather()
            return self._take(shard) if flush or self._is_due(shard, now_s) else None
        finally:
            if lock._is_owned():
                lock.release()

    def note_many(self, shard: Shard, uses: Mapping[str, int], now_s: float) -> None:
        """Count uses by id; they go with the next batches that are due."""
        self._notes.append((shard, uses, now_s))

    def due(self, now_s: float) -> Sequence[RunScript[dict[str, float]]]:
        """The script calls for all batches that are due."""
        return self._calls(lambda shard: self._is_due(shard, now_s))

    def drain(self) -> Sequence[RunScript[dict[str, float]]]:
        """All that is pending, as script calls."""
        return self._calls(lambda shard: True)

    def _calls(self, which: Callable[[Shard], bool]) -> Sequence[RunScript[dict[str, float]]]:
        lock = self._lock
        if lock._is_owned():
            return ()
        try:
            if not lock.acquire(timeout=TURN_S):
                return ()
            self._gather()
            return [call for shard in list(self._pending) if which(shard) for call in self._take_all(shard)]
        finally:
            if lock._is_owned():
                lock.release()

    def _gather(self) -> None:
        while self._notes:
            shard, ids, now_s = self._notes.popleft()
            self._since.setdefault(shard, now_s)
            uses = self._pending.setdefault(shard, {})
            for id in ids:
                n = ids[id] if isinstance(ids, Mapping) else 1
                uses[id] = uses.pop(id, 0) + n  # at the end, where batches are taken from

    def after_fork_in_child(self) -> None:
        """The parent sends what it noted."""
        self._pending, self._since, self._notes = {}, {}, deque()
        self._lock = threading.RLock()

    def _is_due(self, shard: Shard, now_s: float) -> bool:
        pending = self._pending.get(shard, ())
        return len(pending) >= self.PENDING_MAX or (bool(pending) and now_s - self._since[shard] >= self.AGE_S)

    def _take(self, shard: Shard) -> RunScript[dict[str, float]] | None:
        """The last `BATCH` modules: a script over more would hold up the server."""
        uses = self._pending.get(shard)
        if not uses:
            return None
        batch = [uses.popitem() for _ in range(min(self.BATCH, len(uses)))]
        if not uses:
            self._pending.pop(shard, None)
            self._since.pop(shard, None)
        return touch(shard, batch)

    def _take_all(self, shard: Shard) -> Iterator[RunScript[dict[str, float]]]:
        while call := self._take(shard):
            yield call


class Process:
    """What a driver keeps for its process, and the effects that nobody waits for: the same in both drivers."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.uses = UseBuffer()
        self.local: LocalStore | None = None
        self.peers = PeerTable()
        self.off: dict[Shard, Off] = {}

    def use_local(self, local: LocalStore | None) -> None:
        """Perform the effects of the node's disk on `local`, which is closed with this driver."""
        self.local = local
        if local is not None:
            local.count = self.counters.add

    def at_once(self, effect: Effect[Any]) -> Any:
        """An effect of the node's disk or of what is known of other nodes."""
        match effect:
            case LocalHas(id, tok):
                return self.local is not None and self.local.has(id, tok)
            case LocalDelete(id):
                return self.local is not None and self.local.delete(id)
            case Peers():
                return self.peers.ready(time.monotonic())
            case PeerSilent(node):
                return self.peers.silent(node, time.monotonic())
            case _:
                raise AssertionError(f"no driver knows the effect {effect!r}")
