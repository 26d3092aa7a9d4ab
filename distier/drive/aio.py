"""The asyncio driver: performs effects on an event loop. The archive's blocking clients run in threads of the driver."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
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
from distier.stores.redis import AsyncExchange
from distier.stores.threads import Helpers

T = TypeVar("T")

THREADS_MAX = 16
TASKS_MAX = 64


class OwnTask:
    """A task that a store keeps on one event loop. It is over when the loop is: after `asyncio.run`, or in a child process."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._pid = os.getpid()

    @property
    def is_over(self) -> bool:
        return self._task.done() or self._task.get_loop().is_closed() or self._pid != os.getpid()

    async def stop(self) -> None:
        """Cancel the task, from any loop; wait for its end if the caller runs on the task's own loop."""
        if self.is_over:
            return
        loop = self._task.get_loop()
        if loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        else:
            with suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._task.cancel)


class AsyncDriver(Process):
    """Performs effects on `redis` and `archive` within one deadline per plan, `deadline_s` from its start."""

    def __init__(
        self, redis: AsyncExchange, archive: Archive, *, deadline_s: float, recover: Recover | None = None,
        counters: Counters | None = None,
    ) -> None:  # fmt: skip
        self.redis = redis
        self.archive = archive
        self.deadline_s = deadline_s
        self.recover = recover
        super().__init__(counters)
        self._threads = Helpers(THREADS_MAX)
        self._tidying: set[asyncio.Task[None]] = set()

    async def run(
        self, plan: Plan[T], deadline_s: float | None = None, on_progress: Callable[[Any], object] | None = None
    ) -> T:
        """Run a plan to its end, and return its result or raise its exception.

        If the caller's task is cancelled, the plan stops between two effects.
        """
        begun_s = time.monotonic()
        end_s = End(begun_s + (deadline_s or self.deadline_s))
        end_s.begun_s, end_s.on_progress = begun_s, on_progress
        try:
            if self.counters.trace is None:
                return await self._run(plan, end_s)
            with self.counters.trace(getattr(plan, "__name__", "call")):
                return await self._run(plan, end_s)
        except OutOfStep:
            self.redis.drop()
            raise

    async def _run(self, plan: Plan[T], end_s: float) -> T:
        try:
            effect = next(plan)
            while True:
                try:
                    result = await self.perform(effect, end_s)
                except Exception as e:
                    effect = plan.throw(e)
                except asyncio.CancelledError:
                    self._cancel(plan)
                    raise
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            plan.close()

    def _cancel(self, plan: Plan[Any]) -> None:
        """Cancel a plan, and perform its last effect (releasing a lease) in another task."""
        try:
            effect = plan.throw(Cancelled())
        except (Cancelled, StopIteration, DistierError):
            return
        with suppress(RuntimeError):  # the loop is closing
            task = asyncio.get_running_loop().create_task(self._tidy(effect))
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    async def _tidy(self, effect: Effect[Any]) -> None:
        with suppress(DistierError):
            await self.perform(effect, time.monotonic() + TIDY_S)

    async def perform(self, effect: Effect[Any], end_s: float) -> Any:
        """Perform one effect. Raises `DistierError`."""
        match effect:
            case Command() | RunScript():
                return await self._call(effect, end_s)
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
                    return await self._converse(with_hints(calls, end_s, self.off))
                return await self._pipeline(calls, end_s)
            case LocalGet(record):
                return await self._local_get(record)
            case LocalPut(record, content):
                return await self._local_put(record, content, end_s)
            case Offload(size_bytes, function, what):
                return function() if size_bytes < OFFLOAD_BYTES else await self._compute(function, what, end_s)
            case Parallel(plans):
                return await self._parallel(plans, end_s)
            case ArchiveGet(key, max_bytes):
                return await self._archive(lambda: self.archive.get(key, max_bytes=max_bytes), end_s)
            case ArchivePut(key, data, content_type, metadata):
                put = self.archive.put
                return await self._archive(lambda: put(key, data, content_type=content_type, metadata=metadata), end_s)
            case ArchiveList(prefix, start_after, limit):
                return await self._archive(
                    lambda: self.archive.list(prefix, start_after=start_after, limit=limit), end_s
                )
            case ArchiveDelete(keys):
                return await self._archive(lambda: self.archive.delete(keys), end_s)
            case ArchiveRestore(key, days, tier):
                return await self._archive(lambda: restore(self.archive, key, days=days, tier=tier), end_s)
            case NewToken():
                return secrets.token_hex(16)
            case Now():
                return time.time_ns() // 1_000_000
            case Monotonic():
                return time.monotonic()
            case Sleep(seconds, what):
                return await self._sleep(seconds, what, end_s)
            case _:
                return self.at_once(effect)

    async def _compute(self, function: Callable[[], Any], what: str, end_s: float) -> Any:
        time_left(end_s)
        begun_s = time.monotonic()
        try:
            return await self.in_thread(function)
        finally:
            note_spent(end_s, what, begun_s)

    # -- Redis ---------------------------------------------------------------------------------------------------

    async def _call(self, call: Call, end_s: float) -> Any:
        """Make one call: send it, and start a conversation only if the first reply does not settle it."""
        if call.hint:
            return collect((await self._converse(with_hints([call], end_s, self.off)))[0])
        if not call.replicas:
            try:
                reply = (await self.redis.exchange(call.shard, (command_of(call),), time_left(end_s)))[0]
                if not isinstance(reply, RedisError):
                    return parse_reply(call, reply)
            except (RedisConnectionError, RedisTimeoutError) as e:
                note_lost([call])
                if not call.retry or time.monotonic() >= end_s:
                    raise lost(e, end_s) from e
            except Recovering:
                pass  # the script changed nothing; the conversation gives the shard an epoch
        return collect((await self._converse(converse_with_shard([call], end_s, opens=self.recover is not None)))[0])

    async def _pipeline(self, calls: Sequence[Call], end_s: float) -> list[Any]:
        """Make calls in one round trip; return values or errors, in order. Nearly always one exchange answers them all."""
        opens = self.recover is not None
        shard = in_one_exchange(calls) if calls else None
        if shard is None:
            return await self._converse(converse_with_shards(calls, end_s, opens=opens)) if calls else []
        answer: Any
        try:
            answer = await self.redis.exchange(shard, [command_of(call) for call in calls], time_left(end_s))
        except (RedisConnectionError, RedisTimeoutError) as e:
            answer = e
        except DistierError as e:
            return [e] * len(calls)
        first = take_first_answer(calls, answer, end_s)
        if isinstance(first, list) and not (opens and any(isinstance(result, Recovering) for result in first)):
            return first
        return await self._converse(converse_with_shard(calls, end_s, first, opens=opens))

    async def _converse(self, conversation: Generator[Request, Any, list[Any]]) -> list[Any]:
        """Perform the requests of a conversation until it ends; return its results."""
        try:
            request = next(conversation)
            while True:
                try:
                    result: Any = None
                    match request:
                        case Send(shard, commands, end_s):
                            result = await self.redis.exchange(shard, commands, time_left(end_s))
                        case Calls(calls, end_s):
                            result = await self._pipeline(calls, end_s)
                        case SendMany(batches, end_s):
                            result = await self.redis.exchange_many(batches, time_left(end_s))
                        case Pause(seconds, end_s):
                            await asyncio.sleep(min(seconds, max(end_s - time.monotonic(), 0)))
                        case Open(shard, end_s):
                            assert self.recover is not None
                            result = await self._run(self.recover(shard), end_s)
                        case Each(conversations):
                            result = await asyncio.gather(*map(self._converse, conversations))
                except Exception as e:
                    request = conversation.throw(e)
                else:
                    request = conversation.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _sleep(self, seconds: float, what: str, end_s: float) -> None:
        left_s = time_left(end_s)
        begun_s = time.monotonic()
        await asyncio.sleep(min(seconds, left_s))
        note_spent(end_s, what, begun_s)
        if seconds >= left_s:
            raise DeadlineExceeded(f"the call's deadline passed while {what}{main_cost(end_s, but=what)}")

    # -- the node's disk -------------------------------------------------------------------------------------------

    async def _local_get(self, record: Record) -> bytes | None:
        local = self.local
        if local is None or record.size_bytes < OFFLOAD_BYTES:
            return local.get(record) if local is not None else None
        return await self.in_thread(partial(local.get, record))

    async def _local_put(self, record: Record, content: bytes, end_s: float) -> bool:
        """Write in a thread, whatever the size: a writer may have to wait for another one."""
        if self.local is None:
            return False
        begun_s = time.monotonic()
        try:
            return await self.in_thread(partial(self.local.put, record, content))
        finally:
            note_spent(end_s, DISK, begun_s)

    # -- the archive, and several plans at once ------------------------------------------------------------------

    def in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a function in a thread of the driver; the loop's own executor refuses work while the interpreter exits."""
        return asyncio.wrap_future(self._threads.submit(function))

    async def _archive(self, function: Callable[[], Any], end_s: float) -> Any:
        """Run in a thread, so that a server that stalls cannot delay the caller past its deadline."""
        begun_s = time.monotonic()
        future = self.in_thread(function)
        try:
            async with asyncio.timeout(time_left(end_s)):
                return await future
        except TimeoutError as e:
            raise ArchiveTimeout(
                f"the archive {self.archive.name} did not answer within the deadline{main_cost(end_s, but=ARCHIVE)}"
            ) from e
        finally:
            note_spent(end_s, ARCHIVE, begun_s)

    async def _parallel(self, plans: Sequence[Plan[Any]], end_s: float) -> list[Any]:
        gate = asyncio.Semaphore(TASKS_MAX)

        async def one(plan: Plan[Any]) -> Any:
            async with gate:
                try:
                    return await self._run(plan, end_s)
                except DistierError as e:
                    return e

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(plan)) for plan in plans]
        return [task.result() for task in tasks]

    async def close(self) -> None:
        mine = [task for task in self._tidying if task.get_loop() is asyncio.get_running_loop()]
        await asyncio.gather(*mine, return_exceptions=True)
        self._threads.close()
        await self.redis.close()
        self.archive.close()
        if self.local is not None:
            self.local.close()
