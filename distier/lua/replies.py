"""What the scripts take and return, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.domain.order import Order
from distier.domain.outcome import Refusal
from distier.domain.schema import LAYOUT
from distier.effects import Arg
from distier.errors import Invalid, OutOfStep, Recovering


class Move(NamedTuple):
    """A victim's step down: to `warm` with its frame, or to `cold` (clean versions only)."""

    id: str
    write_id: str
    to: str
    codec: str = ""
    frame: bytes = b""


class Over(NamedTuple):
    """Nothing was changed: room is missing. `*_over` is what the change alone would exceed each budget by (negative:
    free); `hot_ids` are the least recently used, `warm_ids` those due first. Pinned ones are not named."""

    hot_tokens_over: int
    hot_bytes_over: int
    warm_modules_over: int
    warm_bytes_over: int
    hot_ids: tuple[str, ...]
    warm_ids: tuple[str, ...]


class Put(NamedTuple):
    epoch: int
    ver: int
    evicted: int


class Replayed(NamedTuple):
    """The tok had been applied. `tier` is where that version is; empty if a newer one has taken its place."""

    epoch: int
    ver: int
    tier: str


class Refused(NamedTuple):
    """The script changed nothing. `version` is the version that is there, where the refusal is about it; with `BUSY` it is the
    id of the write that holds the position."""

    why: Refusal
    version: str = ""


class Applied(NamedTuple):
    evicted: int = 0


class Opened(NamedTuple):
    """A shard in good order. `verified`: the epoch in which all of the archive was last compared with the records. `ver`: the
    last version that had been given."""

    epoch: int
    verified: int
    ver: int = 0


class Unclaimed(NamedTuple):
    """The shard has no epoch for this life of the server, whose replication id is `replid`. `opening` is the token of the look
    that found that first; it goes with all of the shard's keys. `epoch`: that of an earlier life, 0 for none."""

    replid: str
    opening: str = ""
    epoch: int = 0


class Reserved(NamedTuple):
    epoch: int
    ver: int
    now_ms: int
    created_ms: int
    replid: str = ""
    exists: bool = False


class Deleted(NamedTuple):
    """A tombstone is there, of this version. `existed`: whether it is of a module; None where somebody adopted it."""

    version: Order
    existed: bool | None


class Adoption(NamedTuple):
    """What the archive holds of one module, for `adopt`. `kind` is `content`, `deleted`, or `none` (nothing). `instead`:
    the tok of a cold version whose object is lost, which this one replaces though it is older."""

    id: str
    epoch: int = 0
    ver: int = 0
    write_id: str = ""
    kind: str = "none"
    tokens: int = 0
    size_bytes: int = 0
    archived_bytes: int = 0
    instead: str = ""
    fields: tuple[Arg, ...] = ()


class Adopted(NamedTuple):
    adopted: int
    verified: int


class Mended(NamedTuple):
    """What is wrong with a module, by the words of `mend.lua` and `reindex.lua`, and which of that has been put right."""

    id: str
    found: tuple[str, ...]
    repaired: frozenset[str]


class Moving(NamedTuple):
    """Nothing was done: the shard has changed since it was looked at."""


class Seen(NamedTuple):
    """What `where` found. Scores are None where the id is not in that set; `pttl_ms` as Redis gives it."""

    fields: dict[bytes, bytes]
    last_use_ms: int | None
    due_ms: int | None
    uses: float
    dirty_since_ms: int | None
    pinned_until_ms: int | None
    pttl_ms: int


def word_of(reply: Any) -> str:
    """The first word of a reply, after the answers that any script may give."""
    if type(reply) is not list:
        raise OutOfStep(f"a reply that no script gives ({type(reply).__name__}) came in answer to a script")
    word = bytes(reply[0]).decode()
    if word == "RECOVERING":
        raise Recovering("this shard has no epoch: Redis lost its memory, or the namespace was never opened")
    if word == "LAYOUT":
        raise Invalid(
            f"this namespace has key layout {reply[1].decode()}, this distier knows layout {LAYOUT}: "
            "use the version of distier that wrote it, or a new namespace"
        )
    return word


def over_of(reply: Any) -> Over:
    ids = [tuple(i.decode() for i in names) for names in reply[2:4]]
    return Over(*(int(n) for n in reply[1]), *ids)  # type: ignore[arg-type]


def refused_of(word: str, reply: Any) -> Refused:
    return Refused(Refusal(word), reply[1].decode() if len(reply) > 1 else "")


def version_of(text: bytes) -> tuple[int, int]:
    epoch, _, ver = text.decode().partition("-")
    return int(epoch), int(ver)


def parse_change(reply: Any) -> Applied | Over | Refused:
    word = word_of(reply)
    if word == "OK":
        return Applied(int(reply[1]) if len(reply) > 1 else 0)
    return over_of(reply) if word == "OVER" else Refused(Refusal(word))


def parse_number(reply: Any) -> int:
    word_of(reply)
    return int(reply[1])


def move_keys(shard: Shard, moves: Sequence[Move]) -> tuple[str, ...]:
    return pairs_of(shard, [m.id for m in moves])


def move_args(moves: Sequence[Move]) -> tuple[Arg, ...]:
    return (len(moves), *(word for move in moves for word in move))


def pairs_of(shard: Shard, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(key for id in ids for key in (shard.module(id), shard.frame(id)))
