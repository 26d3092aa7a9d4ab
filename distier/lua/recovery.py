"""Scripts for a shard's epoch: opening it, its state, positions in the order, and adoption of listed objects."""

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
    wrong_layout,
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A stored limit. `explicit` limits replace the stored value; defaults only fill gaps."""

    name: str
    value: int
    explicit: bool


def open_shard(
    shard: Shard,
    limits: Sequence[Limit],
    *,
    eviction: str = "",
    epoch: int = 0,
    replid: str = "",
    empty: bool = False,
    opening: str = "",
) -> RunScript[Opened | Unclaimed]:
    """Open a shard; with `epoch`, install that epoch.

    Args:
        shard: the shard.
        limits: the limits to store.
        eviction: the eviction policy to store; empty to leave it as it is.
        epoch: the epoch to install; 0 for none.
        replid: the replication id of the server's incarnation to which the epoch belongs.
        empty: whether the archive holds nothing of this shard, so that no record needs a comparison.
        opening: the token of the look before the epoch was claimed. The epoch is installed only if it is still stored.

    Raises:
        Invalid: the namespace has another layout or another number of shards.
    """

    def parse(reply: Any) -> Opened | Unclaimed:
        word = word_of(reply)
        if word == "MISMATCH":
            name, stored = reply[1].decode(), reply[2].decode()
            if name == "layout":
                raise Invalid(f"namespace {shard.namespace!r} has {wrong_layout(int(stored))}")
            raise Invalid(
                f"namespace {shard.namespace!r} was made with {name}={stored}; this client is configured for "
                f"{name}={shard.count}. The number is fixed when a namespace is created: "
                "correct the configuration, or use another namespace"
            )
        if word == "OK":
            return Opened(int(reply[1]), int(reply[2]), int(reply[3]), reply[4] == b"1", reply[5].decode())
        return Unclaimed(reply[1].decode(), reply[2].decode(), int(reply[3]))

    args = [w for x in limits for w in (x.name, x.value, "set" if x.explicit else "default")]
    head = (LAYOUT, shard.count, epoch, replid, int(empty), opening, eviction)
    return RunScript(shard, script("open"), shard.fixed, (*head, *args), parse)


def state(shard: Shard) -> RunScript[Opened]:
    """Read the shard's epoch and counters. The result's parser raises `Recovering` if the shard has no epoch."""

    def parse(reply: Any) -> Opened:
        word_of(reply)
        return Opened(int(reply[1]), int(reply[2]), int(reply[3]), reply[4] == b"1", reply[5].decode())

    return RunScript(shard, script("state"), shard.fixed, (), parse)


def look(shard: Shard) -> RunScript[Opened | None]:
    """As `state`; the result is None if the shard has no epoch for this incarnation of the server."""

    def parse(reply: Any) -> Opened | None:
        return None if reply[0] == b"RECOVERING" else state(shard).parse(reply)

    return RunScript(shard, script("state"), shard.fixed, (), parse)


def reserve(
    shard: Shard, id: str, expected: str = "", write_id: str = "", given_up: str = "", first: str = ""
) -> RunScript[Reserved | Replayed | Refused]:
    """Reserve the next position in the order for a write, until the write is applied or another write passes it.

    A call that is sent twice reserves two positions; an unused position does no harm.

    Args:
        shard: the shard.
        id: the module.
        expected: the version that the module must have; empty for any.
        write_id: the write that will hold the position; without one, no write holds it.
        given_up: the write id of a holder that seems to have died, whose position this write may pass.
        first: the version (`epoch-ver`) of an object of this write that the archive has from before a newer epoch.
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


def adopt(
    shard: Shard, epoch: int, found: Sequence[Adoption], *, whole: bool = False, given_up: str = ""
) -> RunScript[Adopted | Refused]:
    """Reconcile records with the objects that were listed in `epoch`; `whole` ends a listing of the whole archive.

    `given_up`: the write id of a holder that seems to have died, whose position an adoption may pass.
    """

    def parse(reply: Any) -> Adopted | Refused:
        word = word_of(reply)
        return Adopted(int(reply[1]), int(reply[2]), reply[3].decode()) if word == "OK" else Refused(Refusal(word))

    args: list[Arg] = [epoch, int(whole), given_up]
    for item in found:
        args += [*item[:-1], len(item.fields) // 2, *item.fields]
    keys = (*shard.fixed, *pairs_of(shard, [item.id for item in found]))
    return RunScript(shard, script("adopt"), keys, tuple(args), parse)
