"""The scripted driver: it performs the effects of plans one by one, in one thread, and lets a test act at each of them.

`Scripted` is the part without a choice: it steps through a plan and its parallel plans in order, and performs the effects that
touch nothing outside the process. `PlanRunner` runs plans to their end, with a fault at one effect. The explorer's processes
(`tests/interleave/explorer.py`) stop at each effect, and the explorer chooses which one continues.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Literal, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError

from distier.drive.conversation import converse
from distier.drive.process import UseBuffer
from distier.drive.replies import Call
from distier.effects import (
    ArchiveDelete,
    ArchiveGet,
    ArchiveList,
    ArchivePut,
    Command,
    Count,
    Effect,
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
from distier.errors import ArchiveUnavailable, DeadlineExceeded, DistierError, RedisUnavailable
from distier.stores.archive import Archive
from distier.stores.redis import Exchange

T = TypeVar("T")

SLEEP_MAX_S = 60.0
REDIS = (Command, RunScript, Pipeline)
ARCHIVE = (ArchivePut, ArchiveGet, ArchiveList, ArchiveDelete)


def perform_on(archive: Archive, effect: Effect[Any]) -> Any:
    """Perform an effect on an archive."""
    match effect:
        case ArchiveGet(key, max_bytes):
            return archive.get(key, max_bytes=max_bytes)
        case ArchivePut(key, data, content_type, metadata):
            return archive.put(key, data, content_type=content_type, metadata=metadata)
        case ArchiveList(prefix, start_after, limit):
            return archive.list(prefix, start_after=start_after, limit=limit)
        case ArchiveDelete(keys):
            return archive.delete(keys)
    raise AssertionError(f"no effect on an archive: {effect!r}")


class Scripted:
    """One process. Two processes with one `name` draw the same random tokens: the second is the retry of the first."""

    name: str
    tokens: int
    uses: UseBuffer
    counters: Counter[str]

    def steps(self, plan: Plan[T]) -> Generator[Any, Any, T]:
        """Run a plan: yield what `steps_of` yields for each effect, and receive the results.

        The plans of a `Parallel` run in order, and the `Parallel` itself is no step.
        """
        try:
            effect = next(plan)
            while True:
                try:
                    result = yield from self._parallel(effect) if type(effect) is Parallel else self.steps_of(effect)
                except DistierError as e:
                    effect = plan.throw(e)
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            plan.close()

    def _parallel(self, effect: Parallel) -> Generator[Any, Any, list[Any]]:
        results: list[Any] = []
        for plan in effect.plans:
            try:
                results.append((yield from self.steps(plan)))
            except DistierError as e:
                results.append(e)
        return results

    def steps_of(self, effect: Effect[Any]) -> Generator[Any, Any, Any]:
        """Return the result of an effect, after any number of stops."""
        return (yield effect)

    def perform(self, effect: Effect[Any]) -> Any:
        """Perform an effect that touches nothing outside the process."""
        match effect:
            case Offload(_, function):
                return function()
            case NewToken():
                self.tokens += 1
                return sha1(f"{self.name}/{self.tokens}".encode()).hexdigest()[:32]
            case Used(shard, id, flush, hit):
                if hit:
                    self.counters[hit] += 1
                return self.uses.note(shard, id, 0.0, flush=flush)
            case Count(name, n):
                self.counters[name] += n
                return None
            case Progress():
                return None
            case Now():
                return 0
            case Monotonic():
                return time.monotonic()
        raise AssertionError(f"an effect that this driver does not know: {effect!r}")


# -- to the end, with a fault ------------------------------------------------------------------------------------------

FaultKind = Literal["stop", "fail", "lost", "torn"]


@dataclass(frozen=True)
class Fault:
    """The fault at effect number `at` (from 1).

    stop    the effect is performed, then the process dies: nothing of the plan runs any more
    fail    the effect is not performed; the plan gets `Unavailable`
    lost    the effect is performed, but the reply is lost; the plan gets `Unavailable`
    torn    as lost, and only the first half of a pipeline is performed
    """

    kind: FaultKind
    at: int


class Stopped(BaseException):
    """The process died. It is a `BaseException`, so that nothing catches it on the way."""


@dataclass
class PlanRunner(Scripted):
    """A process that runs each plan to its end. Its waits take no time.

    `effects` has the names of the effects of the last run. `on_sleep` is called while this process waits.
    """

    redis: Exchange
    archive: Archive
    name: str = "p"
    fault: Fault | None = None
    on_sleep: Callable[[float], None] | None = None
    effects: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    archive_down: bool = False
    tokens: int = 0
    _slept_s: float = 0.0
    uses: UseBuffer = field(default_factory=UseBuffer)

    def run(self, plan: Plan[T]) -> T:
        """Run a plan to its end. Raises the exceptions of the plan, and `Stopped` for the fault `stop`."""
        self.effects.clear()
        self._slept_s = 0.0
        steps = self.steps(plan)
        try:
            effect = next(steps)
            while True:
                try:
                    result = self._step(effect)
                except DistierError as e:
                    effect = steps.throw(e)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    def _step(self, effect: Effect[Any]) -> Any:
        name = effect.script.name if isinstance(effect, RunScript) else type(effect).__name__
        self.effects.append(name)
        fault = self.fault if self.fault and self.fault.at == len(self.effects) else None
        if fault is None or not isinstance(effect, REDIS + ARCHIVE):
            result = self.perform(effect)
        elif fault.kind == "stop":
            self.perform(effect)
        else:
            return self._broken(effect, fault.kind)
        if fault and fault.kind == "stop":
            raise Stopped
        return result

    def _broken(self, effect: Effect[Any], kind: FaultKind) -> Any:
        if isinstance(effect, Pipeline):
            error = RedisUnavailable("injected")
            part = {"fail": 0, "torn": len(effect.calls) // 2, "lost": len(effect.calls)}[kind]
            self._calls(effect.calls[:part])
            return [error for _ in effect.calls]
        if kind == "lost":
            self.perform(effect)
        raise RedisUnavailable("injected") if isinstance(effect, REDIS) else ArchiveUnavailable("injected")

    def perform(self, effect: Effect[Any]) -> Any:
        """Perform one effect."""
        match effect:
            case Command() | RunScript():
                return collect(self._calls([effect])[0])
            case Pipeline(calls):
                return self._calls(calls)
            case Sleep(seconds):
                return self._sleep(seconds)
        if not isinstance(effect, ARCHIVE):
            return super().perform(effect)
        if self.archive_down:
            raise ArchiveUnavailable("the archive is down")
        return perform_on(self.archive, effect)

    def _calls(self, calls: Sequence[Call]) -> list[Any]:
        """As the drivers, with one conversation for each shard; but without a second try, so that a fault has its effect."""
        results = []
        for call in calls:
            talk = converse([call], 0.0)
            try:
                ask = next(talk)
                while True:
                    assert isinstance(ask, list), "converse tries again although its time is over"
                    try:
                        replies = self.redis.exchange(call.shard, ask, 30.0)
                    except RedisConnectionError as e:
                        ask = talk.throw(e)
                    else:
                        ask = talk.send(replies)
            except StopIteration as stop:
                results += stop.value
        return results

    def _sleep(self, seconds: float) -> None:
        self._slept_s += seconds
        if self.on_sleep:
            self.on_sleep(self._slept_s)
        if self._slept_s > SLEEP_MAX_S:
            raise DeadlineExceeded("waited for too long")
