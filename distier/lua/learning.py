"""The scripts that add to what the fleet has learned: uses that follow each other, and dictionaries for warm copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.domain.learned import short
from distier.effects import USE_S, Arg, RunScript
from distier.lua.loader import script
from distier.lua.replies import parse_number, word_of

BYTES_A_MODULE = 64
"""The most bytes of learned data for each module of a shard."""
HALF_LIFE_USES = 32
"""Uses of each entry after which all counts of a shard are halved."""


class Lesson(NamedTuple):
    """What a process has counted for one field of the hash, which keeps at most `followers_max` followers by id."""

    field: str
    followers_max: int
    uses: float
    followers: Mapping[str, float]


class Taught(NamedTuple):
    """The entries of the hash, and the bytes that they take, by the script's own account."""

    entries: int
    size_bytes: int


def learn(
    shard: Shard,
    lessons: Sequence[Lesson],
    *,
    bytes_a_module: int = BYTES_A_MODULE,
    half_life_uses: int = HALF_LIFE_USES,
) -> RunScript[Taught]:
    """Add lessons to what the shard has learned. It is a hint, and not sent twice: a lost one costs a few counts."""

    def parse(reply: Any) -> Taught:
        word_of(reply)
        return Taught(int(reply[1]), int(reply[2]))

    args: list[Arg] = [bytes_a_module, half_life_uses]
    for field, most, uses, followers in lessons:
        args += [field, most, f"{uses:g}", len(followers)]
        for id, count in followers.items():
            args += [short(field, id), f"{count:g}"]
    keys = (*shard.fixed, shard.learned)
    return RunScript(shard, script("learn"), keys, tuple(args), parse, retry=False, hint=USE_S)


def use_dictionary(shard: Shard, name: str, data: bytes) -> RunScript[int]:
    """Make a dictionary the current one of a shard. The result is 1 if it was not before, otherwise 0."""
    return _dictionary(shard, name, data)


def drop_dictionary(shard: Shard, name: str) -> RunScript[int]:
    """Drop a dictionary of a shard, unless it is the current one. The result is 1 if it is gone now, otherwise 0."""
    return _dictionary(shard, name, b"")


def _dictionary(shard: Shard, name: str, data: bytes) -> RunScript[int]:
    return RunScript(shard, script("dictionary"), (*shard.fixed, shard.dictionaries), (name, data), parse_number)
