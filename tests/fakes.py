"""A small world for tests: Redis, an archive in memory, and processes that can die at any effect.

A test can stop every plan after every effect, thousands of times, in one thread and in the same way each time. Redis is a
logical database of a real server if the tests have lent one (`lent`), and otherwise fakeredis. fakeredis takes twenty times as
long and alone proves nothing: it knows no `#!lua` line, no memory limit and no INFO.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeVar
from weakref import finalize

import fakeredis
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from distier.config import Config, load_config
from distier.domain.keys import Shard
from distier.domain.tokens import token_counter
from distier.effects import Plan
from distier.plans.common.leases import LEASE_MS
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.epochs import open_space
from distier.stores.memory import MemoryArchive
from distier.stores.redis import Answer, Batch, split
from distier.stores.redis.wire import RawCommand
from tests.scripted import PlanRunner

T = TypeVar("T")


class FakeExchange:
    """fakeredis as a `distier.stores.redis.Exchange`: the RESP3 replies of one server, to one thread at a time.

    `before` is called with each command before it is performed, so a test can act as another client, also between the
    commands of one pipeline. While `down`, there are no replies.
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
            for command in commands:
                hook = self.before
                if hook is not None:
                    self.before = None  # commands of the hook itself do not call it
                    hook(command)
                    self.before = self.before or hook
                replies.append(self.perform(*command))
        return replies

    def exchange_many(self, batches: Sequence[Batch], timeout_s: float) -> list[Answer]:
        """See `Exchange`."""
        try:
            return [*split(batches, self.exchange(batches[0][0], [w for _, c in batches for w in c], timeout_s))]
        except RedisConnectionError as e:
            return [e] * len(batches)

    def perform_all(self, commands: Sequence[RawCommand]) -> list[Any]:
        """Perform commands; return the replies of Redis, with errors as values."""
        return [self.perform(*command) for command in commands]

    def perform(self, *command: Any) -> Any:
        """Perform one command."""
        if command[:2] == ("SCRIPT", "LOAD"):
            command = (*command[:2], self._without_shebang(command[2]))
        if command[:2] == ("SCRIPT", "FLUSH"):
            self._shas.clear()
        if command[0] in ("EVALSHA", "EVALSHA_RO"):
            command = ("EVALSHA", self._shas.get(command[1], command[1]), *command[2:])
        try:
            self._connection.send_command(*command)
            return self._connection.read_response()
        except ResponseError as e:
            return e

    def _without_shebang(self, source: bytes) -> bytes:
        """Remove the `#!lua` line, a syntax error for fakeredis. EVALSHA still uses the SHA-1 of the whole script."""
        assert source.startswith(b"#!lua"), source[:40]
        rest = source.partition(b"\n")[2]
        shas = [sha1(text, usedforsecurity=False).hexdigest() for text in (source, rest)]
        self._shas[shas[0]] = shas[1]
        return rest

    def drop(self) -> None:
        """Do nothing: replies are never out of step here."""

    def close(self) -> None:
        """Do nothing: there are no connections."""


class LentExchange(FakeExchange):
    """The same with a logical database of a real server, which no other world uses at the time."""

    def __init__(self, path: Path, database: int) -> None:
        self._path, self._database = path, database
        super().__init__()
        self.perform("FLUSHALL")

    def _connect(self) -> Any:
        client = redis.Redis(unix_socket_path=str(self._path), db=self._database, protocol=3, socket_timeout=30)
        return client.connection_pool.get_connection()

    def perform(self, *command: Any) -> Any:
        """Perform one command."""
        return self.perform_all([command])[0]

    def perform_all(self, commands: Sequence[RawCommand]) -> list[Any]:
        """Perform commands in one round trip. FLUSHALL becomes FLUSHDB, because it would empty the databases of others too."""
        sent = [("FLUSHDB",) if command[0] == "FLUSHALL" else command for command in commands]
        self._connection.send_packed_command(self._connection.pack_commands(sent))
        return [self._reply() for _ in sent]

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as e:
            return e


DATABASES = 64
"""The number of databases of the server for `lent`: how many worlds can exist at once."""
_lent: tuple[Path, list[int]] | None = None


@contextmanager
def lent(server: Path) -> Iterator[None]:
    """Create worlds on the server with this socket inside this context."""
    global _lent
    _lent = server, list(range(DATABASES))
    try:
        yield
    finally:
        _lent = None


def own_exchange() -> FakeExchange:
    """Return an empty Redis."""
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
        """Do nothing: replies are never out of step here."""

    async def close(self) -> None:
        """Do nothing: there are no connections."""


# -- a whole world -------------------------------------------------------------------------------------------------


def small_config(**overrides: Any) -> Config:
    """Return a configuration whose budgets a few small modules fill: 100 tokens and 4 KiB hot, 6 modules warm."""
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
    """The contents of Redis and of the archive (without metadata, on which nothing depends)."""

    keys: dict[str, tuple[str, Any, int]]
    objects: Mapping[str, bytes]


@dataclass
class World:
    """One open namespace on fakes; `process()` returns a new client of it."""

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
        """Return a new client. While it waits, the leases of dead processes expire, as they do after `LEASE_MS`."""

        def on_sleep(slept_s: float) -> None:
            if slept_s * 1000 > LEASE_MS:
                self.end_leases()

        return PlanRunner(self.redis, self.archive, name, **{"on_sleep": on_sleep, **options})

    def end_leases(self) -> None:
        """Delete all leases, as their TTL does in time."""
        for key in self.ask([("KEYS", "*:lease:*")])[0]:
            assert self.ask([("PTTL", key)])[0] > 0, f"{key!r} has no TTL: it would block for ever"
            self.ask([("DEL", key)])

    def ask(self, commands: Sequence[RawCommand]) -> list[Any]:
        return self.redis.exchange(self.shard, commands, 30.0)

    def dump(self) -> dict[str, tuple[str, Any, int]]:
        return dump(self.ask)

    def run(self, plan: Plan[T], name: str = "other") -> T:
        """Run a plan in a separate process, without faults."""
        return self.process(name).run(plan)

    @property
    def shard(self) -> Shard:
        return self.space.keys.shards[0]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.dump(), self.objects())

    def restore(self, snapshot: Snapshot) -> None:
        """Restore Redis and the archive."""
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
        """Return all objects of the archive."""
        listed = self.archive.list("", limit=100_000)
        return {o.key: self.archive.get(o.key, max_bytes=1 << 30).data for o in listed}  # type: ignore[union-attr]


def dump(ask: Callable[[Sequence[RawCommand]], list[Any]], pattern: str = "*") -> dict[str, tuple[str, Any, int]]:
    """Return every key as (type, value, PTTL), whatever its type. `ask` sends commands and returns their RESP3 replies."""
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
    """Return a dumped zset as scores by id."""
    return {bytes(member).decode(): float(score) for member, score in members}
