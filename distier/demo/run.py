"""`distier demo`: a typical workload on one machine, and a check that it worked.

Agents (separate processes) share the standard library's sources as modules. They read with a skewed pattern, write new
versions, promote, demote and delete. The hot tier holds a few per cent of the tokens and the warm tier some of the
modules; a worker archives. Then everything stops, and a fresh process checks:

    every module reads back as its greatest acknowledged version, byte by byte;
    the same is true after all modules were demoted to the archive;
    the accounts that the scripts keep equal a recount;
    no budget was exceeded in any of the samples that were taken throughout the run (the scripts change the accounts
    atomically, so each sample is a state that really existed).

The parent controls its children through their stdin: a line with the job, a line to start, and end of file to stop. So
they stop by themselves if the parent dies for any reason, without a signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from distier.client import Store
from distier.demo.agent import corpus, demo_config, open_demo
from distier.demo.report import (
    BATCH,
    CHECK_SAMPLE_S,
    END_S,
    LAST_MOVES,
    MOVES_S,
    REPORT_INTERVAL_S,
    SAMPLE_S,
    Ack,
    Acks,
    AgentRow,
    OnProgress,
    Problem,
    Progress,
    Report,
    Settings,
    hit_rates,
    merge,
)
from distier.domain.module import Event
from distier.embedded import Home, stop_server
from distier.errors import DistierError, Invalid
from distier.plans.put.prepare import Item


class Child:
    """A child process with a role. `received` has the latest message of each kind from it."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.name = job.get("name", job["role"])
        self.received: dict[str, Any] = {}
        self.problems: list[list[str]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distier.demo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C must reach only the parent, which then closes this stdin
        )  # fmt: skip
        self.write(job)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._pipe(self._process.stdout) as pipe:
            for line in pipe:
                message = json.loads(line)
                if "problem" in message:
                    self.problems.append(message.pop("problem"))
                self.received |= message

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def write(self, what: Any) -> None:
        with suppress(BrokenPipeError):
            self._pipe(self._process.stdin).write(json.dumps(what) + "\n")
            self._pipe(self._process.stdin).flush()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        with suppress(BrokenPipeError):
            self._pipe(self._process.stdin).close()

    def report(self, timeout_s: float) -> dict[str, Any]:
        """Wait up to `timeout_s` seconds for the end of the process, and return its report."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._reader.join(2)
        missing = {"problems": [("run", f"{self.name}: ended without a report (exit code {self._process.poll()})")]}
        report: dict[str, Any] = self.received.get("report", missing)
        return report | {"problems": [Problem(*p) for p in (*self.problems, *report["problems"])]}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(2)


def close_all(children: Sequence[Child], timeout_s: float = END_S) -> None:
    """Ask all children to stop, wait for them up to `timeout_s` seconds, and kill those that still run."""
    for child in children:
        child.stop()
    end_s = time.monotonic() + timeout_s
    while any(child.alive for child in children) and time.monotonic() < end_s:
        time.sleep(0.02)
    for child in children:
        child.kill()


class Watch:
    """Samples the accounts continuously in a thread, and counts the events."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.samples = 0
        self.peaks: dict[str, tuple[int, int]] = {}
        self.moves: Counter[tuple[str, str, str]] = Counter()
        self.last_moves: deque[Event] = deque(maxlen=LAST_MOVES)
        self.stats = store.stats()
        self.failure: str | None = None
        self.every_s = SAMPLE_S
        self._since = "0"
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        counted_s = time.monotonic()
        try:
            while not self._stopping.wait(self.every_s):
                self.sample()
                if time.monotonic() - counted_s > MOVES_S:
                    self.count_moves()
                    counted_s = time.monotonic()
            self.count_moves()
        except DistierError as e:
            self.failure = f"the watch ended: {type(e).__name__}: {e}"

    def sample(self) -> None:
        self.stats = s = self.store.stats()
        self.samples += 1
        for name, used, most in (
            ("hot tokens", s.hot.tokens, s.hot.max_tokens),
            ("hot bytes", s.hot.size_bytes, s.hot.max_bytes),
            ("warm modules", s.warm.count, s.warm.max_modules),
            ("warm bytes", s.warm.stored_bytes, s.warm.max_bytes),
        ):
            self.peaks[name] = (max(used, self.peaks.get(name, (0, 0))[0]), most)

    def count_moves(self) -> None:
        with self._counting:  # the main thread calls this too, for the latest moves
            self._count_moves()

    def _count_moves(self) -> None:
        for event in self.store.events(since=self._since, wait=False):
            self._since = event.stream_id
            if event.is_tier_change:
                self.moves[event.from_, event.to, event.reason] += 1
                self.last_moves.append(event)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


class Run:
    """One run of the demo, from the empty directory to the report."""

    def __init__(self, settings: Settings, home: Path, on_progress: OnProgress, stack: ExitStack) -> None:
        self.settings, self.home, self.stack = settings, home, stack
        self._on_progress = on_progress
        self.report = Report(settings)
        self.acks: list[Mapping[str, Sequence[Any]]] = []
        self.unanswered: dict[str, list[str]] = {}
        self.watch: Watch | None = None
        self.operations = 0
        self.children: list[Child] = []

    def show(self, phase: str, done: float = 0, total: float = 0, rate: float = 0.0) -> None:
        def current() -> Progress:
            w = self.watch
            if w is None:
                return Progress(phase, done, total, self.operations, rate)
            moves, last = w.moves.copy(), tuple(w.last_moves)
            return Progress(phase, done, total, self.operations, rate, w.stats, w.samples, moves, last, current)

        self._on_progress(current())

    def child(self, role: str, **job: Any) -> Child:
        child = Child({"role": role, "config": self.config, **job})
        self.children.append(child)
        return child

    def run(self) -> Report:
        try:
            return self._run()
        except KeyboardInterrupt:
            self.show(f"interrupted: ending {len(self.children)} processes and the server")
            raise

    def _run(self) -> Report:
        began_s = time.monotonic()
        self.show("starting a server")
        modules = corpus(self.settings.modules)
        self.config = demo_config(self.home, modules)
        self.stack.callback(lambda: stop_server(Home(self.home), anyway=True))
        store = self.stack.enter_context(open_demo(self.config))
        self.stack.callback(lambda: close_all(self.children))
        agents = [
            self.child("agent", name=f"agent-{i}", ids=sorted(modules), seed=self.settings.seed)
            for i in range(1, self.settings.agents + 1)
        ]
        worker = self.child("worker")
        worker.write("go")
        with Watch(store) as self.watch:
            self._load(store, modules)
            self._work(agents, worker)
            self._gather(agents, worker)
            self._keep(self.watch)
            self.watch.every_s = CHECK_SAMPLE_S
            self._check()
        self._judge_watch(self.watch)
        self.report.total_s = time.monotonic() - began_s
        return self.report

    def _load(self, store: Store, modules: Mapping[str, bytes]) -> None:
        began_s = time.monotonic()
        ids = list(modules)
        acks: Acks = {}
        for i in range(0, len(ids), BATCH):
            items = [Item(id, modules[id]) for id in ids[i : i + BATCH]]
            for item, landed in zip(items, store.put_many(items), strict=True):
                if isinstance(landed, DistierError):
                    raise landed
                sha256 = hashlib.sha256(modules[item.id]).hexdigest()
                acks[item.id] = Ack(landed.version.epoch, landed.version.ver, sha256)
            self.show("loading the standard library", min(i + BATCH, len(ids)), len(ids))
        self.acks.append(acks)
        self.report.modules, self.report.size_bytes = len(ids), sum(map(len, modules.values()))
        self.report.load_s = time.monotonic() - began_s

    def _work(self, agents: list[Child], worker: Child) -> None:
        self._await_ready([*agents, worker])
        for agent in agents:
            agent.write("go")
        began_s = time.monotonic()
        seconds, before, rate = self.settings.seconds, 0, 0.0
        reads: list[tuple[int, int]] = [(0, 0)]
        while (passed_s := time.monotonic() - began_s) < seconds and all(a.alive for a in agents):
            self.operations = sum(a.received.get("operations", 0) for a in agents)
            rate = 0.7 * rate + 0.3 * (self.operations - before) / REPORT_INTERVAL_S
            before = self.operations
            reads.append(
                (sum(a.received.get("reads", 0) for a in agents), sum(a.received.get("near_or_hot", 0) for a in agents))
            )
            self.show("agents at work", passed_s, seconds, rate)
            time.sleep(REPORT_INTERVAL_S)
        for agent in agents:
            agent.stop()
        self.report.work_s = time.monotonic() - began_s
        self.report.hit_rates = hit_rates(reads)

    def _await_ready(self, children: list[Child]) -> None:
        while waiting := [c for c in children if "ready" not in c.received]:
            for child in waiting:
                if not child.alive:
                    raise Invalid(f"{child.name} did not start; its messages are above")
            self.show("starting the agents", len(children) - len(waiting), len(children))
            time.sleep(REPORT_INTERVAL_S / 5)

    def _gather(self, agents: list[Child], worker: Child) -> None:
        r = self.report
        self._await_end(agents, "stopping the agents", 30)
        for agent in agents:
            found = agent.report(0)
            r.problems += found["problems"]
            r.hits.update(found.get("hits", {}))
            r.counts.update(found.get("counts", {}))
            for source, (issued, used) in found.get("predicted", {}).items():
                before = r.predicted.get(source, (0, 0))
                r.predicted[source] = before[0] + issued, before[1] + used
            self.acks.append(found.get("acks", {}))
            for id, shas in found.get("unanswered", {}).items():
                self.unanswered.setdefault(id, []).extend(shas)
            times_us: dict[str, list[int]] = found.get("times_us", {})
            for kind, times in times_us.items():
                r.times_us.setdefault(kind, []).extend(times)
            hits = Counter(found.get("hits", {}))
            gets = [us for kind, times in times_us.items() if kind.startswith("get ") for us in times]
            writes = len(times_us.get("put", ())) + len(times_us.get("delete", ()))
            near_or_hot = hits["near"] + hits["hot"]
            r.agents.append(
                AgentRow(agent.name, found.get("operations", 0), hits.total(), near_or_hot, writes, sorted(gets))
            )
        worker.stop()
        self._await_end([worker], "stopping the worker", 60)
        found = worker.report(0)
        r.problems += found["problems"]
        r.worker = found.get("did", {})

    def _await_end(self, children: Sequence[Child], phase: str, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while any(child.alive for child in children) and time.monotonic() < end_s:
            self.show(phase, sum(not child.alive for child in children), len(children))
            time.sleep(REPORT_INTERVAL_S / 5)

    def _keep(self, watch: Watch) -> None:
        """Store the results of the work in the report, before the check moves all modules again."""
        watch.count_moves()
        r = self.report
        r.stats, r.moves, r.last_moves = watch.stats, watch.moves.copy(), list(watch.last_moves)

    def _judge_watch(self, watch: Watch) -> None:
        r = self.report
        r.samples, r.peaks = watch.samples, watch.peaks
        over = [(name, used, most) for name, (used, most) in r.peaks.items() if used > most]
        r.problems += [Problem("budget", f"{name} reached {used}, the limit is {most}") for name, used, most in over]
        r.problems += [Problem("budget", watch.failure)] if watch.failure else []

    def _check(self) -> None:
        began_s = time.monotonic()
        check = self.child("check", acks=merge(self.acks), unanswered=self.unanswered)
        while check.alive:
            seen = check.received
            self.show(seen.get("phase", "checking with a fresh process"), seen.get("done", 0), seen.get("total", 0))
            time.sleep(REPORT_INTERVAL_S / 2)
        found = check.report(5)
        self.report.problems += found["problems"]
        self.report.checked = found.get("checked", {})
        self.report.check_s = time.monotonic() - began_s


def run(settings: Settings, on_progress: OnProgress) -> Report:
    """Run the demo, and clean up afterwards, also if interrupted.

    Args:
        settings: The settings of the demo.
        on_progress: Called several times a second with the current state.

    Raises:
        Invalid: The directory `settings.home` is not empty, or a child process did not start.
        DistierError: The server cannot be started.
    """
    with ExitStack() as stack:
        if settings.home is None:
            home = Path(tempfile.mkdtemp(prefix="distier-demo-"))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        else:
            home = settings.home
            if home.exists() and os.listdir(home):  # noqa: PTH208 - only whether there are entries
                raise Invalid(f"{home} is not empty: the demo needs an empty or new directory")
        return Run(settings, home, on_progress, stack).run()
