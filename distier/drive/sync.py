"""The blocking driver. It is thread-safe: many plans may run at once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.module import Record
from distier.drive.conversation import (
    Calls,
    Each,
    Open,
    Pause,
    Recover,
    Request,
    Send,
    SendMany,
    command_of,
    converse_with_shard,
    converse_with_shards,
    in_one_exchange,
    note_lost,
    take_first_answer,
)
from distier.drive.deadline import ARCHIVE, DISK, End, main_cost, note_spent, report_progress, time_left
from distier.drive.hints import with_hints
from distier.drive.process import OFFLOAD_BYTES, Counters, Process
from distier.drive.replies import Call, lost, parse_reply
from distier.effects import (  # fmt: skip
    TIDY_S,
    ArchiveDelete,
    ArchiveGet,
    ArchiveList,
    ArchivePut,
    ArchiveRestore,
    Cancelled,
    Command,
    Count,
    Effect,
    LocalGet,
    LocalPut,
    Monotonic,
    NewToken,
    Now,
    Offload,
    Parallel,
    Pipeline,
    Plan,
    Progress,
    RunScript,
    Sleep,
    Used,
    collect,
)
from distier.errors import ArchiveTimeout, DeadlineExceeded, DistierError, OutOfStep, Recovering
from distier.stores.archive import Archive, restore
from distier.stores.redis import Exchange
from distier.stores.threads import Helpers

T = TypeVar("T")

THREADS_MAX = 16
UNWATCHED_S = 300.0
"""Calls with more time than this run archive requests without a thread. It is longer than any timeout of an archive, and
handing a request to a thread costs as much as a small request itself."""


class SyncDriver(Process):
    """Performs effects on `redis` and `archive` within one deadline per plan, `deadline_s` from its start."""

    def __init__(
        self, redis: Exchange, archive: Archive, *, deadline_s: float, recover: Recover | None = None,
        counters: Counters | None = None,
    ) -> None:  # fmt: skip
        self.redis = redis
        self.archive = archive
        self.deadline_s = deadline_s
        self.recover = recover
        super().__init__(counters)
        self._for_archive, self._for_plans = Helpers(THREADS_MAX), Helpers(THREADS_MAX)

    def run(
        self, plan: Plan[T], deadline_s: float | None = None, on_progress: Callable[[Any], object] | None = None
    ) -> T:
        """Run a plan to its end, and return its result or raise its exception."""
        begun_s = time.monotonic()
        end_s = End(begun_s + (deadline_s or self.deadline_s))
        end_s.begun_s, end_s.on_progress = begun_s, on_progress
        try:
            if self.counters.trace is None:
                return self._run(plan, end_s, nested=False)
            with self.counters.trace(getattr(plan, "__name__", "call")):
                return self._run(plan, end_s, nested=False)
        except OutOfStep:
            self.redis.drop()
            raise

    def _run(self, plan: Plan[T], end_s: float, *, nested: bool) -> T:
        try:
            effect = next(plan)
            while True:
                try:
                    result = self.perform(effect, end_s, nested=nested)
                except Exception as e:
                    effect = plan.throw(e)
                except BaseException:
                    self._cancel(plan)
                    raise
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            plan.close()

    def _cancel(self, plan: Plan[Any]) -> None:
        """Cancel a plan whose call was interrupted (Ctrl-C), and perform its last effect (releasing a lease)."""
        with suppress(Cancelled, StopIteration, DistierError):
            self.perform(plan.throw(Cancelled()), time.monotonic() + TIDY_S)

    def perform(self, effect: Effect[Any], end_s: float, *, nested: bool = False) -> Any:
        """Perform one effect. Raises `DistierError`."""
        match effect:
            case Command() | RunScript():
                return self._call(effect, end_s)
            case Used():
                if effect.hit:
                    self.counters.add(effect.hit)
                return self.uses.note(effect.shard, effect.id, time.monotonic(), flush=effect.flush)
            case Count(name, n):
                return self.counters.add(name, n)
            case Progress(value):
                return report_progress(end_s, value)
            case Pipeline(calls):
                if calls and calls[0].hint:
                    return self._converse(with_hints(calls, end_s, self.off))
                return self._pipeline(calls, end_s)
            case LocalGet(record):
                return self.local.get(record) if self.local is not None else None
            case LocalPut(record, content):
                return self._local_put(record, content, end_s)
            case Offload(size_bytes, function, what):
                return function() if size_bytes < OFFLOAD_BYTES else self._compute(function, what, end_s)
            case Parallel(plans):
                return self._parallel(plans, end_s, nested=nested)
            case ArchiveGet(key, max_bytes):
                return self._archive(lambda: self.archive.get(key, max_bytes=max_bytes), end_s)
            case ArchivePut(key, data, content_type, metadata):
                put = self.archive.put
                return self._archive(lambda: put(key, data, content_type=content_type, metadata=metadata), end_s)
            case ArchiveList(prefix, start_after, limit):
                return self._archive(lambda: self.archive.list(prefix, start_after=start_after, limit=limit), end_s)
            case ArchiveDelete(keys):
                return self._archive(lambda: self.archive.delete(keys), end_s)
            case ArchiveRestore(key, days, tier):
                return self._archive(lambda: restore(self.archive, key, days=days, tier=tier), end_s)
            case NewToken():
                return secrets.token_hex(16)
            case Now():
                return time.time_ns() // 1_000_000
            case Monotonic():
                return time.monotonic()
            case Sleep(seconds, what):
                return self._sleep(seconds, what, end_s)
            case _:
                return self.at_once(effect)

    def _compute(self, function: Callable[[], Any], what: str, end_s: float) -> Any:
        time_left(end_s)
        begun_s = time.monotonic()
        try:
            return function()
        finally:
            note_spent(end_s, what, begun_s)

    def _local_put(self, record: Record, content: bytes, end_s: float) -> bool:
        if self.local is None:
            return False
        begun_s = time.monotonic()
        try:
            return self.local.put(record, content)
        finally:
            note_spent(end_s, DISK, begun_s)

    # -- Redis ---------------------------------------------------------------------------------------------------

    def _call(self, call: Call, end_s: float) -> Any:
        """Make one call: send it, and start a conversation only if the first reply does not settle it."""
        if call.hint:
            return collect((self._converse(with_hints([call], end_s, self.off)))[0])
        if not call.replicas:
            try:
                reply = (self.redis.exchange(call.shard, (command_of(call),), time_left(end_s)))[0]
                if not isinstance(reply, RedisError):
                    return parse_reply(call, reply)
            except (RedisConnectionError, RedisTimeoutError) as e:
                note_lost([call])
                if not call.retry or time.monotonic() >= end_s:
                    raise lost(e, end_s) from e
            except Recovering:
                pass  # the script changed nothing; the conversation gives the shard an epoch
        return collect((self._converse(converse_with_shard([call], end_s, opens=self.recover is not None)))[0])

    def _pipeline(self, calls: Sequence[Call], end_s: float) -> list[Any]:
        """Make calls in one round trip; return values or errors, in order. Nearly always one exchange answers them all."""
        opens = self.recover is not None
        shard = in_one_exchange(calls) if calls else None
        if shard is None:
            return self._converse(converse_with_shards(calls, end_s, opens=opens)) if calls else []
        answer: Any
        try:
            answer = self.redis.exchange(shard, [command_of(call) for call in calls], time_left(end_s))
        except (RedisConnectionError, RedisTimeoutError) as e:
            answer = e
        except DistierError as e:
            return [e] * len(calls)
        first = take_first_answer(calls, answer, end_s)
        if isinstance(first, list) and not (opens and any(isinstance(result, Recovering) for result in first)):
            return first
        return self._converse(converse_with_shard(calls, end_s, first, opens=opens))

    def _converse(self, conversation: Generator[Request, Any, list[Any]]) -> list[Any]:
        """Perform the requests of a conversation until it ends; return its results."""
        try:
            request = next(conversation)
            while True:
                try:
                    result: Any = None
                    match request:
                        case Send(shard, commands, end_s):
                            result = self.redis.exchange(shard, commands, time_left(end_s))
                        case Calls(calls, end_s):
                            result = self._pipeline(calls, end_s)
                        case SendMany(batches, end_s):
                            result = self.redis.exchange_many(batches, time_left(end_s))
                        case Pause(seconds, end_s):
                            time.sleep(min(seconds, max(end_s - time.monotonic(), 0)))
                        case Open(shard, end_s):
                            assert self.recover is not None
                            result = self._run(self.recover(shard), end_s, nested=True)
                        case Each(conversations):
                            result = [self._converse(each) for each in conversations]
                except Exception as e:
                    request = conversation.throw(e)
                else:
                    request = conversation.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _sleep(self, seconds: float, what: str, end_s: float) -> None:
        left_s = time_left(end_s)
        begun_s = time.monotonic()
        time.sleep(min(seconds, left_s))
        note_spent(end_s, what, begun_s)
        if seconds >= left_s:
            raise DeadlineExceeded(f"the call's deadline passed while {what}{main_cost(end_s, but=what)}")

    # -- the archive, and several plans at once ------------------------------------------------------------------

    def _archive(self, function: Callable[[], Any], end_s: float) -> Any:
        """Run in a thread, so that a server that stalls cannot delay the caller past its deadline.

        If the deadline is so far away (in a rescue or a sweep) that the archive's own timeouts come first, no thread is needed.
        """
        if time_left(end_s) > UNWATCHED_S:
            return function()
        begun_s = time.monotonic()
        future = self._for_archive.submit(function)
        try:
            return future.result(time_left(end_s))
        except FutureTimeout as e:
            if future.done() and not future.cancelled():
                raise
            future.cancel()
            raise ArchiveTimeout(
                f"the archive {self.archive.name} did not answer within the deadline{main_cost(end_s, but=ARCHIVE)}"
            ) from e
        finally:
            note_spent(end_s, ARCHIVE, begun_s)

    def _parallel(self, plans: Sequence[Plan[Any]], end_s: float, *, nested: bool) -> list[Any]:
        """Run plans in threads; nested ones run one after the other, because a bounded pool that waits for itself hangs."""

        def one(plan: Plan[Any]) -> Any:
            try:
                return self._run(plan, end_s, nested=True)
            except DistierError as e:
                return e

        if nested or len(plans) <= 1:
            return [one(plan) for plan in plans]
        begun = [self._for_plans.submit(partial(one, plan)) for plan in plans]
        return [future.result() for future in begun]

    def close(self) -> None:
        self._for_archive.close()
        self._for_plans.close()
        self.redis.close()
        self.archive.close()
        if self.local is not None:
            self.local.close()
