"""The life of a shard: opening it, its state, positions in the order, adoption of what the archive lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distier.domain.keys import Shard
from distier.domain.outcome import Refusal
from distier.domain.schema import LAYOUT
from distier.effects import Arg, RunScript
from distier.errors import Invalid
from distier.lua.loader import script
from distier.lua.replies import (
    Adopted,
    Adoption,
    Opened,
    Refused,
    Replayed,
    Reserved,
    Unclaimed,
    pairs_of,
    refused_of,
    version_of,
    word_of,
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A stored limit; `explicit` ones replace what is stored, defaults only fill gaps."""

    name: str
    value: int
    explicit: bool


def open_shard(
    shard: Shard, limits: Sequence[Limit], *, epoch: int = 0, replid: str = "", empty: bool = False, opening: str = ""
) -> RunScript[Opened | Unclaimed]:
    """Open a shard; with `epoch`, install it for the life `replid`, if `opening` is still the token of the look from before it
    was claimed. Raises `Invalid` on another layout or number of shards."""

    def parse(reply: Any) -> Opened | Unclaimed:
        word = word_of(reply)
        if word == "MISMATCH":
            raise Invalid(
                f"namespace {shard.namespace!r} was made with {reply[1].decode()} {reply[2].decode()}; this client "
                f"says {LAYOUT if reply[1] == b'layout' else shard.count}. It is fixed when a namespace is created: "
                "correct the configuration, or use another namespace"
            )
        if word == "OK":
            return Opened(*map(int, reply[1:4]))
        return Unclaimed(reply[1].decode(), reply[2].decode(), int(reply[3]))

    args = [w for x in limits for w in (x.name, x.value, "set" if x.explicit else "default")]
    head = (LAYOUT, shard.count, epoch, replid, int(empty), opening)
    return RunScript(shard, script("open"), shard.fixed, (*head, *args), parse)


def state(shard: Shard) -> RunScript[Opened]:
    def parse(reply: Any) -> Opened:
        word_of(reply)
        return Opened(*map(int, reply[1:4]))

    return RunScript(shard, script("state"), shard.fixed, (), parse)


def look(shard: Shard) -> RunScript[Opened | None]:
    """As `state`; None where the shard has no epoch for this life of the server."""

    def parse(reply: Any) -> Opened | None:
        return None if reply[0] == b"RECOVERING" else state(shard).parse(reply)

    return RunScript(shard, script("state"), shard.fixed, (), parse)


def reserve(
    shard: Shard, id: str, expected: str = "", write_id: str = "", given_up: str = "", first: str = ""
) -> RunScript[Reserved | Replayed | Refused]:
    """Reserve the next position in the order for the write `write_id`, until it is applied or passed; for nobody without one.

    A call that is sent twice reserves two positions: an empty one does no harm. The position that the write `given_up` holds is
    passed. `first` is the version (`epoch-ver`) of an object of this write that the archive has from before a newer epoch.
    """

    def parse(reply: Any) -> Reserved | Replayed | Refused:
        word = word_of(reply)
        if word == "REPLAYED":
            return Replayed(*version_of(reply[1]), reply[2].decode())
        if word != "OK":
            return refused_of(word, reply)
        epoch, ver, now_ms, created_ms = (int(float(n)) for n in reply[1:5])
        return Reserved(epoch, ver, now_ms, created_ms, reply[5].decode(), reply[6] == b"1")

    args = (expected, write_id, given_up, first)
    return RunScript(shard, script("reserve"), (*shard.fixed, shard.module(id)), args, parse)


def adopt(shard: Shard, epoch: int, found: Sequence[Adoption], *, whole: bool = False) -> RunScript[Adopted | Refused]:
    """Reconcile records with what was listed in `epoch`; `whole` ends a listing of everything."""

    def parse(reply: Any) -> Adopted | Refused:
        word = word_of(reply)
        return Adopted(int(reply[1]), int(reply[2])) if word == "OK" else Refused(Refusal(word))

    args: list[Arg] = [epoch, int(whole)]
    for item in found:
        args += [*item[:-1], len(item.fields) // 2, *item.fields]
    keys = (*shard.fixed, *pairs_of(shard, [item.id for item in found]))
    return RunScript(shard, script("adopt"), keys, tuple(args), parse)
