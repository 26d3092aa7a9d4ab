"""The worker runs the maintenance plans in rounds, in a thread of a process or as `distier worker`.

Any number of workers divide the shards among themselves. Each holds the leases of its shards, renews them while it works,
and takes over the leases of a worker that died. The leases only avoid duplicate work; correctness does not depend on
them. Every step is correct alone, so a worker may be killed at any line, or stop for an hour in the middle of a step,
and another one continues.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.effects import Command, Pipeline, Plan
from distier.errors import DistierError, Unavailable
from distier.observe.flow import Flow
from distier.observe.logs import log
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.dictionaries import learn_if_due
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
from distier.plans.fleet.pacing import Stopping, paced
from distier.plans.fleet.quotas import balance
from distier.plans.recovery.epochs import WrongArchive
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
"""Interval in seconds between health requests to the archive, if the worker has a health endpoint and no other request."""


@dataclass
class Report:
    """What a worker has done so far: rounds, failures, the last failure, and counts of work by name in `did` (`archived`,
    `idle`, `headroom`, `expired`, `ttl_ended`, `aged`, `ranked`, `compacted`, `dictionaries`, `rescued`, `shares`,
    `nodes_forgotten`, `learned`, `swept`, `packed`)."""

    rounds: int = 0
    failures: int = 0
    last_failure: str | None = None
    did: dict[str, int] = field(default_factory=dict)

    def add(self, did: dict[str, int]) -> None:
        for name, n in did.items():
            self.did[name] = self.did.get(name, 0) + n


class Step(NamedTuple):
    """One step of a round. `make` returns its plan and `deadline_s` limits its time. A worker that stops does not wait for
    a `long` step."""

    make: Callable[[], Plan[Any]]
    deadline_s: float = ROUND_DEADLINE_S
    long: bool = False


def _unexpected(error: Exception) -> Exception | None:
    """Return the error if it is not a `DistierError`, so that its traceback is logged; else None.

    A round survives such an error like any other. The worker maintains all modules, and must not die of a fault in one.
    """
    return None if isinstance(error, DistierError) else error


class Lease(NamedTuple):
    fence: int
    until_s: float


class Rounds:
    """The common part of both workers: their name and leases, the steps of a round, its result, and the pause after it."""

    def __init__(self, space: Namespace, on_round: Callable[[Report], None] | None) -> None:
        config = space.config.worker
        self.report = Report()
        self.name = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.space = space
        self.lease_s = config.lease_ms / 1000
        self.heartbeat_s = self.lease_s / 3
        """Seconds between two heartbeats, and the time limit of one: a lease counts from the start of its heartbeat."""
        self.pacer = Pacer(config.archive_requests_per_second, config.cpu_share)
        self.workers: list[str] = []
        self.leases: Mapping[Shard, Lease] = {}
        self.samples: Mapping[Shard, ShardSample] = {}
        self.flow = Flow()
        self.watched = False
        self.stopping = False
        self.last_heartbeat_s: float | None = None
        self.last_heartbeat_failure: str | None = None
        self.unanswered: str | None = None
        """The failure of one master in the last heartbeat, if other masters replied."""
        self.last_round_s: float | None = None
        self.last_round_failure: str | None = None
        self.step: Step | None = None
        self._on_round = on_round
        self._pause_s = 0.0
        self._heartbeat_began_s = 0.0
        self._left_out = False
        self._identified_s: float | None = None
        self._rescue_again_s: float | None = None

    # -- leases ----------------------------------------------------------------------------------------------------

    def holds(self, shard: Shard) -> bool:
        """Return whether this worker still holds the lease, by its own clock since before it requested the lease."""
        lease = self.leases.get(shard)
        return lease is not None and time.monotonic() < lease.until_s

    @property
    def held(self) -> list[Shard]:
        return [shard for shard in self.leases if self.holds(shard)]

    def _fences(self) -> HeldLeases:
        return {shard: lease.fence for shard, lease in self.leases.items()}

    def _take(self, held: HeldLeases, began_s: float) -> None:
        self.leases = {shard: Lease(fence, began_s + self.lease_s) for shard, fence in held.items()}
        self.last_heartbeat_s, self.last_heartbeat_failure = time.monotonic(), None

    def _join(self) -> Plan[None]:
        """Send one heartbeat. The worker holds no lease of a shard that does not reply, but still those of the others."""
        began_s, ttl_ms = time.monotonic(), self.space.config.worker.lease_ms
        found = yield from join(self.space, self.name, self._fences(), ttl_ms, workers=self.workers)
        self.workers = found.workers
        self._take(found.held, began_s)
        self.unanswered = None if found.failure is None else str(found.failure)
        if found.failure:
            self._heartbeat_failed(found.failure)
            return
        if self.watched:  # also in heartbeats: rounds pause for up to 30 s while the archive is unavailable
            with suppress(DistierError):
                self.samples = yield from sample(self.held)

    def _next_heartbeat_s(self) -> float:
        """Return the seconds until the next heartbeat."""
        return max(0.0, self._heartbeat_began_s + self.heartbeat_s - time.monotonic())

    def _claim(self, shards: Sequence[Shard]) -> Plan[None]:
        """Claim the leases of `shards` that no worker holds, for a single round.

        This is repeated before each step, in place of a thread that renews the leases. A step that takes longer than a
        lease may therefore be done twice. Shards that do not reply are skipped.
        """
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

    def _heartbeat_failed(self, error: Exception) -> None:
        self.last_heartbeat_failure = f"{type(error).__name__}: {error}"
        log.warning(
            "the worker could not renew all its leases and will retry: %s",
            self.last_heartbeat_failure,
            exc_info=_unexpected(error),
        )

    # -- rounds ----------------------------------------------------------------------------------------------------

    def _plans(self, *, alone: bool) -> Generator[tuple[Plan[Any], float], None, bool]:
        """Yield the plans of one round with their deadlines in seconds. The caller throws in the error of a plan.

        Args:
            alone: Whether to renew the leases before each step, because no thread or task does.

        Returns:
            Whether all steps succeeded.
        """
        good = True
        for step in self._steps():
            if self.stopping:
                break
            try:
                if alone:
                    yield self._claim(list(self.leases)), self.heartbeat_s
                yield self._begin(step)
            except Stopping:
                break
            except Exception as e:
                self._failed(e)
                good = False
                if isinstance(e, WrongArchive):
                    break
        return self._ended(good)

    # -- steps -----------------------------------------------------------------------------------------------------

    def _steps(self) -> Iterator[Step]:
        """Yield the steps of one round over the shards that this worker holds.

        The worker that holds the first shard also does the steps that concern all shards. A round ends if the archive is
        not the namespace's (`WrongArchive`), because all later steps rely on the archive.
        """
        space = self.space
        if self.held:
            yield Step(self._identify)
        for shard in self.held:
            if self.holds(shard):
                yield Step(partial(maintain, space, shard))
        first = space.keys.shards[0]
        if self.holds(first):
            # After a restart or a loss of Redis: compare the records with the archive.
            yield Step(partial(self._for_all, "rescued", self._rescue()), SWEEP_DEADLINE_S, long=True)
        if self.holds(first):
            lease = self.leases.get(first)
            fence = str(lease.fence) if lease else ""
            yield Step(partial(self._for_all, "shares", balance(space, fence)))
        if self.holds(first):
            yield Step(partial(self._for_all, "learned", learn_if_due(space)), SWEEP_DEADLINE_S, long=True)
        if self.holds(first):
            yield Step(partial(self._for_all, "swept", sweep_in_turn(space)), SWEEP_DEADLINE_S, long=True)
        if self.watched:
            yield Step(self._look)

    def _progressed(self, value: object) -> None:
        """Add what a step of `maintain` did to the report. The progress of a rescue is counted when the rescue ends."""
        if isinstance(value, dict):
            self.report.add(value)

    def _identify(self) -> Plan[None]:
        """Check the archive's identity before something is archived, and regularly: one request to the archive."""
        shards = self.held
        calls = [Command(shard, ("ZCARD", shard.dirty), int, retry=False) for shard in shards]
        dirty = any(reply for reply in (yield from Pipeline(calls)))
        if dirty or self._identified_s is None or time.monotonic() - self._identified_s > LOOK_AT_ARCHIVE_S:
            yield from try_archive(self.space, shards)
            self._identified_s = time.monotonic()

    def _for_all(self, name: str, plan: Plan[int | None]) -> Plan[None]:
        """Run a step that concerns all shards, unless one shard does not reply.

        In that case the step is left for a later round. It would wait for that shard until its deadline, and the other
        shards would wait for the step.
        """
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
        """Rescue the namespace if necessary.

        If some modules could not be read, wait `RESCUE_AGAIN_S` seconds before the next attempt. Reads look for these
        modules themselves in the meantime.
        """
        if self._rescue_again_s is not None and time.monotonic() < self._rescue_again_s:
            return None
        try:
            return (yield from rescue_if_needed(self.space))
        except RescuedInPart:
            self._rescue_again_s = time.monotonic() + RESCUE_AGAIN_S
            raise

    def _look(self) -> Plan[None]:
        """Sample the shards and check the archive, for the health endpoint."""
        self.samples = yield from sample(self.held)
        yield from self.flow.follow(self.held)
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
            "a round of the worker failed and will be repeated: %s",
            self.report.last_failure,
            exc_info=_unexpected(error),
        )

    def _ended(self, good: bool) -> bool:
        """Finish a round and return whether all its steps succeeded.

        While rounds fail, the pause before the next one doubles, up to 30 s. It does not if steps were only skipped.
        """
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
