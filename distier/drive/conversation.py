"""What both drivers share: how calls become words, replies become values or errors, and when to try again."""

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
    """The words of a call, made for each time that it is sent: a write says whether it may have been applied before."""
    if not isinstance(call, RunScript):
        return call.args
    head = (call.script.command, call.script.sha, len(call.keys), *call.keys, *call.args)
    sending = call.sending
    return head if sending is None else (*head, sending.since if sending.lost else "")


def note_lost(calls: Iterable[Call]) -> None:
    """No reply to these calls came: they may have been executed."""
    for call in calls:
        if isinstance(call, RunScript) and call.sending is not None:
            call.sending.lost = True


# What a conversation asks of its driver. The result is sent in, an exception is thrown in.


class Calls(NamedTuple):
    """Make these calls: their values or errors, in order."""

    calls: Sequence[Call]
    end_s: float


class Send(NamedTuple):
    """Send commands to one shard: their raw replies. Throws redis-py's `ConnectionError` and `TimeoutError`."""

    shard: Shard
    commands: Sequence[tuple[Any, ...]]
    end_s: float


class SendMany(NamedTuple):
    """Send commands to several shards at once: an answer of each."""

    batches: Sequence[Batch]
    end_s: float


class Pause(NamedTuple):
    """Wait for this long, at most until the end."""

    seconds: float
    end_s: float


class Open(NamedTuple):
    """Give a shard an epoch for the incarnation of its server."""

    shard: Shard
    end_s: float


class Each(NamedTuple):
    """Hold several conversations, at once where the driver can: the result of each."""

    conversations: Sequence[Conversation]


Request = Calls | Send | SendMany | Pause | Open | Each
Conversation = Generator[Request, Any, list[Any]]


def in_one_exchange(calls: Sequence[Call]) -> Shard | None:
    """The shard of calls that can be answered by one exchange; None where that takes a conversation from the start."""
    shard = calls[0].shard
    for call in calls:
        if call.shard is not shard and call.shard != shard:
            return None
        if type(call) is RunScript and call.replicas:
            return None
    return shard


def answered(calls: Sequence[Call], end_s: float, *, opens: bool) -> Conversation:
    """Values or errors of some calls. All servers are asked at once, each in one round trip. The groups that have to wait, or
    whose shard needs an epoch, go on by themselves; what keeps one of them fails its calls, not the others."""
    groups = _by_shard(calls)
    if len(groups) == 1:
        return (yield from settled(calls, end_s, opens=opens))
    of_group = [[calls[i] for i in group] for group in groups]
    together = converse_together(of_group, end_s)
    try:
        batches = next(together)
        while True:
            batches = together.send((yield SendMany(batches, end_s)))
    except StopIteration as stop:
        begun: list[list[Any] | Unfinished] = stop.value
    except DistierError as e:  # no time is left
        return [e] * len(calls)
    results: list[Any] = [None] * len(calls)
    rest = yield Each([settled(some, end_s, first, opens=opens) for some, first in zip(of_group, begun, strict=True)])
    for group, values in zip(groups, rest, strict=True):
        for i, value in zip(group, values, strict=True):
            results[i] = value
    return results


def settled(
    calls: Sequence[Call], end_s: float, begun: list[Any] | Unfinished | None = None, *, opens: bool
) -> Conversation:
    """Values or errors of some calls to one shard. `begun`: what there is of the answers. With `opens`, a shard that has no
    epoch for this incarnation of its server is given one, and the calls that were refused for that are made again."""
    try:
        results = begun if isinstance(begun, list) else (yield from _talk(calls, end_s, begun))
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


def _talk(calls: Sequence[Call], end_s: float, begun: Unfinished | None = None) -> Conversation:
    """One conversation with a server (`converse`), or the rest of one."""
    talk = begun.talk if begun else converse(calls, end_s)
    try:
        ask = begun.ask if begun else next(talk)
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
                if isinstance(reply, RedisError) and may_pass(reply) and not calls[i].hint:
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
    """The positions of the calls of each shard."""
    groups: dict[Shard, list[int]] = {}
    for i, call in enumerate(calls):
        groups.setdefault(call.shard, []).append(i)
    return list(groups.values())
