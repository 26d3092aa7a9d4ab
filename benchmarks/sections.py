"""The measurements of `make bench`. Each returns a table, and by name the figures that are compared with the goals."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import lzma
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import diskcache
import lmdb
import lz4.block
import lz4.frame
import redis
import redis.asyncio as aredis
from botocore.config import Config as BotoConfig

import distier
from benchmarks.peers import RawSocket, async_peers, cachetools_with_a_lock, redis_py_client_cache, sync_peers
from benchmarks.ratios import Do, Race, arace, race
from benchmarks.reader import read_for_a_while
from benchmarks.table import Table, cell_of
from distier.client import make_space
from distier.config import load_config
from distier.domain.codec import compress_xz
from distier.drive.conversation import command_of
from distier.plans.common.commands import record_command
from distier.plans.get.one import read_local
from distier.stores import syncing
from distier.stores.memory import MemoryArchive
from distier.stores.redis import AsyncRedisExchange, RedisExchange
from distier.worker import Worker
from tests.conformance.archives import ACCESS_KEY, SECRET_KEY, rclone_server
from tests.servers import TestServer, poll, running_server

SIZES = {"2 kB": 2_000, "20 kB": 20_000, "200 kB": 200_000}
MANY = 1000
ARCHIVE_DELAY_S = 0.02
PROCESSES = 8
SETTINGS: dict[str, Any] = {
    "namespace": "bench", "counter": "estimate", "near__enabled": False, "storage_tiers__hot__max_size": 10**9,
    "storage_tiers__hot__max_bytes": 10**9, "storage_tiers__warm__max_modules": 100_000,
    "storage_tiers__promotion_threshold": 10**9, "deadline": "60s",
}  # fmt: skip


def text(size_bytes: int) -> str:
    """Real text of that size: sources of the standard library."""
    out = io.StringIO()
    for path in sorted(Path(io.__file__).parent.glob("*.py")):
        out.write(path.read_text("utf-8"))
        if out.tell() > size_bytes:
            break
    return out.getvalue()[:size_bytes]


@contextmanager
def stores(**overrides: Any) -> Iterator[tuple[TestServer, Path, Callable[..., distier.Store]]]:
    """A server, an archive directory, and how to connect to them."""
    with running_server("valkey", tcp=True) as server, tempfile.TemporaryDirectory() as tmp:
        made: list[distier.Store] = []

        def connect(url: str = server.socket_url, **more: Any) -> distier.Store:
            settings = SETTINGS | {"storage_tiers__cold__directory": tmp} | overrides | more
            made.append(distier.connect(url, **settings))
            return made[-1]

        yield server, Path(tmp), connect
        for store in made:
            store.close()


def add_race(table: Table, found: Race, base: str, *first: str) -> None:
    for name in found.us:
        table.add(*first, name, found.median(name), found.ratio(name, base))


# -- reads ---------------------------------------------------------------------------------------------------------------


def near_hits() -> Table:
    table = Table("Near hit: a read in the process (2 kB)", ("what", "us a call", "ratio to distier"))
    body = text(2000)
    with stores() as (server, tmp, connect):
        store = connect(near__enabled=True)
        store.put("a", body)
        poll(lambda: store.get("a") and "a" in store.near.cache, what="a near cache")
        record = store.space.shard("a").module("a")
        with redis_py_client_cache(server, record, body) as client_cache:
            found = race({
                "distier Store.get": lambda: store.get("a"),
                "cachetools.LRUCache + lock": cachetools_with_a_lock(body),
                **client_cache,
            })  # fmt: skip
        for name in found.us:
            table.add(name, found.median(name), found.ratio(name, "distier Store.get"))
        table.figures["near sync us"] = found.median("distier Store.get")

        async def asynchronous() -> None:
            settings = SETTINGS | {"storage_tiers__cold__directory": tmp, "near__enabled": True}
            near = await distier.connect_async(server.socket_url, **settings)
            while not (await near.get("a") and "a" in near.near.cache):
                await asyncio.sleep(0.01)
            async with async_peers(server, tcp=True, record=record, text=body, client_side=True) as peers:
                found = await arace({"distier AsyncStore.get": lambda: near.get("a"), **peers})
            for name in found.us:
                table.add(name, found.median(name), found.ratio(name, "distier AsyncStore.get"))
            table.figures["near async us"] = found.median("distier AsyncStore.get")
            await near.close()

        asyncio.run(asynchronous())
    return table


def hot_gets() -> Table:
    table = Table(
        "Hot get over the network, near cache off",
        ("module", "over", "what", "us a call", "ratio to redis-py HGETALL"),
        notes="distier returns a checked `Module`, redis-py a dict of bytes, the others the text alone. diskcache uses no "
        "network. The asyncio rows are one call after the other on one event loop.",
    )
    for (size, n), tcp in itertools.product(SIZES.items(), (False, True)):
        over, body = "TCP" if tcp else "unix", text(n)
        with stores() as (server, tmp, connect):
            url = server.url if tcp else server.socket_url
            store = connect(url)
            store.put("a", body)
            record = store.space.shard("a").module("a")
            with sync_peers(server, tcp=tcp, record=record, text=body, tmp=tmp) as peers:
                found = race({"distier": lambda: store.get("a"), **peers})
            add_race(table, found, "redis-py HGETALL", size, over)
            table.figures[f"hot sync {over} {size}"] = found.ratio("distier", "redis-py HGETALL")
            # The server's cost: its own clock for the command, and the scripts that send uses.
            with redis.Redis.from_url(server.socket_url) as peer:
                spent = _server_us(peer, lambda: store.get("a"))
                theirs = _server_us(peer, lambda: peer.hgetall(record))
            table.figures[f"server {over} {size}"] = spent / theirs

            async def asynchronous() -> Race:
                settings = SETTINGS | {"storage_tiers__cold__directory": tmp}
                async with await distier.connect_async(url, **settings) as aio:
                    async with async_peers(server, tcp=tcp, record=record, text=body) as peers:
                        return await arace({"distier": lambda: aio.get("a"), **peers})

            found = asyncio.run(asynchronous())
            add_race(table, found, "redis-py HGETALL", size, over + ", asyncio")
            table.figures[f"hot async {over} {size}"] = found.ratio("distier", "redis-py HGETALL")
    return table


def _server_us(peer: redis.Redis, do: Do, calls: int = 3000) -> float:
    """Microseconds per call that the server spends in commands (INFO commandstats), over more than a second's batches
    of uses.
    """
    peer.config_resetstat()
    for _ in range(calls):
        do()
    stats: Mapping[str, Any] = peer.info("commandstats")
    outer = {name: s for name, s in stats.items() if name in ("cmdstat_hgetall", "cmdstat_evalsha")}
    return float(sum(s["usec"] for s in outer.values())) / calls


def warm_gets() -> Table:
    table = Table(
        "Warm get (over a unix socket, the module stays warm)",
        ("module", "what", "us a call", "ratio to GET + lz4"),
        notes="distier also reads the record, in the same round trip, and compares its version with that of the frame.",
    )
    for size, n in SIZES.items():
        with stores() as (server, tmp, connect):
            store = connect()
            store.put("w", text(n))
            store.archive_now()
            store.demote("w", to="warm")
            shard = store.space.shard("w")
            frame, record = shard.frame("w"), shard.module("w")
            with redis.Redis.from_url(server.socket_url) as peer:
                unpack: Any = lz4.frame.decompress

                def both() -> Any:
                    peer.hgetall(record)
                    return unpack(peer.get(frame))

                found = race({
                    "distier": lambda: store.get("w"),
                    "redis-py GET + lz4": lambda: unpack(peer.get(frame)),
                    "redis-py HGETALL, GET + lz4": both,
                })  # fmt: skip
            add_race(table, found, "redis-py GET + lz4", size)
            table.figures[f"warm {size}"] = found.ratio("distier", "redis-py GET + lz4")
            table.figures[f"warm both {size}"] = found.ratio("distier", "redis-py HGETALL, GET + lz4")

            async def asynchronous() -> Race:
                settings = SETTINGS | {"storage_tiers__cold__directory": tmp}
                async with await distier.connect_async(server.socket_url, **settings) as aio:
                    peer = aredis.Redis.from_url(server.socket_url)

                    async def by_hand() -> Any:
                        return unpack(await peer.get(frame))

                    found = await arace({"distier": lambda: aio.get("w"), "redis-py GET + lz4": by_hand})
                    await peer.aclose()
                    return found

            found = asyncio.run(asynchronous())
            add_race(table, found, "redis-py GET + lz4", size + ", asyncio")
            table.figures[f"warm async {size}"] = found.ratio("distier", "redis-py GET + lz4")
    return table


def local_gets() -> Table:
    """The cost of a warm get in addition to its record read, with the copy on the node's own disk."""
    table = Table(
        "Warm get from the node's disk: beyond the read of the record", ("module", "what", "us a call", "ratio to diskcache"),
        notes="`read_local` is what distier does after it has the record: copy, lz4, SHA-256, counts, the `Module`. The others "
        "are bare reads of a file that is in the page cache.",
    )  # fmt: skip
    for size, n in SIZES.items():
        body = text(n).encode()
        with stores(storage_tiers__warm__placement="local") as (_, tmp, connect):
            store = connect(storage_tiers__warm__directory=tmp / "warm")
            store.put("a", body)
            store.archive_now()
            store.demote("a")
            shard = store.space.shard("a")
            record = store.run(record_command(shard, "a").__iter__())
            local = store._driver.local
            assert record is not None and local is not None and local.get(record) == body
            with (
                diskcache.Cache(str(tmp / "diskcache")) as cache,
                closing(lmdb.open(str(tmp / "lmdb"), map_size=2**30)) as env,
            ):
                cache.set("a", body)
                pack, unpack = lz4.block.compress, lz4.block.decompress
                with env.begin(write=True) as txn:
                    txn.put(b"a", pack(body, mode="high_compression", compression=9))

                def by_hand(env: Any = env, unpack: Any = unpack) -> bytes:
                    with env.begin() as txn:
                        return unpack(txn.get(b"a"))  # type: ignore[no-any-return]

                found = race({
                    "distier, whole get": lambda: store.get("a"),
                    "distier, the record read": lambda: store.run(record_command(shard, "a").__iter__()),
                    "distier, read_local": lambda: store.run(read_local(store.space, shard, record)),
                    "distier, LocalStore.get": lambda: local.get(record),
                    "diskcache": lambda: cache.get("a"),
                    "lmdb + lz4": by_hand,
                    "lmdb + lz4 + SHA-256": lambda: hashlib.sha256(by_hand()).digest(),
                })  # fmt: skip
            add_race(table, found, "diskcache", size)
            table.figures[f"local {size}"] = found.median("distier, read_local")
            table.figures[f"disk {size}"] = found.median("distier, LocalStore.get")
    return table


def cold_gets() -> Table:
    table = Table(
        "Cold get: lease, GET, xz, SHA-256, and a warm copy left behind",
        ("module", "archive", "what", "us a call", "ratio"),
        notes="S3 is `rclone serve s3` in a process of its own on this machine; the client by hand is boto3 with the same "
        f"options, in one thread. A real S3 replies in 10 to 50 ms: in the rows `S3, {ARCHIVE_DELAY_S * 1000:.0f} ms away` "
        "both sleep for so long before each GET.",
    )
    far = f"S3, {ARCHIVE_DELAY_S * 1000:.0f} ms away"
    for size, n in SIZES.items():
        for kind in ("directory", "S3", far):
            with tempfile.TemporaryDirectory() as root, rclone_server(Path(root)) as endpoint:
                (Path(root) / "bucket").mkdir()
                s3: dict[str, Any] = {
                    "storage_tiers__cold__url": "s3://bucket/p", "storage_tiers__cold__endpoint_url": endpoint,
                    "storage_tiers__cold__access_key": ACCESS_KEY, "storage_tiers__cold__secret_key": SECRET_KEY,
                    "storage_tiers__cold__region": "us-east-1", "storage_tiers__cold__directory": None,
                }  # fmt: skip
                if kind == "directory":
                    s3 = {"storage_tiers__cold__directory": root}
                with running_server("valkey") as server, distier.connect(
                    server.socket_url, **{k: v for k, v in (SETTINGS | s3).items() if v is not None}
                ) as store:  # fmt: skip
                    by_hand = _by_hand(kind, Path(root), endpoint)
                    if kind == far:
                        store._driver.archive.get = _late(store._driver.archive.get)  # type: ignore[method-assign]
                        by_hand = _late(by_hand)
                    _cold(table, store, size, n, kind, by_hand)
    return table


def _late(get: Callable[..., Any]) -> Callable[..., Any]:
    """`get` of an archive that replies 20 ms later, as a bucket does."""

    def late(*args: Any, **kwargs: Any) -> Any:
        time.sleep(ARCHIVE_DELAY_S)
        return get(*args, **kwargs)

    return late


def _by_hand(kind: str, root: Path, endpoint: str) -> Callable[[str], bytes]:
    if kind == "directory":
        return lambda key: lzma.decompress((root / key).read_bytes())
    client: Any = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=BotoConfig(
            s3={"addressing_style": "path"}, request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )  # fmt: skip
    return lambda key: lzma.decompress(client.get_object(Bucket="bucket", Key=f"p/{key}")["Body"].read())


def _cold(table: Table, store: distier.Store, size: str, n: int, kind: str, by_hand: Callable[[str], bytes]) -> None:
    calls, rounds, body = 4, 12, text(n)
    ids = [f"c{i}" for i in range(calls * (rounds + 1))]
    store.put_many(distier.Item(id, f"{id}\n" + body, tokens=n // 4) for id in ids)
    store.archive_now()
    store.demote_many(ids, to="cold")
    keys = []
    for id in ids:
        placed = store.where(id)
        assert placed is not None
        keys.append(str(placed.archived_key))
    ours, theirs = iter(ids), iter(keys)
    name = "read + xz" if kind == "directory" else "boto3 GET + xz"
    found = race(
        {"distier": lambda: store.get(next(ours)), name: lambda: by_hand(next(theirs))}, rounds=rounds, calls=calls
    )
    add_race(table, found, name, size, kind)
    table.figures[f"cold {'far S3' if 'away' in kind else kind} {size}"] = found.ratio("distier", name)


# -- many ----------------------------------------------------------------------------------------------------------------


def batches() -> Table:
    table = Table(
        f"{MANY} modules of 2 kB in one call, all hot",
        ("over", "what", "us an item", "ratio to redis-py's pipeline"),
        notes="A put is more than an HSET: a version in the order, token, SHA-256, four budgets, three sets, accounts, an "
        "event and a retry key, all in one script.",
    )
    body = text(2000)
    for tcp in (False, True):
        with stores() as (server, tmp, connect):
            over, url = ("TCP", server.url) if tcp else ("unix", server.socket_url)
            store = connect(url)
            ids = [f"m{i}" for i in range(MANY)]
            items = [distier.Item(id, body, tokens=500) for id in ids]
            store.put_many(items)
            keys = [store.space.shard(id).module(id) for id in ids]
            with redis.Redis.from_url(url) as peer:

                def reads() -> None:
                    pipe = peer.pipeline(transaction=False)
                    for key in keys:
                        pipe.hgetall(key)
                    pipe.execute()

                def writes() -> None:
                    pipe = peer.pipeline(transaction=False)
                    for key in keys:
                        pipe.hset(f"peer:{key}", mapping={"content": body, "tokens": 500})
                    pipe.execute()

                get = race({
                    "get_many": lambda: store.get_many(ids),
                    "pipeline of HGETALL": reads,
                }, rounds=15, calls=1)  # fmt: skip
                put = race({
                    "put_many": lambda: store.put_many(items),
                    "pipeline of HSET": writes,
                }, rounds=9, calls=1)  # fmt: skip
            _per_item(table, over, get, "get_many", "pipeline of HGETALL")
            _per_item(table, over, put, "put_many", "pipeline of HSET")

            async def asynchronous() -> tuple[Race, Race]:
                peer = aredis.Redis.from_url(url)

                async def areads() -> None:
                    pipe = peer.pipeline(transaction=False)
                    for key in keys:
                        pipe.hgetall(key)
                    await pipe.execute()

                async def awrites() -> None:
                    pipe = peer.pipeline(transaction=False)
                    for key in keys:
                        pipe.hset(f"peer:{key}", mapping={"content": body, "tokens": 500})
                    await pipe.execute()

                settings = SETTINGS | {"storage_tiers__cold__directory": tmp}
                async with await distier.connect_async(url, **settings) as aio:
                    get = await arace(
                        {"get_many": lambda: aio.get_many(ids), "pipeline of HGETALL": areads}, rounds=9, calls=1
                    )
                    put = await arace(
                        {"put_many": lambda: aio.put_many(items), "pipeline of HSET": awrites}, rounds=7, calls=1
                    )
                await peer.aclose()
                return get, put

            get, put = asyncio.run(asynchronous())
            _per_item(table, over + ", asyncio", get, "get_many", "pipeline of HGETALL")
            _per_item(table, over + ", asyncio", put, "put_many", "pipeline of HSET")
    return table


def _per_item(table: Table, over: str, found: Race, ours: str, theirs: str) -> None:
    for name in (ours, theirs):
        table.add(over, name, found.median(name) / MANY, found.ratio(name, theirs))
    table.figures[f"{ours} {over}"] = found.ratio(ours, theirs)


SYNC_S = 0.01


@contextmanager
def slow_syncs(more_s: float) -> Iterator[None]:
    """Let each fsync and syncfs of this process take longer, as on a disk with a slow cache flush."""
    fsync: Any = os.fsync
    syncfs: Any = syncing._SYNCFS

    def late_fsync(fd: int) -> None:
        time.sleep(more_s)
        fsync(fd)

    def late_syncfs(fd: int) -> Any:
        time.sleep(more_s)
        return syncfs(fd)

    os.fsync, syncing._SYNCFS = late_fsync, syncfs and late_syncfs  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync, syncing._SYNCFS = fsync, syncfs


def archiving() -> Table:
    """`archive_now` into a directory, next to a program that writes one object after the other and syncs each."""
    many, rounds = 128, 5
    table = Table(
        f"archive_now into a directory, {many} modules of 2 kB",
        ("disk", "what", "objects a second", "times as fast"),
        notes="By hand: xz, a temporary file, fsync, rename; one after the other. distier writes two objects for each module "
        "(the content, and a sidecar with what a directory has no metadata for) and syncs their directories too; 16 threads "
        f"share the syncs (`stores/syncing.py`). In the rows `sync takes {SYNC_S * 1000:.0f} ms more` each fsync and syncfs of "
        "both sleeps for so long first.",
    )
    base = "by hand, one fsync an object"
    for disk, more_s in (("this one", 0.0), (f"sync takes {SYNC_S * 1000:.0f} ms more", SYNC_S)):
        with stores() as (_, tmp, connect), slow_syncs(more_s):
            store = connect()
            (tmp / "by-hand").mkdir()
            us: dict[str, list[float]] = {"archive_now": [], base: []}
            for i in range(rounds + 1):
                items = [distier.Item(f"a{k}", f"{i} {k}\n" + text(2000), tokens=500) for k in range(many)]
                store.put_many(items)
                ways: tuple[Do, Do] = store.archive_now, partial(_one_by_one, tmp / "by-hand", items)
                for name, do in zip(us, ways, strict=True):
                    begin = time.perf_counter()
                    do()
                    if i:  # the first round starts the threads
                        us[name].append((time.perf_counter() - begin) / many * 1e6)
        found = Race(us)
        for name in us:
            table.add(disk, name, 1e6 / found.median(name), found.ratio(base, name))
        table.figures["archive_now, slow disk" if more_s else "archive_now"] = found.ratio(base, "archive_now")
    return table


def _one_by_one(directory: Path, items: list[distier.Item]) -> None:
    for item in items:
        path = directory / f"{item.id}.xz"
        with path.with_suffix(".tmp").open("wb") as file:
            file.write(compress_xz(str(item.content).encode()))
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".tmp").rename(path)


_FIRST_PUT = """
import statistics, sys, time, distier

text = sys.stdin.read()
store = distier.connect(sys.argv[1], storage_tiers__cold__directory=sys.argv[2], namespace="bench", near__enabled=False)
found = []
for i in range(4):
    time.sleep(1.0)
    begin = time.perf_counter()
    store.put(f"m{i}", text)
    found.append((time.perf_counter() - begin) * 1e6)
print(found[0], statistics.median(found[1:]))
"""


def first_puts() -> Table:
    """The first put of a process that connected a second before. Each put counts tokens with the exact counter."""
    table = Table(
        "First put (2 kB, counted) of a store that was opened a second before",
        ("what", "us", "ratio to a later put"),
        notes="Each of 5 processes puts four times, after a second's pause each. The tables of the token counter are loaded "
        "in the background. Medians.",
    )
    runs: list[tuple[float, float]] = []
    with stores() as (server, tmp, connect):
        connect().put("known", "the server knows the script", tokens=1)
        for _ in range(5):
            argv = [sys.executable, "-c", _FIRST_PUT, server.socket_url, str(tmp)]
            out = subprocess.run(argv, input=text(2000), capture_output=True, text=True, timeout=120, check=True).stdout
            first, later = map(float, out.split())
            runs.append((first, later))
    table.figures["first put"] = statistics.median(first / later for first, later in runs)
    table.add("the first put", statistics.median(first for first, _ in runs), table.figures["first put"])
    table.add("a later one", statistics.median(later for _, later in runs), 1.0)
    return table


def promotions() -> Table:
    one_by_one = 50
    table = Table(
        f"promote_many({MANY}), all cold, an archive that replies after {ARCHIVE_DELAY_S * 1000:.0f} ms",
        ("what", "ms a module", "times as fast"),
        notes=f"One after the other: {one_by_one} calls of `promote`.",
    )
    with running_server("valkey") as server:
        config = load_config(
            {},
            redis__url=server.socket_url,
            **SETTINGS | {"storage_tiers__cold__directory": "unused", "deadline": "120s"},
        )
        archive = MemoryArchive()
        archive.get = _late(archive.get)  # type: ignore[method-assign]
        space = make_space(config, archive)
        ids = [f"p{i}" for i in range(MANY)]

        def timed(do: Do) -> float:
            begin = time.perf_counter()
            do()
            return time.perf_counter() - begin

        with distier.Store(
            space, RedisExchange(config, server.socket_url, space.process.forget), archive
        ).open() as store:
            store.put_many(distier.Item(id, text(2000), tokens=500) for id in ids)
            store.archive_now()
            store.demote_many(ids, to="cold")
            alone = timed(lambda: [store.promote(id) for id in ids[:one_by_one]]) / one_by_one * 1000
            table.add("promote, one after the other", alone, 1.0)
            store.demote_many(ids, to="cold")
            many = timed(lambda: store.promote_many(ids)) / MANY * 1000
            table.add("promote_many", many, alone / many)
            table.figures["promote_many"] = alone / many
            store.demote_many(ids, to="cold")

        async def asynchronous() -> float:
            space = make_space(config, archive)
            exchange = AsyncRedisExchange(config, server.socket_url, space.process.forget)
            aio = await distier.AsyncStore(space, exchange, archive).open()
            begin = time.perf_counter()
            await aio.promote_many(ids)
            took_s = time.perf_counter() - begin
            await aio.close()
            return took_s

        many = asyncio.run(asynchronous()) / MANY * 1000
        table.add("promote_many, asyncio", many, alone / many)
        table.figures["promote_many async"] = alone / many
    return table


def evictions() -> Table:
    puts, hot = 600, 300
    table = Table(
        "put of 2 kB where hot is full: each has to evict",
        ("what", "p50 us", "p99 us", "p50 ratio", "p99 ratio"),
        notes=f"Hot holds {hot} modules; {puts} new ones are put. Head-room: a worker in a thread of the same process, as an "
        "embedded one, keeps 10 % of hot free; puts come at half the rate that it can free, one every 2 ms.",
    )
    body = text(2000)

    def run(pause_s: float = 0.0, *, worker: bool = False, full: bool = True) -> list[float]:
        size = hot * 500 if full else 10**9
        with stores(storage_tiers__hot__max_size=size) as (_, _, connect):
            store = connect(worker__interval="10ms", worker__headroom=0.1)
            store.put_many(distier.Item(f"old{i}", body, tokens=500) for i in range(hot))
            store.archive_now()
            runs = Worker(store).start() if worker else None
            if worker:
                time.sleep(0.3)
            us = []
            for i in range(puts):
                begin = time.perf_counter()
                store.put(f"new{i}", body, tokens=500)
                us.append((time.perf_counter() - begin) * 1e6)
                if pause_s:
                    time.sleep(pause_s)
            if runs is not None:
                runs.stop()
            return us

    room, full = run(full=False), run()
    paced, headroom = run(0.002, full=False), run(0.002, worker=True)
    for name, us, base in (
        ("with room", room, room), ("hot is full", full, room), ("with room, one every 2 ms", paced, paced),
        ("hot is full, worker's head-room, one every 2 ms", headroom, paced),
    ):  # fmt: skip
        p50, p99 = (_percentile(us, q) for q in (50, 99))
        table.add(name, p50, p99, p50 / _percentile(base, 50), p99 / _percentile(base, 99))
    table.figures["evict p99"] = _percentile(full, 99) / _percentile(room, 99)
    table.figures["headroom p99"] = _percentile(headroom, 99) / _percentile(paced, 99)
    table.figures["headroom p50"] = _percentile(headroom, 50) / _percentile(paced, 50)
    return table


def _percentile(values: list[float], q: int) -> float:
    return statistics.quantiles(values, n=100)[q - 1]


# -- processes -----------------------------------------------------------------------------------------------------------


def processes() -> Table:
    table = Table(
        f"{PROCESSES} processes read 100 hot modules of 2 kB from one server (TCP), near cache off",
        ("what", "reads a second, all together", "ratio"),
        notes="Rounds of 2 s, in turn; medians.",
    )
    context = multiprocessing.get_context("spawn")
    with stores() as (server, tmp, connect):
        settings = SETTINGS | {"storage_tiers__cold__directory": str(tmp)}
        store = connect()
        ids = [f"m{i}" for i in range(100)]
        store.put_many(distier.Item(id, text(2000), tokens=500) for id in ids)
        keys = [store.space.shard(id).module(id) for id in ids]
        rates: dict[str, list[float]] = {"distier": [], "redis-py HGETALL": []}
        for _ in range(3):
            for kind, found in rates.items():
                begin, results = context.Barrier(PROCESSES), context.Queue()
                args = (kind, server.url, settings, ids, keys, begin, results, 2.0)
                running = [context.Process(target=read_for_a_while, args=args) for _ in range(PROCESSES)]
                for process in running:
                    process.start()
                found.append(sum(results.get(timeout=60) for _ in running))
                for process in running:
                    process.join()
        ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
        table.add("distier", statistics.median(rates["distier"]), ratio)
        table.add("redis-py HGETALL", statistics.median(rates["redis-py HGETALL"]), 1.0)
        table.figures["processes"] = ratio
        table.figures["server rate"] = _server_rate(server, ids, keys, store)
    table.rows.append(
        ("server alone: HGETALLs and the scripts that report uses", "", cell_of(table.figures["server rate"]))
    )
    return table


def _server_rate(server: TestServer, ids: list[str], keys: list[str], store: distier.Store) -> float:
    """The server's rate with distier's commands, divided by its rate with HGETALL alone. Raw sockets send the commands
    in pipelines, so that the clients are not the limit. distier sends HGETALL, and once a second the uses of a process,
    256 in a script.
    """
    call = store._driver.uses
    call.note_many(store.space.shard(ids[0]), dict.fromkeys(ids, 1), time.monotonic())
    (touch,) = call.drain()
    store.run(iter_one(touch))  # the script is known to the server
    reads: list[Any] = [("HGETALL", key) for key in keys] * 600
    with_uses = [
        *reads,
        *[command_of(touch)] * PROCESSES,
    ]  # a second's uses of 8 processes for half a second's reads
    rates = {"plain": [0.0], "ours": [0.0]}
    for _ in range(5):
        for name, commands in (("plain", reads), ("ours", with_uses)):
            line = RawSocket(server, tcp=False, words=("PING",))
            begin = time.perf_counter()
            sender = threading.Thread(target=line.send, args=([*commands, ("ECHO", "that was all")],))
            sender.start()
            line.drain(b"$12\r\nthat was all\r\n")
            rates[name].append(len(reads) / (time.perf_counter() - begin))
            sender.join()
            line.close()
    return statistics.median(rates["ours"][1:]) / statistics.median(rates["plain"][1:])


def iter_one(effect: Any) -> Any:
    return (yield effect)


_MEMORY = """
import sys, distier

def peak_mib():  # not getrusage: that has in it what the process was before exec
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024

store = distier.connect(sys.argv[1], storage_tiers__cold__directory=sys.argv[2], namespace="bench", counter="estimate",
                        near__enabled=sys.argv[3] == "near")
ids = [f"m{i}" for i in range(100)]
store.get(ids[0])
before = peak_mib()
read = 0
while read < 1_000_000_000:
    for at in range(0, 100, 20):
        read += sum(len(m.content) for m in store.get_many(ids[at:at + 20]).values())
print(before, peak_mib())
"""


def memory() -> Table:
    table = Table(
        "Peak memory of a client that reads 1 GB by get_many, 20 modules of 200 kB (4 MB) a call",
        ("near cache", "MiB before", "MiB at most", "MiB more"),
        notes="`VmHWM` of a process of its own. The near cache may hold 64 MiB by default.",
    )
    with stores() as (server, tmp, connect):
        store = connect()
        body = text(200_000)
        store.put_many(distier.Item(f"m{i}", body, tokens=50_000) for i in range(100))
        for near in ("off", "near"):
            argv = [sys.executable, "-c", _MEMORY, server.socket_url, str(tmp), near]
            out = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout
            before, most = map(int, out.split())
            table.add("off" if near == "off" else "on", before, most, most - before)
            table.figures[f"memory {near}"] = most - before
    return table


SECTIONS: tuple[Callable[[], Table], ...] = (
    near_hits, hot_gets, warm_gets, local_gets, cold_gets, batches, archiving, first_puts, promotions, evictions, processes,
    memory,
)  # fmt: skip
