"""The archive's manifest: rows that describe versions, in files that are written once and only replaced by merged ones.

    <ns>/manifest/<shard>/seg-<unique>.jsonl.gz              the versions of one batch of a write-back, or found by a LIST
    <ns>/manifest/<shard>/row-<unique>.jsonl.gz              one durable write
    <ns>/manifest/<shard>/run-<unique>.<part>-<pending>.jsonl.gz   merged files; `<pending>` modules have more than one row, or
                                                             a tombstone
    <ns>/manifest/full-<unique>                              when the last sweep with a LIST of all objects ended
    <ns>/manifest/packed-<unique>                            when the last packing ended

Each file has one JSON object a line, in the order of the objects' keys, which is the order of a LIST. The manifest is the
union of all files. A row says that its object was in the archive when the row was written, and what a record needs to know of
it, so nobody has to GET the object for that. It proves nothing else: an object without a row is as good as one with a row.

A version that is in a pack (`packs.py`) has a row that names it (`pack`). The index of a pack is such a file too.
"""

from __future__ import annotations

import gzip
import heapq
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from distier.errors import Corrupt

from .archived import VersionObject, describe_plain, modules_prefix, parse_key
from .module import Record
from .objects import Listed
from .packs import NOWHERE, Pack, Place, parse_pack

CONTENT_TYPE = "application/gzip"
GZIP_LEVEL = 6
PART_BYTES = 16 << 20
"""A run continues in another file after this many compressed bytes, so that no single request is too large."""
_NAME = re.compile(r"(\d{1,6})/(seg|row|run)-([0-9a-f]{1,64})(?:\.(\d{1,6})-(\d{1,15}))?\.jsonl\.gz", re.ASCII)
Marker = Literal["full", "packed"]
_MARKER = re.compile(r"(full|packed)-[0-9a-f]{1,64}", re.ASCII)


class Row(NamedTuple):
    """One version. `key` is relative to the namespace's `modules/`; rows sort as their objects do in a LIST."""

    key: str
    id: str
    known: Mapping[str, Any]

    @property
    def deleted(self) -> bool:
        return self.key.endswith(".deleted")

    @property
    def pack(self) -> Pack | None:
        """The pack that has the version; None for an object of its own."""
        return parse_pack(self.known.get("pack"))

    @property
    def place(self) -> Place:
        """Where this copy of the version is in the order of copies."""
        pack = self.pack if "pack" in self.known else None
        return NOWHERE if pack is None else pack.place

    @property
    def updated_ms(self) -> int:
        """When the version was written, by the clock of its Redis server; 0 if nobody knows."""
        return _number(self.known.get("updated"))

    @property
    def expires_ms(self) -> int | None:
        """When the version expires or has expired, by the same clock; None if it has no TTL."""
        return self.updated_ms + _number(self.known["ttl"]) if "ttl" in self.known else None

    @property
    def archived_bytes(self) -> int:
        return _number(self.known.get("archived_bytes"))

    def described(self) -> dict[str, str]:
        """Return the description as a sidecar has it: text by name."""
        words = self.known.get("keywords")
        plain = {name: str(value) for name, value in self.known.items() if name != "keywords"}
        return plain | ({"keywords": _json(words)} if words else {})

    def object(self, namespace: str) -> VersionObject | None:
        """Return the version's object, as a listing of the archive shows it."""
        found, pack = parse_key(modules_prefix(namespace) + self.key), self.pack
        return found if found is None or pack is None else found._replace(pack=str(pack))

    def packed(self, pack: Pack, archived_bytes: int) -> Row:
        """Return the row of this version in a pack."""
        return self._replace(known={**self.known, "pack": str(pack), "archived_bytes": archived_bytes})


class File(NamedTuple):
    """A file of the manifest, read from its key."""

    key: str
    shard: int
    kind: str
    unique: str
    pending: int
    size_bytes: int


def manifest_prefix(namespace: str) -> str:
    return f"{namespace}/manifest/"


def file_key(namespace: str, shard: int, kind: str, unique: str, part: int = 0, pending: int = 0) -> str:
    suffix = f".{part}-{pending}" if kind == "run" else ""
    return f"{manifest_prefix(namespace)}{shard}/{kind}-{unique}{suffix}.jsonl.gz"


def parse_file(namespace: str, entry: Listed) -> File | None:
    """Parse a key of the manifest; None for a name that distier did not give."""
    match = _NAME.fullmatch(entry.key.removeprefix(manifest_prefix(namespace)))
    if match is None:
        return None
    shard, kind, unique, _, pending = match.groups()
    return File(entry.key, int(shard), kind, unique, int(pending or 0), entry.size_bytes)


def marker_key(namespace: str, kind: Marker, unique: str) -> str:
    """Return the key of a marker: an empty object that says when the whole archive was last listed (`full`) or packed."""
    return f"{manifest_prefix(namespace)}{kind}-{unique}"


def is_marker(namespace: str, key: str, kind: Marker) -> bool:
    match = _MARKER.fullmatch(key.removeprefix(manifest_prefix(namespace)))
    return match is not None and match[1] == kind


def row_of(namespace: str, record: Record, key: str, archived_bytes: int) -> Row:
    """Return the row of a version that is archived under `key`."""
    known = describe_plain(record)
    try:
        if "keywords" in known:
            known["keywords"] = json.loads(str(known["keywords"]))
    except (ValueError, RecursionError):
        del known["keywords"]  # damaged: the row must not keep the version from being archived
    if record.deleted:
        known = {name: known[name] for name in ("id", "version", "tok", "updated") if name in known}
    else:
        known["archived_bytes"] = archived_bytes
    return Row(key.removeprefix(modules_prefix(namespace)), record.id, known)


def row_of_description(namespace: str, key: str, id: str, described: Mapping[str, str], archived_bytes: int) -> Row:
    """Return the row of a version whose description is that of a sidecar: text by name."""
    known: dict[str, Any] = dict(described)
    for name in ("bytes", "tokens", "created", "updated", "ttl"):
        if name in known:
            known[name] = _number(known[name])
    try:
        if "keywords" in known:
            known["keywords"] = json.loads(known["keywords"])
    except (ValueError, RecursionError):
        del known["keywords"]
    return Row(key.removeprefix(modules_prefix(namespace)), id, {"id": id, **known, "archived_bytes": archived_bytes})


def pack_rows(rows: Iterable[Row]) -> bytes:
    """Return a file with these rows."""
    lines = "".join(_line(row) for row in sorted(rows, key=_position))
    return gzip.compress(lines.encode(), GZIP_LEVEL, mtime=0)


def check_file(name: str, data: bytes) -> None:
    """Check that a file is whole. Raises `Corrupt`."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as e:
        raise Corrupt(f"the manifest's file {name} is damaged: {e!s:.100}; run `distier manifest rebuild`") from e


def read_rows(data: bytes, prefix: str = "") -> Iterator[Row]:
    """Iterate over the rows of a whole file, in order. A line that is no row is skipped: no other row depends on it.

    With `prefix`, only rows whose ids begin with it. Parsing takes most of the time, so other lines are recognised by their
    text.
    """
    begins = f'"id":{_json(prefix)[:-1]}'.encode("utf-8", "surrogatepass")
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        for line in file:
            if prefix and begins not in line and b'"id":"' in line:
                continue
            if (row := _row(line)) is not None and row.id.startswith(prefix):
                yield row


def merged(files: Mapping[str, bytes], prefix: str = "") -> Iterator[Row]:
    """Iterate over the rows of all files in order, each copy of a version once, in the order of copies. `prefix`: as
    `read_rows`."""
    last: tuple[str, Place] | None = None
    for row in heapq.merge(*(read_rows(data, prefix) for data in files.values()), key=_position):
        position = _position(row)
        if position != last:
            last = position
            yield row


def _position(row: Row) -> tuple[str, Place]:
    return row.key, row.place


def last_copies(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each version, that of its last copy, from rows in order."""
    return list({row.key: row for row in rows}.values())


def grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Iterate over the rows of each module, in order; the last one is that of the last copy of the greatest version."""
    group: list[Row] = []
    for row in rows:
        if group and group[-1].key.rpartition("/")[0] != row.key.rpartition("/")[0]:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


class Writer:
    """Compresses rows that come in order, and gives the finished parts of a run."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
        self._parts: list[bytes] = []
        self._size_bytes = self.rows = 0

    def add(self, row: Row) -> None:
        some = self._packer.compress(_line(row).encode())
        self.rows += 1
        if some:
            self._parts.append(some)
            self._size_bytes += len(some)

    @property
    def is_full(self) -> bool:
        return self._size_bytes >= PART_BYTES

    def end(self) -> bytes:
        """Return the part, and begin another one."""
        data = b"".join((*self._parts, self._packer.flush()))
        self._begin()
        return data


def choose_small(files: Sequence[File], least: int) -> list[File]:
    """Return the files that a compaction merges: all segments and rows, and each run that is not larger than what is chosen
    so far. None if there are fewer than `least` segments and rows.

    So a row is written again about once for each doubling of the manifest, not at each compaction.
    """
    fresh = [file for file in files if file.kind != "run"]
    if len(fresh) < least:
        return []
    size_bytes = sum(file.size_bytes for file in fresh)
    for file in sorted((file for file in files if file.kind == "run"), key=lambda file: file.size_bytes):
        if file.size_bytes > size_bytes:
            break
        fresh.append(file)
        size_bytes += file.size_bytes
    return fresh


def _line(row: Row) -> str:
    return f"{_json({'key': row.key, **row.known})}\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _row(line: bytes) -> Row | None:
    try:
        known = json.loads(line)
        key, id = known.pop("key"), known["id"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Row(key, id, known) if isinstance(key, str) and isinstance(id, str) else None


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | str) and str(value).isdigit() else 0
