"""The Lua scripts, one verb each, and their typed Python faces; nobody else builds their arguments or reads their
replies.

Each `.lua` file has a header: `flags`, what it does, `KEYS`, `ARGV`, `RETURNS`, and `KEEPS` (its invariant). What is
sent to Redis is `#!lua flags=...`, the shared prelude, then the script; so the script that runs always fits the
client that calls it, and clients of different versions can share a Redis. `library()` is the same code as a
function library for redis-cli (`FUNCTION LOAD`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import Any, NamedTuple

from distier.domain.keys import LAYOUT, Shard
from distier.domain.order import Order
from distier.effects import HINT_S, USE_S, RunScript, Script, Sending, Word
from distier.errors import Corrupt, Invalid, OutOfStep, Recovering

COPY_BYTES_PER_S = 1_000_000
"""At this pace a read waits until the copy that it leaves for others has arrived."""
VERBS = (
    "open", "state", "reserve", "adopt", "put", "promote", "install", "demote", "archived", "delete", "touch", "pin",
    "expire", "age", "release", "where", "mend", "reindex", "redirty", "account",
    "ledger", "limit", "claim", "beat",
)  # fmt: skip


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")


@cache
def flags_of(verb: str) -> str:
    """The `#!lua` flags that a script declares in its first line, separated by commas; may be empty."""
    found = re.match(r"-- flags:[ ]*([a-z, -]*)\n", _text(verb))
    if not found:
        raise AssertionError(f"{verb}.lua does not say its flags in its first line")
    return found[1].replace(" ", "")


@cache
def script(verb: str) -> Script:
    """The whole script of a verb, as it is sent to Redis."""
    shebang = f"#!lua flags={flags_of(verb)}\n" if flags_of(verb) else "#!lua\n"
    source = (shebang + _text("prelude") + _text(verb)).encode()
    # So that a connection for reads knows it (`wire.READS`).
    command = "EVALSHA_RO" if flags_of(verb) == "no-writes" else "EVALSHA"
    return Script(verb, source, sha1(source, usedforsecurity=False).hexdigest(), command)


def library() -> str:
    """All verbs as the function library `distier`: `FCALL distier_where 11 ...` from redis-cli."""
    parts = ["#!lua name=distier"]
    for verb in VERBS:
        flags = ", ".join(f"'{f}'" for f in flags_of(verb).split(",") if f)
        body = _text("prelude") + _text(verb)
        parts.append(
            f"redis.register_function{{function_name='distier_{verb}', flags={{{flags}}}, "
            f"callback=function(KEYS, ARGV)\n{body}\nend}}"
        )
    return "\n".join(parts)


# -- what the scripts take and answer ---------------------------------------------------------------------------


class Move(NamedTuple):
    """A victim's step down: to `warm` with its frame, or to `cold` (clean versions only)."""

    id: str
    tok: str
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
    """Nothing was changed, because of `word`: `CONFLICT`, `UNVERIFIED`, `FENCED`, `SUPERSEDED`, `DELETED_SINCE` (superseded,
    and others have deleted the module meanwhile), `UNHELD`, `UNKNOWN`, `TOO_LARGE`, `ALREADY`, `CHANGED`, `MISSING`, `BUSY`.
    `version` is the one that is there, where the word is about it; with `BUSY` it is the tok of who holds a position."""

    word: str
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
    tok: str = ""
    kind: str = "none"
    tokens: int = 0
    size_bytes: int = 0
    archived_bytes: int = 0
    instead: str = ""
    fields: tuple[Word, ...] = ()


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


def _word(reply: Any) -> str:
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


def _over(reply: Any) -> Over:
    ids = [tuple(i.decode() for i in names) for names in reply[2:4]]
    return Over(*(int(n) for n in reply[1]), *ids)  # type: ignore[arg-type]


def _refused(word: str, reply: Any) -> Refused:
    return Refused(word, reply[1].decode() if len(reply) > 1 else "")


def _version(text: bytes) -> tuple[int, int]:
    epoch, _, ver = text.decode().partition("-")
    return int(epoch), int(ver)


def _parse_change(reply: Any) -> Applied | Over | Refused:
    word = _word(reply)
    if word == "OK":
        return Applied(int(reply[1]) if len(reply) > 1 else 0)
    return _over(reply) if word == "OVER" else Refused(word)


def _move_keys(shard: Shard, moves: Sequence[Move]) -> tuple[str, ...]:
    return _pairs(shard, [m.id for m in moves])


def _move_args(moves: Sequence[Move]) -> tuple[Word, ...]:
    return (len(moves), *(word for move in moves for word in move))


def _pairs(shard: Shard, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(key for id in ids for key in (shard.module(id), shard.frame(id)))


# -- the faces ----------------------------------------------------------------------------------------------------


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
        word = _word(reply)
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
        _word(reply)
        return Opened(*map(int, reply[1:4]))

    return RunScript(shard, script("state"), shard.fixed, (), parse)


def look(shard: Shard) -> RunScript[Opened | None]:
    """As `state`; None where the shard has no epoch for this life of the server."""

    def parse(reply: Any) -> Opened | None:
        return None if reply[0] == b"RECOVERING" else state(shard).parse(reply)

    return RunScript(shard, script("state"), shard.fixed, (), parse)


def reserve(
    shard: Shard, id: str, expected: str = "", tok: str = "", given_up: str = "", first: str = ""
) -> RunScript[Reserved | Replayed | Refused]:
    """The next position in the order, which the write `tok` holds until it is applied or passed (without `tok` nobody does).
    Sent twice, it takes two: a position that stays empty does no harm. The one that `given_up` holds is passed. `first`: the
    version, `epoch-ver`, of an object of this write that is in the archive from before a newer epoch."""

    def parse(reply: Any) -> Reserved | Replayed | Refused:
        word = _word(reply)
        if word == "REPLAYED":
            return Replayed(*_version(reply[1]), reply[2].decode())
        if word != "OK":
            return _refused(word, reply)
        epoch, ver, now_ms, created_ms = (int(float(n)) for n in reply[1:5])
        return Reserved(epoch, ver, now_ms, created_ms, reply[5].decode(), reply[6] == b"1")

    args = (expected, tok, given_up, first)
    return RunScript(shard, script("reserve"), (*shard.fixed, shard.module(id)), args, parse)


def adopt(shard: Shard, epoch: int, found: Sequence[Adoption], *, whole: bool = False) -> RunScript[Adopted | Refused]:
    """Reconcile records with what was listed in `epoch`; `whole` ends a listing of everything."""

    def parse(reply: Any) -> Adopted | Refused:
        word = _word(reply)
        return Adopted(int(reply[1]), int(reply[2])) if word == "OK" else Refused(word)

    args: list[Word] = [epoch, int(whole)]
    for item in found:
        args += [*item[:-1], len(item.fields) // 2, *item.fields]
    keys = (*shard.fixed, *_pairs(shard, [item.id for item in found]))
    return RunScript(shard, script("adopt"), keys, tuple(args), parse)


class Write(NamedTuple):
    """One version to put, in the order of the script's arguments. `frame` is empty unless it goes into warm; what goes into
    hot has its `content` among the `fields`, a flat list of names and values. `epoch` and `ver` are those that were reserved
    for a version that is in the archive already, else empty."""

    id: str
    tok: str
    tier: str
    expected: str
    epoch: int | str
    ver: int | str
    archived_bytes: int
    tokens: int
    size_bytes: int
    frame: bytes
    fields: tuple[Word, ...]


Written = Put | Replayed | Refused | Over


def put(
    shard: Shard, id: str, tok: str, *, tier: str, expected: str, tokens: int, size_bytes: int, body: bytes,
    codec: str, fields: Sequence[Word], moves: Sequence[Move] = (), reserved: tuple[int, int] | None = None,
    archived_bytes: int = 0, sending: Sending | None = None,
) -> RunScript[Written]:  # fmt: skip
    """Write a version. `body` is the content (hot) or the frame (warm); `fields` is a flat list of names and values.
    `reserved` (epoch, ver): the version is in the archive already, at that position in the order, which `tok` holds."""
    epoch, ver = reserved or ("", "")
    more: tuple[Word, ...] = ("content", body) if tier == "hot" else ("codec", codec) if tier == "warm" else ()
    frame = body if tier == "warm" else b""
    write = Write(id, tok, tier, expected, epoch, ver, archived_bytes, tokens, size_bytes, frame, (*fields, *more))
    return RunScript(
        shard, script("put"), *_put_words(shard, (write,), moves), lambda reply: _written(reply)[0],
        sending=sending or Sending(),
    )  # fmt: skip


def put_many(shard: Shard, writes: Sequence[Write], sending: Sending | None = None) -> RunScript[list[Written]]:
    """Write versions of different modules in one step of the server: an answer for each. Those that need room are answered
    `Over`, the others are written."""
    return RunScript(shard, script("put"), *_put_words(shard, writes, ()), _written, sending=sending or Sending())


def _put_words(
    shard: Shard, writes: Sequence[Write], moves: Sequence[Move]
) -> tuple[tuple[str, ...], tuple[Word, ...]]:
    keys, args = list(shard.fixed), list[Word]([len(writes)])
    for write in writes:
        keys += (shard.module(write.id), shard.frame(write.id), shard.done)
        fields = write.fields
        args += write[:-1]
        args.append(len(fields) // 2)
        args += fields
    return (*keys, *_move_keys(shard, moves)), (*args, *_move_args(moves))


def _written(reply: Any) -> list[Written]:
    _word(reply)
    return [_put_answer(answer) for answer in reply[1:]]


def _put_answer(reply: Any) -> Written:
    word = reply[0]
    if word == b"OK":
        return Put(int(reply[1]), int(reply[2]), int(reply[3]))
    if word == b"REPLAYED":
        return Replayed(*_version(reply[1]), reply[2].decode())
    return _over(reply) if word == b"OVER" else _refused(word.decode(), reply)


def promote(
    shard: Shard, id: str, tok: str, content: bytes, reason: str, moves: Sequence[Move] = ()
) -> RunScript[Applied | Over | Refused]:
    keys = (*shard.fixed, *_pairs(shard, [id]), *_move_keys(shard, moves))
    args = (id, tok, content, reason, *_move_args(moves))
    hint = 0.0 if reason == "request" else HINT_S + len(content) / COPY_BYTES_PER_S
    return RunScript(shard, script("promote"), keys, args, _parse_change, hint=hint)


def install(
    shard: Shard, id: str, tok: str, codec: str, frame: bytes, reason: str, moves: Sequence[Move] = ()
) -> RunScript[Applied | Over | Refused]:
    keys = (*shard.fixed, *_pairs(shard, [id]), *_move_keys(shard, moves))
    args = (id, tok, codec, frame, reason, *_move_args(moves))
    hint = HINT_S + len(frame) / COPY_BYTES_PER_S
    return RunScript(shard, script("install"), keys, args, _parse_change, hint=hint)


def demote(shard: Shard, reason: str, moves: Sequence[Move]) -> RunScript[tuple[str, ...] | Over]:
    """A word for each move: `moved`, `already`, `changed`, `pinned` or `dirty`."""

    def parse(reply: Any) -> tuple[str, ...] | Over:
        return _over(reply) if _word(reply) == "OVER" else tuple(w.decode() for w in reply[1])

    keys = (*shard.fixed, *_move_keys(shard, moves))
    return RunScript(shard, script("demote"), keys, (reason, *_move_args(moves)), parse)


def archived(shard: Shard, id: str, order: Order, size_bytes: int) -> RunScript[Applied | Refused]:
    keys = (*shard.fixed, *_pairs(shard, [id]))
    return RunScript(shard, script("archived"), keys, (id, order.tok, str(order), size_bytes), _parse_change)  # type: ignore[arg-type]


def delete(
    shard: Shard, id: str, tok: str, expected: str = "", reserved: tuple[int, int] | None = None,
    sending: Sending | None = None,
) -> RunScript[Deleted | Refused]:  # fmt: skip
    def parse(reply: Any) -> Deleted | Refused:
        word = _word(reply)
        if word in ("OK", "REPLAYED", "GONE"):
            existed = None if len(reply) > 2 else word != "GONE"
            return Deleted(Order(*_version(reply[1]), tok), existed)
        if word == "SUPERSEDED" and reply[2] == b"1":
            word = "DELETED_SINCE"
        return _refused(word, reply)

    keys = (*shard.fixed, *_pairs(shard, [id]), shard.done)
    args = (id, tok, expected, *(reserved or ("", "")))
    return RunScript(shard, script("delete"), keys, args, parse, sending=sending or Sending())


def touch(shard: Shard, uses: Sequence[tuple[str, int]]) -> RunScript[dict[str, float]]:
    """Counts after the touch, by id; -1 for ids that are gone. Not sent twice: a lost batch is only lost recency."""

    def parse(reply: Any) -> dict[str, float]:
        _word(reply)
        return {id: float(count) for (id, _), count in zip(uses, reply[1], strict=True)}

    keys = (*shard.fixed, *_pairs(shard, [id for id, _ in uses]))
    args = tuple(w for use in uses for w in use)
    return RunScript(shard, script("touch"), keys, args, parse, retry=False, hint=USE_S)


def pin(shard: Shard, id: str, ttl_ms: int) -> RunScript[int | None]:
    """The end of the pin in ms since the Unix epoch (0 after an unpin); None where there is no such module."""

    def parse(reply: Any) -> int | None:
        return int(reply[1]) if _word(reply) == "OK" else None

    return RunScript(shard, script("pin"), (*shard.fixed, shard.module(id)), (id, ttl_ms), parse)


def expire(shard: Shard, ids: Sequence[str]) -> RunScript[int]:
    keys = (*shard.fixed, *_pairs(shard, ids))
    return RunScript(shard, script("expire"), keys, tuple(ids), _parse_number)


def age(shard: Shard, half_life_ms: int) -> RunScript[int]:
    return RunScript(shard, script("age"), shard.fixed, (half_life_ms,), _parse_number)


def mend(shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    """What does not fit together of the records and copies of these modules; with `repair`, put right as far as it needs
    no content."""
    return _mending("mend", shard, ids, repair=repair)


def reindex(shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    """Where the sets do not agree with the records of these modules; with `repair`, made to."""
    return _mending("reindex", shard, ids, repair=repair)


def _mending(verb: str, shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    def parse(reply: Any) -> list[Mended]:
        _word(reply)
        words = [[w.decode() for w in found] for found in reply[1]]
        return [
            Mended(id, tuple(w.lstrip("+") for w in found), frozenset(w[1:] for w in found if w.startswith("+")))
            for id, found in zip(ids, words, strict=True)
        ]

    return RunScript(shard, script(verb), (*shard.fixed, *_pairs(shard, ids)), (int(repair), *ids), parse)


def redirty(shard: Shard, id: str, tok: str) -> RunScript[Applied | Refused]:
    """Have this version archived anew from its copy here. Sent twice, the second finds it done: `CHANGED`."""
    keys = (*shard.fixed, *_pairs(shard, [id]))
    return RunScript(shard, script("redirty"), keys, (id, tok), _parse_change)  # type: ignore[arg-type]


def account(
    shard: Shard, sums: Mapping[str, int], changed: Sequence[str], last_event: str, *, repair: bool
) -> RunScript[dict[str, int] | Moving]:
    """What the accounts are off by (kept less counted): `sums` is the recount of all records but those of `changed`."""

    def parse(reply: Any) -> dict[str, int] | Moving:
        if _word(reply) == "CHANGED":
            return Moving()
        return {name.decode(): int(off) for name, off in zip(reply[1::2], reply[2::2], strict=True)}

    keys = (*shard.fixed, *(shard.module(id) for id in changed))
    flat = tuple(word for item in sums.items() for word in item)
    return RunScript(shard, script("account"), keys, (int(repair), last_event, *changed, *flat), parse)


def _parse_number(reply: Any) -> int:
    _word(reply)
    return int(reply[1])


def release(shard: Shard, lease: str, holder: str) -> RunScript[bool]:
    return RunScript(shard, script("release"), (*shard.fixed, lease), (holder,), bool, hint=HINT_S)


def ledger(
    shard: Shard, version: int, tok: str, fields: Mapping[str, str], *, fence: str = "", above: int | None = None
) -> RunScript[int | Refused]:
    """Change the ledger of shares that was read at `version` (0: there was none); the new version. With `above` it is made
    anew, under a version that is greater than that."""

    def parse(reply: Any) -> int | Refused:
        word = _word(reply)
        if word == "TOO_MUCH":
            raise Invalid(
                f"the shares of namespace {shard.namespace!r} would be more than its budgets; this is a fault"
            )
        return int(reply[1]) if word == "OK" else Refused(word)

    flat: list[Word] = [word for item in fields.items() for word in item]
    args: tuple[Word, ...] = (version, tok, fence, "" if above is None else above, *flat)
    return RunScript(shard, script("ledger"), (*shard.fixed, shard.shares), args, parse)


def limit(shard: Shard, version: int, amounts: Sequence[int] = ()) -> RunScript[tuple[int, ...] | Over | Refused]:
    """Set this shard's share as of a version of the ledger; its limits, `Over` where it still holds more."""

    def parse(reply: Any) -> tuple[int, ...] | Over | Refused:
        word = _word(reply)
        if word == "OVER":
            return _over(reply)
        return tuple(int(n) for n in reply[1:]) if word == "OK" else _refused(word, reply)

    return RunScript(shard, script("limit"), shard.fixed, (version, *amounts), parse)


def claim(shard: Shard, worker: str, ttl_ms: int) -> RunScript[int | None]:
    """The fence of this worker's lease of the shard; None where another one has it."""

    def parse(reply: Any) -> int | None:
        return int(reply[1]) if _word(reply) == "OK" else None

    return RunScript(shard, script("claim"), (*shard.fixed, shard.worker_lease), (worker, ttl_ms), parse)


def beat(shard: Shard, worker: str, ttl_ms: int) -> RunScript[list[str]]:
    """The workers that live, this one among them; 0 ms: it leaves."""

    def parse(reply: Any) -> list[str]:
        _word(reply)
        return [name.decode() for name in reply[1]]

    return RunScript(shard, script("beat"), (*shard.fixed, shard.workers), (worker, ttl_ms), parse)


def where(shard: Shard, id: str) -> RunScript[Seen | None]:
    def number(value: bytes) -> int | None:
        return int(float(value)) if value else None

    def parse(reply: Any) -> Seen | None:
        if not reply:
            return None
        flat, last_use, due, uses, dirty, pinned, pttl = reply
        if len(flat) % 2:
            raise Corrupt(f"the record of module {id!r} is damaged; run `distier fsck`")
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return Seen(fields, number(last_use), number(due), float(uses or 0), number(dirty), number(pinned), int(pttl))

    return RunScript(shard, script("where"), (*shard.fixed, *_pairs(shard, [id])), (id,), parse)
