"""The child processes of a demo: agents, a worker, and the check at the end."""

from __future__ import annotations

import hashlib
import json
import random  # noqa: TID251 - always seeded, so that a run can be repeated
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from distier.client import Store, connect
from distier.config import Config
from distier.demo.report import (
    BATCH,
    DEMOTING,
    HOT_SHARE,
    READ_ARCHIVE,
    READ_BACK,
    REPORT_INTERVAL_S,
    SKEW,
    SKIPPED,
    WARM_SHARE,
    Ack,
    Acks,
    Problem,
    account_errors,
    merge,
    verdict,
)
from distier.domain.module import Module, Moved
from distier.effects import Command
from distier.errors import Conflict, DistierError, Invalid
from distier.plans.fleet.maintain import recount
from distier.worker import Worker

THINKS_S = 0.01
"""The time between two reads of a task, in seconds."""


def corpus(limit: int) -> dict[str, bytes]:
    """Return up to `limit` source files of this Python's standard library by id, evenly chosen, without tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not SKIPPED & set(p.relative_to(root).parts)]
    chosen = [paths[i * len(paths) // limit] for i in range(limit)] if len(paths) > limit else paths
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in chosen}


def demo_config(home: Path, modules: Mapping[str, bytes]) -> dict[str, Any]:
    """Return settings with budgets far too small for `modules`. Four bytes per token are precise enough for a budget."""
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
        "prediction": {"enabled": True},
        "events": {"max_length": 5_000_000},
    }


def open_demo(settings: Mapping[str, Any], *, near: bool = False) -> Store:
    """Open the demo's store.

    This does not use `load_config`, because variables `DISTIER_*` must not direct a demo to another server. Only agents
    have a near cache; the check must read what the servers hold.
    """
    return connect(Config.model_validate({**settings, "near": {"enabled": near}}))


class Agent:
    """The work of one agent: it picks modules by a skewed pattern, walks through tasks, and remembers its acknowledged writes.

    A task is a sequence of modules that is the same for all agents, as skills that belong together. Each walk is a session, so
    what one agent reads there teaches the store what the others will read next.
    """

    MIX: ClassVar = {"get": 66, "task": 10, "get_many": 8, "put": 10, "promote": 2, "demote": 3, "replace": 1}
    TASKS = 12
    TASK_STEPS = 6

    def __init__(self, store: Store, ids: Sequence[str], name: str, seed: int) -> None:
        self.store, self.name = store, name
        store.space.counter.count(b"loads its tables")  # not during the first put, which is timed
        self.chance = random.Random(f"{seed}/{name}")
        ranked = list(ids)
        random.Random(seed).shuffle(ranked)  # all agents prefer the same modules
        self.ids = ranked
        self.weights = list(accumulate(1 / (rank + 1) ** SKEW for rank in range(len(ranked))))
        tasks = random.Random(f"{seed}/tasks")
        self.tasks = [tasks.sample(ranked, min(self.TASK_STEPS, len(ranked))) for _ in range(self.TASKS)]
        self.acks: Acks = {}
        self.unanswered: dict[str, list[str]] = {}
        self.times_us: dict[str, list[int]] = {}
        self.hits: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def pick(self, n: int = 1) -> list[str]:
        return self.chance.choices(self.ids, cum_weights=self.weights, k=n)

    def step(self) -> None:
        """Run and time one random operation."""
        (kind,) = self.chance.choices(list(self.MIX), weights=list(self.MIX.values()))
        try:
            getattr(self, kind)(self.pick()[0])
        except Conflict:
            self.counts["conflicts"] += 1  # another agent was first: a regular result, not a failure
        except DistierError as e:
            self.counts["failures"] += 1
            self.problems.append(Problem("run", f"{self.name}: {kind}: {type(e).__name__}: {e}"))

    def timed(self, kind: str, began_ns: int) -> None:
        self.times_us.setdefault(kind, []).append((time.monotonic_ns() - began_ns) // 1000)

    def task(self, _: str) -> None:
        """Walk through a task, with some time between two reads, as an agent needs it to think."""
        number = self.chance.randrange(len(self.tasks))
        with self.store.session(keywords=[f"task-{number}"]) as session:
            for id in self.tasks[number]:
                self.read(id, session.get)
                time.sleep(THINKS_S)

    def get(self, id: str) -> Module | None:
        return self.read(id, self.store.get)

    def read(self, id: str, get: Callable[[str], Module | None]) -> Module | None:
        near = self.store.near.get(id) is not None  # as `get` finds it, unless it is evicted in between
        began = time.monotonic_ns()
        module = get(id)
        tier = "near" if near else module.tier if module else "miss"
        self.timed(f"get {tier}", began)
        self.check_read(id, module, tier)
        return module

    def get_many(self, id: str) -> None:
        ids = [id, *self.pick(7)]
        began = time.monotonic_ns()
        found = self.store.get_many(ids)
        self.timed("get_many", began)
        for id, module in found.items():
            self.check_read(id, module, module.tier if module else "miss")

    def check_read(self, id: str, module: Module | None, tier: str) -> None:
        """Check one read: its bytes match its SHA-256, and it is not older than this agent's own last write."""
        self.hits[tier] += 1
        if module is None:
            return  # another agent is replacing it
        if hashlib.sha256(module.content).hexdigest() != module.sha256:
            self._wrong(f"{id} was read with bytes that do not match its SHA-256")
        own = self.acks.get(id)
        if own and (module.version.epoch, module.version.ver) < own[:2]:
            self._wrong(f"{id} was read as {module.version}, older than its own write")

    def near_or_hot(self) -> int:
        return self.hits["near"] + self.hits["hot"]

    def _wrong(self, what: str) -> None:
        self.problems.append(Problem("read", f"{self.name}: {what}"))

    def put(self, id: str) -> None:
        """Put a new version with another line at the end, unless another writer was faster."""
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
        """Delete a module and put it again. Readers see a miss in between, or the new version."""
        module = self.store.get(id)
        if module is not None:
            began = time.monotonic_ns()
            self.counts["deleted"] += self.store.delete(id)
            self.timed("delete", began)
            self.write(id, module.content, None)


def run_agent(job: dict[str, Any], stopping: threading.Event, send: Callable[[Any], None]) -> None:
    with open_demo(job["config"], near=True) as store:
        agent = Agent(store, job["ids"], job["name"], job["seed"])
        send({"ready": True})
        sys.stdin.readline()
        _stop_at_end_of_input(stopping)
        steps, sent_s = 0, time.monotonic()
        while not stopping.is_set():
            agent.step()
            steps += 1
            if time.monotonic() - sent_s > REPORT_INTERVAL_S:
                sent_s = time.monotonic()
                send({"operations": steps, "reads": agent.hits.total(), "near_or_hot": agent.near_or_hot()})
        ahead = store.stats().prediction
    names = ("acks", "unanswered", "times_us", "hits", "counts", "problems")
    predicted = {name: (source.issued, source.used) for name, source in ahead.sources.items()}
    send({"report": {name: getattr(agent, name) for name in names} | {"operations": steps, "predicted": predicted}})


def run_worker(job: dict[str, Any], stopping: threading.Event, send: Callable[[Any], None]) -> None:
    with open_demo(job["config"]) as store:
        send({"ready": True})
        sys.stdin.readline()
        worker = Worker(store).start()
        _stop_at_end_of_input(stopping)
        stopping.wait()
        report = worker.stop()
    problems = [Problem("run", f"worker: {report.last_failure}")] if report.failures else []
    send({"report": {"did": report.did | {"rounds": report.rounds}, "problems": problems}})


def run_check(job: dict[str, Any], stopping: threading.Event, send: Callable[[Any], None]) -> None:
    """Read all modules back, demote all, read all from the archive, and compare the accounts with a recount."""
    expected = merge([job["acks"]])
    unanswered: dict[str, list[str]] = job["unanswered"]
    checked: dict[str, int] = {}
    problems: list[Problem] = []

    with open_demo(job["config"]) as store:

        def read(phase: str, tier: str | None) -> None:
            """Read all modules and compare them with the expected ones, and with the expected `tier` if there is one."""
            good = 0
            for id, module in _read_all(store, list(expected), phase, send):
                wrong = verdict(id, expected[id], module, unanswered.get(id, ()))
                if wrong is None and tier and module and module.tier != tier:
                    wrong = f"{id}: read from {module.tier}, but all were demoted to {tier}"
                good += wrong is None
                problems.extend([Problem("archive" if tier else "read back", wrong)] if wrong else [])
            checked[phase] = good

        problems += _accounts(store, "after the work")
        read(READ_BACK, None)
        problems += _demote_all(store, list(expected), send)
        read(READ_ARCHIVE, "cold")
        problems += _accounts(store, "at the end")
    send({"report": {"checked": checked, "problems": problems}})


def _read_all(
    store: Store, ids: list[str], phase: str, send: Callable[[Any], None]
) -> Iterator[tuple[str, Module | None]]:
    for i in range(0, len(ids), BATCH):
        try:
            yield from store.get_many(ids[i : i + BATCH]).items()
        except DistierError as e:
            send({"problem": ("run", f"{phase}: {type(e).__name__}: {e}")})
        send({"phase": phase, "done": min(i + BATCH, len(ids)), "total": len(ids)})


def _demote_all(store: Store, ids: list[str], send: Callable[[Any], None]) -> list[Problem]:
    problems: list[Problem] = []
    for i in range(0, len(ids), BATCH):
        results = store.demote_many(ids[i : i + BATCH], to="cold")
        problems += [
            Problem("archive", f"not demoted: {r}") for r in results if isinstance(r, DistierError) or r.tier != "cold"
        ]
        send({"phase": DEMOTING, "done": min(i + BATCH, len(ids)), "total": len(ids)})
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


def _stop_at_end_of_input(stopping: threading.Event) -> None:
    def wait() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=wait, daemon=True).start()


def child_main() -> None:
    """Run `python -m distier.demo`. The first line of stdin is the job; messages go to stdout, one JSON object per line."""
    job = json.loads(sys.stdin.readline())
    role = {"agent": run_agent, "worker": run_worker, "check": run_check}[job["role"]]

    def send(message: Any) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    with suppress(BrokenPipeError):
        role(job, threading.Event(), send)
