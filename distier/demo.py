"""The main job on one machine, and a proof that it went well: `distier demo`.

Agents (processes of their own) share the standard library's sources as modules. They read with a skewed pattern,
write new versions, promote, demote and delete, while hot holds a few per cent of the tokens and warm some of the
modules; a worker archives. Then everything stops, and a fresh process checks:

    every module reads back as the greatest version that anybody was told is written, byte by byte;
    the same again after all of it was demoted to the archive;
    the accounts that the scripts keep equal a recount;
    no budget was exceeded in any of the samples that were taken all the time (the scripts change the accounts
    atomically, so each sample is a state that was really there).

Children are driven by their stdin: a line with their job, a line to begin, and its end to stop. So they stop by
themselves when this process dies, however it dies, and no signal has to find them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random  # noqa: TID251 - a demo's chance is given too: it is seeded, so that a run can be repeated
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from distier.client import Store, connect
from distier.config import Config
from distier.domain.module import Event, Module, Moved
from distier.effects import Command
from distier.embedded import Home, stop_server
from distier.errors import Conflict, DistierError, Invalid
from distier.plans.fleet.maintain import recount
from distier.plans.fleet.statistics import Stats
from distier.plans.put.prepare import Item
from distier.worker import Worker

HOT_SHARE = 0.04
WARM_SHARE = 0.15
SKEW = 0.9
"""The exponent of Zipf's law in the agents' choice of modules."""
SAMPLE_S = 0.005
CHECK_SAMPLE_S = 0.05
"""Less often while the check needs the processor."""
MOVES_S = 0.3
LAST_MOVES = 4
SLICES = 10
END_S = 2.0
"""How long an interrupted demo waits for its processes; then they are killed."""
TELL_S = 0.25
BATCH = 64
READ_BACK, DEMOTING, READ_ARCHIVE = "reading back", "demoting all to the archive", "reading from the archive"
SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Settings:
    """`home`: keep the data there, instead of in a temporary directory."""

    seconds: float = 15.0
    agents: int = 4
    modules: int = 700
    seed: int = 1
    home: Path | None = None


class Ack(NamedTuple):
    """A version that somebody was told is written, and the SHA-256 of its content."""

    epoch: int
    ver: int
    sha256: str


Acks = dict[str, Ack]


class Problem(NamedTuple):
    """Something that must not be. `kind` says which check it fails: `budget`, `read back`, `archive`, `accounts`,
    `read` (while working) or `run`."""

    kind: str
    text: str


class AgentRow(NamedTuple):
    """One agent's work. `hits`: reads that were answered near or hot; `times_us`: of its single reads."""

    name: str
    operations: int
    reads: int
    hits: int
    writes: int
    times_us: Sequence[int]


@dataclass
class Report:
    """What happened. Times in microseconds by kind of call (`get hot`, `put`, ...); `problems` is empty if all is well."""

    settings: Settings
    modules: int = 0
    size_bytes: int = 0
    load_s: float = 0.0
    work_s: float = 0.0
    check_s: float = 0.0
    total_s: float = 0.0
    times_us: dict[str, list[int]] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    stats: Stats | None = None
    peaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    samples: int = 0
    worker: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    agents: list[AgentRow] = field(default_factory=list)
    hit_rates: list[float] = field(default_factory=list)
    """The share of reads that were answered near or hot, in equal parts of the time."""
    last_moves: list[Event] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems and all(ok for ok, _ in self.checks())

    @property
    def operations(self) -> int:
        return sum(map(len, self.times_us.values()))

    def checks(self) -> list[tuple[bool, str]]:
        """What was checked, and whether it held."""
        bad = {problem.kind for problem in self.problems}
        n, back, archive = self.modules, self.checked.get(READ_BACK, 0), self.checked.get(READ_ARCHIVE, 0)
        checks = {
            "budget": f"no budget was exceeded in any of {self.samples:,} samples",
            "read": "no read had wrong bytes, or was older than the reader's own write",
            "run": "no call failed, and no process ended early",
            "read back": f"{back:,} of {n:,} modules read back byte-exact, by a fresh process",
            "archive": f"{archive:,} of {n:,} read back byte-exact from the archive alone",
            "accounts": "the accounts equal a recount, before and after",
        }
        undone = {"budget": not self.samples, "read back": back != n, "archive": archive != n}
        return [(kind not in bad and not undone.get(kind), what) for kind, what in checks.items()]


@dataclass
class Progress:
    """How it stands, for a live view. `done` of `total` are modules, or seconds while working."""

    phase: str
    done: float = 0
    total: float = 0
    operations: int = 0
    rate: float = 0.0
    stats: Stats | None = None
    samples: int = 0
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    last_moves: Sequence[Event] = ()
    again: Callable[[], Progress] | None = None
    """The same at this moment: what the servers hold changes all the time, also in a long step."""


Tell = Callable[[Progress], None]


# -- the material -----------------------------------------------------------------------------------------------------


def corpus(limit: int) -> dict[str, bytes]:
    """Up to `limit` sources of the running Python's standard library by id, spread over all of it, without tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not SKIPPED & set(p.relative_to(root).parts)]
    chosen = [paths[i * len(paths) // limit] for i in range(limit)] if len(paths) > limit else paths
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in chosen}


def demo_config(home: Path, modules: Mapping[str, bytes]) -> dict[str, Any]:
    """Budgets that are far too small for `modules`. Four bytes are counted for a token: it is only a budget."""
    size_bytes = sum(map(len, modules.values()))
    return {
        "home": str(home),
        "deadline": "20s",
        "storage_tiers": {
            "hot": {"max_size": max(2000, int(size_bytes / 4 * HOT_SHARE)), "max_bytes": "64MiB"},
            "warm": {
                "max_modules": max(4, int(len(modules) * WARM_SHARE)),
                "max_bytes": max(20_000, int(size_bytes * WARM_SHARE)),
            },
            "cold": {"archive_after": "2s"},
            "promotion_threshold": 3,
            "demotion_threshold": "10s",
        },
        "worker": {"interval": "500ms"},
        "events": {"max_length": 5_000_000},
    }


def open_demo(settings: Mapping[str, Any], *, near: bool = False) -> Store:
    """The demo's store. Not by `load_config`: whatever `DISTIER_*` says, a demo must not touch another server.

    Only agents have a near cache: who checks wants to see what the servers hold.
    """
    return connect(Config.model_validate({**settings, "near": {"enabled": near}}))


# -- what is checked: pure ----------------------------------------------------------------------------------------------


def merge(many: Iterable[Mapping[str, Sequence[Any]]]) -> Acks:
    """The greatest acknowledged version of each module."""
    found: Acks = {}
    for acks in many:
        for id, ack in acks.items():
            found[id] = max(found.get(id, Ack(0, 0, "")), Ack(*ack))
    return found


def verdict(id: str, expected: Ack, found: Module | None, unanswered: Iterable[str] = ()) -> str | None:
    """What is wrong with a module that was read back; None if it is the greatest acknowledged version, byte by byte.

    `unanswered`: the SHA-256 of writes that failed without an answer. They may have been applied, or not.
    """
    if found is None:
        return f"{id}: missing, version {expected.epoch}-{expected.ver} was acknowledged"
    sha256 = hashlib.sha256(found.content).hexdigest()
    version = (found.version.epoch, found.version.ver)
    if version == (expected.epoch, expected.ver):
        return None if sha256 == expected.sha256 else f"{id}: version {found.version} has other bytes than were put"
    if version < (expected.epoch, expected.ver):
        return f"{id}: reads as version {found.version}, {expected.epoch}-{expected.ver} was acknowledged"
    return None if sha256 in unanswered else f"{id}: version {found.version} was never acknowledged to anybody"


def account_errors(usage: Mapping[str, int], counted: Mapping[str, int]) -> list[str]:
    """Where the accounts of a shard differ from the recount."""
    names = sorted(set(usage) | set(counted))
    return [
        f"{name}: the account says {usage.get(name, 0)}, the recount {counted.get(name, 0)}"
        for name in names
        if usage.get(name, 0) != counted.get(name, 0)
    ]


def hit_rates(reads: Sequence[tuple[int, int]], slices: int = SLICES) -> list[float]:
    """The share of hits in equal parts of the time, from sums of reads and hits that were noted at equal distances."""
    n = len(reads) - 1
    ends = [reads[i * n // slices] for i in range(slices + 1)] if n >= slices else list(reads)
    parts = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]
    return [hits / reads for reads, hits in parts if reads]


# -- an agent -----------------------------------------------------------------------------------------------------------


class Agent:
    """One agent's work: it picks modules by a skewed pattern, and remembers what it was told is written."""

    MIX: ClassVar = {"get": 76, "get_many": 8, "put": 10, "promote": 2, "demote": 3, "replace": 1}

    def __init__(self, store: Store, ids: Sequence[str], name: str, seed: int) -> None:
        self.store, self.name = store, name
        store.space.counter.count(b"loads its tables")  # not within the first put, which is timed
        self.chance = random.Random(f"{seed}/{name}")
        ranked = list(ids)
        random.Random(seed).shuffle(ranked)  # all agents like the same modules
        self.ids = ranked
        self.weights = list(accumulate(1 / (rank + 1) ** SKEW for rank in range(len(ranked))))
        self.acks: Acks = {}
        self.unanswered: dict[str, list[str]] = {}
        self.times_us: dict[str, list[int]] = {}
        self.hits: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def pick(self, n: int = 1) -> list[str]:
        return self.chance.choices(self.ids, cum_weights=self.weights, k=n)

    def step(self) -> None:
        """One operation, timed."""
        (kind,) = self.chance.choices(list(self.MIX), weights=list(self.MIX.values()))
        try:
            getattr(self, kind)(self.pick()[0])
        except Conflict:
            self.counts["conflicts"] += 1  # another agent was first: an answer, not a failure
        except DistierError as e:
            self.counts["failures"] += 1
            self.problems.append(Problem("run", f"{self.name}: {kind}: {type(e).__name__}: {e}"))

    def timed(self, kind: str, began_ns: int) -> None:
        self.times_us.setdefault(kind, []).append((time.monotonic_ns() - began_ns) // 1000)

    def get(self, id: str) -> Module | None:
        near = self.store.near.get(id) is not None  # the same module, unless it goes in this very microsecond
        began = time.monotonic_ns()
        module = self.store.get(id)
        tier = "near" if near else module.tier if module else "miss"
        self.timed(f"get {tier}", began)
        self.saw(id, module, tier)
        return module

    def get_many(self, id: str) -> None:
        ids = [id, *self.pick(7)]
        began = time.monotonic_ns()
        found = self.store.get_many(ids)
        self.timed("get_many", began)
        for id, module in found.items():
            self.saw(id, module, module.tier if module else "miss")

    def saw(self, id: str, module: Module | None, tier: str) -> None:
        """Every read is checked: its bytes, and that it is not older than what this agent itself has written."""
        self.hits[tier] += 1
        if module is None:
            return  # another agent is replacing it
        if hashlib.sha256(module.content).hexdigest() != module.sha256:
            self._wrong(f"{id} was read with other bytes than its SHA-256 says")
        own = self.acks.get(id)
        if own and (module.version.epoch, module.version.ver) < own[:2]:
            self._wrong(f"{id} was read as {module.version}, older than its own write")

    def near_or_hot(self) -> int:
        return self.hits["near"] + self.hits["hot"]

    def _wrong(self, what: str) -> None:
        self.problems.append(Problem("read", f"{self.name}: {what}"))

    def put(self, id: str) -> None:
        """A new version: a line at the end, if nobody else was faster."""
        module = self.store.get(id)
        if module is not None:
            line = f"# {self.name} was here, {len(self.times_us.get('put', ()))}\n".encode()
            self.write(id, module.content + line, str(module.version))

    def write(self, id: str, content: bytes, if_version: str | None) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        began = time.monotonic_ns()
        try:
            landed = self.store.put(id, content, if_version=if_version)
        except Conflict:
            raise
        except DistierError:
            self.unanswered.setdefault(id, []).append(sha256)
            raise
        self.timed("put", began)
        self.acks[id] = Ack(landed.version.epoch, landed.version.ver, sha256)

    def promote(self, id: str) -> None:
        self._moved("promote", self.store.promote, id)

    def demote(self, id: str) -> None:
        self._moved("demote", self.store.demote, id)

    def _moved(self, kind: str, move: Callable[[str], Moved], id: str) -> None:
        began = time.monotonic_ns()
        with suppress(Invalid):  # NotFound: another agent is replacing it
            self.counts[kind + "d"] += move(id).moved
            self.timed(kind, began)

    def replace(self, id: str) -> None:
        """Delete, and put again: readers see a miss in between, or the new version."""
        module = self.store.get(id)
        if module is not None:
            began = time.monotonic_ns()
            self.counts["deleted"] += self.store.delete(id)
            self.timed("delete", began)
            self.write(id, module.content, None)


def run_agent(job: dict[str, Any], stopping: threading.Event, say: Callable[[Any], None]) -> None:
    with open_demo(job["config"], near=True) as store:
        agent = Agent(store, job["ids"], job["name"], job["seed"])
        say({"ready": True})
        sys.stdin.readline()
        _stop_at_end_of_input(stopping)
        steps, said_s = 0, time.monotonic()
        while not stopping.is_set():
            agent.step()
            steps += 1
            if time.monotonic() - said_s > TELL_S:
                said_s = time.monotonic()
                say({"operations": steps, "reads": agent.hits.total(), "near_or_hot": agent.near_or_hot()})
    names = ("acks", "unanswered", "times_us", "hits", "counts", "problems")
    say({"report": {name: getattr(agent, name) for name in names} | {"operations": steps}})


def run_worker(job: dict[str, Any], stopping: threading.Event, say: Callable[[Any], None]) -> None:
    with open_demo(job["config"]) as store:
        say({"ready": True})
        sys.stdin.readline()
        worker = Worker(store).start()
        _stop_at_end_of_input(stopping)
        stopping.wait()
        report = worker.stop()
    problems = [Problem("run", f"worker: {report.last_failure}")] if report.failures else []
    say({"report": {"did": report.did | {"rounds": report.rounds}, "problems": problems}})


def run_check(job: dict[str, Any], stopping: threading.Event, say: Callable[[Any], None]) -> None:
    """Read everything back, demote it all, read it back from the archive, recount. Reports what it found."""
    expected = merge([job["acks"]])
    unanswered: dict[str, list[str]] = job["unanswered"]
    checked: dict[str, int] = {}
    problems: list[Problem] = []

    with open_demo(job["config"]) as store:

        def read(phase: str, tier: str | None) -> None:
            """All modules, as they are expected; from `tier`, if it says one."""
            good = 0
            for id, module in _read_all(store, list(expected), phase, say):
                wrong = verdict(id, expected[id], module, unanswered.get(id, ()))
                if wrong is None and tier and module and module.tier != tier:
                    wrong = f"{id}: read from {module.tier}, all were demoted to {tier}"
                good += wrong is None
                problems.extend([Problem("archive" if tier else "read back", wrong)] if wrong else [])
            checked[phase] = good

        problems += _accounts(store, "after the work")
        read(READ_BACK, None)
        problems += _demote_all(store, list(expected), say)
        read(READ_ARCHIVE, "cold")
        problems += _accounts(store, "at the end")
    say({"report": {"checked": checked, "problems": problems}})


def _read_all(
    store: Store, ids: list[str], phase: str, say: Callable[[Any], None]
) -> Iterator[tuple[str, Module | None]]:
    for i in range(0, len(ids), BATCH):
        try:
            yield from store.get_many(ids[i : i + BATCH]).items()
        except DistierError as e:
            say({"problem": ("run", f"{phase}: {type(e).__name__}: {e}")})
        say({"phase": phase, "done": min(i + BATCH, len(ids)), "total": len(ids)})


def _demote_all(store: Store, ids: list[str], say: Callable[[Any], None]) -> list[Problem]:
    problems: list[Problem] = []
    for i in range(0, len(ids), BATCH):
        results = store.demote_many(ids[i : i + BATCH], to="cold")
        problems += [
            Problem("archive", f"not demoted: {r}") for r in results if isinstance(r, DistierError) or r.tier != "cold"
        ]
        say({"phase": DEMOTING, "done": min(i + BATCH, len(ids)), "total": len(ids)})
    return problems


def _accounts(store: Store, when: str) -> list[Problem]:
    problems: list[Problem] = []
    for shard in store.space.keys.shards:
        call: Command[dict[bytes, bytes]] = Command(shard, ("HGETALL", shard.usage), lambda r: r)
        usage = {name.decode(): int(n) for name, n in store.run(_ask(call)).items()}
        problems += [
            Problem("accounts", f"{e}, {when}") for e in account_errors(usage, store.run(recount(store.space, shard)))
        ]
    return problems


def _ask(call: Command[Any]) -> Any:
    return (yield from call)


# -- children -----------------------------------------------------------------------------------------------------------


def _stop_at_end_of_input(stopping: threading.Event) -> None:
    def wait() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=wait, daemon=True).start()


def child_main() -> None:
    """`python -m distier.demo`: the job is the first line of stdin; what is to tell goes to stdout, a line of JSON each."""
    job = json.loads(sys.stdin.readline())
    role = {"agent": run_agent, "worker": run_worker, "check": run_check}[job["role"]]

    def say(what: Any) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    with suppress(BrokenPipeError):
        role(job, threading.Event(), say)


class Child:
    """A process with a role. `said` gathers what it tells, the latest of each kind."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.name = job.get("name", job["role"])
        self.said: dict[str, Any] = {}
        self.problems: list[list[str]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distier.demo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes our stdin
        )  # fmt: skip
        self.write(job)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._pipe(self._process.stdout) as pipe:
            for line in pipe:
                said = json.loads(line)
                if "problem" in said:
                    self.problems.append(said.pop("problem"))
                self.said |= said

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
        """What it found, once it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._reader.join(2)
        missing = {"problems": [("run", f"{self.name}: ended without a report (exit code {self._process.poll()})")]}
        report: dict[str, Any] = self.said.get("report", missing)
        return report | {"problems": [Problem(*p) for p in (*self.problems, *report["problems"])]}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(2)


def close_all(children: Sequence[Child], timeout_s: float = END_S) -> None:
    """End them, whatever they are doing: all are told, then all are waited for, then those that are left are killed."""
    for child in children:
        child.stop()
    end_s = time.monotonic() + timeout_s
    while any(child.alive for child in children) and time.monotonic() < end_s:
        time.sleep(0.02)
    for child in children:
        child.kill()


# -- the whole -----------------------------------------------------------------------------------------------------------


class Watch:
    """Samples the accounts all the time, in a thread, and counts the events."""

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
        with self._counting:  # also by whoever wants to know the last ones
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

    def __init__(self, settings: Settings, home: Path, tell: Tell, stack: ExitStack) -> None:
        self.settings, self.home, self.stack = settings, home, stack
        self._tell = tell
        self.report = Report(settings)
        self.acks: list[Mapping[str, Sequence[Any]]] = []
        self.unanswered: dict[str, list[str]] = {}
        self.watch: Watch | None = None
        self.operations = 0
        self.children: list[Child] = []

    def tell(self, phase: str, done: float = 0, total: float = 0, rate: float = 0.0) -> None:
        def at_this_moment() -> Progress:
            w = self.watch
            if w is None:
                return Progress(phase, done, total, self.operations, rate)
            moves, last = w.moves.copy(), tuple(w.last_moves)
            return Progress(phase, done, total, self.operations, rate, w.stats, w.samples, moves, last, at_this_moment)

        self._tell(at_this_moment())

    def child(self, role: str, **job: Any) -> Child:
        child = Child({"role": role, "config": self.config, **job})
        self.children.append(child)
        return child

    def run(self) -> Report:
        try:
            return self._run()
        except KeyboardInterrupt:
            self.tell(f"interrupted: ending {len(self.children)} processes and the server")
            raise

    def _run(self) -> Report:
        began_s = time.monotonic()
        self.tell("starting a server")
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
            self.tell("loading the standard library", min(i + BATCH, len(ids)), len(ids))
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
            self.operations = sum(a.said.get("operations", 0) for a in agents)
            rate = 0.7 * rate + 0.3 * (self.operations - before) / TELL_S
            before = self.operations
            reads.append(
                (sum(a.said.get("reads", 0) for a in agents), sum(a.said.get("near_or_hot", 0) for a in agents))
            )
            self.tell("agents at work", passed_s, seconds, rate)
            time.sleep(TELL_S)
        for agent in agents:
            agent.stop()
        self.report.work_s = time.monotonic() - began_s
        self.report.hit_rates = hit_rates(reads)

    def _await_ready(self, children: list[Child]) -> None:
        while waiting := [c for c in children if "ready" not in c.said]:
            for child in waiting:
                if not child.alive:
                    raise Invalid(f"{child.name} did not start; its messages are above")
            self.tell("starting the agents", len(children) - len(waiting), len(children))
            time.sleep(TELL_S / 5)

    def _gather(self, agents: list[Child], worker: Child) -> None:
        r = self.report
        self._await_end(agents, "stopping the agents", 30)
        for agent in agents:
            said = agent.report(0)
            r.problems += said["problems"]
            r.hits.update(said.get("hits", {}))
            r.counts.update(said.get("counts", {}))
            self.acks.append(said.get("acks", {}))
            for id, shas in said.get("unanswered", {}).items():
                self.unanswered.setdefault(id, []).extend(shas)
            times_us: dict[str, list[int]] = said.get("times_us", {})
            for kind, times in times_us.items():
                r.times_us.setdefault(kind, []).extend(times)
            hits = Counter(said.get("hits", {}))
            gets = [us for kind, times in times_us.items() if kind.startswith("get ") for us in times]
            writes = len(times_us.get("put", ())) + len(times_us.get("delete", ()))
            near_or_hot = hits["near"] + hits["hot"]
            r.agents.append(
                AgentRow(agent.name, said.get("operations", 0), hits.total(), near_or_hot, writes, sorted(gets))
            )
        worker.stop()
        self._await_end([worker], "stopping the worker", 60)
        said = worker.report(0)
        r.problems += said["problems"]
        r.worker = said.get("did", {})

    def _await_end(self, children: Sequence[Child], phase: str, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while any(child.alive for child in children) and time.monotonic() < end_s:
            self.tell(phase, sum(not child.alive for child in children), len(children))
            time.sleep(TELL_S / 5)

    def _keep(self, watch: Watch) -> None:
        """What the work has come to; the check moves everything once more."""
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
            said = check.said
            self.tell(said.get("phase", "checking with a fresh process"), said.get("done", 0), said.get("total", 0))
            time.sleep(TELL_S / 2)
        said = check.report(5)
        self.report.problems += said["problems"]
        self.report.checked = said.get("checked", {})
        self.report.check_s = time.monotonic() - began_s


def run(settings: Settings, tell: Tell) -> Report:
    """The whole demo; `tell` hears how it stands, several times a second. Cleans up after itself, also if interrupted.

    Raises `Invalid` if `settings.home` is in use, and what the servers raise if they cannot be started.
    """
    with ExitStack() as stack:
        if settings.home is None:
            home = Path(tempfile.mkdtemp(prefix="distier-demo-"))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        else:
            home = settings.home
            if home.exists() and os.listdir(home):  # noqa: PTH208 - only whether there is anything
                raise Invalid(f"{home} is not empty: the demo wants a directory of its own")
        return Run(settings, home, tell, stack).run()


if __name__ == "__main__":
    child_main()
