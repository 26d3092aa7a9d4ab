"""The order of versions: `(epoch, ver, write_id)`, total over all writers and all failures.

`epoch` counts the incarnations of a shard's server: a Redis that lost its memory, or a replica that was promoted, begins
a new epoch, and every version of it comes after all earlier versions. `ver` is one counter per shard and epoch, so that
the next version of a deleted module is greater although nothing remembers the module. `write_id` is the random identity of
the write, by which a script recognises a write that is sent again. It has 20 random hexadecimal digits from the writer, and
8 digits computed from the module's id. The latter show whose record it is (`is_of`), so that a client rejects a reply that
was meant for another request.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

from distier.errors import Invalid

EPOCH_DIGITS = 8
VER_DIGITS = 14
SHORT_WRITE_ID_CHARS = 8
WRITE_ID_RANDOM_CHARS = 20
WRITE_ID_LENGTHS = (28, 16)
"""The lengths of a write id that ends with the check of its module's id: 28 as a writer makes it, and 16 for a version that
was found in the archive, whose object name has only the first 8 digits. Write ids of other lengths come from older writers."""
VERSION_CHARS_MAX = 40


class Order(NamedTuple):
    """One version of a module. Compares as a tuple; the greatest is the current one."""

    epoch: int
    ver: int
    write_id: str

    def __str__(self) -> str:
        """`epoch-ver`, unique within a shard: the form that people read, type, and pass as `if_version`."""
        return f"{self.epoch}-{self.ver}"

    @property
    def stem(self) -> str:
        """The object name of this version without its extension. Stems sort as versions do."""
        return f"@{self.epoch:0{EPOCH_DIGITS}d}-{self.ver:0{VER_DIGITS}d}-{self.write_id[:SHORT_WRITE_ID_CHARS]}"


def make_write_id(random: str, id: str) -> str:
    """Return a write id from random hexadecimal digits: at least 20 for a new write, 8 for one found in the archive."""
    return f"{random[:WRITE_ID_RANDOM_CHARS]}{crc32(id.encode()):08x}"


def is_of(id: str, write_id: bytes) -> bool:
    """Return whether a record with this write id may be the record of this module."""
    return len(write_id) not in WRITE_ID_LENGTHS or write_id[-8:] == b"%08x" % crc32(id.encode())


def parse_version(text: str) -> tuple[int, int]:
    """`"3-41"` -> `(3, 41)`. Raises `Invalid` for anything else."""
    epoch, dash, ver = text.partition("-")
    if len(text) > VERSION_CHARS_MAX or not (
        dash and epoch.isascii() and epoch.isdigit() and ver.isascii() and ver.isdigit()
    ):
        raise Invalid(
            f"not a version: {text[:VERSION_CHARS_MAX]!r}; a version looks like '3-41' (see `distier where ID`)"
        )
    return int(epoch), int(ver)


def parse_stem(stem: str) -> Order | None:
    """Parse the stem of an object name; None if it is not a version. The result has the first 8 characters of the write id."""
    if not stem.startswith("@"):
        return None
    parts = stem[1:].split("-")
    if len(parts) != 3:
        return None
    epoch, ver, write_id = parts
    wanted = ((epoch, EPOCH_DIGITS), (ver, VER_DIGITS))
    if any(len(s) != n or not (s.isascii() and s.isdigit()) for s, n in wanted):
        return None
    if len(write_id) != SHORT_WRITE_ID_CHARS or not set(write_id) <= set("0123456789abcdef"):
        return None
    return Order(int(epoch), int(ver), write_id)
