"""The asyncio driver: the same effects on an event loop. The archive's blocking clients run in its own threads."""

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
    answered,
    command_of,
    first_answered,
    in_one_exchange,
    note_lost,
    settled,
)
from distier.drive.deadline import ARCHIVE, DISK, End, most, note_spent, time_left
from distier.drive.hints import with_hints
from distier.drive.process import OFFLOAD_BYTES, Process
from distier.drive.replies import Call, lost, understood
from distier.effects import (  # fmt: skip
    TIDY_S,
    ArchiveDelete,
    ArchiveGet,
    ArchiveList,
    ArchivePut,
    Cancelled,
    Command,
    Count,
    Effect,
    LocalGet,
    LocalPut,
    NewToken,
    Now,
    Offload,
    Parallel,
    Pipeline,
    Plan,
    RunScript,
    Sleep,
    Used,
    collect,
)
from distier.errors import ArchiveTimeout, DeadlineExceeded, DistierError, OutOfStep, Recovering
from distier.stores.archive import Archive
from distier.stores.redis import AsyncExchange
from distier.stores.threads import Helpers

T = TypeVar("T")

THREADS_MAX = 16
TASKS_MAX = 64


class OwnTask:
    """A task that a store keeps on one event loop, and that is over where that is: after `asyncio.run`, or in a child."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._pid = os.getpid()

    @property
    def is_over(self) -> bool:
        return self._task.done() or self._task.get_loop().is_closed() or self._pid != os.getpid()

    async def stop(self) -> None:
        """From whatever loop; waited for where it is the task's own."""
        if self.is_over:
            return
        loop = self._task.get_loop()
        if loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        else:
            with suppress(RuntimeError):  # it has just been closed
                loop.call_soon_threadsafe(self._task.cancel)


class AsyncDriver(Process):
    """Performs effects on `redis` and `archive` within one deadline per plan, `deadline_s` from its start."""

    def __init__(
        self, redis: AsyncExchange, archive: Archive, *, deadline_s: float, recover: Recover | None = None
    ) -> None:
        self.redis = redis
        self.archive = archive
        self.deadline_s = deadline_s
        self.recover = recover
        super().__init__()
        self._threads = Helpers(THREADS_MAX)
        self._tidying: set[asyncio.Task[None]] = set()

    async def run(self, plan: Plan[T], deadline_s: float | None = None) -> T:
        """Run a plan to its end: its result, or what it raises. A cancelled run stops the plan between two effects."""
        begun_s = time.monotonic()
        end_s = End(begun_s + (deadline_s or self.deadline_s))
        end_s.begun_s = begun_s
        try:
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
                    self._give_up(plan)
                    raise
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            plan.close()

    def _give_up(self, plan: Plan[Any]) -> None:
        """The plan's task is cancelled: what the plan still wants done for others (a lease is given back) is done beside it."""
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
        """One effect. Raises `DistierError`."""
        match effect:
            case Command() | RunScript():
                return await self._call(effect, end_s)
            case Used(shard, id, flush):
                return self.uses.note(shard, id, time.monotonic(), flush=flush)
            case Count(name, n):
                return self.counters.add(name, n)
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
            case NewToken():
                return secrets.token_hex(16)
            case Now():
                return time.time_ns() // 1_000_000
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
        """One call: sent at once, and handed to a conversation only where it is not answered at once."""
        if call.hint:
            return collect((await self._converse(with_hints([call], end_s, self.off)))[0])
        if not call.replicas:
            try:
                reply = (await self.redis.exchange(call.shard, (command_of(call),), time_left(end_s)))[0]
                if not isinstance(reply, RedisError):
                    return understood(call, reply)
            except (RedisConnectionError, RedisTimeoutError) as e:
                note_lost([call])
                if not call.retry or time.monotonic() >= end_s:
                    raise lost(e, end_s) from e
            except Recovering:
                pass  # nothing was done; the conversation gives the shard an epoch
        return collect((await self._converse(settled([call], end_s, opens=self.recover is not None)))[0])

    async def _pipeline(self, calls: Sequence[Call], end_s: float) -> list[Any]:
        """Calls in one round trip: values or errors, in order. Nearly always one exchange answers them all."""
        opens = self.recover is not None
        shard = in_one_exchange(calls) if calls else None
        if shard is None:
            return await self._converse(answered(calls, end_s, opens=opens)) if calls else []
        answer: Any
        try:
            answer = await self.redis.exchange(shard, [command_of(call) for call in calls], time_left(end_s))
        except (RedisConnectionError, RedisTimeoutError) as e:
            answer = e
        except DistierError as e:
            return [e] * len(calls)
        first = first_answered(calls, answer, end_s)
        if isinstance(first, list) and not (opens and any(isinstance(result, Recovering) for result in first)):
            return first
        return await self._converse(settled(calls, end_s, first, opens=opens))

    async def _converse(self, conversation: Generator[Request, Any, list[Any]]) -> list[Any]:
        """Do what a conversation asks for, until it ends."""
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
            raise DeadlineExceeded(f"the call's deadline passed while {what}{most(end_s, but=what)}")

    # -- the node's disk -------------------------------------------------------------------------------------------

    async def _local_get(self, record: Record) -> bytes | None:
        local = self.local
        if local is None or record.size_bytes < OFFLOAD_BYTES:
            return local.get(record) if local is not None else None
        return await self.in_thread(partial(local.get, record))

    async def _local_put(self, record: Record, content: bytes, end_s: float) -> bool:
        """Always in a thread: a writer may have to wait for another one."""
        if self.local is None:
            return False
        begun_s = time.monotonic()
        try:
            return await self.in_thread(partial(self.local.put, record, content))
        finally:
            note_spent(end_s, DISK, begun_s)

    # -- the archive, and several plans at once ------------------------------------------------------------------

    def in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Not the loop's own executor, which takes no work at the exit of the interpreter."""
        return asyncio.wrap_future(self._threads.submit(function))

    async def _archive(self, function: Callable[[], Any], end_s: float) -> Any:
        """Run in a thread, so that a server that stalls cannot hold the caller past its deadline."""
        begun_s = time.monotonic()
        future = self.in_thread(function)
        try:
            async with asyncio.timeout(time_left(end_s)):
                return await future
        except TimeoutError as e:
            raise ArchiveTimeout(
                f"the archive {self.archive.name} did not answer within the deadline{most(end_s, but=ARCHIVE)}"
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
