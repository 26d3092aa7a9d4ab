"""The interleaving explorer: it runs real plans on a real server, and chooses what happens next.

A *world* is one namespace: a primary (a logical database of a real server), perhaps a lagging replica and an old
partitioned primary, an archive in memory, and a few *processes*. A process runs real plans from `distier.plans`. It stops
at every effect that touches Redis or the archive, and the explorer chooses

    which process continues, also one that was paused for long, or is connected to the old primary;
    whether the process dies there, whether the reply is lost after the effect was performed (the driver sends the call
    again with the same write id, or gives up), whether the call never arrives, or an upload arrives later than its caller
    waits;
    whether the environment acts: a warm frame expires, a lease ends, the replica catches up or is promoted, Redis
    restarts or loses its data, the archive is down for a while.

Choices come from a seed, from a list (replay), or in turn (all of them, for small cases). After each step a script of the
test's own (`audit.lua`) audits the server, and `judge.py` judges each read. At the end all processes are dead, and a fresh
process recovers, writes back and sweeps. Then every acknowledged version can be read, also from the archive alone.

Time never passes by the clock: scripts read a clock of the world (`wire.py`), a Sleep is a turn for the others, and
TTLs end when the explorer chooses so.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from distier.config import load_config
from distier.domain import codec
from distier.domain.tokens import token_counter
from distier.drive.conversation import RECOVERIES_MAX, command_of, note_lost
from distier.drive.process import UseBuffer
from distier.drive.replies import outcome
from distier.effects import (
    ArchiveDelete,
    ArchivePut,
    Command,
    Effect,
    Pipeline,
    Plan,
    RunScript,
    Script,
    Sleep,
    collect,
)
from distier.errors import (
    ArchiveUnavailable,
    Conflict,
    DistierError,
    Full,
    NotFound,
    Recovering,
    RedisUnavailable,
    Unavailable,
)
from distier.lua import Deleted, Opened, Put, Replayed, Reserved, expire
from distier.plans.common.namespace import Namespace
from distier.plans.common.process_state import ProcessState
from distier.plans.fleet.maintain import write_back_due
from distier.plans.fleet.packing import pack_all
from distier.plans.fleet.sweep import sweep
from distier.plans.get import one as read_one
from distier.plans.get.one import get
from distier.plans.recovery.epochs import open_space, recover
from distier.plans.recovery.rescue import rescue
from distier.stores.memory import MemoryArchive
from tests.history import NEVER, NONE
from tests.scripted import ARCHIVE, Scripted, perform_on

from .judge import Judge, Op, Position, Server, Violation
from .wire import DATABASES, WINDOW, Patch, Sent, Steps, Wire, patched, run_all

PLACED = (Put, Replayed, Reserved, Deleted)
AUDITED = {
    "open",
    "adopt",
    "put",
    "reserve",
    "promote",
    "install",
    "demote",
    "archived",
    "delete",
    "touch",
    "expire",
    "refer",
    "dictionary",
}
SLEEPS_MAX = 3
STEPS_MAX = 600

AUDIT = (Path(__file__).parent / "audit.lua").read_bytes()
COPY = b"""
redis.call('SELECT', ARGV[2])
redis.call('UNLINK', unpack(KEYS))
redis.call('SELECT', ARGV[1])
for _, key in ipairs(KEYS) do redis.call('COPY', key, key, 'DB', ARGV[2]) end
return 'OK'"""
KEPT = DATABASES - 1
"""The logical database with the state after `before`, so that each run of a scenario begins with a copy of it."""
EXPIRE = b"if redis.call('PTTL', KEYS[1]) > 0 then return redis.call('UNLINK', KEYS[1]) end return 0"


# -- choices ---------------------------------------------------------------------------------------------------------


class Chooser:
    """Makes choices and remembers them: at random from a seed, or from a list and after its end always the first choice."""

    def __init__(self, seed: int | None = None, script: Sequence[int] = ()) -> None:
        self.seed = seed
        self.taken: list[int] = []
        self.sizes: list[int] = []
        self._script = script
        self._random = random.Random(seed) if seed is not None else None

    def pick(self, weights: Sequence[float]) -> int:
        at = len(self.taken)
        if at < len(self._script):
            choice = self._script[at]
        elif self._random is None or len(weights) == 1:
            choice = 0
        else:
            left = self._random.random() * sum(weights)
            for choice, weight in enumerate(weights):  # noqa: B007
                left -= weight
                if left < 0:
                    break
        self.taken.append(choice)
        self.sizes.append(len(weights))
        return choice

    def next_script(self) -> list[int] | None:
        """Return the choices of the next run of a depth-first search; None at its end."""
        for at in range(len(self.taken) - 1, -1, -1):
            if self.taken[at] + 1 < self.sizes[at]:
                return [*self.taken[:at], self.taken[at] + 1]
        return None


# The relative weight of each fault where it may happen. A scenario names its faults, and how many a run may have.
FAULTS: Mapping[str, float] = {
    "kill": 1.0,  # the process dies before this effect
    "lost": 1.0,  # performed; the reply is lost; the driver sends the same call again
    "gone": 0.6,  # performed; the reply is lost; the deadline passes
    "down": 0.4,  # not performed; the deadline passes
    "late": 3.0,  # an upload or deletion is performed later; the deadline passes
    "expire": 1.0,  # a clean warm frame is gone
    "replicate": 1.0,  # the replica catches up
    "failover": 1.0,  # the replica becomes primary, the old one keeps running
    "promote": 0.6,  # the replica becomes primary, the old one is dead
    "loss": 0.5,  # Redis comes back empty
    "flush": 0.3,  # another program empties Redis while it runs
    "restart": 0.5,  # Redis comes back with all its data
}
RATE = 0.13
"""The fraction of steps at which a fault is chosen while the run may have one."""
OF_STEP = ("kill", "lost", "gone", "down", "late")
ALL_FAULTS = tuple(FAULTS)
CRASHES = ("kill", "lost", "gone", "down", "late", "expire")


@dataclass(frozen=True)
class Call:
    """One operation of a process: a name for tables, the module, and how to make its plan."""

    kind: str
    id: str
    plan: Callable[[Namespace, Op], Plan[Any]]
    durable: bool = False
    content: bytes | None = None
    expires: bool = False

    def op(self) -> Op:
        return Op(self.kind, self.id, self.durable, self.content, expires=self.expires)


@dataclass(frozen=True)
class Scenario:
    """`before` runs alone; then each list of `processes` is a separate process."""

    name: str
    processes: tuple[tuple[Call, ...], ...]
    before: tuple[Call, ...] = ()
    faults: tuple[str, ...] = ALL_FAULTS
    faults_max: int = 3
    hot_tokens: int = 100
    warm_modules: int = 6
    keeps_metadata: bool = True
    first: str = ""  # what the environment does before the processes begin
    last: tuple[Call, ...] = ()  # the calls that must succeed at the end
    eviction: str = "lru"
    unaware: tuple[int, ...] = ()  # the processes that never notice that their server is not the primary any more
    together: bool = False  # the processes are tasks of one process, and share its knowledge of epochs

    @property
    def ids(self) -> tuple[str, ...]:
        calls = (*self.before, *(call for calls in self.processes for call in calls))
        return tuple(dict.fromkeys(call.id for call in calls if call.id))


@cache
def _space(number: int, hot_tokens: int, warm_modules: int, sidecar: bool, eviction: str) -> Namespace:
    """A pattern for the spaces of a world's processes: reading a configuration takes longer than a whole run."""
    config = load_config(
        {}, redis__url="redis://127.0.0.1:1/0", namespace=f"w{number}", storage_tiers__cold__directory="unused",
        counter="estimate", storage_tiers__hot__max_size=hot_tokens, storage_tiers__warm__max_modules=warm_modules,
        storage_tiers__cold__compression_level=0, storage_tiers__promotion_threshold=2,
        storage_tiers__hot__eviction_policy=eviction,
        deadline="80ms",  # sets how long to wait for a durable write of another process; nothing here ends by it
    )  # fmt: skip
    space = Namespace(config, token_counter("estimate"), sidecar)
    assert space.limits and space.keys.shards[0].fixed  # cached from here on
    return space


def _process_space(pattern: Namespace) -> Namespace:
    space = object.__new__(Namespace)
    space.__dict__.update(pattern.__dict__)
    object.__setattr__(space, "process", ProcessState())
    return space


# The same few contents are compressed and parsed a million times.
_ONCE = {
    name: lru_cache(4096)(getattr(codec, name))
    for name in ("compress_xz", "decompress_xz", "compress_frame", "decompress_frame")
}


@contextmanager
def _hurried() -> Iterator[None]:
    """Cache the codecs' results, and disable the cyclic collector, which would scan the same hundred worlds over and over."""
    with ExitStack() as stack:
        for name, remembered in _ONCE.items():
            stack.enter_context(patch.object(codec, name, remembered))
        stack.enter_context(patch.object(read_one, "WHOLE_BYTES", 2))  # both ways to read a suspect's record
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()


# -- one process -----------------------------------------------------------------------------------------------------

Io = list[Any] | Effect[Any]


class Process(Scripted):
    """Runs its calls as a driver would. It stops before each effect that touches Redis or the archive, or waits."""

    def __init__(self, world: World, name: str, calls: Sequence[Call], space: Namespace | None = None) -> None:
        self.world = world
        self.name = name
        self.calls = calls
        self.space = space or _process_space(world.pattern)
        self.space.process.versions[world.shard] = world.given  # the process has opened the shard, as every client does
        self.server = world.primary
        self.incarnation = world.primary.incarnation
        self.uses, self.counters = UseBuffer(), Counter[str]()
        self.op = Op("open", "")
        self.sleeps = 0
        self.tokens = 0
        self.results: list[Any] = []
        self.thread = self._main()
        self.pending: Io | None = next(self.thread, None)
        self.sent: list[Any] = []  # results of the performed part of a pipeline

    def go(self, result: Any) -> None:
        """Continue with the result of the pending effect; throw it if it is an exception."""
        self.sent = []
        try:
            self.pending = self.thread.throw(result) if isinstance(result, Exception) else self.thread.send(result)
        except StopIteration:
            self.pending = None

    def die(self) -> None:
        self.thread.close()
        self.pending = None
        if self.op.fate == "running":
            self.op.fate = "unknown"

    @property
    def point(self) -> str:
        """The current point of this process, by its name in the tables."""
        pending = self.pending
        if isinstance(pending, list):
            call = pending[len(self.sent)]
            what = call.script.name if isinstance(call, RunScript) else str(call.args[0])
        else:
            what = type(pending).__name__
        return f"{self.op.kind}: {what}"

    def _main(self) -> Generator[Io, Any, None]:
        for call in self.calls:
            self.op = op = call.op()
            self.world.judge.began(op)
            try:
                result = yield from self.steps(call.plan(self.space, op))
            except DistierError as e:
                self.world.failed(op, e)
                self.results.append(e)
            else:
                self.world.ended(op, result, self.server)
                self.results.append(result)

    def steps_of(self, effect: Effect[Any]) -> Generator[Io, Any, Any]:
        # compares types instead of using `match`, which is slower; this runs a hundred million times
        kind = type(effect)
        if kind is RunScript or kind is Command:
            return collect((yield from self._calls([effect]))[0])
        if isinstance(effect, Pipeline):
            return (yield from self._calls(list(effect.calls))) if effect.calls else []
        if kind is Sleep:
            self.sleeps += 1
        elif kind not in ARCHIVE:
            return self.perform(effect)
        return (yield effect)

    def _calls(self, calls: list[Any]) -> Generator[Io, Any, list[Any]]:
        """As the drivers: give a shard without an epoch one, and send the calls again that were refused for that."""
        results = list((yield calls))
        for _ in range(RECOVERIES_MAX):
            refused = [i for i, result in enumerate(results) if isinstance(result, Recovering)]
            if not refused:
                break
            yield from self.steps(recover(self.space, calls[0].shard))
            again = yield [calls[i] for i in refused]
            for i, result in zip(refused, again, strict=True):
                results[i] = result
        return results


# -- the world -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of what happened in some runs."""

    runs: int = 0
    steps: int = 0
    audits: int = 0
    reads: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    distinct: set[int] = field(default_factory=set)

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.steps += other.steps
        self.audits += other.audits
        self.reads += other.reads
        self.distinct |= other.distinct
        for name in ("faults", "points", "killed", "lost"):
            getattr(self, name).update(getattr(other, name))


class Kept:
    """What a world knew at the end of its `before`; the server's part is in the database `KEPT`."""

    def __init__(self, before: object, world: World) -> None:
        self.before = before
        self._archive = dict(world.archive._objects)
        self._puts = next(world.archive._puts) if world.archive._objects else 1
        self._judged, self._primary, self._given = world.judge.copied(), world.primary.copied(), world.given

    def restore(self, world: World) -> None:
        world.archive._objects.update(self._archive)
        world.archive._puts = count(self._puts)
        world.judge.become(self._judged)
        world.primary, world.given = self._primary.copied(), self._given


class World:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, chooser: Chooser, number: int, lab: Lab, *, trace: bool = False) -> None:
        self.scenario, self.chooser, self.lab, self.number = scenario, chooser, lab, number
        self.pattern = _space(
            number, scenario.hot_tokens, scenario.warm_modules, not scenario.keeps_metadata, scenario.eviction
        )
        self.archive = MemoryArchive(keeps_metadata=scenario.keeps_metadata)
        self.judge = Judge(scenario.ids, self.pattern.namespace, self.archive)
        self.trace: list[str] | None = [] if trace else None
        self.tally = Tally(runs=1)
        self.incarnations = 0
        self.given = NONE
        self.primary = Server(0, self._incarnation(), 0)
        self.servers = 1
        self.databases = 1
        self.replica: Server | None = None
        self.cut: Server | None = None
        self.late: list[Effect[Any]] = []
        self.faults_left = 0
        self.calm = True  # there was no fault yet, so no call may fail
        self.choosing = False  # the processes of the scenario run
        weighed = [(f, FAULTS[f]) for f in scenario.faults]
        self._of_step = [(f, w) for f, w in weighed if f in OF_STEP and f != "late"]
        self._of_upload = [(f, w) for f, w in weighed if f == "late"]
        self._around: list[tuple[str, Process | None, float]] = [(f, None, w) for f, w in weighed if f not in OF_STEP]
        self.processes: list[Process] = []
        self.shard = self.pattern.keys.shards[0]
        pairs = [k for i in scenario.ids for k in (self.shard.module(i), self.shard.frame(i))]
        self._audit = ("EVALSHA", lab.audit, 9 + len(pairs), *self.shard.fixed, *pairs, *scenario.ids)
        self._leases = [k for i in scenario.ids for k in (self.shard.lease(i), self.shard.write_back_lease(i))]
        ranks = [key for tier in ("hot", "warm") for key in (self.shard.ranks(tier), f"{self.shard.root}ghosts:{tier}")]
        fixed = [*self.shard.fixed, self.shard.ids, self.shard.chunk(""), *ranks]
        self._keys = [*fixed, self._clock_key, *pairs, *self._leases]

    @property
    def _clock_key(self) -> str:
        return f"{self.shard.epoch}:clock"

    def _incarnation(self) -> str:
        self.incarnations += 1
        return f"{self.incarnations:08x}"

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(text)

    def clean_up(self) -> Sent:
        for process in self.processes:
            process.thread.close()
        return [(database, ("UNLINK", *self._all_keys())) for database in range(self.databases)]

    # -- the course of a run -----------------------------------------------------------------------------------------

    def run(self) -> Steps:
        """Yield commands and receive replies; return the tally. Raises `Violation`."""
        yield from self._begin()
        shared = _process_space(self.pattern) if self.scenario.together else None
        self.processes = [Process(self, f"p{n}", calls, shared) for n, calls in enumerate(self.scenario.processes)]
        self.faults_left = self.scenario.faults_max
        if self.scenario.first:
            yield from getattr(self, f"_env_{self.scenario.first}")()
        last: Process | None = None
        sticky = (0.0, 0.5, 0.85)[self.chooser.pick((1, 1, 1))] if self.chooser.seed is not None else 0.0
        for _ in range(STEPS_MAX):
            ready = [p for p in self.processes if p.pending is not None]
            if not ready:
                break
            last = yield from self._step(ready, last, sticky)
        else:
            raise Violation(f"no end after {STEPS_MAX} steps: {[p.point for p in self.processes if p.pending]}")
        self.tally.distinct.add(hash(tuple(self.chooser.taken[1:])))  # without the first choice, the stickiness
        yield from self._finish()
        self.judge.check_linear()
        return self.tally

    def _begin(self) -> Steps:
        """Perform `before` once in this namespace, and copy its result for each run after that."""
        kept = self.lab.kept.get(self.number)
        before = (self.scenario.before, id(self.pattern))
        if kept is None or kept.before != before:
            yield [(0, ("HSET", self._clock_key, "replid", self.primary.incarnation))]
            yield from self._alone(
                "setup", (Call("open", "", lambda space, _: open_space(space)), *self.scenario.before)
            )
            assert not self.chooser.taken, "`before` makes no choice"
            yield self._copied(0, KEPT)
            self.lab.kept[self.number] = Kept(before, self)
        else:
            kept.restore(self)
            yield self._copied(KEPT, 0)
        self.choosing = True

    def _copied(self, source: int, to: int) -> Sent:
        keys = self._all_keys()
        return [(source, ("EVALSHA", self.lab.copy, len(keys), *keys, source, to))]

    def _step(self, ready: list[Process], last: Process | None, sticky: float) -> Generator[Sent, Any, Process | None]:
        """Make one choice: a process that continues, a fault at a process, or an act of the environment."""
        options: list[tuple[str, Process | None]] = [("step", p) for p in ready]
        weights = [1.0] * len(ready)
        if sticky and last in ready:
            weights = [1.0 - sticky] * len(ready)
            weights[ready.index(last)] = sticky * len(ready)
        total = float(len(ready))
        if self.cut:
            for p in ready:
                # The process may notice, and connect to the new primary.
                if p.server is self.cut and self.processes.index(p) not in self.scenario.unaware:
                    options.append(("reconnect", p))
                    weights.append(0.3)
        if self.late:
            options.append(("arrive", None))
            weights.append(0.15 * total)
        if self.faults_left:
            kinds = list(self._around)
            for p in ready:
                kind = type(p.pending)
                if kind is not Sleep:
                    kinds += [(f, p, w) for f, w in self._of_step]
                    if kind is ArchivePut or kind is ArchiveDelete:
                        kinds += [(f, p, w) for f, w in self._of_upload]
            scale = RATE * total / sum([w for _, _, w in kinds]) if kinds else 0.0
            options += [(f, p) for f, p, _ in kinds]
            weights += [w * scale for _, _, w in kinds]
        what, process = options[self.chooser.pick(weights)]
        self.tally.steps += 1
        self.say(f"{what} {process.name + ' at ' + process.point if process else ''}")
        if what not in ("step", "arrive", "reconnect"):
            self.tally.faults[what] += 1
            self.faults_left -= 1
            self.calm = self.calm and what in ("expire", "replicate", "lost", "kill")
        if process is None:
            yield from getattr(self, f"_env_{what}")()
            return last
        yield from self._act(what, process)
        return process

    def _act(self, what: str, process: Process) -> Generator[Sent, Any, None]:
        if what == "kill":
            self.tally.killed[process.point] += 1
            process.die()
        elif what == "reconnect":
            self._connect(process)
        else:
            point = process.point
            self.tally.points[point] += 1
            if what in ("lost", "gone"):
                self.tally.lost[point] += 1
            yield from self._effect(process, what)

    # -- effects -----------------------------------------------------------------------------------------------------

    def _effect(self, process: Process, how: str) -> Generator[Sent, Any, None]:
        pending = process.pending
        if process.op.began_at == NEVER:
            process.op.began_at = self.judge.next_tick()
        if type(pending) is list:
            return self._redis(process, pending, how)
        if type(pending) is Sleep:
            return self._sleep(process)
        self._archive(process, pending, how)
        return _nothing()

    def _connect(self, process: Process) -> None:
        """Connect to the primary: the process forgets what it knew about epochs (`stores.redis.Incarnations`)."""
        if not (self.scenario.together and any(p.incarnation == self.primary.incarnation for p in self.processes)):
            process.space.process.forget()
        process.server, process.incarnation = self.primary, self.primary.incarnation

    def _redis(self, process: Process, calls: list[Any], how: str) -> Generator[Sent, Any, None]:
        if process.server is not self.cut and (
            process.server is not self.primary or process.incarnation != self.primary.incarnation
        ):
            self._connect(process)
        server = process.server
        done = process.sent
        part = calls[len(done) :]
        if how == "down":
            process.go(done + [RedisUnavailable("injected: not sent") for _ in part])
            return
        if (
            len(part) > 1
            and how == "step"
            and self.choosing
            and self.chooser.seed is not None
            and self.chooser.pick((3, 1))
        ):
            part = part[:1]  # other processes may act between the commands of a pipeline
        results = yield from self._perform(process, server, part)
        if how == "lost":
            note_lost(part)
            if all(call.retry for call in part):
                process.sent = done  # the driver sends all of it again later
                return
            again = iter((yield from self._perform(process, server, [call for call in part if call.retry])))
            results = [next(again) if call.retry else RedisUnavailable("injected: lost") for call in part]
        if how == "gone":
            results = [RedisUnavailable("injected: lost") for _ in part]
        if len(done) + len(part) < len(calls):
            process.sent = done + results
            return
        process.go(done + results)

    def _perform(self, process: Process, server: Server, calls: list[Any]) -> Generator[Sent, Any, list[Any]]:
        database, scripts = server.database, self.lab.scripts
        sent: Sent = []
        audited = False
        for call in calls:
            if type(call) is RunScript:
                name = call.script.name
                audited = audited or name in AUDITED
                # A write lost its position to a caller that had waited for long: a slow process counts as a fault.
                self.calm = self.calm and not _passes(call)
                sent.append((database, ("EVALSHA", scripts[name].sha, *command_of(call)[2:])))
            else:
                sent.append((database, call.args))
        if audited:
            sent.append((database, self._audit))
        if process.op.kind == "get":
            self.judge.touched(process.op, server, server is self.primary)
        replies = yield sent
        results = []
        for call, reply in zip(calls, replies, strict=False):
            result = outcome(call, reply)
            if type(call) is RunScript:
                self._note(process.op, server, result)
            results.append(result)
        if audited:
            self._judge(server, replies[-1])
        return results

    def _judge(self, server: Server, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        self.tally.audits += 1
        self.judge.audited(server, server is self.primary, reply)

    def _note(self, op: Op, server: Server, result: Any) -> None:
        """Note each position that a write took, even if the write never learns of it."""
        if type(result) is Opened and not self.choosing:
            self.given = max(self.given, (result.epoch, result.ver))
        for one in result if type(result) is list else (result,):  # a batch returns a list, here of one
            if type(one) in PLACED and op.writes:
                version = one.version if type(one) is Deleted else one
                position = (version.epoch, version.ver)
                self.given = self.given if self.choosing else max(self.given, position)
                self.judge.took(op, position)
                op.applied_on = server

    def _sleep(self, process: Process) -> Generator[Sent, Any, None]:
        """The other processes had a turn; a lease may end if its holder is slow."""
        if process.sleeps > SLEEPS_MAX or self.chooser.pick((3, 1)):
            process.sleeps = 0
            self.say("leases end")
            yield [(process.server.database, ("UNLINK", *self._leases))]
        process.go(None)

    def _archive(self, process: Process, effect: Any, how: str) -> None:
        if how == "lost":  # the archive's client tries again by itself, so any of its calls may be made twice
            self._archived(effect)
            return
        if how == "late":
            self.late.append(effect)
        if how in ("late", "down"):
            process.go(ArchiveUnavailable(f"injected: {how}"))
            return
        result = self._archived(effect)
        process.go(ArchiveUnavailable("injected: lost") if how == "gone" else result)

    def _archived(self, effect: Any) -> Any:
        if isinstance(effect, ArchiveDelete):
            self.say(f"   deletes {[k[-40:] for k in effect.keys]}")
        result = perform_on(self.archive, effect)
        if isinstance(effect, ArchivePut | ArchiveDelete):
            self.judge.archive_changed()
        if isinstance(effect, ArchiveDelete):
            self.judge.check_copies(self.primary, True)
        return result

    # -- results of calls --------------------------------------------------------------------------------------------

    def ended(self, op: Op, result: Any, server: Server) -> None:
        self.say(f"   {op.kind} {op.id} -> {getattr(result, 'version', result)}")
        op.ended_at = self.judge.next_tick()
        if op.kind == "get":
            self.tally.reads += 1
            op.found = result and (result.version.epoch, result.version.ver)
            self.judge.read(op, result)
            op.fate = "done"
        elif op.writes and result is not False:
            self.judge.acked(op, self._position_of(op, result))
        else:
            op.fate = "done"
            if op.durable:
                self.judge.found_nothing(op, server)

    def _position_of(self, op: Op, result: Any) -> Position:
        """The position of an acknowledged write.

        A durable delete does not return it: it is the last position at which the delete put an object. (A delete that finds its
        first tombstone adopted has reserved a second position in vain.)
        """
        if hasattr(result, "version"):
            return (result.version.epoch, result.version.ver)
        written = [position for position in op.positions if position in self.judge.objects[op.id]]
        return written[-1] if op.durable and written else op.positions[-1]

    def failed(self, op: Op, e: DistierError) -> None:
        self.say(f"   {op.kind} {op.id} -> {type(e).__name__}: {e}")
        op.error = f"{type(e).__name__}: {e}"
        op.ended_at = self.judge.next_tick()
        if isinstance(e, NotFound):
            op.fate = "done"
        elif isinstance(e, Conflict | Full):
            self.judge.refuse(op)
        elif isinstance(e, Unavailable):
            op.fate = "unknown"
            if self.calm:
                raise Violation(f"{op.kind} of {op.id} failed without a fault: {op.error}")
        else:
            raise Violation(f"{op.kind} of {op.id}: {op.error}")

    # -- the environment ---------------------------------------------------------------------------------------------

    def _all_keys(self) -> list[str]:
        return [*self._keys, self.shard.done, self.shard.dictionaries]

    def _free_database(self) -> int:
        taken = {s.database for s in (self.primary, self.replica, self.cut) if s}
        free = next(n for n in range(KEPT) if n not in taken)
        self.databases = max(self.databases, free + 1)
        return free

    def _env_expire(self) -> Generator[Sent, Any, None]:
        database = self.primary.database
        frames = [self.shard.frame(i) for i in self.scenario.ids]
        replies = yield [
            *((database, ("EVALSHA", self.lab.expire, 1, frame)) for frame in frames), (database, self._audit)
        ]  # fmt: skip
        self._judge(self.primary, replies[-1])

    def _env_replicate(self) -> Generator[Sent, Any, None]:
        old = self.replica
        self.servers += 1
        database = old.database if old else self._free_database()
        self.replica = Server(database, "", self.servers, dict(self.primary.floor))
        yield self._copied(self.primary.database, database)

    def _env_failover(self) -> Generator[Sent, Any, None]:
        yield from self._promote(keep=True)

    def _env_promote(self) -> Generator[Sent, Any, None]:
        yield from self._promote(keep=False)

    def _promote(self, *, keep: bool) -> Generator[Sent, Any, None]:
        if self.cut:
            yield from self._end_cut()
        new = self.replica
        if new is None:  # the replica had nothing yet
            self.servers += 1
            new = Server(self._free_database(), "", self.servers)
            yield [(new.database, ("UNLINK", *self._all_keys()))]
        self.judge.lost("failover" if keep and self.primary.opened else "promote")
        old, self.replica = self.primary, None
        self.primary, new.incarnation = new, self._incarnation()
        self.judge.new_incarnation(new, new.floor)
        yield [(new.database, ("HSET", self._clock_key, "replid", new.incarnation))]
        # Assumption: an old primary that has no epoch yet never gets one. If it did, its epoch could be greater than the new
        # primary's, and it would acknowledge durable writes that the new primary's readers do not see (`tests/model`,
        # "zombie_claims").
        if keep and old.opened:
            self.cut = old
            self.calm = False  # a call there fails once it sees the newer epoch

    def _end_cut(self) -> Generator[Sent, Any, None]:
        self.cut = None
        yield []

    def _env_loss(self) -> Generator[Sent, Any, None]:
        yield from self._forget(self._incarnation())

    def _env_flush(self) -> Generator[Sent, Any, None]:
        yield from self._forget(self.primary.incarnation)

    def _forget(self, incarnation: str) -> Generator[Sent, Any, None]:
        self.judge.lost("loss")
        database = self.primary.database
        self.servers += 1
        old, self.primary = self.primary, Server(database, incarnation, self.servers)
        self.judge.new_incarnation(self.primary, {})
        for p in self.processes:
            if p.server is old:
                p.server = self.primary
        self.replica = None
        yield [(database, ("UNLINK", *self._all_keys())), (database, ("HSET", self._clock_key, "replid", incarnation))]

    def _env_restart(self) -> Generator[Sent, Any, None]:
        self.primary.incarnation, self.primary.opened = self._incarnation(), False
        self.judge.new_incarnation(self.primary, self.primary.floor)
        yield [(self.primary.database, ("HSET", self._clock_key, "replid", self.primary.incarnation))]

    def _env_arrive(self) -> Generator[Sent, Any, None]:
        self._archived(self.late.pop(self.chooser.pick([1.0] * len(self.late))))
        yield from ()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _alone(self, name: str, calls: Sequence[Call]) -> Generator[Sent, Any, list[Any]]:
        """Run a process to its end without faults. Raises `Violation` if a call fails."""
        process = Process(self, name, calls)
        while process.pending is not None:
            yield from self._effect(process, "step")
        for result in process.results:
            if isinstance(result, DistierError) and not isinstance(result, NotFound):
                raise Violation(f"{name}: {type(result).__name__}: {result}")
        return process.results

    def _finish(self) -> Generator[Sent, Any, None]:
        """All processes are dead or done. Check that exactly the acknowledged versions remain."""
        self.say("-- the end")
        self.choosing = False
        self.cut, self.calm, self.faults_left = None, True, 0
        while self.late:
            effect = self.late.pop()
            if self.chooser.pick((1, 1)):
                self._archived(effect)
        yield [(self.primary.database, ("UNLINK", *self._leases))]
        if self.scenario.last:
            yield from self._alone("last", self.scenario.last)
        ids, shard = self.scenario.ids, self.shard
        gets = tuple(_get(i) for i in ids)
        tidy = (
            Call("write-back", "", lambda space, _: write_back_due(space, shard, older_than_ms=0)),
            Call("expire", "", lambda space, _: expire(shard, ids).__iter__()),
            Call("sweep", "", lambda space, _: sweep(space)),
        )
        results = yield from self._alone("end", (Call("open", "", lambda space, _: open_space(space)), *gets, *tidy))
        if self._unswept():  # the recovery may have adopted objects that had no record yet
            yield from self._alone("again", (Call("sweep", "", lambda space, _: sweep(space)),))
        last = yield from self._alone("after", gets)
        self._same(results[1 : 1 + len(ids)], last, "after write-back and sweep", or_newer=True)
        if problem := self._unswept() or self._unlisted():
            raise Violation(problem)
        if any("/packs/" in key for key in self.archive._objects):  # what replaces packs leaves nothing behind
            packing = Call("pack", "", lambda space, _: pack_all(space, min_age_ms=-(10**15), everything=True))
            yield from self._alone("packed", (packing, *tidy))
            packed = yield from self._alone("after the packing", gets)
            self._same(last, packed, "after the packing", or_newer=True)
            if problem := self._unswept(packs=True) or self._unlisted():
                raise Violation(problem)
        if self.chooser.pick((1, 2)) == 0:
            yield from self._forget(self._incarnation())
            again = yield from self._alone("lost", (*gets, Call("rescue", "", lambda space, _: rescue(space)), *gets))
            self._same(last, again[: len(ids)], "from the archive alone", or_newer=True)
            self._same(again[: len(ids)], again[-len(ids) :], "after the rescue")

    def _same(self, before: list[Any], after: list[Any], when: str, *, or_newer: bool = False) -> None:
        for i, x, y in zip(self.scenario.ids, before, after, strict=True):
            old, new = x and (x.version.epoch, x.version.ver), y and (y.version.epoch, y.version.ver)
            if old == new:
                continue
            # A write of unknown outcome may take effect now; `Judge.read` has judged the others.
            top = self.judge.visible_top(i)
            op = self.judge.versions.get((i, top))
            if not (or_newer and op and op.fate != "refused" and (old or NONE) < top):
                raise Violation(f"{i} was {old}, {when} it is {new}")

    def _unswept(self, *, packs: bool = False) -> str:
        """Return what is wrong with the remaining objects, with `packs` also with those in packs; empty if nothing is.

        The objects of the records remain, and greater ones: uploads whose writers died before they applied them, and uploads of
        an old primary that arrived after the recovery. Where it has committed one of those, its sweep may have deleted the
        object of the record.
        """
        was_cut = any(how == "failover" for _, how in self.judge.losses)
        for i in self.scenario.ids:
            record = self.primary.records.get(i)
            position = record.position if record else NONE
            left = set(self.judge.objects[i])
            if any(x < position and (packs or (i, x) not in self.judge.packed) for x in left):
                return f"swept: {i} is {position}, the archive still has {sorted(left)}"
            behind = was_cut and any(x > position for x in left)
            if record and record.tier not in ("none", "deleted") and position not in left and not behind:
                return f"swept: {i} is {position}, the archive has {sorted(left)}"
        return ""

    def _unlisted(self) -> str:
        """Return what is wrong with the manifest after a sweep with a LIST: it names exactly the objects that are there."""
        there = {(i, position) for i in self.scenario.ids for position in self.judge.objects[i]}
        return "" if self.judge.listed == there else f"listed: {sorted(self.judge.listed)}, there are {sorted(there)}"


def _passes(call: RunScript[Any]) -> bool:
    """Whether this call passes the position of another write."""
    at = {"reserve": 2, "adopt": 2, "delete": 2, "put": 4}.get(call.script.name)
    return at is not None and (
        call.args[at] != "" if call.script.name in ("reserve", "adopt") else "/" in str(call.args[at])
    )


def _nothing() -> Generator[Sent, Any, None]:
    yield from ()


def _get(id: str) -> Call:
    return Call("get", id, lambda space, _: get(space, id))


# -- many runs -------------------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """A run that violated an invariant, with enough data to repeat it."""

    scenario: Scenario
    seed: int | None
    choices: list[int]
    problem: str
    trace: list[str] = field(default_factory=list)
    after_runs: int = 0

    def __str__(self) -> str:
        steps = "\n".join(self.trace)
        return f"{self.scenario.name}, seed {self.seed}: {self.problem}\nchoices {self.choices}\n{steps}"


class Lab:
    """A server with the scripts loaded, where worlds can run. `patches` make a mutant."""

    kind = ""

    def __init__(self, wire: Wire, patches: tuple[Patch, ...] = ()) -> None:
        self.wire = wire
        self._slots = list(range(WINDOW))
        self.kept: dict[int, Kept] = {}
        self.scripts: dict[str, Script] = patched(patches)
        wire.load(self.scripts.values())
        self.audit, self.copy, self.expire = wire.load([AUDIT, COPY, EXPIRE])
        wire.empty()

    def _run(self, scenario: Scenario, chooser: Chooser, *, trace: bool = False) -> Steps:
        """Run once in an unused namespace, which is empty again at the end."""
        world = World(scenario, chooser, self._slots.pop(), self, trace=trace)
        try:
            result: Tally | Failure = yield from world.run()
        except Exception as e:  # any failure needs the seed to be repeated
            problem = str(e) if isinstance(e, Violation) else f"{type(e).__name__}: {e}"
            result = Failure(scenario, chooser.seed, chooser.taken, problem, world.trace or [])
        yield world.clean_up()
        self._slots.append(world.number)
        return result

    def explore(
        self, scenario: Scenario, seeds: Sequence[int], *, failures_max: int = 1
    ) -> tuple[Tally, list[Failure]]:
        """Run the scenario once per seed; stop after `failures_max` failures."""
        tally, failures = Tally(), list[Failure]()

        def runs() -> Iterator[Steps]:
            for seed in seeds:
                if len(failures) >= failures_max:
                    return
                yield self._run(scenario, Chooser(seed))

        def done(result: Tally | Failure) -> None:
            if isinstance(result, Failure):
                result.after_runs = tally.runs + 1
                failures.append(result)
                tally.runs += 1
            else:
                tally.add(result)

        with _hurried():
            run_all(self.wire, runs(), done)
        return tally, [self.replay(f) for f in failures[:failures_max]]

    def exhaust(self, scenario: Scenario, *, limit: int) -> tuple[Tally, list[Failure], bool]:
        """Make every run of the scenario, depth first. The last result says whether `limit` was enough for all of them."""
        tally, script = Tally(), list[int]()
        while tally.runs < limit:
            chooser = Chooser(script=script)
            found: list[Any] = []
            with _hurried():
                run_all(self.wire, iter([self._run(scenario, chooser)]), found.append)
            if isinstance(found[0], Failure):
                return tally, [self.replay(found[0])], False
            tally.add(found[0])
            after = chooser.next_script()
            if after is None:
                return tally, [], True
            script = after
        return tally, [], False

    def replay(self, failure: Failure) -> Failure:
        """Repeat the same run alone, with a trace."""
        chooser = Chooser(failure.seed, [] if failure.seed is not None else failure.choices)
        found: list[Any] = []
        with _hurried():
            run_all(self.wire, iter([self._run(failure.scenario, chooser, trace=True)]), found.append)
        if isinstance(found[0], Failure):
            found[0].after_runs = failure.after_runs
            return found[0]
        failure.problem += " (NOT SEEN AGAIN in the replay)"
        return failure
