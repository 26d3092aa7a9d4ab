"""Conversations with servers, for both drivers: calls become commands, replies become values or errors, and some calls are
sent again.

A conversation is a generator without I/O: it yields requests (`Send`, `Pause`, ...), and a driver performs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.keys import Shard
from distier.drive.replies import SHORT, Call, error_of, lacks_script, lost, may_pass, outcome
from distier.effects import Plan, RunScript
from distier.errors import ConfigError, DistierError, Recovering
from distier.stores.redis import Answer, Batch

Recover = Callable[[Shard], Plan[Any]]
RECOVERIES_MAX = 4
REPLICA_WAIT_MS = 1000
BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 0.25


def command_of(call: Call) -> tuple[Any, ...]:
    """Return the command of a call. It differs between transmissions: a write says whether it may have been applied before."""
    if not isinstance(call, RunScript):
        return call.args
    head = (call.script.command, call.script.sha, len(call.keys), *call.keys, *call.args)
    sending = call.sending
    return head if sending is None else (*head, sending.since if sending.lost else "")


def note_lost(calls: Iterable[Call]) -> None:
    """Note that these calls got no reply, so the server may have executed them."""
    for call in calls:
        if isinstance(call, RunScript) and call.sending is not None:
            call.sending.lost = True


# The requests of a conversation to its driver. The driver sends the result in, or throws the exception in.


class Calls(NamedTuple):
    """Make these calls. The result is their values or errors, in order."""

    calls: Sequence[Call]
    end_s: float


class Send(NamedTuple):
    """Send commands to one shard. The result is their raw replies; redis-py's `ConnectionError` or `TimeoutError` is thrown."""

    shard: Shard
    commands: Sequence[tuple[Any, ...]]
    end_s: float


class SendMany(NamedTuple):
    """Send commands to several shards at once. The result has one answer for each shard."""

    batches: Sequence[Batch]
    end_s: float


class Pause(NamedTuple):
    """Wait for `seconds`, at most until `end_s`."""

    seconds: float
    end_s: float


class Open(NamedTuple):
    """Give a shard an epoch for the incarnation of its server."""

    shard: Shard
    end_s: float


class Each(NamedTuple):
    """Hold several conversations, concurrently if the driver can. The result has the results of each."""

    conversations: Sequence[Conversation]


Request = Calls | Send | SendMany | Pause | Open | Each
Conversation = Generator[Request, Any, list[Any]]


def in_one_exchange(calls: Sequence[Call]) -> Shard | None:
    """Return the shard of calls that one exchange can answer; None if they need a conversation from the start."""
    shard = calls[0].shard
    for call in calls:
        if call.shard is not shard and call.shard != shard:
            return None
        if type(call) is RunScript and call.replicas:
            return None
    return shard


def converse_with_shards(calls: Sequence[Call], end_s: float, *, opens: bool) -> Conversation:
    """Make calls to any number of shards; return their values or errors.

    All servers are asked at once, each in one round trip. A group of calls that has to wait, or whose shard needs an epoch,
    then continues on its own. A failure of one group fails only its own calls.
    """
    groups = _by_shard(calls)
    if len(groups) == 1:
        return (yield from converse_with_shard(calls, end_s, opens=opens))
    calls_of_groups = [[calls[i] for i in group] for group in groups]
    together = converse_together(calls_of_groups, end_s)
    try:
        batches = next(together)
        while True:
            batches = together.send((yield SendMany(batches, end_s)))
    except StopIteration as stop:
        firsts: list[list[Any] | Unfinished] = stop.value
    except DistierError as e:  # no time is left
        return [e] * len(calls)
    results: list[Any] = [None] * len(calls)
    finished = yield Each([
        converse_with_shard(some, end_s, first, opens=opens) for some, first in zip(calls_of_groups, firsts, strict=True)
    ])  # fmt: skip
    for group, values in zip(groups, finished, strict=True):
        for i, value in zip(group, values, strict=True):
            results[i] = value
    return results


def converse_with_shard(
    calls: Sequence[Call], end_s: float, first: list[Any] | Unfinished | None = None, *, opens: bool
) -> Conversation:
    """Make calls to one shard; return their values or errors.

    Args:
        calls: the calls.
        end_s: when the calls must have ended, on the monotonic clock.
        first: the results of the first exchange, or the rest of the conversation after it; None before any exchange.
        opens: give the shard an epoch if it has none for this incarnation of its server, and repeat the calls that the server
            refused for that reason.
    """
    try:
        results = first if isinstance(first, list) else (yield from _talk(calls, end_s, first))
        for _ in range(RECOVERIES_MAX):
            refused = [i for i, result in enumerate(results) if isinstance(result, Recovering)]
            if not refused or not opens:
                break
            yield Open(calls[0].shard, end_s)
            again = yield from _talk([calls[i] for i in refused], end_s)
            for i, result in zip(refused, again, strict=True):
                results[i] = result
        return results
    except DistierError as e:
        return [e] * len(calls)


def _talk(calls: Sequence[Call], end_s: float, unfinished: Unfinished | None = None) -> Conversation:
    """Convert a talk with one server (`converse`), or the rest of one, into requests to the driver."""
    talk = unfinished.talk if unfinished else converse(calls, end_s)
    try:
        ask = unfinished.ask if unfinished else next(talk)
        while True:
            if isinstance(ask, float):
                yield Pause(ask, end_s)
                ask = next(talk)
                continue
            try:
                replies = yield Send(calls[0].shard, ask, end_s)
            except (RedisConnectionError, RedisTimeoutError) as e:
                ask = talk.throw(e)
            else:
                ask = talk.send(replies)
    except StopIteration as stop:
        return cast(list[Any], stop.value)


Talk = Generator[list[tuple[Any, ...]] | float, list[Any] | None, list[Any]]


def converse(calls: Sequence[Call], end_s: float) -> Talk:
    """Make calls to one shard until they are answered; return values or errors.

    It yields commands to send, and receives their raw replies (or redis-py's `ConnectionError` or `TimeoutError`, thrown in).
    Or it yields seconds to sleep.

    While time is left it tries again: calls that got no reply, if they may be sent twice, and all calls that the server
    refused temporarily.
    """
    results: list[Any] = [None] * len(calls)
    todo = list(range(len(calls)))
    backoff_s = BACKOFF_FIRST_S
    while True:
        try:
            replies = yield from _send([calls[i] for i in todo])
        except AuthenticationError as e:  # a ConnectionError in redis-py, but trying again does not help
            for i in todo:
                results[i] = error_of(e)
            return results
        except (RedisConnectionError, RedisTimeoutError) as e:
            note_lost(calls[i] for i in todo)
            for i in todo:
                # The last try may have so little time that it always times out. An earlier connection error says more.
                is_known = isinstance(getattr(results[i], "__cause__", None), RedisConnectionError)
                if not (is_known and isinstance(e, RedisTimeoutError)):
                    results[i] = lost(e, end_s)
            todo = [i for i in todo if calls[i].retry and not isinstance(results[i], ConfigError)]
        else:
            again = []
            for i, reply in zip(todo, replies, strict=True):
                results[i] = outcome(calls[i], reply)
                if isinstance(reply, RedisError) and may_pass(reply) and not calls[i].hint:
                    again.append(i)
            todo = again
        if not todo or time.monotonic() + backoff_s >= end_s:
            return results
        yield backoff_s
        if time.monotonic() >= end_s:  # slept too long: the server's error says more than an error about the deadline
            return results
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


@dataclass(slots=True)
class Unfinished:
    """The rest of a talk with one server, whose next request is `ask`."""

    talk: Talk
    ask: list[tuple[Any, ...]] | float


def take_first_answer(
    calls: Sequence[Call], answer: list[Any] | RedisConnectionError | RedisTimeoutError, end_s: float
) -> list[Any] | Unfinished:
    """Return the results of calls after their first answer, or the rest of the talk.

    Nearly always the first answer settles all calls, and no talk is necessary.
    """
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
    """Hold talks with several shards, each step of all of them in one exchange, until those that are left have to wait.

    It yields batches and receives their answers. It returns, for each group, the results, or the rest of a talk that has to
    wait for its server.
    """
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
    """Send calls and return their raw replies; load the scripts that the server does not know, and send their calls again.

    Both go in one packet. If a program empties the server's script cache all the time (`SCRIPT FLUSH`), the scripts would be
    gone a round trip later.
    """
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
    """Send calls and return their raw replies, preceded by the replies to the commands `before`.

    A call that needs replicas is followed by a WAIT on the same connection.
    """
    needs = [call.replicas if isinstance(call, RunScript) else 0 for call in calls]
    if not any(needs):
        return (yield [*before, *(command_of(call) for call in calls)]) or []
    batch: list[tuple[Any, ...]] = [*before]
    for call, n in zip(calls, needs, strict=True):
        batch += [command_of(call), ("WAIT", n, REPLICA_WAIT_MS)] if n else [command_of(call)]
    received = iter((yield batch) or [])
    replies = [next(received) for _ in before]
    for n in needs:
        reply = next(received)
        got = next(received) if n else 0
        short = n and not isinstance(reply, RedisError) and (isinstance(got, RedisError) or got < n)
        replies.append(ResponseError(f"{SHORT} {got} of {n} replicas have the write") if short else reply)
    return replies


def _by_shard(calls: Sequence[Call]) -> list[list[int]]:
    """Return the indexes of the calls of each shard."""
    groups: dict[Shard, list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(call.shard, []).append(i)
    return list(groups.values())
