"""Packs: one object with many versions of modules, as a `.tar.xz` that `tar` opens, and its index.

    <ns>/packs/<directory>/@<number>-<token>.tar.xz                       members `<path of id>/@<version>.<ext>`
    <ns>/packs/<directory>/@<number>-<token>.<first>%-<last>.jsonl.gz     a row of the manifest for each member

The directory is one that all members are below. `<first>` and `<last>` are the beginnings of the least and the greatest name
directly below it, so a listing tells which packs may have a module.

A pack exists while its index is listed. Neither is ever changed. The copies of a version have an order (`place`): the object of
its own, then packs of deeper directories, then packs by number. A copy is deleted only where a later one exists, or where the
version is not needed; so the last copy that was ever made stays. Who looks for a module looks in that order, and meets a copy
that moves meanwhile. `tests/model/packs.py` is the model.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from distier.errors import Corrupt

from .ids import encode_id, to_path
from .objects import Listed

PACK_BYTES = 2 << 20
"""Contents in a pack: twice that does not compress much better, and takes twice as long to read."""
MEMBER_BYTES_MAX = 256 << 10
"""A larger content stays an object of its own: it compresses as well alone."""
UNPACKED_BYTES_MAX = 64 << 20
NUMBER_DIGITS = 8
TOKEN_CHARS = 8
RANGE_CHARS = 24
NAME_BYTES_MAX = 1 + NUMBER_DIGITS + 1 + TOKEN_CHARS + 1 + 2 * RANGE_CHARS + 2 + len(".jsonl.gz")
_STEP_BYTES = 128 << 10
_BLOCK = 512
_MEMORY_BYTES_MAX = 96 << 20
_REFERENCE = re.compile(r"\^(\d{1,3})\.(\d{1,12})-([0-9a-f]{8})", re.ASCII)
_STEM = re.compile(r"(.*/|)@(\d{8,12})-([0-9a-f]{8})", re.ASCII)
_INDEX = re.compile(r"(.*/|)@(\d{8,12})-([0-9a-f]{8})\.([^/]*?)%-([^/]*)\.jsonl\.gz", re.ASCII)
_CONTENT = re.compile(r"(.*/|)@(\d{8,12})-([0-9a-f]{8})\.tar\.xz", re.ASCII)

Place = tuple[int, int, str]


class Pack(NamedTuple):
    """A pack's name. `directory` is relative to `packs/`; it ends in `/`, or is empty."""

    directory: str
    number: int
    token: str

    def __str__(self) -> str:
        """Return the name by which rows refer to the pack."""
        return f"{self.directory}@{self.number:0{NUMBER_DIGITS}d}-{self.token}"

    @property
    def place(self) -> Place:
        """Where the pack is in the order of copies."""
        return -self.directory.count("/"), self.number, self.token

    def key(self, namespace: str) -> str:
        return f"{packs_prefix(namespace)}{self}.tar.xz"

    def index_key(self, namespace: str, paths: Iterable[str]) -> str:
        """Return the key of the index of a pack with members of these modules, by their paths."""
        below = [path[len(self.directory) :].partition("/")[0] for path in paths]
        first, last = (name[:RANGE_CHARS].rstrip("%") for name in (min(below), max(below)))
        return f"{packs_prefix(namespace)}{self}.{first}%-{last}.jsonl.gz"

    def reference(self, id: str) -> str:
        """Return how the record of a member refers to the pack: by the number of directories up from the module."""
        up = module_path(id).count("/") + 1 - self.directory.count("/")
        return f"^{up}.{self.number}-{self.token}"


class Index(NamedTuple):
    """The index of a pack, as a listing shows it. `whole`: the listing has the pack too."""

    key: str
    pack: Pack
    first: str
    last: str
    modified_ms: int
    whole: bool = False

    def may_have(self, path: str) -> bool:
        """Return whether the module with this path may be a member."""
        if not path.startswith(self.pack.directory):
            return False
        below = path[len(self.pack.directory) :].partition("/")[0]
        return self.first <= below and below[: len(self.last)] <= self.last


NOWHERE: Place = (-(1 << 30), 0, "")
"""The place of a copy that is no member of a pack."""


def packs_prefix(namespace: str) -> str:
    return f"{namespace}/packs/"


def module_path(id: str) -> str:
    """Return the path of a module's directory, relative to `modules/` or `packs/`, without a `/` at the end."""
    return to_path(encode_id(id))


def directories_of(path: str) -> list[str]:
    """Return the directories in which packs with this module can be, the deepest first."""
    parts = path.split("/")[:-1]
    return ["".join(f"{part}/" for part in parts[:n]) for n in range(len(parts), -1, -1)]


def common_directory(paths: Iterable[str], directories: Iterable[str] = ()) -> str:
    """Return the deepest directory that is above all these modules, and above or the same as all these directories."""
    above = [directories_of(path)[0] for path in paths] + list(directories)
    shared = min(above, key=len)
    while not all(one.startswith(shared) for one in above):
        shared = shared[:-1].rpartition("/")[0]
        shared += "/" if shared else ""
    return shared


def parse_pack(name: object) -> Pack | None:
    """Parse the name by which a row refers to a pack; None for any other value."""
    match = _STEM.fullmatch(name) if isinstance(name, str) else None
    return None if match is None else Pack(match[1], int(match[2]), match[3])


def parse_index(namespace: str, entry: Listed) -> Index | None:
    """Parse an entry of a listing; None if it is no index."""
    match = _INDEX.fullmatch(entry.key.removeprefix(packs_prefix(namespace)))
    if match is None:
        return None
    return Index(entry.key, Pack(match[1], int(match[2]), match[3]), match[4], match[5], entry.modified_ms)


def parse_content(namespace: str, key: str) -> Pack | None:
    """Parse the key of a pack itself; None for any other key."""
    match = _CONTENT.fullmatch(key.removeprefix(packs_prefix(namespace)))
    return None if match is None else Pack(match[1], int(match[2]), match[3])


def parse_reference(id: str, reference: str | None) -> Pack | None:
    """Return the pack to which a record refers; None if it refers to none."""
    match = _REFERENCE.fullmatch(reference or "")
    if match is None:
        return None
    directories = directories_of(module_path(id))
    up = int(match[1])
    return Pack(directories[up - 1], int(match[2]), match[3]) if 1 <= up <= len(directories) else None


def member_name(key: str) -> str:
    """Return the name in a pack of the version whose own object would have this key, relative to `modules/`."""
    return key.removesuffix(".xz")


# -- contents --------------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """One version for a pack. `updated_ms` is in milliseconds since the Unix epoch."""

    name: str
    content: bytes
    updated_ms: int


def tar_of(members: Sequence[Member]) -> bytes:
    """Return a tar with these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.size, info.mtime = len(member.content), member.updated_ms // 1000
            tar.addfile(info, io.BytesIO(member.content))
    return out.getvalue()


def read_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Iterate over names and contents of a pack's members. No more is decompressed than what is asked for.

    The standard library's tarfile takes forty times as long for a header as xz does, so headers are read here: names in the
    two fields of POSIX, and in extended headers. Raises `Corrupt`.
    """
    reader, long_name = _Reader(data), ""
    while True:
        header = reader.take(_BLOCK)
        if not header.strip(b"\0"):
            return
        try:
            size_bytes, kind = int(header[124:136].rstrip(b"\0 "), 8), header[156:157]
            name, prefix = (part.partition(b"\0")[0].decode() for part in (header[:100], header[345:500]))
        except (ValueError, UnicodeDecodeError) as e:
            raise Corrupt(f"the pack has a damaged tar header: {e!s:.100}") from e
        content = reader.take(size_bytes)
        reader.take(-size_bytes % _BLOCK)
        if kind == b"x":
            long_name = _pax_path(content)
        elif kind in b"0\0":
            yield long_name or (f"{prefix}/{name}" if prefix else name), content
            long_name = ""


def _pax_path(content: bytes) -> str:
    for line in content.split(b"\n"):
        name, equals, value = line.partition(b" ")[2].partition(b"=")
        if equals and name == b"path":
            return value.decode(errors="replace")
    return ""


class _Reader:
    """Decompresses a stream as far as it is read."""

    def __init__(self, data: bytes) -> None:
        self._decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY_BYTES_MAX)
        self._data, self._parts, self._total_bytes = data, b"", 0

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes. Raises `Corrupt` where there are fewer."""
        while len(self._parts) < n:
            if self._decoder.eof:
                raise Corrupt("the pack is truncated")
            try:
                more = self._decoder.decompress(self._data, max(_STEP_BYTES, n - len(self._parts)))
            except (lzma.LZMAError, MemoryError) as e:
                raise Corrupt(f"the pack is a damaged xz stream: {e}") from e
            self._data = b""
            self._total_bytes += len(more)
            if self._total_bytes > UNPACKED_BYTES_MAX:
                raise Corrupt(f"the pack holds more than {UNPACKED_BYTES_MAX} bytes")
            if not more and self._decoder.needs_input:
                raise Corrupt("the pack is truncated")
            self._parts += more
        taken, self._parts = self._parts[:n], self._parts[n:]
        return taken


def read_member(data: bytes, name: str) -> bytes | None:
    """Return the content of a member; None if the pack has none with this name. Raises `Corrupt`."""
    return next((content for found, content in read_members(data) if found == name), None)
