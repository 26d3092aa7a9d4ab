"""What the fleet has learned for prediction, as text in the hash `next` of a shard.

    field    the id of a module, encoded as in keys; `%:` and an encoded keyword for a keyword
    value    `<generation> <uses> <follower> <count> <follower> <count> ...`, the strongest follower first

A follower is an encoded id without the beginning that it shares with the field: `7:web` after `skills/pdf` is `skills/web`.
The field with the empty name has `<generation> <uses> <bytes>` of the whole hash: all counts are halved once per generation,
when they are next read or written. Learned data are hints. What cannot be read is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import NamedTuple

from distier.domain.ids import decode_id, encode_id
from distier.errors import Invalid

WHOLE = ""
"""The field with the state of the hash."""
KEYWORD = "%:"
"""How the field of a keyword begins. No encoded id begins like that."""
SHARED_MIN = 3
"""A beginning this short is not worth its number."""


class Learned(NamedTuple):
    """The uses of a module or keyword, and of its followers by id."""

    uses: float
    followers: Mapping[str, float]


def field_of_keyword(keyword: str) -> str:
    """Return the field of a keyword. Raises `Invalid` if it is too long for one."""
    return KEYWORD + encode_id(keyword)


def short(field: str, id: str) -> str:
    """Return the id of a follower of `field` as it is stored."""
    encoded = encode_id(id)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(field, encoded, strict=False)))
    return f"{shared}:{encoded[shared:]}" if shared >= SHARED_MIN else f":{encoded}"


def whole(field: str, stored: str) -> str:
    """Return the id of a stored follower. Raises `Invalid` or `ValueError` for anything else."""
    shared, colon, rest = stored.partition(":")
    if not colon:
        raise Invalid(f"not a follower: {stored!r}")
    return decode_id(field[: int(shared or 0)] + rest)


def generation_of(value: bytes | None) -> int:
    """Return the generation of a hash from the value of its field `WHOLE`; 0 if that is missing or damaged."""
    try:
        return int((value or b"0").split()[0])
    except (IndexError, ValueError):
        return 0


def parse_learned(field: str, value: bytes | None, generation: int) -> Learned | None:
    """Return what is known of a field as of `generation`; None if it is nothing, or damaged."""
    try:
        noted, uses, *rest = (value or b"").decode().split(" ")
        factor = 0.5 ** max(0, generation - int(noted))
        found = {whole(field, f): float(n) * factor for f, n in zip(rest[::2], rest[1::2], strict=True)}
        return Learned(float(uses) * factor, found)
    except (Invalid, ValueError, OverflowError):
        return None
