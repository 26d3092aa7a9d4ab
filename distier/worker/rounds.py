"""The worker: it runs the maintenance plans in rounds, as a thread of a process or as `distier worker`.

Any number of workers share the shards: each holds the leases of its part, renews them while it works, and takes over those of
a worker that dies. The leases save double work and guard nothing; every step is correct alone, so a worker may be killed at
any line, or sleep for an hour in the middle of a step, and another one goes on.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.effects import Command, Pipeline, Plan
from distier.errors import DistierError, Unavailable
from distier.observe.logs import log
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.leases import (
    HeldLeases,
    ShardSample,
    claim_shards,
    give_back_leases,
    join,
    leave,
    sample,
    sweep_in_turn,
)
from distier.plans.fleet.maintain import maintain
from distier.plans.fleet.pacing import paced
from distier.plans.fleet.quotas import balance
from distier.plans.recovery.identity import try_archive
from distier.plans.recovery.rescue import RescuedInPart, rescue_if_needed
from distier.plans.tier.ledger import all_answer
from distier.plans.tier.writeback import look_at_archive
from distier.worker.pace import Pacer

ROUND_DEADLINE_S = 60.0
SWEEP_DEADLINE_S = 3600.0
BACKOFF_MAX_S = 30.0
RESCUE_AGAIN_S = 600.0
LOOK_AT_ARCHIVE_S = 10.0
"""Where somebody watches the worker's health, the archive is asked this often if there is nothing else to ask it for."""


@dataclass
class Report:
    """What a worker has done so far, by name (`archived`, `idle`, `headroom`, `expired`, `aged`, `rescued`, `quotas`,
    `swept`), the rounds and failures, and the last failure."""

    rounds: int = 0
    failures: int = 0
    last_failure: str | None = None
    did: dict[str, int] = field(default_factory=dict)

    def add(self, did: dict[str, int]) -> None:
        for name, n in did.items():
            self.did[name] = self.did.get(name, 0) + n


class Step(NamedTuple):
    """One thing to do in a round: `make` makes its plan, `deadline_s` is how long it may take. A `long` one is not waited
    for when the worker ends."""

    make: Callable[[], Plan[Any]]
    deadline_s: float = ROUND_DEADLINE_S
    long: bool = False


def _unexpected(error: Exception) -> Exception | None:
    """The error where it is none that distier raises on purpose: its traceback is logged. A round survives it like any other,
    for the worker guards all modules, and one that died of a fault in one of them would guard none."""
    return None if isinstance(error, DistierError) else error


class Lease(NamedTuple):
    fence: int
    until_s: float


class Rounds:
    """What both workers share: who they are, the steps of a round, what came of them, how long to wait for the next."""

    def __init__(self, space: Namespace, on_round: Callable[[Report], None] | None) -> None:
        config = space.config.worker
        self.report = Report()
        self.name = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.space = space
        self.lease_s = config.lease_ms / 1000
        self.beat_s = self.lease_s / 3
        """From one beat to the next, and the longest that one may take: a lease counts from the beginning of its beat."""
        self.pacer = Pacer(config.archive_requests_per_second, config.cpu_share)
        self.workers: list[str] = []
        self.leases: Mapping[Shard, Lease] = {}
        self.samples: Mapping[Shard, ShardSample] = {}
        self.watched = False
        self.stopping = False
        self.last_beat_s: float | None = None
        self.last_beat_failure: str | None = None
        self.unanswered: str | None = None
        """Of several masters, one did not answer the last beat that others answered."""
        self.last_round_s: float | None = None
        self.last_round_failure: str | None = None
        self.step: Step | None = None
        self._on_round = on_round
        self._pause_s = 0.0
        self._beat_began_s = 0.0
        self._left_out = False
        self._identified_s: float | None = None
        self._rescue_again_s: float | None = None

    # -- leases ----------------------------------------------------------------------------------------------------

    def holds(self, shard: Shard) -> bool:
        """Whether this worker still has the lease: by its own clock, from before it asked for it."""
        lease = self.leases.get(shard)
        return lease is not None and time.monotonic() < lease.until_s

    @property
    def held(self) -> list[Shard]:
        return [shard for shard in self.leases if self.holds(shard)]

    def _fences(self) -> HeldLeases:
        return {shard: lease.fence for shard, lease in self.leases.items()}

    def _take(self, held: HeldLeases, began_s: float) -> None:
        self.leases = {shard: Lease(fence, began_s + self.lease_s) for shard, fence in held.items()}
        self.last_beat_s, self.last_beat_failure = time.monotonic(), None

    def _join(self) -> Plan[None]:
        """One beat. A shard that does not answer is not held; the others are."""
        began_s, ttl_ms = time.monotonic(), self.space.config.worker.lease_ms
        found = yield from join(self.space, self.name, self._fences(), ttl_ms, workers=self.workers)
        self.workers = found.workers
        self._take(found.held, began_s)
        self.unanswered = None if found.failure is None else str(found.failure)
        if found.failure:
            self._beat_failed(found.failure)
            return
        if self.watched:  # also here: rounds pause for up to 30 s while the archive is away
            with suppress(DistierError):
                self.samples = yield from sample(self.held)

    def _next_beat_s(self) -> float:
        """Seconds to wait for it."""
        return max(0.0, self._beat_began_s + self.beat_s - time.monotonic())

    def _claim(self, shards: Sequence[Shard]) -> Plan[None]:
        """For one round alone: those of them that no worker has. Done again before each step, in place of a thread that renews:
        a step that takes longer than a lease may be done twice. A shard that does not answer is left out."""
        began_s, ttl_ms = time.monotonic(), self.space.config.worker.lease_ms
        found = yield from claim_shards(shards, self.name, ttl_ms)
        self._take(found.held, began_s)
        if found.failure:
            self._left_out = True
            self._failed(found.failure)

    def _give_back(self) -> Plan[None]:
        fences, self.leases = self._fences(), {}
        yield from give_back_leases(self.name, fences.items())

    def _leave(self) -> Plan[None]:
        fences, self.leases = self._fences(), {}
        yield from leave(self.space, self.name, fences)

    def _beat_failed(self, error: Exception) -> None:
        self.last_beat_failure = f"{type(error).__name__}: {error}"
        log.warning(
            "the worker could not renew all its leases, it will try again: %s",
            self.last_beat_failure,
            exc_info=_unexpected(error),
        )

    # -- steps -----------------------------------------------------------------------------------------------------

    def _steps(self) -> Iterator[Step]:
        """One round over the shards that this worker has; the worker that has the first one also does what concerns all.
        Where the archive is another one (`WrongArchive`) the round ends: all of it counts on what is archived."""
        space = self.space
        if self.held:
            yield Step(self._identify)
        for shard in self.held:
            if self.holds(shard):
                yield Step(partial(maintain, space, shard, self.report.add))
        first = space.keys.shards[0]
        if self.holds(first):
            # After a restart or a loss of Redis: compare the records with the archive.
            yield Step(partial(self._for_all, "rescued", self._rescue()), SWEEP_DEADLINE_S, long=True)
        if self.holds(first):
            lease = self.leases.get(first)
            fence = str(lease.fence) if lease else ""
            yield Step(partial(self._for_all, "shares", balance(space, fence)))
        if self.holds(first):
            yield Step(partial(self._for_all, "swept", sweep_in_turn(space)), SWEEP_DEADLINE_S, long=True)
        if self.watched:
            yield Step(self._look)

    def _identify(self) -> Plan[None]:
        """Before anything is archived, and now and then: one request to the archive."""
        shards = self.held
        calls = [Command(shard, ("ZCARD", shard.dirty), int, retry=False) for shard in shards]
        dirty = any(reply for reply in (yield from Pipeline(calls)))
        if dirty or self._identified_s is None or time.monotonic() - self._identified_s > LOOK_AT_ARCHIVE_S:
            yield from try_archive(self.space, shards)
            self._identified_s = time.monotonic()

    def _for_all(self, name: str, plan: Plan[int | None]) -> Plan[None]:
        """What concerns all shards. Where one does not answer it is left for a later round: it would wait for that one as long
        as it may, and the shards that answer for it."""
        try:
            yield from all_answer(self.space)
        except Unavailable as e:
            plan.close()
            self._left_out = True
            self._failed(e)
            return
        n = yield from plan
        if n is not None:
            self.report.add({name: n})

    def _rescue(self) -> Plan[int | None]:
        """Where some modules could not be read, not in each round again: reads look for them themselves."""
        if self._rescue_again_s is not None and time.monotonic() < self._rescue_again_s:
            return None
        try:
            return (yield from rescue_if_needed(self.space))
        except RescuedInPart:
            self._rescue_again_s = time.monotonic() + RESCUE_AGAIN_S
            raise

    def _look(self) -> Plan[None]:
        """For who watches."""
        self.samples = yield from sample(self.held)
        asked_s = self.pacer.last_answer_s
        if self.pacer.last_failure or asked_s is None or time.monotonic() - asked_s > LOOK_AT_ARCHIVE_S:
            yield from look_at_archive(self.space)

    def _begin(self, step: Step) -> tuple[Plan[Any], float]:
        self.step = step
        slow = self.space.config.worker.archive_requests_per_second or self.space.config.worker.cpu_share
        return paced(step.make(), self.pacer), SWEEP_DEADLINE_S if slow else step.deadline_s

    def _ask_to_stop(self) -> None:
        self.stopping = self.pacer.ending = True
        if self.step is not None and self.step.long:
            self.pacer.over = True

    def _failed(self, error: Exception) -> None:
        self.report.failures += 1
        self.report.last_failure = self.last_round_failure = f"{type(error).__name__}: {error}"
        log.warning(
            "a round of the worker failed, it will be repeated: %s",
            self.report.last_failure,
            exc_info=_unexpected(error),
        )

    def _ended(self, good: bool) -> bool:
        """The round is over: the pause until the next one doubles up to 30 s while rounds fail; not where something was only
        left out. Whether all was done."""
        self.step = None
        usual_s = self.space.config.worker.interval_ms / 1000
        self._pause_s = usual_s if good else min(max(self._pause_s, usual_s) * 2, BACKOFF_MAX_S)
        self.report.rounds += 1
        self.last_round_s = time.monotonic()
        good, self._left_out = good and not self._left_out, False
        if good:
            self.last_round_failure = None
        if self._on_round:
            try:
                self._on_round(self.report)
            except Exception:
                log.exception("the worker's on_round failed")
        return good
