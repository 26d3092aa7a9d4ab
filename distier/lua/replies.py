"""The arguments and results of scripts, as values."""

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
    """The demotion of a victim: to `warm` with its frame, or to `cold` (clean versions only)."""

    id: str
    write_id: str
    to: str
    codec: str = ""
    frame: bytes = b""


class Over(NamedTuple):
    """The script changed nothing, because there was no room.

    `*_over` is by how much the change would exceed each budget (a negative number is free room). `hot_ids` are the least
    recently used modules of hot, `warm_ids` the modules of warm that are due first. Pinned modules are not among them.
    `dictionary` is the name of the shard's current dictionary, empty for none; None if no script said it.
    """

    hot_tokens_over: int
    hot_bytes_over: int
    warm_modules_over: int
    warm_bytes_over: int
    hot_ids: tuple[str, ...]
    warm_ids: tuple[str, ...]
    dictionary: str | None = None


class Put(NamedTuple):
    """The write was applied as the version (`epoch`, `ver`), and `evicted` modules were demoted for it."""

    epoch: int
    ver: int
    evicted: int


class Replayed(NamedTuple):
    """The write had been applied before. `tier` is where its version is; empty if a newer version has replaced it."""

    epoch: int
    ver: int
    tier: str


class Refused(NamedTuple):
    """The script changed nothing.

    `version` is the stored version, if the refusal concerns it. With `BUSY` it is the write id of the position's holder.
    """

    why: Refusal
    version: str = ""


class Applied(NamedTuple):
    """The change was applied, and `evicted` modules were demoted for it."""

    evicted: int = 0


class Installed(NamedTuple):
    """What became of a warm copy, the module's count of uses (-1 if none was recorded), and the shard's current dictionary."""

    change: Applied | Over | Refused
    uses: float
    dictionary: str = ""


class Opened(NamedTuple):
    """A shard with an epoch for this incarnation of its server.

    `verified` is the epoch in which the whole archive was last compared with the records. `ver` is the last version number.
    `ranked`: the order of eviction is that of ranks, because the policy is another one than `lru`. `dictionary` is the name of
    the current dictionary for warm copies, empty for none.
    """

    epoch: int
    verified: int
    ver: int = 0
    ranked: bool = False
    dictionary: str = ""


class Unclaimed(NamedTuple):
    """The shard has no epoch for this incarnation of the server, whose replication id is `replid`.

    `opening` is the token of the first look that found this; it is lost with the shard's other keys. `epoch` is the epoch of an
    earlier incarnation, 0 for none.
    """

    replid: str
    opening: str = ""
    epoch: int = 0


class Reserved(NamedTuple):
    """A reserved position, and what the script knows about the module. Times are in milliseconds of the server's clock."""

    epoch: int
    ver: int
    now_ms: int
    created_ms: int
    replid: str = ""
    exists: bool = False


class Deleted(NamedTuple):
    """There is a tombstone of this version. `existed` says whether the module existed; None if another client adopted it."""

    version: Order
    existed: bool | None


class Adoption(NamedTuple):
    """What the archive holds of one module, for `adopt`.

    `kind` is `content`, `deleted`, or `none` if it holds nothing. `instead` is the write id of a cold version whose object is
    lost; this version replaces it although it is older.
    """

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
    """How many records were adopted, the epoch in which the whole archive was last compared with the records, and the durable
    write whose position prevented an adoption (empty: none)."""

    adopted: int
    verified: int
    holder: str = ""


class Mended(NamedTuple):
    """The defects of a module, by their names in `mend.lua` and `reindex.lua`, and those that were repaired."""

    id: str
    found: tuple[str, ...]
    repaired: frozenset[str]


class Ranking(NamedTuple):
    """How many modules were ranked for the eviction policy, and whether all of hot and warm are now."""

    ranked: int
    complete: bool


class Moving(NamedTuple):
    """The script changed nothing, because the shard has changed since the recount."""


class Seen(NamedTuple):
    """What `where` found. A score is None if the id is not in that set. `pttl_ms` is the reply of PTTL."""

    fields: dict[bytes, bytes]
    last_use_ms: int | None
    due_ms: int | None
    uses: float
    dirty_since_ms: int | None
    pinned_until_ms: int | None
    pttl_ms: int


def word_of(reply: Any) -> str:
    """Return the first word of a reply.

    Raises:
        Recovering: the shard has no epoch.
        Invalid: the namespace has another key layout.
        OutOfStep: the reply is not one of a script.
    """
    if type(reply) is not list:
        raise OutOfStep(f"a script got a reply that no script returns ({type(reply).__name__})")
    word = bytes(reply[0]).decode()
    if word == "RECOVERING":
        raise Recovering("this shard has no epoch: Redis lost its memory, or the namespace was never opened")
    if word == "LAYOUT":
        raise Invalid(f"this namespace has {wrong_layout(int(reply[1]))}")
    return word


def wrong_layout(stored: int) -> str:
    """Return what is wrong with a key layout of another number, and what to do."""
    what = f"key layout {stored}, but this distier knows layout {LAYOUT}"
    if stored > LAYOUT:
        return f"{what}: use the version of distier that migrated it, or another namespace"
    return f"{what}: end all processes of older versions, then run `distier migrate`"


def over_of(reply: Any) -> Over:
    ids = [tuple(i.decode() for i in names) for names in reply[2:4]]
    return Over(*(int(n) for n in reply[1]), *ids, dictionary=reply[4].decode())  # type: ignore[arg-type, misc]


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
