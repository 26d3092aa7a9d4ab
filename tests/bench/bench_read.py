"""Reads against redis-py in the same run: `make bench`. Prints ratios; asserts nothing about time."""

from __future__ import annotations

import asyncio
import io
import lzma
from collections.abc import Iterator
from pathlib import Path

import lz4.frame
import pytest
import redis
import redis.asyncio as aredis

import distier
from tests.bench.ratios import Ratio, compare, compare_async
from tests.servers import running_server

SIZES = {"2 kB": 2_000, "20 kB": 20_000, "200 kB": 200_000}
SETTINGS = {"near": {"enabled": False}, "storage_tiers": {"hot": {"max_size": 10**9}, "warm": {"max_modules": 10_000}}}


def text(size_bytes: int) -> str:
    """Real text of that size: sources of the standard library."""
    out = io.StringIO()
    for path in sorted(Path(io.__file__).parent.glob("*.py")):
        out.write(path.read_text("utf-8"))
        if out.tell() > size_bytes:
            break
    return out.getvalue()[:size_bytes]


def show(what: str, r: Ratio, theirs: str) -> None:
    print(f"\n{what:34} {r.ours_us:9.1f} us   {theirs:22} {r.theirs_us:9.1f} us   ratio {r.ratio:.2f}", end="")


@pytest.fixture(scope="module", params=["unix", "tcp"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with running_server("valkey", tcp=request.param == "tcp") as server:
        yield server.url if request.param == "tcp" else server.socket_url, tmp_path_factory.mktemp("archive")


@pytest.mark.parametrize("size", SIZES)
def test_hot_and_warm(place: tuple[str, Path], size: str) -> None:
    url, archive = place
    peer = redis.Redis.from_url(url)
    with distier.connect(url, storage_tiers__cold__directory=archive, counter="estimate", **SETTINGS) as store:
        store.put("a", text(SIZES[size]))
        key = store.space.shard("a").module("a")
        kind = url.partition(":")[0]
        show(f"{kind} hot get {size}", compare(lambda: store.get("a"), lambda: peer.hgetall(key)), "redis-py HGETALL")
        store.put("w", text(SIZES[size]))
        store.flush()
        store.demote("w", to="warm")
        store.space.config.storage_tiers.__dict__["promotion_threshold"] = 10**9  # stays warm however often it is read
        frame, record = store.space.shard("w").frame("w"), store.space.shard("w").module("w")

        def by_hand() -> bytes:
            peer.hgetall(record)
            return lz4.frame.decompress(peer.get(frame))  # type: ignore[no-any-return]

        show(f"{kind} warm get {size}", compare(lambda: store.get("w"), by_hand), "HGETALL + GET + lz4")


@pytest.mark.parametrize("size", SIZES)
def test_hot_async(place: tuple[str, Path], size: str) -> None:
    url, archive = place

    async def measure() -> Ratio:
        peer = aredis.Redis.from_url(url)
        store = await distier.connect_async(url, storage_tiers__cold__directory=archive, counter="estimate", **SETTINGS)
        await store.put("b", text(SIZES[size]))
        key = store.space.shard("b").module("b")
        ratio = await compare_async(lambda: store.get("b"), lambda: peer.hgetall(key))
        await store.close()
        await peer.aclose()
        return ratio

    show(f"{url.partition(':')[0]} hot get {size}, asyncio", asyncio.run(measure()), "redis-py HGETALL")


def test_cold(place: tuple[str, Path]) -> None:
    url, archive = place
    with distier.connect(url, storage_tiers__cold__directory=archive, counter="estimate", **SETTINGS) as store:
        ids = [f"c{i}" for i in range(200)]
        store.put_many(distier.Item(id, f"{id}\n" + text(20_000)) for id in ids)
        store.flush()
        store.demote_many(ids, to="cold")
        keys = [store.where(id).archived_key for id in ids]  # type: ignore[union-attr]
        ours, theirs = iter(ids), iter(keys)

        def by_hand() -> bytes:
            return lzma.decompress((archive / str(next(theirs))).read_bytes())

        show(
            "cold get 20 kB, directory",
            compare(lambda: store.get(next(ours)), by_hand, rounds=9, calls=20),
            "read + xz",
        )


def test_many(place: tuple[str, Path]) -> None:
    url, archive = place
    peer = redis.Redis.from_url(url)
    with distier.connect(url, storage_tiers__cold__directory=archive, counter="estimate", **SETTINGS) as store:
        ids = [f"m{i}" for i in range(1000)]
        body = text(2_000)
        store.put_many(distier.Item(id, body, tokens=500) for id in ids)
        keys = [store.space.shard(id).module(id) for id in ids]

        def pipeline() -> None:
            pipe = peer.pipeline(transaction=False)
            for key in keys:
                pipe.hgetall(key)
            pipe.execute()

        def writes() -> None:
            pipe = peer.pipeline(transaction=False)
            for key in keys:
                pipe.hset(f"peer:{key}", mapping={"content": body, "tokens": 500})
            pipe.execute()

        kind = url.partition(":")[0]
        show(
            f"{kind} get_many(1000) 2 kB",
            compare(lambda: store.get_many(ids), pipeline, rounds=5, calls=2),
            "pipeline HGETALL",
        )
        items = [distier.Item(id, body, tokens=500) for id in ids]
        show(
            f"{kind} put_many(1000) 2 kB",
            compare(lambda: store.put_many(items), writes, rounds=5, calls=2),
            "pipeline HSET",
        )
