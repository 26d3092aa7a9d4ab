"""The contenders. Each reads a module by its id: from its own memory or Redis, else from the archive.

by hand, plain      redis-py GET; on a miss the object is read and decompressed, and SET as it is
by hand, lz4        the same with an lz4 frame in Redis
by hand, lz4, near  the same with a `cachetools.LRUCache` in the process. A second connection gets the invalidations of Redis
                    (CLIENT TRACKING with BCAST and REDIRECT), and a thread drops what changed or was evicted
distier             `Store.get`, with and without its near cache

Whatever the server evicts (`allkeys-lru`), the tracking announces too, so the near cache by hand loses it as well.
All read the same archive, a directory, and count their reads of objects. The delay of a remote archive is a sleep.
"""

from __future__ import annotations

import lzma
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import lz4.frame
import redis

from distier.client import make_space
from distier.client.store import Store
from distier.config import Config, load_config
from distier.domain.objects import Fetched
from distier.stores.directory import DirectoryArchive
from distier.stores.redis.open import open_exchange

PREFIX = "cache:"
PLAIN, LZ4, NEAR = "by hand, plain", "by hand, lz4", "by hand, lz4, near"
OURS, OURS_FAR = "distier", "distier, near off"
KINDS = (PLAIN, LZ4, NEAR, OURS, OURS_FAR)


class Delay:
    """Counts the reads of objects, and sleeps before each."""

    def __init__(self) -> None:
        self.seconds, self.reads = 0.0, 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.reads += 1
        if self.seconds:
            time.sleep(self.seconds)


class Cache(Protocol):
    delay: Delay

    def get(self, id: str) -> bytes | None: ...

    def put(self, id: str, data: bytes) -> None: ...

    def close(self) -> None: ...


class ByHand:
    """Cache-aside. `objects` has the path of each id's object."""

    def __init__(self, url: str, objects: Mapping[str, Path], **options: Any) -> None:
        self.redis = redis.Redis.from_url(url, **options)
        self.objects, self.delay = objects, Delay()

    def pack(self, data: bytes) -> bytes:
        return data

    def unpack(self, data: bytes) -> bytes:
        return data

    def get(self, id: str) -> bytes | None:
        found: Any = self.redis.get(PREFIX + id)
        if found is not None:
            return self.unpack(found)
        self.delay()
        data = lzma.decompress(self.objects[id].read_bytes())
        with suppress(redis.OutOfMemoryError):  # it is larger than what Redis can free
            self.redis.set(PREFIX + id, self.pack(data))
        return data

    def put(self, id: str, data: bytes) -> None:
        path = self.objects[id]
        temp = path.with_name(path.name + ".tmp")
        temp.write_bytes(lzma.compress(data))
        temp.replace(path)
        with suppress(redis.OutOfMemoryError):
            self.redis.set(PREFIX + id, self.pack(data))

    def close(self) -> None:
        self.redis.close()


class ByHandLz4(ByHand):
    def pack(self, data: bytes) -> bytes:
        packed: bytes = lz4.frame.compress(data)
        return packed

    def unpack(self, data: bytes) -> bytes:
        unpacked: bytes = lz4.frame.decompress(data)
        return unpacked


class ByHandNear(ByHandLz4):
    """With a cache in the process. A read that an invalidation overtakes is not kept. A lost connection is not handled."""

    def __init__(self, url: str, objects: Mapping[str, Path], near_bytes: int) -> None:
        import cachetools

        # One connection for all commands: NOLOOP spares the writes of that connection, and only those.
        super().__init__(url, objects, protocol=2, single_connection_client=True)
        self.near: Any = cachetools.LRUCache(near_bytes, getsizeof=len)
        self.lock, self.reading = threading.Lock(), ""
        self.pushes = redis.Redis.from_url(url, protocol=2, single_connection_client=True)
        listener: Any = self.pushes.connection
        follower = self.pushes.client_id()
        listener.send_command("SUBSCRIBE", "__redis__:invalidate")
        listener.read_response()
        tracking = ("CLIENT", "TRACKING", "ON", "REDIRECT", follower, "BCAST", "PREFIX", PREFIX, "NOLOOP")
        self.redis.execute_command(*tracking)
        self.closing = False
        self.thread = threading.Thread(target=self._listen, args=(listener,), daemon=True)
        self.thread.start()

    def _listen(self, listener: Any) -> None:
        while not self.closing:
            try:
                *_, keys = listener.read_response(timeout=0.2, disconnect_on_error=False)
            except redis.TimeoutError:
                continue
            except (redis.ConnectionError, OSError, ValueError):
                break
            with self.lock:
                changed = list(self.near) if keys is None else [key.decode()[len(PREFIX) :] for key in keys]
                for id in changed:
                    self.near.pop(id, None)
                if keys is None or self.reading in changed:
                    self.reading = ""
        with self.lock:
            self.near.clear()  # nobody invalidates it any more

    def get(self, id: str) -> bytes | None:
        with self.lock:
            found = self.near.get(id)
            self.reading = id
        if found is not None:
            kept: bytes = found
            return kept
        data = super().get(id)
        with self.lock:
            if data is not None and self.reading == id and not self.closing:
                with suppress(ValueError):  # larger than the whole cache
                    self.near[id] = data
        return data

    def put(self, id: str, data: bytes) -> None:
        with self.lock:
            self.near.pop(id, None)
        super().put(id, data)

    def close(self) -> None:
        self.closing = True
        self.thread.join()
        self.pushes.close()
        super().close()


class DelayedArchive(DirectoryArchive):
    def __init__(self, path: Path, delay: Delay) -> None:
        super().__init__(path)
        self._delay = delay

    def get(self, key: str, *, max_bytes: int) -> Fetched | None:
        self._delay()
        return super().get(key, max_bytes=max_bytes)


class Distier:
    def __init__(self, url: str, archive: Path, settings: Mapping[str, Any]) -> None:
        self.delay = Delay()
        self.store = open_store(url, archive, settings, self.delay)

    def get(self, id: str) -> bytes | None:
        module = self.store.get(id)
        return None if module is None else module.content

    def put(self, id: str, data: bytes) -> None:
        self.store.put(id, data, durability="archived")  # as by hand: the object is written before the call returns

    def close(self) -> None:
        self.store.close()


def config_of(url: str, archive: Path, settings: Mapping[str, Any]) -> Config:
    return load_config({}, redis__url=url, storage_tiers__cold__directory=str(archive), **settings)


def open_store(url: str, directory: Path, settings: Mapping[str, Any], delay: Delay) -> Store:
    """Open a store as `connect` does, on an archive that counts and delays its reads."""
    config = config_of(url, directory, settings)
    archive = DelayedArchive(directory, delay)
    space = make_space(config, archive)
    return Store(space, open_exchange(config, url, space.process.forget), archive, url=url).open()


def open_cache(
    kind: str, url: str, archive: Path, objects: Mapping[str, str], settings: Mapping[str, Any], near_bytes: int
) -> Cache:
    """Open a contender. `objects`: the key of each id's object in the archive."""
    if kind in (OURS, OURS_FAR):
        near = {"near__enabled": kind == OURS, "near__max_bytes": near_bytes}
        return Distier(url, archive, {**settings, **near})
    paths = {id: archive / key for id, key in objects.items()}
    if kind == NEAR:
        return ByHandNear(url, paths, near_bytes)
    return {PLAIN: ByHand, LZ4: ByHandLz4}[kind](url, paths)
