"""Warm copies on the node's own disk: one LMDB environment per directory, shared by all processes of the node.

It is only a cache. Only clean versions go in, the record in Redis decides which version is current, and each read compares
the write id and the SHA-256 with that record. So a wrong result is impossible, and a missing copy costs a read of the
archive. Therefore nothing here is synced or repaired, and every failure is counted and treated as a miss.

    copies    <namespace> NUL <id>     ->  header, write id, lz4 block or plain bytes     (the last version of a module)
    order     sequence, 8 bytes        ->  key in `copies`: the order of eviction
    sums      bytes, sequence, layout  ->  8 bytes each

Copies are evicted in the order in which they were put. A copy that this process has read since then goes to the end of the
order once (second chance), so that reads write nothing. Uses by other processes are not seen; evicting a copy that they use
costs them a read of the archive. Rejected: a clock bit in the file, which makes each read a write transaction.

Properties of LMDB files, and how this module deals with them:

- A process may open a file only once: `_ENVIRONMENTS` shares it by directory.
- An open file does not survive a fork. The child closes its copy while no thread uses it (`os.register_at_fork`) and opens
  its own. No spare transactions are kept, because their reader slots would belong to the parent.
- LMDB waits forever for the writer's mutex, even if its holder is a stopped process. So a writer first takes another lock,
  for which it waits a limited time (`writer.lock`, an `flock` that ends with its process).
- Without sync, a crash of the *host* may leave a damaged file. So a file from another boot is discarded.
- Access to a page beyond the end of the file is SIGBUS, not an error. So a file that is shorter than its last page is
  discarded before it is used, and all blocks of the reader table are allocated before LMDB writes to it. Two cases remain: a
  person who truncates or overwrites the file may kill the processes that use it (LMDB trusts its pages), and so may a full
  disk on a copy-on-write file system (btrfs, ZFS). Only the owner can access the directory.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from distier.domain import codec
from distier.domain.module import Record
from distier.errors import Corrupt
from distier.stores.local.directory import default_node, prepare
from distier.stores.local.environment import LAYOUT, U64, Environment, leave, shared

OPEN_PATIENCE_S = 2.0
SECOND_CHANCES = 8
RECENT_MAX = 100_000
CHANGES_MAX = 100_000
EVICT_SHARE = 10
"""If the map is full despite the budgets (fragmentation), one of this many copies is evicted before the next attempt."""
THINNINGS = 4
# version, codec, length of the write id; sequence, time of the copy in ms since the Unix epoch
_HEADER = struct.Struct("<BBBxIQQ")
_HEADER_BYTES = _HEADER.size
_CODECS = {codec.RAW: 0, codec.LZ4: 1}
_NAMES = {n: name for name, n in _CODECS.items()}
Count = Callable[[str, int], None]


class LocalSums(NamedTuple):
    """The contents of a node's store over all namespaces, and its budgets. `size_bytes` is the stored size."""

    node: str
    modules: int
    size_bytes: int
    max_modules: int
    max_bytes: int


class LocalStore:
    """The warm copies of one namespace on this node. It is thread-safe and fork-safe.

    The budgets apply to all namespaces that share the directory together. Failures never raise, except that the
    constructor raises `ConfigError` if a person must change something.

    It counts `local.misses`, `local.kept`, `local.evicted`, `local.damaged` (a copy with a wrong SHA-256; it is dropped),
    `local.refused` (no room), `local.busy` (another writer was slow), `local.errors` (LMDB or the disk) and `local.rebuilt`
    (the file was discarded).

    Args:
        directory: Where to keep the copies.
        namespace: The namespace.
        max_modules: Maximum number of copies.
        max_bytes: Maximum size of all copies as stored, in bytes.
        ttl_ms: Time without a use after which `expire` drops a copy, in milliseconds.
        level: The lz4 level; None for no compression.
        node: The node's name; by default `default_node`.
        count: Called with the name and the increment of a counter.
        clock: Returns seconds since the Unix epoch.
    """

    def __init__(
        self, directory: Path, *, namespace: str, max_modules: int, max_bytes: int, ttl_ms: int, level: int | None = 9,
        node: str | None = None, count: Count = lambda name, n: None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        inner = prepare(directory)
        self.node = node or default_node(inner)
        self.directory = directory
        self.count = count
        self.max_modules, self.max_bytes, self.ttl_ms = max_modules, max_bytes, ttl_ms
        self._level = level
        self._clock = clock
        self._prefix = namespace.encode() + b"\0"
        # Pages are at most half empty, and a copy that spans pages leaves at most half of them empty. The rest is for
        # fragments and for old pages that a reader still uses. This reserves only addresses: the file grows with use.
        self._shared = shared(inner, (3 * max_bytes + 256 * max_modules + (64 << 20)) // 4096 * 4096)
        self._rebuilt = self._shared.rebuilt
        self._closed = False
        with self._shared.writing(OPEN_PATIENCE_S) as mine:
            if mine:
                with self._shared.lock:
                    self._shared.opened()
        self._count_rebuilt()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.directory)!r}, node={self.node!r})"

    # ---- reading

    def get(self, record: Record) -> bytes | None:
        """Return the verified content of exactly this version, or None if there is no copy. Writes nothing."""
        shared, key, value = self._shared, self._prefix + record.id.encode(), None
        if shared.lock._is_owned() or shared._writers._is_owned():  # see `is_interrupted`
            self.count("local.misses", 1)
            return None
        with shared.lock:
            if shared.reader is not None:
                try:
                    with shared.reader() as txn:
                        value = txn.get(key, None, shared.copies)
                except lmdb.Error as e:
                    shared.distrust(e)
                    self.count("local.errors", 1)
        write_id = record.order.write_id.encode()
        start = _HEADER_BYTES + len(write_id)
        if (  # as in `_unpacked`
            value is None
            or len(value) < start
            or value[0] != LAYOUT
            or value[2] != len(write_id)
            or not value.startswith(write_id, _HEADER_BYTES)
        ):
            self.count("local.misses", 1)
            return None
        try:
            content = codec.decompress_block(_NAMES.get(value[1], "?"), value[start:], size_bytes=record.size_bytes)
        except Corrupt:
            content = None
        if content is None or hashlib.sha256(content).hexdigest() != record.sha256:
            self.count("local.damaged", 1)
            self.delete(record.id)
            return None
        if len(shared.recent) < RECENT_MAX:
            shared.recent.add(key)
        return content

    def has(self, id: str, write_id: str) -> bool:
        """Return whether there is a copy of this version. Its content is not checked, and this does not count as a use."""
        if self._shared.is_interrupted():
            return False
        with self._shared.lock:
            value = self._peek(self._prefix + id.encode())
        return value is not None and _unpacked(value, write_id) is not None

    def ids(self) -> list[str]:
        """Return the ids of this namespace that have a copy."""
        shared, found = self._shared, []
        with shared.lock, suppress(lmdb.Error):
            if shared.reader is not None:
                with shared.reader() as txn:
                    cursor = txn.cursor(db=shared.copies)
                    if cursor.set_range(self._prefix):
                        for key in cursor.iternext(keys=True, values=False):
                            if not key.startswith(self._prefix):
                                break
                            found.append(key[len(self._prefix) :].decode(errors="replace"))
        return found

    def sums(self) -> LocalSums:
        shared, n, size_bytes = self._shared, 0, 0
        with shared.lock, suppress(lmdb.Error):
            if shared.reader is not None:
                with shared.reader() as txn:
                    n, size_bytes = txn.stat(shared.copies)["entries"], _number(txn, shared, b"bytes")
        return LocalSums(self.node, n, size_bytes, self.max_modules, self.max_bytes)

    def _peek(self, key: bytes) -> bytes | None:
        shared = self._shared
        if shared.reader is None:
            return None
        try:
            with shared.reader() as txn:
                value: bytes | None = txn.get(key, db=shared.copies)
                return value
        except lmdb.Error as e:
            shared.distrust(e)
            return None

    # ---- writing

    def put(self, record: Record, content: bytes) -> bool:
        """Keep a copy of this clean version in place of any other version of the module. Makes room first.

        Returns:
            Whether the copy was kept.
        """
        if not record.clean:
            raise AssertionError(f"module {record.id!r} is not archived: its only copy belongs in Redis")
        key = self._prefix + record.id.encode()
        name, data = codec.compress_block(content, level=self._level)
        write_id = record.order.write_id.encode()
        if len(write_id) > 255 or _cost(key, len(data) + len(write_id)) > self.max_bytes or not self.max_modules:
            self.count("local.refused", 1)
            return False

        def keep(txn: Any, shared: Environment) -> int:
            evicted = self._make_room(txn, shared, key, _cost(key, len(data) + len(write_id)))
            sequence = _number(txn, shared, b"sequence") + 1
            header = _HEADER.pack(LAYOUT, _CODECS[name], len(write_id), 0, sequence, int(self._clock() * 1000))
            value = header + write_id + data
            txn.put(key, value, db=shared.copies)
            txn.put(U64.pack(sequence), key, db=shared.order, append=True)
            _set(txn, shared, b"sequence", sequence)
            _set(txn, shared, b"bytes", _number(txn, shared, b"bytes") + len(key) + len(value))
            shared.changes[key] = True
            return evicted

        evicted = self._write(keep)
        if evicted is None:
            return False
        self.count("local.kept", 1)
        if evicted:
            self.count("local.evicted", evicted)
        return True

    def delete(self, id: str) -> bool:
        """Drop the copy of a module. Returns whether there was one."""
        key = self._prefix + id.encode()

        def drop(txn: Any, shared: Environment) -> int:
            return int(_drop(txn, shared, key))

        return bool(self._write(drop))

    def expire(self) -> int:
        """Drop copies that are older than the TTL and were not read by this process since. Returns their number."""
        before_ms = int(self._clock() * 1000) - self.ttl_ms

        def drop(txn: Any, shared: Environment) -> int:
            gone = 0
            for _ in range(256):
                key = self._oldest(txn, shared)
                value = txn.get(key, db=shared.copies) if key else None
                if key is None or value is None or _HEADER.unpack_from(value)[5] > before_ms:
                    break
                if key in shared.recent:
                    self._requeue(txn, shared, key, value)
                else:
                    gone += _drop(txn, shared, key)
            return gone

        return self._write(drop) or 0

    def tend(self) -> None:
        """Check the file: reopen it if it was replaced, and rebuild it if it is truncated or damaged."""
        shared = self._shared
        with shared.writing() as mine:
            if mine:
                with shared.lock:
                    if shared.is_open and not shared.is_whole():
                        shared.distrust(lmdb.CorruptedError("truncated"))
                    if shared.opened():
                        with suppress(lmdb.Error):
                            shared._env.reader_check()
        self._count_rebuilt()

    def take_changes(self) -> dict[str, bool]:
        """Return the ids whose copies this process has added (True) or removed (False) since the last call."""
        shared, mine = self._shared, {}
        with shared.lock:
            for key in [k for k in shared.changes if k.startswith(self._prefix)]:
                mine[key[len(self._prefix) :].decode(errors="replace")] = shared.changes.pop(key)
        return mine

    @property
    def is_open(self) -> bool:
        """Whether copies are kept and read now. If not, opening the file is retried every ten seconds."""
        return self._shared.reader is not None

    def lock_path(self, namespace: str) -> Path:
        """Return the file whose lock decides which process serves this node's copies."""
        return self._shared.inner / f"serve-{namespace}.lock"

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            leave(self._shared)

    def _write(self, change: Callable[[Any, Environment], int]) -> int | None:
        """Run a change in its own transaction. Returns its result, or None if it failed."""
        shared = self._shared
        with shared.writing() as mine:
            if not mine:
                self.count("local.busy", 1)
                return None
            with shared.lock:
                try:
                    if not shared.opened():
                        self.count("local.errors", 1)
                        return None
                    if len(shared.changes) > CHANGES_MAX:
                        shared.changes.clear()
                    result = self._fitted(change)
                    shared.lengthen()
                    return result
                except lmdb.MapFullError:
                    self.count("local.refused", 1)
                except (lmdb.Error, OSError) as e:
                    self.count("local.errors", 1)
                    if isinstance(e, lmdb.Error) and _is_damage(e):
                        shared.distrust(e)
                finally:
                    self._count_rebuilt()
        return None

    def _fitted(self, change: Callable[[Any, Environment], int]) -> int:
        """Return the result of the change.

        If the map is full despite the budgets, the oldest copies are evicted. LMDB reuses their pages two transactions
        later.
        """
        for _ in range(THINNINGS):
            try:
                return _committed(self._shared, change)
            except lmdb.MapFullError:
                _committed(self._shared, self._thin)
        return _committed(self._shared, change)

    def _count_rebuilt(self) -> None:
        n, self._rebuilt = self._shared.rebuilt - self._rebuilt, self._shared.rebuilt
        if n > 0:
            self.count("local.rebuilt", n)

    # ---- eviction, inside a transaction

    def _make_room(self, txn: Any, shared: Environment, key: bytes, need_bytes: int) -> int:
        _drop(txn, shared, key)
        evicted, chances = 0, SECOND_CHANCES
        while (
            txn.stat(shared.copies)["entries"] + 1 > self.max_modules
            or _number(txn, shared, b"bytes") + need_bytes > self.max_bytes
        ):
            victim = self._oldest(txn, shared)
            if victim is None:
                break
            value = txn.get(victim, db=shared.copies)
            if victim in shared.recent and chances and value is not None:
                chances -= 1
                self._requeue(txn, shared, victim, value)
            else:
                evicted += _drop(txn, shared, victim)
        return evicted

    def _oldest(self, txn: Any, shared: Environment) -> bytes | None:
        """Return the key to evict next. Entries of `order` without a copy are dropped on the way."""
        cursor = txn.cursor(db=shared.order)
        while cursor.first():
            sequence, key = cursor.item()
            value = txn.get(key, db=shared.copies)
            if value is not None and U64.pack(_HEADER.unpack_from(value)[4]) == sequence:
                return bytes(key)
            cursor.delete()
        return None

    def _requeue(self, txn: Any, shared: Environment, key: bytes, value: bytes) -> None:
        """Move a copy that was read since it was put to the end of the order, with the current time."""
        shared.recent.discard(key)
        version, kind, write_id_bytes, _, before, _ = _HEADER.unpack_from(value)
        sequence = _number(txn, shared, b"sequence") + 1
        header = _HEADER.pack(version, kind, write_id_bytes, 0, sequence, int(self._clock() * 1000))
        txn.delete(U64.pack(before), db=shared.order)
        txn.put(key, header + value[_HEADER.size :], db=shared.copies)
        txn.put(U64.pack(sequence), key, db=shared.order, append=True)
        _set(txn, shared, b"sequence", sequence)

    def _thin(self, txn: Any, shared: Environment) -> int:
        """Evict a tenth of the copies, the oldest first."""
        gone = 0
        for _ in range(1 + txn.stat(shared.copies)["entries"] // EVICT_SHARE):
            key = self._oldest(txn, shared)
            if key is None:
                break
            gone += _drop(txn, shared, key)
        return gone


def _cost(key: bytes, data_bytes: int) -> int:
    return len(key) + _HEADER.size + data_bytes


def _unpacked(value: bytes, write_id: str) -> tuple[str, bytes] | None:
    """Return the codec and data of a copy, or None if it is of another version."""
    if len(value) < _HEADER.size:
        return None
    version, kind, write_id_bytes, _, _, _ = _HEADER.unpack_from(value)
    if version != LAYOUT or write_id_bytes != len(write_id) or not value.startswith(write_id.encode(), _HEADER.size):
        return None
    return _NAMES.get(kind, "?"), value[_HEADER.size + write_id_bytes :]


def _number(txn: Any, shared: Environment, name: bytes) -> int:
    value = txn.get(name, db=shared.sums)
    return int(U64.unpack(value)[0]) if value is not None and len(value) == 8 else 0


def _set(txn: Any, shared: Environment, name: bytes, number: int) -> None:
    txn.put(name, U64.pack(max(0, number)), db=shared.sums)


def _drop(txn: Any, shared: Environment, key: bytes) -> bool:
    value = txn.get(key, db=shared.copies)
    if value is None:
        return False
    txn.delete(key, db=shared.copies)
    if len(value) >= _HEADER.size:
        txn.delete(U64.pack(_HEADER.unpack_from(value)[4]), db=shared.order)
    _set(txn, shared, b"bytes", _number(txn, shared, b"bytes") - len(key) - len(value))
    shared.recent.discard(key)
    shared.changes[key] = False
    return True


def _committed(shared: Environment, change: Callable[[Any, Environment], int]) -> int:
    with shared.begin() as txn:
        return change(txn, shared)


def _is_damage(error: lmdb.Error) -> bool:
    """Return whether the file must be reopened or replaced, unlike for a full disk."""
    return isinstance(
        error,
        lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError | lmdb.InvalidError | lmdb.VersionMismatchError
        | lmdb.BadTxnError | lmdb.IncompatibleError | lmdb.BadDbiError | lmdb.KeyExistsError | lmdb.MapResizedError
        | lmdb.ReadersFullError | lmdb.BadRslotError,
    )  # fmt: skip
