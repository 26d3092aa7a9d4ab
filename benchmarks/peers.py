"""The tools that people use today, each set up as its own documentation says. Each serves the same read: a module by id.

redis-py            `Redis.from_url`, hiredis installed; HGETALL of distier's own record, and GET of a plain string
redis-py cache      `cache_config=CacheConfig()`. It accepts only Redis 7.4 or later and refuses Valkey by name. This check
                    (two class attributes) is patched here, nothing else
raw socket          the same HGETALL, packed before the clock runs, parsed by hiredis: a lower bound for any client
valkey-glide-sync   `GlideClient.create`; blocking, a core in Rust
dogpile.cache       region with the `dogpile.cache.redis` backend, `get`
diskcache           `Cache(directory)`, `get`: a file on this machine, no server
cachetools + lock   `LRUCache` under a `threading.Lock`, as its documentation requires with threads: a dict in this process
cashews             `Cache.setup("redis://...")`, and with `client_side=True`; asyncio only
aiocache            `Cache(Cache.REDIS)` with the serializer for strings; asyncio only
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import hiredis
import redis
import redis.asyncio as aredis
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from benchmarks.ratios import AsyncDo, Do
from tests.servers import TestServer

READ_BYTES = 65536
_pack: Any = hiredis.pack_command


class RawSocket:
    """One connection and one prepared command."""

    def __init__(self, server: TestServer, *, tcp: bool, words: tuple[str, ...]) -> None:
        if tcp:
            self._socket = socket.create_connection(("127.0.0.1", server.port))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(server.socket))
        self._reader: Any = hiredis.Reader()
        self._packed = _pack(words)
        self._buffer = bytearray(READ_BYTES)

    def __call__(self) -> Any:
        self._socket.sendall(self._packed)
        return self._reply()

    def send(self, commands: Sequence[Any]) -> None:
        self._socket.sendall(b"".join([_pack(words) for words in commands]))

    def drain(self, end: bytes) -> None:
        """Read until the input ends with `end`, without parsing: the server should be what takes the time."""
        tail = b""
        while not tail.endswith(end):
            n = self._socket.recv_into(self._buffer)
            tail = (tail + bytes(self._buffer[max(0, n - len(end)) : n]))[-len(end) :]

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            n = self._socket.recv_into(self._buffer)
            self._reader.feed(self._buffer, 0, n)
        return reply

    def close(self) -> None:
        self._socket.close()


@contextmanager
def sync_peers(server: TestServer, *, tcp: bool, record: str, text: str, tmp: Path) -> Iterator[dict[str, Do]]:
    """Blocking ways to read a module from `server`. `record` is distier's hash, `text` the content of a plain key."""
    url = server.url if tcp else server.socket_url
    with ExitStack() as stack:
        peer = stack.enter_context(redis.Redis.from_url(url))
        peer.set("peer", text)
        raw = RawSocket(server, tcp=tcp, words=("HGETALL", record))
        stack.callback(raw.close)
        found: dict[str, Do] = {
            "redis-py HGETALL": lambda: peer.hgetall(record),
            "redis-py GET": lambda: peer.get("peer"),
            "raw socket": raw,
            "valkey-glide-sync HGETALL": _glide(server, tcp, record, stack),
            "dogpile.cache": _dogpile(url, text),
            "diskcache": _diskcache(tmp, text, stack),
        }
        yield found


def _glide(server: TestServer, tcp: bool, record: str, stack: ExitStack) -> Do:
    from glide_sync import GlideClient, GlideClientConfiguration, Logger, LogLevel, NodeAddress

    Logger.init(LogLevel.OFF)
    node = NodeAddress("127.0.0.1", server.port) if tcp else NodeAddress(unix_socket_path=str(server.socket))
    client = GlideClient.create(GlideClientConfiguration([node], request_timeout=5000))
    stack.callback(client.close)
    return lambda: client.hgetall(record)


def _dogpile(url: str, text: str) -> Do:
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.redis", arguments={"url": url, "distributed_lock": False})
    region.set("dogpile", text)
    return lambda: region.get("dogpile")


def _diskcache(tmp: Path, text: str, stack: ExitStack) -> Do:
    import diskcache

    cache = stack.enter_context(diskcache.Cache(str(tmp / "diskcache")))
    cache.set("peer", text)
    return lambda: cache.get("peer")


def cachetools_with_a_lock(text: str) -> Do:
    import cachetools

    cache: Any = cachetools.LRUCache(10_000)
    lock = threading.Lock()
    cache.update({f"m{i}": text for i in range(100)})

    def get() -> Any:
        with lock:
            return cache.get("m7")

    return get


@contextmanager
def redis_py_client_cache(server: TestServer, record: str, text: str) -> Iterator[dict[str, Do]]:
    name, least = CacheProxyConnection.DEFAULT_SERVER_NAME, CacheProxyConnection.MIN_ALLOWED_VERSION
    CacheProxyConnection.DEFAULT_SERVER_NAME, CacheProxyConnection.MIN_ALLOWED_VERSION = server.kind, "7.0.0"
    try:
        with redis.Redis.from_url(server.url, protocol=3, cache_config=CacheConfig()) as client:
            client.set("peer", text)
            yield {
                "redis-py client-side cache, GET": lambda: client.get("peer"),
                "redis-py client-side cache, HGETALL": lambda: client.hgetall(record),
            }
    finally:
        CacheProxyConnection.DEFAULT_SERVER_NAME, CacheProxyConnection.MIN_ALLOWED_VERSION = name, least


@asynccontextmanager
async def async_peers(
    server: TestServer, *, tcp: bool, record: str, text: str, client_side: bool = False
) -> AsyncIterator[dict[str, AsyncDo]]:
    """The same for asyncio. `client_side`: only the peers that read from this process."""
    from aiocache import Cache as AioCache
    from aiocache.serializers import StringSerializer
    from cashews import Cache

    url = server.url if tcp else server.socket_url
    async with AsyncExitStack() as stack:
        found: dict[str, AsyncDo] = {}
        if tcp:  # neither takes the path of a unix socket
            cashews = Cache()
            cashews.setup(url, client_side=client_side)
            await cashews.init()
            stack.push_async_callback(cashews.close)
            await cashews.set("cashews", text, expire=3600)
            found["cashews, client_side" if client_side else "cashews"] = lambda: cashews.get("cashews")
            if client_side:
                yield found
                return
            aio = AioCache(
                AioCache.REDIS, endpoint="127.0.0.1", port=server.port, namespace="aio", serializer=StringSerializer()
            )
            stack.push_async_callback(aio.close)
            await aio.set("peer", text)
            found["aiocache"] = lambda: aio.get("peer")
        peer = aredis.Redis.from_url(url)
        stack.push_async_callback(peer.aclose)
        found["redis-py HGETALL"] = lambda: peer.hgetall(record)
        found["redis-py GET"] = lambda: peer.get("peer")
        await peer.set("peer", text)
        yield found
