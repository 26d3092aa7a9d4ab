"""Loading the function library into servers, and finding out which one they have."""

from __future__ import annotations

from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.effects import Command, Plan
from distier.errors import Invalid
from distier.lua.library import LIBRARY, library, number_of


class Deployed(NamedTuple):
    """What `deploy` found and left on a server: the number of the library there before (0: none), and now."""

    before: int
    now: int


def loaded(shard: Shard) -> Plan[int]:
    """Return the number of the library on the server of this shard; 0 if it has none."""
    command = ("FUNCTION", "LIST", "LIBRARYNAME", "distier", "WITHCODE")
    return (yield from Command(shard, command, _number))


def deploy(shard: Shard, version: str) -> Plan[Deployed]:
    """Load this package's library into the server of this shard.

    Raises:
        Invalid: The server has a newer one, which other clients rely on.
    """
    before = yield from loaded(shard)
    if before > LIBRARY:
        raise Invalid(
            f"the server has library {before} of the distier functions, and this distier would load {LIBRARY}; "
            "deploy them from a newer distier"
        )
    yield from Command(shard, ("FUNCTION", "LOAD", "REPLACE", library(version)), lambda reply: reply)
    return Deployed(before, LIBRARY)


def _number(reply: Any) -> int:
    for found in reply:
        fields = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        return number_of(fields[b"library_code"].decode())
    return 0
