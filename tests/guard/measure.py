"""The cost of each verb of the API, counted and not timed: round trips to Redis, their commands and how many of these run a
script, calls of the archive, and calls of Python functions in distier (resuming a generator counts as a call too).
`state` and `touch` are scripts that other verbs send; they are here alone.

    python -m tests.guard.measure        # rewrites counts.json for this version of Python

`test_counts.py` compares `counts.json` exactly. A change that makes a verb cheaper or dearer must rewrite it, and the diff
shows by how much. The server is real. Chance events (a timer of the event loop, a reply in two packets) can only add calls,
so each verb is counted in several rounds, on new modules, and the lowest count is used.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import distier
from distier import AsyncStore, Store
from distier.client import make_space
from distier.config import Config, load_config
from distier.domain.ids import encode_id
from distier.drive import aio as aio_driver
from distier.drive import sync as sync_driver
from distier.drive.process import UseBuffer
from distier.lua import state, touch
from distier.plans.common.touches import send_touch
from distier.stores.memory import MemoryArchive
from distier.stores.redis import AsyncRedisExchange, RedisExchange
from tests.servers import poll, running_server

PATH = Path(__file__).with_name("counts.json")
CODE = str(Path(distier.__file__).parent)
ROUNDS = 4
MANY = 10
FILLER = "guard-filler"
"""The module that takes what room is left in hot."""
Counts = dict[str, int]


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class Tally:
    """Counts while `on`. Threads that start after `watch` are counted, too."""

    def __init__(self) -> None:
        self.on = False
        self.round_trips = self.commands = self.scripts = self.archive_calls = 0
        self._calls = count()  # `next` is atomic

    def watch(self) -> None:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if self.on and event == "call" and frame.f_code.co_filename.startswith(CODE):
            next(self._calls)

    def start(self) -> None:
        self.round_trips = self.commands = self.scripts = self.archive_calls = 0
        self._calls = count()
        self.on = True

    def stop(self) -> Counts:
        self.on = False
        found = {"round_trips": self.round_trips, "commands": self.commands, "scripts": self.scripts}
        return {"python_calls": next(self._calls), **found, "archive": self.archive_calls}

    def sent(self, commands: Sequence[Any]) -> None:
        self.round_trips += 1
        self.commands += len(commands)
        self.scripts += sum(str(words[0]).startswith("EVALSHA") for words in commands)


@contextmanager
def counted(server_url: str, tally: Tally, *, near: bool = False) -> Iterator[tuple[Config, MemoryArchive]]:
    """Yield a configuration and an archive whose calls are counted."""
    config = load_config(
        {}, redis__url=server_url, namespace="guard", storage_tiers__cold__directory="unused", counter="estimate",
        near__enabled=near, storage_tiers__promotion_threshold=1000, storage_tiers__warm__max_modules=100_000,
    )  # fmt: skip
    archive = MemoryArchive()
    for name in ("get", "put", "list", "delete"):
        setattr(archive, name, _counting(getattr(archive, name), tally))
    sync, aio, age_s = RedisExchange.exchange, AsyncRedisExchange.exchange, UseBuffer.AGE_S

    def exchange(self: RedisExchange, shard: Any, commands: Any, timeout_s: float) -> list[Any]:
        tally.sent(commands)
        return sync(self, shard, commands, timeout_s)

    async def aexchange(self: AsyncRedisExchange, shard: Any, commands: Any, timeout_s: float) -> list[Any]:
        tally.sent(commands)
        return await aio(self, shard, commands, timeout_s)

    RedisExchange.exchange, AsyncRedisExchange.exchange = exchange, aexchange  # type: ignore[method-assign]
    UseBuffer.AGE_S = 1e9  # so that a slow machine sends no uses meanwhile
    # One call at a time: the number of connections opened at once, and of replies that come together, depends on chance.
    threads, tasks = sync_driver.THREADS_MAX, aio_driver.TASKS_MAX
    sync_driver.THREADS_MAX = aio_driver.TASKS_MAX = 1
    tally.watch()
    try:
        yield config, archive
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        RedisExchange.exchange, AsyncRedisExchange.exchange = sync, aio  # type: ignore[method-assign]
        UseBuffer.AGE_S = age_s
        sync_driver.THREADS_MAX, aio_driver.TASKS_MAX = threads, tasks


def _counting(method: Callable[..., Any], tally: Tally) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        tally.archive_calls += 1
        return method(*args, **kwargs)

    return call


Verb = tuple[str, str, Callable[..., Any]]
"""The verb's name, the state of its modules before the call, and the call with a store and their ids.

The states are those of `prepare`. `hot` modules are dirty, `clean` ones are hot too. `one dirty`: only the first module
exists. `full`: hot has no room.
"""


def _items(ids: Sequence[str]) -> list[distier.Item]:
    return [distier.Item(id, "some text") for id in ids]


def _state(store: Any, ids: Sequence[str]) -> Any:
    return store.run(iter(state(store.space.shard(ids[0]))))


def _touch(store: Any, ids: Sequence[str]) -> Any:
    return store.run(send_touch(store.space, [touch(store.space.shard(ids[0]), [(ids[0], 1)])]))


VERBS: tuple[Verb, ...] = (
    ("get hot", "hot", lambda s, ids: s.get(ids[0])),
    ("get warm", "warm", lambda s, ids: s.get(ids[0])),
    ("get warm again", "warm read", lambda s, ids: s.get(ids[0])),
    ("get cold", "cold", lambda s, ids: s.get(ids[0])),
    ("get miss", "none", lambda s, ids: s.get(ids[0])),
    (f"get_many({MANY}) hot", "hot", lambda s, ids: s.get_many(ids)),
    (f"get_many({MANY}) warm", "warm", lambda s, ids: s.get_many(ids)),
    (f"get_many({MANY}) miss", "none", lambda s, ids: s.get_many(ids)),
    ("put new", "none", lambda s, ids: s.put(ids[0], "some text")),
    ("put over hot", "hot", lambda s, ids: s.put(ids[0], "other text")),
    ("put archived", "none", lambda s, ids: s.put(ids[0], "some text", durability="archived")),
    (f"put_many({MANY})", "none", lambda s, ids: s.put_many(_items(ids))),
    ("delete", "hot", lambda s, ids: s.delete(ids[0])),
    ("exists", "hot", lambda s, ids: s.exists(ids[0])),
    ("exists, not", "none", lambda s, ids: s.exists(ids[0])),
    ("where", "hot", lambda s, ids: s.where(ids[0])),
    ("promote warm", "warm", lambda s, ids: s.promote(ids[0])),
    ("promote cold", "cold", lambda s, ids: s.promote(ids[0])),
    ("demote to warm", "hot", lambda s, ids: s.demote(ids[0])),
    ("demote to cold, dirty", "hot", lambda s, ids: s.demote(ids[0], to="cold")),
    (f"promote_many({MANY}) cold", "cold", lambda s, ids: s.promote_many(ids)),
    (f"demote_many({MANY}) to warm", "hot", lambda s, ids: s.demote_many(ids, to="warm")),
    ("pin", "hot", lambda s, ids: s.pin(ids[0], 60)),
    ("unpin", "hot", lambda s, ids: s.unpin(ids[0])),
    ("stats", "none", lambda s, ids: s.stats()),
    ("flush", "hot", lambda s, ids: s.archive_now()),
)


STEPS: tuple[Verb, ...] = (
    ("demote to cold, clean", "clean", lambda s, ids: s.demote(ids[0], to="cold")),
    ("archive_now, one", "one dirty", lambda s, ids: s.archive_now()),
    ("state", "none", _state),
    ("touch", "hot", _touch),
    ("put, hot is full", "full", lambda s, ids: s.put(ids[0], "some text")),
)
"""Verbs that have a store and a namespace of their own, so that what they leave there changes no count of the others."""
PARTS = {"guard": VERBS, "guard-steps": STEPS}


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def prepare(store: Store | AsyncStore, before: str, ids: Sequence[str]) -> None:
    """Bring the modules into the state `before`."""
    for id in ids:
        encode_id(id)  # fills its cache, which is not counted
    if before == "full":
        await _value(store.delete(FILLER))
        await _value(store.put_many(distier.Item(f"{id}-old", "old text") for id in ids))
        hot = (await _value(store.stats())).hot
        await _value(store.put(FILLER, "some text", tokens=hot.max_tokens - hot.tokens))
        await _value(store.archive_now())
    if before == "one dirty":
        await _value(store.put(ids[0], "some text"))
    if before in ("none", "full", "one dirty"):
        return
    await _value(store.put_many(_items(ids)))
    await _value(store.archive_now())
    if before not in ("hot", "clean"):
        await _value(store.demote_many(ids, to="warm" if before == "warm read" else before))  # type: ignore[arg-type]
    if before == "warm read":
        await _value(store.get(ids[0]))
    if before == "hot":
        await _value(store.put_many(_items(ids)))  # dirty again


async def _rounds(store: Store | AsyncStore, tally: Tally, verbs: Sequence[Verb]) -> dict[str, Counts]:
    least: dict[str, Counts] = {}
    for n in range(ROUNDS):
        for v, (name, before, call) in enumerate(verbs):
            ids = [f"guard-{n}-{v}-{i}" for i in range(MANY)]
            await _value(store.archive_now())
            await prepare(store, before, ids)
            tally.start()
            result = call(store, ids)
            if inspect.isawaitable(result):
                await result
            found = tally.stop()
            if n:  # the first round only fills caches
                least[name] = {k: min(found[k], least.get(name, found)[k]) for k in found}
    return least


def _near(server_url: str, tally: Tally) -> Counts:
    """Count a hit in the near cache, without the tracker's thread: only this thread is watched."""
    with counted(server_url, tally, near=True) as (config, archive):
        threading.setprofile(None)
        space = make_space(config, archive, None)
        with Store(
            space, RedisExchange(config, server_url, space.process.forget), archive, url=server_url
        ).open() as store:
            store.put("near", "some text")
            poll(lambda: store.get("near") and "near" in store.near.cache, what="a near cache")
            tally.start()
            store.get("near")
            return tally.stop()


def measure() -> dict[str, dict[str, Counts]]:
    """Return the counts of every verb, for `sync` and `async`."""
    with running_server("valkey") as server, server.client() as peer:
        url, tally = server.socket_url, Tally()
        sync: dict[str, Counts] = {}
        with counted(url, tally) as (config, archive):
            for namespace, verbs in PARTS.items():
                space = make_space(config.with_overrides(namespace=namespace), archive, None)
                with Store(space, RedisExchange(config, url, space.process.forget), archive).open() as store:
                    sync |= asyncio.run(_rounds(store, tally, verbs))
        peer.flushall()

        async def aio() -> dict[str, Counts]:
            found: dict[str, Counts] = {}
            with counted(url, tally) as (config, archive):
                for namespace, verbs in PARTS.items():
                    space = make_space(config.with_overrides(namespace=namespace), archive, None)
                    made: Awaitable[AsyncStore] = AsyncStore(
                        space, AsyncRedisExchange(config, url, space.process.forget), archive
                    ).open()
                    async with await made as store:
                        found |= await _rounds(store, tally, verbs)
            return found

        asynchronous = asyncio.run(aio())
        peer.flushall()
        return {"sync": {"get near": _near(url, tally), **sync}, "async": asynchronous}


def main() -> None:
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    known[python_version()] = measure()
    lines = []
    for version in sorted(known, key=lambda v: tuple(map(int, v.split(".")))):
        kinds = [
            f'  "{kind}": {{\n' + ",\n".join(f'   "{verb}": {json.dumps(n)}' for verb, n in verbs.items()) + "\n  }"
            for kind, verbs in known[version].items()
        ]
        lines.append(f' "{version}": {{\n' + ",\n".join(kinds) + "\n }")
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{PATH.name}: Python {python_version()} rewritten")


if __name__ == "__main__":
    main()
