"""The worker: it runs the maintenance plans in rounds, as a thread of a process or as `distier worker`.

Any number of workers may run at once. They share nothing but leases that save double work; every step is correct
alone, so a worker may be killed at any line and another one goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from distier.client import Store
from distier.errors import DistierError
from distier.observe.logs import log
from distier.plans import maintain
from distier.plans.rescue import rescue_if_needed

ROUND_DEADLINE_S = 60.0
SWEEP_DEADLINE_S = 3600.0
BACKOFF_MAX_S = 30.0


@dataclass
class Report:
    """What a worker has done so far, by name (`archived`, `idle`, `headroom`, `expired`, `aged`, `swept`), the rounds
    and failures, and the last failure."""

    rounds: int = 0
    failures: int = 0
    last_failure: str | None = None
    did: dict[str, int] = field(default_factory=dict)

    def add(self, did: dict[str, int]) -> None:
        for name, n in did.items():
            self.did[name] = self.did.get(name, 0) + n


class Worker:
    """Maintains the namespace of `store` until `stop`. The store stays the caller's, and may be used meanwhile."""

    def __init__(self, store: Store, *, on_round: Callable[[Report], None] | None = None) -> None:
        self.store = store
        self.report = Report()
        self._on_round = on_round
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_sweep_s = 0.0

    def run(self) -> Report:
        """Rounds until `stop` is called; the round under way is finished. A failing round is logged and repeated after
        a pause that doubles up to 30 s."""
        settings = self.store.space.config.worker
        pause_s = settings.interval_ms / 1000
        while not self._stopping.is_set():
            failed = not self.run_once()
            pause_s = min(pause_s * 2, BACKOFF_MAX_S) if failed else settings.interval_ms / 1000
            self._stopping.wait(pause_s)
        return self.report

    def run_once(self) -> bool:
        """One round over all shards, and a sweep of the archive when it is due. False if anything failed."""
        good = True
        for shard in self.store.space.keys.shards:
            good &= self._step(lambda shard=shard: self.store.run(  # type: ignore[misc]
                maintain.maintain(self.store.space, shard, self.report.add), deadline_s=ROUND_DEADLINE_S
            ))  # fmt: skip
        good &= self._step(self._verify)
        if time.monotonic() >= self._next_sweep_s:
            good &= self._step(self._sweep)
            self._next_sweep_s = time.monotonic() + self.store.space.config.worker.sweep_interval_ms / 1000
        self.report.rounds += 1
        if self._on_round:
            self._on_round(self.report)
        return good

    def _verify(self) -> None:
        """After a restart or a loss of Redis: compare the records with the archive, one worker of the fleet at a time."""
        adopted = self.store.run(rescue_if_needed(self.store.space), deadline_s=SWEEP_DEADLINE_S)
        if adopted is not None:
            log.info("compared all records with the archive: %d adopted", adopted)
            self.report.add({"rescued": adopted})

    def _sweep(self) -> None:
        swept = self.store.run(maintain.sweep(self.store.space), deadline_s=SWEEP_DEADLINE_S)
        self.report.add({"swept": swept})

    def _step(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except DistierError as e:
            self.report.failures += 1
            self.report.last_failure = f"{type(e).__name__}: {e}"
            log.warning("a round of the worker failed, it will be repeated: %s", self.report.last_failure)
            return False
        return True

    def start(self) -> Worker:
        """Run in a daemon thread."""
        self._thread = threading.Thread(target=self.run, name="distier-worker", daemon=True)
        self._thread.start()
        return self

    def stop(self, *, timeout_s: float = ROUND_DEADLINE_S) -> Report:
        """End after the round under way, and wait for that at most `timeout_s`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self.report

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
