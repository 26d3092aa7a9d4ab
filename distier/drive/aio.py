"""The asyncio driver: the same effects on an event loop. The archive's blocking clients run in its own threads."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.module import Record
from distier.drive.conversation import (
    RECOVERIES_MAX,
    Recover,
    Unfinished,
    by_shard,
    command_of,
    converse,
    converse_together,
    first_answered,
    note_lost,
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
                return await (self._hinted if calls and calls[0].hint else self._pipeline)(calls, end_s)
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
        """One call: sent at once, and handed to the conversation of `_calls` only where it is not answered at once."""
        if call.hint:
            return collect((await self._hinted([call], end_s))[0])
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
                pass  # nothing was done; `_calls` gives the shard an epoch
        return collect((await self._calls([call], end_s))[0])

    async def _hinted(self, calls: Sequence[Call], end_s: float) -> list[Any]:
        """Calls of which some are hints: see `with_hints`."""
        asking = with_hints(calls, end_s, self.off)
        try:
            some, some_end_s = next(asking)
            while True:
                some, some_end_s = asking.send(await self._pipeline(some, some_end_s))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _pipeline(self, calls: Sequence[Call], end_s: float) -> list[Any]:
        """Calls grouped by shard: all servers are asked at once, each in one round trip. The groups that have to wait, or
        whose shard needs an epoch, then go on beside each other; what keeps one of them fails its calls, not the others."""
        groups = by_shard(calls)
        if len(groups) == 1:
            return await self._rest(calls, end_s)
        of_group = [[calls[i] for i in group] for group in groups]
        try:
            all_begun = await self._begin(of_group, end_s)
        except DistierError as e:  # no time is left
            return [e] * len(calls)
        results: list[Any] = [None] * len(calls)
        rest = [self._rest(some, end_s, begun) for some, begun in zip(of_group, all_begun, strict=True)]
        for group, values in zip(groups, await asyncio.gather(*rest), strict=True):
            for i, value in zip(group, values, strict=True):
                results[i] = value
        return results

    async def _ask(self, calls: Sequence[Call], end_s: float) -> list[Any] | Unfinished | None:
        """Some calls to one shard, sent at once. None if that needs a conversation from the start."""
        if any(isinstance(call, RunScript) and call.replicas for call in calls):
            return None
        try:
            return first_answered(
                calls,
                await self.redis.exchange(calls[0].shard, [command_of(c) for c in calls], time_left(end_s)),
                end_s,
            )
        except (RedisConnectionError, RedisTimeoutError) as e:
            return first_answered(calls, e, end_s)

    async def _begin(self, groups: Sequence[Sequence[Call]], end_s: float) -> list[list[Any] | Unfinished]:
        together = converse_together(groups, end_s)
        try:
            batches = next(together)
            while True:
                batches = together.send(await self.redis.exchange_many(batches, time_left(end_s)))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _rest(
        self, calls: Sequence[Call], end_s: float, begun: list[Any] | Unfinished | None = None
    ) -> list[Any]:
        try:
            if begun is None:
                begun = await self._ask(calls, end_s)
            return await self._calls(calls, end_s, begun)
        except DistierError as e:
            return [e] * len(calls)

    async def _calls(
        self, calls: Sequence[Call], end_s: float, begun: list[Any] | Unfinished | None = None
    ) -> list[Any]:
        """Values or `DistierError`s of some calls to one shard. A shard that has no epoch for this life of its server is
        given one, and the calls that were refused for that are made again. `begun`: what there is of the answers."""
        results = begun if isinstance(begun, list) else await self._talk(calls, end_s, begun)
        for _ in range(RECOVERIES_MAX):
            refused = [i for i, result in enumerate(results) if isinstance(result, Recovering)]
            if not refused or self.recover is None:
                break
            await self._run(self.recover(calls[0].shard), end_s)
            again = await self._talk([calls[i] for i in refused], end_s)
            for i, result in zip(refused, again, strict=True):
                results[i] = result
        return results

    async def _talk(self, calls: Sequence[Call], end_s: float, begun: Unfinished | None = None) -> list[Any]:
        """One conversation (see `converse`), or the rest of one."""
        talk = begun.talk if begun else converse(calls, end_s)
        try:
            ask = begun.ask if begun else next(talk)
            while True:
                if isinstance(ask, float):
                    await asyncio.sleep(min(ask, max(end_s - time.monotonic(), 0)))
                    ask = next(talk)
                    continue
                try:
                    replies = await self.redis.exchange(calls[0].shard, ask, time_left(end_s))
                except (RedisConnectionError, RedisTimeoutError) as e:
                    ask = talk.throw(e)
                else:
                    ask = talk.send(replies)
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
