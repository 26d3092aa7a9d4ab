"""The order of versions: `(epoch, ver, write_id)`, total over all writers and all failures.

`epoch` counts the lives of a shard: a Redis that lost its memory, or a replica that was promoted, starts a new
one, and everything written in it comes after everything written before. `ver` is one counter per shard and
epoch, so that a deleted module needs no memory of its own to be followed by a greater version. `write_id` names the write
itself, so a retried write is recognised: 20 random hexadecimal digits that the writer made, and 8 that the module's id
gives. So a record says whose it is (`is_of`), and a reply that was meant for another request is not believed.
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
"""Of a tok that ends with the check of its id: as a writer made it, and of a version that was found in the archive, whose
object's name has only the first 8 digits. Toks of another length are of older writers."""
VERSION_CHARS_MAX = 40


class Order(NamedTuple):
    """One version of a module. Compares as a tuple; the greatest is the current one."""

    epoch: int
    ver: int
    write_id: str

    def __str__(self) -> str:
        """`epoch-ver`, unique within a shard: what people see, type, and pass as `if_version`."""
        return f"{self.epoch}-{self.ver}"

    @property
    def stem(self) -> str:
        """The object name of this version without its extension: sorts as the order does."""
        return f"@{self.epoch:0{EPOCH_DIGITS}d}-{self.ver:0{VER_DIGITS}d}-{self.write_id[:SHORT_WRITE_ID_CHARS]}"


def make_write_id(random: str, id: str) -> str:
    """The tok of a write, from random hexadecimal digits: at least 20 of a new one, 8 of one that was found in the archive."""
    return f"{random[:WRITE_ID_RANDOM_CHARS]}{crc32(id.encode()):08x}"


def is_of(id: str, write_id: bytes) -> bool:
    """Whether a record with this tok may be that of this module."""
    return len(write_id) not in WRITE_ID_LENGTHS or write_id[-8:] == b"%08x" % crc32(id.encode())


def parse_version(text: str) -> tuple[int, int]:
    """`"3-41"` -> `(3, 41)`. Raises `Invalid` for anything else."""
    epoch, dash, ver = text.partition("-")
    if len(text) > VERSION_CHARS_MAX or not (
        dash and epoch.isascii() and epoch.isdigit() and ver.isascii() and ver.isdigit()
    ):
        raise Invalid(
            f"not a version: {text[:VERSION_CHARS_MAX]!r}; versions look like '3-41' (see `distier where ID`)"
        )
    return int(epoch), int(ver)


def parse_stem(stem: str) -> Order | None:
    """The order in an object name's stem, or None if it is no version. `write_id` then has its first 8 characters."""
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
