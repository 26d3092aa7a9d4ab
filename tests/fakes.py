"""A world of one's own: Redis, the archive in memory, and a driver that can die at any line.

What it gives is control: every plan can be stopped after every effect, thousands of times, in one thread and in the same way
each time. Redis is a logical database of a real server where tests have lent one (`lent`), and else fakeredis, which takes
twenty times as long and proves nothing alone: it knows no `#!lua` line, no memory limit, no INFO.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import finalize

import fakeredis
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from distier.config import Config, load_config
from distier.domain.keys import Shard
from distier.domain.tokens import token_counter
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
from distier.errors import ArchiveUnavailable, DeadlineExceeded, DistierError, RedisUnavailable
from distier.plans.common.leases import LEASE_MS
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.epochs import open_space
from distier.stores.memory import MemoryArchive
from distier.stores.redis import Answer, Batch, Exchange, split
from distier.stores.redis.wire import RawCommand

T = TypeVar("T")

SLEEP_MAX_S = 60.0


class FakeExchange:
    """fakeredis behind `distier.stores.redis.Exchange`: the RESP3 replies of one server, to many threads in turn.

    `before` is called with each command before it is performed: a test may be another client there, also between the
    commands of one pipeline. While `down`, nothing is answered.
    """

    def __init__(self) -> None:
        self._connection = self._connect()
        self._shas: dict[str, str] = {}
        self._lock = threading.RLock()
        self.before: Callable[[RawCommand], None] | None = None
        self.down = False

    def _connect(self) -> Any:
        client = fakeredis.FakeRedis(protocol=3, server_type="valkey", version=(8, 0))
        return client.connection_pool.get_connection()

    def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        """See `Exchange`: an error reply is a value."""
        if self.down:
            raise RedisConnectionError("the fake is down")
        replies = []
        with self._lock:
            if self.before is None:
                return self.perform_all(commands)
            for words in commands:
                hook = self.before
                if hook is not None:
                    self.before = None  # what the hook sends is not hooked
                    hook(words)
                    self.before = self.before or hook
                replies.append(self.perform(*words))
        return replies

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """See `Exchange`."""
        try:
            return [*split(batches, self.exchange(batches[0][0], [w for _, c in batches for w in c], timeout_s))]
        except RedisConnectionError as e:
            return [e] * len(batches)

    def perform_all(self, commands: Sequence[RawCommand]) -> list[Any]:
        """The replies as Redis gives them, errors as values."""
        return [self.perform(*words) for words in commands]

    def perform(self, *words: Any) -> Any:
        """One command."""
        if words[:2] == ("SCRIPT", "LOAD"):
            words = (*words[:2], self._without_shebang(words[2]))
        if words[:2] == ("SCRIPT", "FLUSH"):
            self._shas.clear()
        if words[0] in ("EVALSHA", "EVALSHA_RO"):
            words = ("EVALSHA", self._shas.get(words[1], words[1]), *words[2:])
        try:
            self._connection.send_command(*words)
            return self._connection.read_response()
        except ResponseError as e:
            return e

    def _without_shebang(self, source: bytes) -> bytes:
        """fakeredis takes `#!lua` for a syntax error: it gets the rest, and EVALSHA with the SHA-1 of the whole."""
        assert source.startswith(b"#!lua"), source[:40]
        rest = source.partition(b"\n")[2]
        shas = [sha1(text, usedforsecurity=False).hexdigest() for text in (source, rest)]
        self._shas[shas[0]] = shas[1]
        return rest

    def drop(self) -> None:
        """It is never out of step."""

    def close(self) -> None:
        """Nothing to give back."""


class LentExchange(FakeExchange):
    """The same by a logical database of a real server, which nobody else has meanwhile."""

    def __init__(self, path: Path, database: int) -> None:
        self._path, self._database = path, database
        super().__init__()
        self.perform("FLUSHALL")

    def _connect(self) -> Any:
        client = redis.Redis(unix_socket_path=str(self._path), db=self._database, protocol=3, socket_timeout=30)
        return client.connection_pool.get_connection()

    def perform(self, *words: Any) -> Any:
        """One command."""
        return self.perform_all([words])[0]

    def perform_all(self, commands: Sequence[RawCommand]) -> list[Any]:
        """All in one round trip. FLUSHALL would empty the databases of others, too."""
        sent = [("FLUSHDB",) if words[0] == "FLUSHALL" else words for words in commands]
        self._connection.send_packed_command(self._connection.pack_commands(sent))
        return [self._reply() for _ in sent]

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as e:
            return e


DATABASES = 64
"""Of the server that `lent` starts: how many worlds there may be at once."""
_lent: tuple[Path, list[int]] | None = None


@contextmanager
def lent(server: Path) -> Iterator[None]:
    """Worlds are made on the server with this socket meanwhile."""
    global _lent
    _lent = server, list(range(DATABASES))
    try:
        yield
    finally:
        _lent = None


def own_exchange() -> FakeExchange:
    """An empty Redis."""
    if _lent is None:
        return FakeExchange()
    path, free = _lent
    found = LentExchange(path, database := free.pop())
    finalize(found, free.append, database)
    return found


class AsyncFakeExchange:
    """The same for an event loop."""

    def __init__(self, fake: FakeExchange | None = None) -> None:
        self.fake = fake or FakeExchange()

    async def exchange(self, shard: Shard, commands: Sequence[RawCommand], timeout_s: float) -> list[Any]:
        """See `AsyncExchange`."""
        return self.fake.exchange(shard, commands, timeout_s)

    async def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """See `AsyncExchange`."""
        return self.fake.exchange_many(batches, timeout_s)

    def drop(self) -> None:
        """It is never out of step."""

    async def close(self) -> None:
        """Nothing to give back."""


# -- the scripted driver -------------------------------------------------------------------------------------------

FaultKind = Literal["stop", "fail", "lost", "torn"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the `at`-th effect (from 1).

    stop    it is performed, then the process dies: nothing of the plan runs any more
    fail    it is not performed; the plan gets `Unavailable`
    lost    it is performed, but the reply is lost; the plan gets `Unavailable`
    torn    as lost, and only the first half of a pipeline is performed
    """

    kind: FaultKind
    at: int


class Stopped(BaseException):
    """The process died. A `BaseException`, so that nothing catches it on the way."""


REDIS = (Command, RunScript, Pipeline)
ARCHIVE = (ArchivePut, ArchiveGet, ArchiveList, ArchiveDelete)


@dataclass
class PlanRunner:
    """One process: performs effects one at a time, plans of a `Parallel` in order, waits in no time.

    Two runners with one `name` draw the same tokens: the second is the first one's retry. `effects` has the effects
    of the last run, by name. `on_sleep` is what the world does while this process waits.
    """

    redis: Exchange
    archive: MemoryArchive
    name: str = "p"
    fault: Fault | None = None
    on_sleep: Callable[[float], None] | None = None
    effects: list[str] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    archive_down: bool = False
    _tokens: int = 0
    _slept_s: float = 0.0
    _uses: UseBuffer = field(default_factory=UseBuffer)

    def run(self, plan: Plan[T]) -> T:
        """Run a plan to its end. Raises what it raises, and `Stopped` where the fault says so."""
        self.effects.clear()
        self._slept_s = 0.0
        return self._run(plan)

    def _run(self, plan: Plan[T]) -> T:
        try:
            effect = next(plan)
            while True:
                try:
                    result = self._step(effect)
                except DistierError as e:
                    effect = plan.throw(e)
                else:
                    effect = plan.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            plan.close()

    def _step(self, effect: Effect[Any]) -> Any:
        if isinstance(effect, Parallel):  # its plans' effects count, it does not
            return [self._caught(plan) for plan in effect.plans]
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

    def _caught(self, plan: Plan[Any]) -> Any:
        try:
            return self._run(plan)
        except DistierError as e:
            return e

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
        """One effect."""
        if isinstance(effect, ARCHIVE) and self.archive_down:
            raise ArchiveUnavailable("the archive is down")
        match effect:
            case Command() | RunScript():
                return collect(self._calls([effect])[0])
            case Pipeline(calls):
                return self._calls(calls)
            case Offload(_, function):
                return function()
            case ArchiveGet(key, max_bytes):
                return self.archive.get(key, max_bytes=max_bytes)
            case ArchivePut(key, data, content_type, metadata):
                return self.archive.put(key, data, content_type=content_type, metadata=metadata)
            case ArchiveList(prefix, start_after, limit):
                return self.archive.list(prefix, start_after=start_after, limit=limit)
            case ArchiveDelete(keys):
                return self.archive.delete(keys)
            case NewToken():
                self._tokens += 1
                return sha1(f"{self.name}/{self._tokens}".encode()).hexdigest()[:32]
            case Used(shard, id, flush):
                return self._uses.note(shard, id, 0.0, flush=flush)
            case Count(name, n):
                self.counters[name] += n
                return None
            case Now():
                return 0
            case Sleep(seconds):
                return self._sleep(seconds)
        raise AssertionError(f"an effect that this driver does not know: {effect!r}")

    def _calls(self, calls: Sequence[Call]) -> list[Any]:
        """As the drivers: one conversation per shard; but no second try, so that a fault stays one."""
        results = []
        for call in calls:
            talk = converse([call], 0.0)
            try:
                ask = next(talk)
                while True:
                    assert isinstance(ask, list), "converse wants to try again though its time is over"
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


# -- a whole world -------------------------------------------------------------------------------------------------


def small_config(**overrides: Any) -> Config:
    """A configuration with budgets that a few small modules fill: 100 tokens and 4 KiB hot, 6 modules warm."""
    settings: dict[str, Any] = {
        "redis__url": "redis://127.0.0.1:1/0",
        "namespace": "ns",
        "storage_tiers__cold__directory": "unused",
        "counter": "estimate",
        "storage_tiers__hot__max_size": 100,
        "storage_tiers__hot__max_bytes": 4096,
        "storage_tiers__warm__max_modules": 6,
        "storage_tiers__warm__max_bytes": 8192,
    }
    return load_config({}, **settings | overrides)


@dataclass(frozen=True)
class Snapshot:
    """All of Redis and of the archive (metadata left out: nothing rests on it)."""

    keys: dict[str, tuple[str, Any, int]]
    objects: Mapping[str, bytes]


@dataclass
class World:
    """One namespace, opened, on fakes; `process()` is a fresh client of it."""

    space: Namespace
    redis: FakeExchange
    archive: MemoryArchive

    @staticmethod
    def make(*, opened: bool = True, keeps_metadata: bool = True, **overrides: Any) -> World:
        config = small_config(**overrides)
        archive = MemoryArchive(keeps_metadata=keeps_metadata)
        world = World(Namespace(config, token_counter("estimate"), not keeps_metadata), own_exchange(), archive)
        if opened:
            world.process("opener").run(open_space(world.space))
        return world

    def process(self, name: str = "p", **options: Any) -> PlanRunner:
        """A fresh client. While it waits, the leases of those that died run out, as they do after `LEASE_MS`."""

        def on_sleep(slept_s: float) -> None:
            if slept_s * 1000 > LEASE_MS:
                self.end_leases()

        return PlanRunner(self.redis, self.archive, name, **{"on_sleep": on_sleep, **options})

    def end_leases(self) -> None:
        """What their TTL does in time."""
        for key in self.ask([("KEYS", "*:lease:*")])[0]:
            assert self.ask([("PTTL", key)])[0] > 0, f"{key!r} has no TTL: it would block for ever"
            self.ask([("DEL", key)])

    def ask(self, commands: Sequence[RawCommand]) -> list[Any]:
        return self.redis.exchange(self.shard, commands, 30.0)

    def dump(self) -> dict[str, tuple[str, Any, int]]:
        return dump(self.ask)

    def run(self, plan: Plan[T], name: str = "other") -> T:
        """Run a plan in a process of its own, without faults."""
        return self.process(name).run(plan)

    @property
    def shard(self) -> Shard:
        return self.space.keys.shards[0]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.dump(), self.objects())

    def restore(self, snapshot: Snapshot) -> None:
        """Make Redis and the archive what they were."""
        writes: dict[str, Callable[[str, Any], list[RawCommand]]] = {
            "hash": lambda key, fields: [("HSET", key, *(w for pair in fields.items() for w in pair))],
            "string": lambda key, value: [("SET", key, value)],
            "zset": lambda key, members: [("ZADD", key, *(w for member, score in members for w in (score, member)))],
            "stream": lambda key, entries: [("XADD", key, id, *fields) for id, fields in entries],
        }
        commands: list[RawCommand] = [("FLUSHALL",)]
        for key, (type, value, pttl) in snapshot.keys.items():
            commands += writes[type](key, value)
            commands += [("PEXPIRE", key, pttl)] if pttl > 0 else []
        self.ask(commands)
        self.archive.delete(list(self.objects()))
        for key, data in snapshot.objects.items():
            self.archive.put(key, data, content_type="", metadata={})

    def objects(self) -> Mapping[str, bytes]:
        """All objects of the archive."""
        listed = self.archive.list("", limit=100_000)
        return {o.key: self.archive.get(o.key, max_bytes=1 << 30).data for o in listed}  # type: ignore[union-attr]


def dump(ask: Callable[[Sequence[RawCommand]], list[Any]], pattern: str = "*") -> dict[str, tuple[str, Any, int]]:
    """Every key as (type, value, PTTL), whatever its type. `ask` sends commands and gives their RESP3 replies."""
    keys = sorted(ask([("KEYS", pattern)])[0])
    types = [bytes(t).decode() for t in ask([("TYPE", key) for key in keys])] if keys else []
    reads: dict[str, Callable[[bytes], RawCommand]] = {
        "hash": lambda key: ("HGETALL", key),
        "string": lambda key: ("GET", key),
        "zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
        "stream": lambda key: ("XRANGE", key, "-", "+"),
        "list": lambda key: ("LRANGE", key, 0, -1),
        "set": lambda key: ("SMEMBERS", key),
    }
    commands = [w for key, type in zip(keys, types, strict=True) for w in (reads[type](key), ("PTTL", key))]
    replies = ask(commands) if commands else []
    values = zip(keys, types, replies[::2], replies[1::2], strict=True)
    return {key.decode(): (type, value, int(pttl)) for key, type, value, pttl in values}


def ids_of(members: Iterable[Sequence[Any]]) -> dict[str, float]:
    """A dumped zset as scores by id."""
    return {bytes(member).decode(): float(score) for member, score in members}
