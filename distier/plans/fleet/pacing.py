"""Pacing: the requests of a plan to the archive, and its computations, wait until there is room for them.

`paced` is a plan around a plan. It passes effects on, and waits before some of them. So no plan knows of pacing, and a
driver sees nothing but effects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from distier.effects import (
    ArchiveDelete,
    ArchiveGet,
    ArchiveList,
    ArchivePut,
    Effect,
    Offload,
    Parallel,
    Plan,
    Sleep,
    T,
)
from distier.errors import ArchiveUnavailable, NeedsRestore, Unavailable

NAP_S = 0.1
"""The longest sleep between two checks whether to stop."""
VERBS: dict[type[Effect[Any]], str] = {
    ArchivePut: "put", ArchiveGet: "get", ArchiveList: "list", ArchiveDelete: "delete",
}  # fmt: skip


class Pace(Protocol):
    """The source of times: see `distier.worker.pace.Pacer`."""

    def archive_wait_s(self) -> float:
        """Return how long the next request has to wait; 0 if it may go, and has been counted."""

    def cpu_wait_s(self) -> float:
        """Return how long the next computation has to wait."""

    def waited(self, kind: str, seconds: float) -> None:
        """Count a wait for `archive` or `cpu`."""

    def measured(self, function: Callable[[], T]) -> Callable[[], T]:
        """Return `function`, measured when it runs."""

    def asks(self, verb: str) -> Callable[[ArchiveUnavailable | None], None]:
        """Return what counts a request that begins now: it is called when the request was answered, or failed."""

    @property
    def ending(self) -> bool:
        """Return whether nothing that would have to wait may begin any more."""

    @property
    def over(self) -> bool:
        """Return whether nothing may begin any more."""


class Stopping(Unavailable):
    """The worker is ending, and so is the plan that it ran. Any other worker continues it."""


def paced(plan: Plan[T], pace: Pace) -> Plan[T]:
    """Run `plan` at this pace. Raises what it raises, and `Stopping`."""
    try:
        effect = next(plan)
        while True:
            try:
                result = yield from _one(effect, pace)
            except Exception as e:
                effect = plan.throw(e)
            else:
                effect = plan.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        plan.close()


def _one(effect: Effect[Any], pace: Pace) -> Plan[Any]:
    verb = VERBS.get(type(effect))
    if verb is not None:
        yield from _wait(pace, "archive", pace.archive_wait_s)
        ended = pace.asks(verb)
        try:
            result = yield effect
        except ArchiveUnavailable as e:
            # An object in Glacier says nothing about the archive's health.
            ended(None if isinstance(e, NeedsRestore) else e)
            raise
        ended(None)
        return result
    if isinstance(effect, Parallel):
        return (yield Parallel([paced(plan, pace) for plan in effect.plans]))
    if isinstance(effect, Offload):
        yield from _wait(pace, "cpu", pace.cpu_wait_s)
        return (yield Offload(effect.size_bytes, pace.measured(effect.function), effect.what))
    return (yield effect)


def _wait(pace: Pace, kind: str, wait_s: Callable[[], float]) -> Plan[None]:
    while True:
        left_s = 0.0 if pace.over else wait_s()
        if pace.over or (pace.ending and left_s > 0):
            raise Stopping("the worker is ending")
        if left_s <= 0:
            return
        nap_s = min(left_s, NAP_S)
        pace.waited(kind, nap_s)
        yield Sleep(nap_s, "waiting for this worker's own pace")
