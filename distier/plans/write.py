"""Writing: put, put_many, delete. A write is one script; the reply says where the module landed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from distier.domain import archived as names
from distier.domain.content_types import base_type, check_content_type, guess_content_type
from distier.domain.frozen import frozen
from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.domain.module import Landed, Record, Tier, pack_keywords, pack_meta
from distier.domain.order import Order, make_tok, parse_version
from distier.effects import (  # fmt: skip
    Command,
    Count,
    NewToken,
    Offload,
    Parallel,
    Pipeline,
    Plan,
    RunScript,
    Sending,
    Word,
    collect,
)
from distier.errors import Conflict, Corrupt, DeadlineExceeded, DistierError, Full, Invalid, Recovering, Unavailable
from distier.lua import Deleted, Move, Over, Put, Refused, Replayed, Reserved, Write, reserve, state
from distier.lua import delete as delete_script
from distier.lua import put as put_script
from distier.lua import put_many as put_many_script
from distier.policy.evict import Need
from distier.policy.transform import Transformed, apply_transform, outline, transform_steps

from .records import COUNTING, count_tokens, make_frame, record_command
from .recover import list_epochs, newest_record, newest_version, stand_back, verify
from .room import NOTHING, with_room
from .shares import make_share
from .space import Space
from .writeback import compressed, put_object, write_back

Content = str | bytes | bytearray | memoryview
Expected = Order | str | int | None
Durability = Literal["redis", "replicated", "archived"]
CHECKING = "checking and hashing"
TRANSFORMING = "transforming contents"
LARGE_BYTES = 256 * 1024
"""More than this is made ready in steps, so that the call can end between two of them."""
PIPELINE_MAX_BYTES = 8 * 1024 * 1024
BATCH_MAX = 512
SCRIPT_MAX_MODULES = 64
SCRIPT_MAX_BYTES = 1024 * 1024
MAX_TOKENS = 2**40
FENCED_MAX = 4
BUSY_MAX = 256
TURN_MAX_S = 0.05
PATIENCE_SHARE = 0.5
PATIENCE_MAX_S = 2.0
"""How long one holder of a position is waited for: half of the call's deadline at most, so that there is as much left for the
call's own steps."""


@frozen
@dataclass(frozen=True, slots=True)
class Item:
    """One module to put, as `put_many` takes it; the fields are the arguments of `put`."""

    id: str
    content: Content
    content_type: str | None = None
    keywords: Sequence[str] = ()
    meta: Mapping[str, Any] | None = None
    tokens: int | None = None
    if_version: Expected = None
    durability: Durability | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked put: everything that the script needs, made once however often it is sent."""

    id: str
    tok: str
    content: bytes
    tokens: int
    expected: str
    transform: str | None
    fields: tuple[Word, ...]
    replicas: int = 0
    place: Place | None = None
    sending: Sending = field(default_factory=Sending)
    given_up: str = ""
    """Who holds a position in front of the module and does not seem to live any more."""
    ahead: Need = NOTHING
    """What the same call puts after it into its shard: modules and bytes."""


class Place(NamedTuple):
    """Where a version already is in the archive, and its place in the order."""

    epoch: int
    ver: int
    key: str
    size_bytes: int
    replid: str


def level_of(space: Space, given: str | None) -> str:
    """The durability of a call. Raises `Invalid`."""
    level = given or space.config.durability
    if level not in ("redis", "replicated", "archived"):
        raise Invalid(f"durability is redis, replicated or archived, not {given!r}")
    return level


def need_replica(shard: Shard) -> Plan[None]:
    """Raises `Unavailable` where a `replicated` write could never be acknowledged: no replica is connected."""

    def online(info: bytes | str) -> bool:
        text = info.decode() if isinstance(info, bytes) else info
        return "state=online" in text

    if not (yield from Command(shard, ("INFO", "replication"), online)):
        raise Unavailable(
            "durability `replicated` is refused: no replica is connected to this Redis; nothing was changed. "
            "Start one, or use `archived`"
        )


def put(space: Space, item: Item) -> Plan[Landed]:
    """Write a version. Raises `Invalid`, `Conflict`, `Full`, `Unavailable`."""
    prepared = yield from prepare(space, item)
    if prepared.replicas:
        yield from need_replica(space.shard(prepared.id))
    if level_of(space, item.durability) == "archived":
        return (yield from put_archived(space, prepared))
    return (yield from put_prepared(space, prepared))


def prepare(space: Space, item: Item) -> Plan[Prepared]:
    """Check, transform, count and hash. Raises `Invalid` for what can never be put."""
    tok = yield from NewToken()
    sending = Sending(space.since(space.shard(check_id(item.id))))
    if _length(item) > LARGE_BYTES:
        return (yield from _made_ready_in_steps(space, item, tok, sending))
    return (yield from Offload(_length(item), lambda: _made_ready(space, item, tok, sending), COUNTING))


def _length(item: Item) -> int:
    return len(item.content) if hasattr(item.content, "__len__") else 0


def _made_ready(space: Space, item: Item, tok: str, sending: Sending) -> Prepared:
    of = _checked(space, item)
    content, name = of.content, space.config.transforms.get(of.kind)
    made = apply_transform(name, content) if name else None
    tokens = space.counter.count(made.content if made else content) if item.tokens is None else item.tokens
    return _prepared(space, item, tok, sending, of, made, tokens)


def _made_ready_in_steps(space: Space, item: Item, tok: str, sending: Sending) -> Plan[Prepared]:
    length = _length(item)
    of = yield from Offload(length, lambda: _checked(space, item), CHECKING)
    content, name = of.content, space.config.transforms.get(of.kind)
    made = None
    if name:
        steps = transform_steps(name, content)
        try:
            step = next(steps)
            while True:
                step = steps.send((yield from Offload(length, step, TRANSFORMING)))
        except StopIteration as stop:
            made = stop.value
    tokens = item.tokens
    if tokens is None:
        tokens = yield from count_tokens(space, made.content if made else content)
    return (yield from Offload(length, lambda: _prepared(space, item, tok, sending, of, made, tokens), CHECKING))


class _Checked(NamedTuple):
    """What is to be put. `kind`: its content type without parameters."""

    id: str
    content: bytes
    content_type: str
    kind: str


def _checked(space: Space, item: Item) -> _Checked:
    """Raises `Invalid`."""
    id, content = check_id(item.id), _bytes(item.id, item.content)
    if len(content) > space.config.max_module_bytes:
        raise Invalid(f"module {id!r} has {len(content)} bytes; max_module_bytes is {space.config.max_module_bytes}")
    if space.archive_limits is not None:
        names.check_fits(space.namespace, id, space.archive_limits)
    tokens = item.tokens
    if tokens is not None and (
        isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= MAX_TOKENS
    ):
        raise Invalid(f"tokens is a whole number from 0 to 2**40, not {tokens!r}")
    content_type = check_content_type(item.content_type or guess_content_type(id, content))
    return _Checked(id, content, content_type, base_type(content_type))


def _prepared(
    space: Space,
    item: Item,
    tok: str,
    sending: Sending,
    of: _Checked,
    made: Transformed | None,
    tokens: int,
) -> Prepared:
    id, content, content_type, kind = of
    kept = made.content if made else content
    known: dict[str, Word | None] = {
        "sha256": hashlib.sha256(kept).hexdigest(),
        "type": content_type,
        "counter": space.counter.name if item.tokens is None else "given",
        "keywords": pack_keywords(item.keywords),
        "meta": pack_meta(item.meta),
        "transform": made.name if made else None,
        "outline": outline(content, kind) if kind in space.config.outline else None,
    }
    fields = tuple([word for name, value in known.items() if value for word in (name, value)])
    replicas = int(level_of(space, item.durability) == "replicated")
    return Prepared(
        id,
        make_tok(tok, id),
        kept,
        tokens,
        _expected(item.if_version),
        made.name if made else None,
        fields,
        replicas,
        None,
        sending,
    )


def _bytes(id: str, content: object) -> bytes:
    if isinstance(content, str):
        try:
            return content.encode()
        except UnicodeEncodeError as e:
            raise Invalid(f"the text of module {id!r} has a lone surrogate: it is no valid UTF-8") from e
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise Invalid(f"the content of module {id!r} is str or bytes, not {type(content).__name__}")


def _expected(if_version: Expected) -> str:
    """`if_version` as the script takes it: None any version, 0 or "" none at all, else `epoch-ver`."""
    if if_version is None:
        return ""
    if isinstance(if_version, Order):
        return str(if_version)
    if if_version == 0 or if_version == "":
        return "-"
    if not isinstance(if_version, str):
        raise Invalid(f"if_version is a version (`placement.version`), '3-41', or 0 for none; not {if_version!r}")
    parse_version(if_version)
    return if_version


def put_prepared(space: Space, p: Prepared, turn: Turn | None = None) -> Plan[Landed]:
    """Into hot, with the evictions that it takes; into warm where hot cannot take it."""
    shard = space.shard(p.id)
    put = partial(_put, shard, p, "hot", p.content, "")
    reply = yield from with_room(space, shard, put, own=p.id, ahead=p.ahead)
    return (yield from _landed(space, shard, p, reply, turn))


def _put(shard: Shard, p: Prepared, tier: Tier, body: bytes, kind: str, moves: Sequence[Move]) -> RunScript[Any]:
    place = p.place
    expected = f"{p.expected}/{p.given_up}" if p.given_up else p.expected
    fields = (*p.fields, "archived_bytes", place.size_bytes) if place else p.fields
    call = put_script(
        shard, p.id, p.tok, tier=tier, expected=expected, tokens=p.tokens, size_bytes=len(p.content), body=body,
        codec=kind, fields=fields, moves=moves, reserved=place and (place.epoch, place.ver),
        archived_bytes=place.size_bytes if place else 0, sending=p.sending,
    )  # fmt: skip
    call.replicas = p.replicas
    return call


def _landed(space: Space, shard: Shard, p: Prepared, reply: Any, turn: Turn | None = None) -> Plan[Landed]:
    """What the answer to a put into hot means; goes on to warm where hot is not to be had, and to cold where warm is not
    either and the version is in the archive."""
    tier: Tier = "hot"
    reason = None
    if _is_refused(reply, "UNVERIFIED"):
        yield from verify(space, shard, p.id)
        return (yield from put_prepared(space, p, turn))
    if _is_refused(reply, "TOO_LARGE") and (yield from make_share(space, shard, p.tokens, len(p.content))):
        reply = yield from _attempt(space, shard, p, "hot", p.content, "")
    if _has_no_room(reply):
        tier, reason = "warm", _why(reply, "hot")
        kind, frame = yield from make_frame(space, p.content)
        reply = yield from _attempt(space, shard, p, "warm", frame, kind)
    if _has_no_room(reply) and p.place:
        tier, reason = "cold", f"{reason}, {_why(reply, 'warm')}"
        reply = yield from _put(shard, p, "cold", b"", "", ())
    elif _is_refused(reply, "TOO_LARGE"):
        return (yield from put_archived(space, p))  # larger than what Redis may hold: the archive can
    if _is_refused(reply, "BUSY"):
        turn = turn or Turn(space, p.id)
        return (yield from put_prepared(space, replace(p, given_up=(yield from turn.wait(reply.version))), turn))
    if isinstance(reply, Put):
        yield Count("puts")
        space.note_version(shard, reply.epoch, reply.ver)
        yield Count("moves.evicted", reply.evicted)
        version = Order(reply.epoch, reply.ver, p.tok)
        return Landed(p.id, tier, version, p.tokens, len(p.content), reply.evicted, reason, False, p.transform)
    if isinstance(reply, Replayed):
        where: Tier = "warm" if reply.tier == "warm" else "cold" if reply.tier == "cold" else "hot"
        version = Order(reply.epoch, reply.ver, p.tok)
        return Landed(p.id, where, version, p.tokens, len(p.content), 0, None, True, p.transform)
    if _is_refused(reply, "SUPERSEDED") and p.place and not p.expected:
        # It still held its position: what superseded it was unconditional, and it took effect just before that.
        version = Order(p.place.epoch, p.place.ver, p.tok)
        reason = f"superseded by version {reply.version}"
        return Landed(p.id, "cold", version, p.tokens, len(p.content), 0, reason, False, p.transform)
    raise _refusal(p, reply)


def _attempt(space: Space, shard: Shard, p: Prepared, tier: Tier, body: bytes, kind: str) -> Plan[Any]:
    """Put into this tier, with the evictions that it takes. What is in the archive already needs no room: None, where that
    could only be made with the archive's help, and it does not answer."""
    nowhere_else = tier == "warm" and p.place is None

    put = partial(_put, shard, p, tier, body, kind)
    try:
        return (yield from with_room(space, shard, put, last_resort=nowhere_else, own=p.id, ahead=p.ahead))
    except Full:
        if p.place is None:
            raise
        return None


def _is_refused(reply: object, word: str) -> bool:
    return isinstance(reply, Refused) and reply.word == word


def _has_no_room(reply: object) -> bool:
    return reply is None or isinstance(reply, Over) or _is_refused(reply, "TOO_LARGE")


def _why(reply: object, tier: str) -> str:
    return f"too large for {tier}" if isinstance(reply, Refused) else f"no room in {tier}"


class Fenced(Recovering):
    """The shard began a new epoch while this write was on its way to the archive."""


class Turn:
    """Waiting for those who hold a position in front of a module: durable writes that are under way.

    One that was watched for `patience_s` without an end, by this process's own clock, is given up on: it may be dead. It loses
    its position when it is passed, and cannot tell any more what became of its write."""

    def __init__(self, space: Space, id: str) -> None:
        self._id = id
        self._patience_s = min(space.config.deadline_ms / 1000 * PATIENCE_SHARE, PATIENCE_MAX_S)
        self._holder, self._waited_s, self._waits = "", 0.0, 0

    def wait(self, holder: str) -> Plan[str]:
        """Wait for a moment. Returns the holder that is to be passed, empty for none. Raises `Unavailable`."""
        if holder != self._holder:
            self._holder, self._waited_s = holder, 0.0
        if self._waited_s >= self._patience_s:
            return holder
        if self._waits >= BUSY_MAX:
            raise Unavailable(
                f"too many conditional or durable writes of module {self._id!r} at once; this one was not tried"
            )
        self._waits += 1
        self._waited_s += yield from stand_back(self._waits, TURN_MAX_S)
        return ""


def _conflict(id: str, version: str, expected: str) -> Conflict:
    """`version` is the one that is there, empty for none; `expected` as the scripts take it."""
    now = f"is at version {version}" if version else "does not exist"
    return Conflict(f"module {id!r} {now}, the call expected {expected if expected != '-' else 'none'}")


def _refusal(p: Prepared, reply: object) -> DistierError:
    match reply:
        case Refused("CONFLICT", version):
            return _conflict(p.id, version, p.expected)
        case Refused("SUPERSEDED", version):
            return _conflict(p.id, version, p.expected)
        case Refused("FENCED"):
            return Fenced(f"the shard of module {p.id!r} began a new epoch during the write; try again")
        case Refused("UNHELD"):
            return Recovering(_unsure(p.id))
        case Refused("UNKNOWN", version):
            return Unavailable(_unknown(p.id, version))
        case _:
            return Full(
                f"no room for module {p.id!r}: what is hot is pinned, or other writers were quicker, and warm is "
                "full too; nothing was changed. Raise the budgets, or end some pins"
            )


def put_archived(space: Space, p: Prepared) -> Plan[Landed]:
    """A put that is in the archive before it is acknowledged: reserve a position in the order, PUT, look for a newer epoch,
    apply, answer. No failure of Redis can lose it after that, and none can bring an older version back.

    Stopped on the way, it is a write of unknown outcome: the object may be adopted after a loss of Redis, or is dominated.
    An object of a write that is refused is never deleted, since somebody may have adopted it: see `_is_settled`. Nor is it put
    again before it is proven that nobody has: see `reserve_place`.
    """
    shard, first = space.shard(p.id), None
    for _ in range(FENCED_MAX):
        reserved = yield from reserve_place(space, shard, p.id, p.expected, p.tok, first)
        if isinstance(reserved, Replayed):
            version = Order(reserved.epoch, reserved.ver, p.tok)
            return Landed(p.id, "cold", version, p.tokens, len(p.content), 0, "recovered", True, p.transform)
        place = yield from _archive(space, p, reserved)
        if (yield from list_epochs(space, shard, place.epoch, but_of=place.replid)):
            space.states.pop(shard, None)
            first = first or place
            continue
        try:
            return (yield from _apply(space, shard, replace(p, place=place)))
        except Fenced:
            first = first or place
        except Conflict as e:
            if not (yield from _is_settled(space, shard, p.id, place)):
                raise Recovering(_unsure(p.id)) from e
            raise
    raise Recovering(f"the shard of module {p.id!r} changes hands too often; try again")


def _unsure(id: str) -> str:
    return f"module {id!r} was changed by others during the write, which may or may not have been applied for a while; read it"


def _unknown(id: str, version: str) -> str:
    return (
        f"the connection was lost during a write of module {id!r}, and it is not known whether it was applied before version "
        f"{version}, which is there now: read the module, then decide"
    )


def _is_settled(space: Space, shard: Shard, id: str, place: Place) -> Plan[bool]:
    """Whether a conditional write that was refused, and is in the archive at `place`, never took effect and never will: what
    refused it comes after it and is in the archive too, and no newer epoch may have adopted it before.

    That it comes after it is what `reserve` is for: nothing from before a position that is held is applied or adopted.
    """
    try:
        record = yield from record_command(shard, id)
        if record is None or record.order[:2] <= place[:2]:
            return False
        yield from write_back(space, shard, id)
        if (yield from state(shard)).epoch != place.epoch:
            return False
        return not (yield from list_epochs(space, shard, place.epoch, but_of=place.replid))
    except DistierError:
        yield Count("writes.not_settled")
        return False


def _apply(space: Space, shard: Shard, p: Prepared) -> Plan[Landed]:
    """Raises `Fenced`, `Conflict`; `Unavailable` where the outcome stays open."""
    assert p.place is not None
    try:
        reply = yield from _attempt(space, shard, p, "hot", p.content, "")
        return (yield from _landed(space, shard, p, reply))
    except Full as e:
        raise Unavailable(
            f"module {p.id!r} is in the archive as {p.place.epoch}-{p.place.ver}, but Redis is full and could not take note "
            "of it: it may appear later. Put it again when there is room (`distier doctor`)"
        ) from e


def _archive(space: Space, p: Prepared, reserved: Reserved) -> Plan[Place]:
    """Put the version into the archive at the position that was reserved for it."""
    flat = dict(zip(p.fields[::2], p.fields[1::2], strict=True))
    record = new_record(p.id, Order(reserved.epoch, reserved.ver, p.tok), len(p.content), p.tokens, flat, reserved)
    body = yield from compressed(space, p.content)
    key = names.content_key(space.namespace, record)
    yield from put_object(space, record, key, body)
    return Place(reserved.epoch, reserved.ver, key, len(body), reserved.replid)


def reserve_place(
    space: Space, shard: Shard, id: str, expected: str, tok: str, first: Place | None = None
) -> Plan[Reserved | Replayed]:
    """The next position in the order. Durable writes of one module take turns; one that seems to have died is passed.

    Where an object of this write is in the archive already, at `first` and from before a newer epoch, it gets another position
    only if nobody has adopted that, and nobody will: a newer position is held then, and the record is older. `Replayed` where
    it was adopted: then the write is done. Raises `Conflict`, `Unavailable`, `Recovering` (not known)."""
    turn, given_up, looks = Turn(space, id), "", 0
    before = f"{first.epoch}-{first.ver}" if first else ""
    while looks < FENCED_MAX:
        reply = yield from reserve(shard, id, expected, tok, given_up, before)
        if isinstance(reply, Reserved):
            space.note_version(shard, reply.epoch, reply.ver)
        if not isinstance(reply, Refused):
            return reply
        if reply.word == "UNHELD" or (first and reply.word == "CONFLICT"):
            raise Recovering(_unsure(id))
        if reply.word == "CONFLICT":
            raise _conflict(id, reply.version, expected)
        if reply.word == "BUSY":
            given_up = yield from turn.wait(reply.version)
        else:
            looks += 1
            yield from verify(space, shard, id)
    raise Recovering(f"the shard of module {id!r} changes hands too often; try again")


def put_many(space: Space, items: Sequence[Item]) -> Plan[list[Landed | DistierError]]:
    """One result per item, in order: where it landed, or its error. While there is room, some of a shard are written in one
    step of its server; those that need evictions take the long way one by one, those of a higher durability than `redis`
    go in parallel. A later item of the same id wins, as in a loop over `put`."""
    results: list[Landed | DistierError] = []
    for batch in _batches(items):
        slow = [i for i, item in enumerate(batch) if (item.durability or space.config.durability) != "redis"]
        done: list[Any] = yield from _prepare_many(space, batch, set(slow))
        for i, result in zip(slow, (yield from Parallel([put(space, batch[i]) for i in slow])), strict=True):
            done[i] = result
        ready = {p.id: i for i, p in enumerate(done) if isinstance(p, Prepared)}
        yield from _put_ready(space, [done[i] for i in ready.values()], ready, done)
        results += done
    return results


def _prepare_many(space: Space, batch: Sequence[Item], but: set[int]) -> Plan[list[Prepared | DistierError | None]]:
    """`prepare` of all but those positions (None there), errors as values. One random token makes the tokens of all."""
    seed = yield from NewToken()
    sendings: dict[Shard, Sending] = {}  # those of a shard go together
    lengths = [_length(item) for item in batch]

    def signs(i: int) -> tuple[str, Sending]:
        shard = space.shard(check_id(batch[i].id))
        sending = sendings.get(shard) or sendings.setdefault(shard, Sending(space.since(shard)))
        return hashlib.sha256(f"{seed}-{i}".encode()).hexdigest()[:32], sending

    def small() -> list[Prepared | DistierError | None]:
        made = list[Prepared | DistierError | None]()
        for i, item in enumerate(batch):
            try:
                made.append(None if i in but or lengths[i] > LARGE_BYTES else _made_ready(space, item, *signs(i)))
            except DistierError as e:
                made.append(e)
        return made

    size_bytes = sum(length for length in lengths if length <= LARGE_BYTES)
    try:
        done = yield from Offload(size_bytes, small, COUNTING)
    except DeadlineExceeded as e:  # what an earlier batch landed is told all the same
        return [None if i in but else e for i in range(len(batch))]
    for i, length in enumerate(lengths):
        if i not in but and length > LARGE_BYTES:
            try:
                done[i] = yield from _made_ready_in_steps(space, batch[i], *signs(i))
            except DistierError as e:
                done[i] = e
    return done


def _put_ready(space: Space, ready: Sequence[Prepared], at: Mapping[str, int], done: list[Any]) -> Plan[None]:
    """Write these; puts the results into `done`, by id `at` their positions."""
    parts = _parts(space, ready)
    calls = [put_many_script(shard, [_write(p) for p in part], part[0].sending) for shard, part in parts]
    landed = 0
    for k, replies in enumerate((yield from Pipeline(calls))):
        shard, part = parts[k]
        # One key of a foreign type fails the whole step, which then did nothing: each by itself.
        alone = isinstance(replies, Corrupt) and len(part) > 1
        for i, reply in enumerate(replies if isinstance(replies, list) else [replies] * len(part)):
            p = part[i]
            if isinstance(reply, Put):
                version = Order(reply.epoch, reply.ver, p.tok)
                landed += 1
                space.versions[shard] = (reply.epoch, reply.ver)
                done[at[p.id]] = Landed(p.id, "hot", version, p.tokens, len(p.content), 0, None, False, p.transform)
            else:
                p = replace(p, ahead=_behind(shard, part[i + 1 :], parts[k + 1 :]))
                done[at[p.id]] = yield from _finish(space, p, None if alone else reply)
    yield Count("puts", landed)


def _parts(space: Space, ready: Sequence[Prepared]) -> list[tuple[Shard, list[Prepared]]]:
    """What goes in one script: it holds its server up, at about 30 us a module and 1 ms for a MiB."""
    parts: list[tuple[Shard, list[Prepared]]] = []
    room: dict[Shard, tuple[list[Prepared], int]] = {}
    for p in ready:
        shard = space.shard(p.id)
        part, free_bytes = room.get(shard, ([], -1))
        if len(p.content) > free_bytes or len(part) >= SCRIPT_MAX_MODULES:
            part, free_bytes = [], SCRIPT_MAX_BYTES
            parts.append((shard, part))
        part.append(p)
        room[shard] = part, free_bytes - len(p.content)
    return parts


def _behind(shard: Shard, part: Sequence[Prepared], parts: Sequence[tuple[Shard, Sequence[Prepared]]]) -> Need:
    """How many modules and bytes the shard is to take with these."""
    rest = [p for of, some in [(shard, part), *parts] if of == shard for p in some]
    return Need(len(rest), sum([len(p.content) for p in rest]))


def _write(p: Prepared) -> Write:
    fields = (*p.fields, "content", p.content)
    return Write(p.id, p.tok, "hot", p.expected, "", "", 0, p.tokens, len(p.content), b"", fields)


def _finish(space: Space, p: Prepared, reply: Any) -> Plan[Landed | DistierError]:
    """The long way, from the answer to a put into hot; from the start where there is none."""
    try:
        if reply is None or isinstance(reply, Over):
            return (yield from put_prepared(space, p))
        return (yield from _landed(space, space.shard(p.id), p, collect(reply)))
    except DistierError as e:
        return e


def _batches(items: Sequence[Item]) -> list[list[Item]]:
    """At most 512 items and about 8 MiB a round trip, and no id twice in one: pipelined calls have no order."""
    batches: list[list[Item]] = []
    ids: set[str] = set()
    size_bytes = 0
    for item in items:
        length = _length(item)
        full = not batches or len(ids) >= BATCH_MAX or size_bytes + length > PIPELINE_MAX_BYTES
        if full or item.id in ids:
            batches.append([])
            ids, size_bytes = set(), 0
        batches[-1].append(item)
        ids.add(item.id)
        size_bytes += length
    return batches


def delete(space: Space, id: str, if_version: Expected = None, durability: Durability | None = None) -> Plan[bool]:
    """True if there was such a module. Raises `Conflict`, `Unavailable`."""
    shard, tok, expected = space.shard(id), make_tok((yield from NewToken()), id), _expected(if_version)
    level = level_of(space, durability)
    if level == "archived":
        return (yield from _delete_archived(space, shard, id, tok, expected))
    if level == "replicated":
        yield from need_replica(shard)
    sending, turn, given_up, looks = Sending(space.since(shard)), Turn(space, id), "", 0
    while looks < FENCED_MAX:
        call = delete_script(shard, id, tok, f"{expected}/{given_up}" if given_up else expected, None, sending)
        call.replicas = int(level == "replicated")
        reply = yield from call
        if isinstance(reply, Deleted):
            yield Count("deletes")
            space.note_version(shard, reply.version.epoch, reply.version.ver)
            return True
        if reply.word == "CONFLICT":
            raise _conflict(id, reply.version, expected)
        if reply.word == "UNKNOWN":
            raise Unavailable(_unknown(id, reply.version))
        if reply.word == "BUSY":
            given_up = yield from turn.wait(reply.version)
            continue
        looks += 1
        if reply.word == "UNVERIFIED":
            yield from verify(space, shard, id)
        elif reply.word == "MISSING" and (yield from newest_record(space, shard, id)) is None:
            if level == "replicated":  # by a delete that is not replicated yet: "no" shall be as good as "yes"
                confirm = reserve(shard, id)
                confirm.replicas = 1
                yield from confirm
            return False
    raise Recovering(f"the shard of module {id!r} changes hands too often; try again")


def _delete_archived(space: Space, shard: Shard, id: str, tok: str, expected: str) -> Plan[bool]:
    """A tombstone in the archive before the answer, by the same steps as `put_archived`. Of several deletes of one module, one
    says True: whoever found it there when its tombstone was applied."""
    first: Place | None = None
    existed = False
    for _ in range(FENCED_MAX):
        if first is None:
            found = yield from newest_version(space, shard, id)
            if found is None or (found.deleted and found.clean):
                return False
            if found.deleted:  # a delete that is not archived yet: "no" shall be durable too, if it still is "no" then
                yield from write_back(space, shard, id)
                continue
        reserved = yield from reserve_place(space, shard, id, expected, tok, first)
        if isinstance(reserved, Replayed):
            return existed
        existed = reserved.exists if first is None else existed
        place = yield from _archive_tombstone(space, id, tok, reserved)
        if (yield from list_epochs(space, shard, place.epoch, but_of=place.replid)):
            space.states.pop(shard, None)
            first = first or place
            continue
        reply = yield from delete_script(shard, id, tok, expected, place[:2])
        if isinstance(reply, Deleted):
            yield Count("deletes")
            return existed if reply.existed is None else reply.existed
        if reply.word == "SUPERSEDED" and not expected:
            return existed  # by unconditional puts alone: it took effect just before them
        if reply.word in ("CONFLICT", "SUPERSEDED"):
            if not (yield from _is_settled(space, shard, id, place)):
                raise Recovering(_unsure(id))
            raise _conflict(id, reply.version, expected)
        if reply.word == "UNHELD":
            raise Recovering(_unsure(id))
        if reply.word == "FENCED":
            first = first or place
        elif reply.word == "UNVERIFIED":
            yield from verify(space, shard, id)
        # Else DELETED_SINCE: a delete and a put came before it. It was held all the time, so nobody has adopted it: once more.
    raise Recovering(f"the shard of module {id!r} changes hands too often; try again")


def _archive_tombstone(space: Space, id: str, tok: str, reserved: Reserved) -> Plan[Place]:
    record = new_record(id, Order(reserved.epoch, reserved.ver, tok), 0, 0, {}, reserved, tier="deleted")
    key = names.content_key(space.namespace, record)
    yield from put_object(space, record, key, b"")
    return Place(reserved.epoch, reserved.ver, key, 0, reserved.replid)


def new_record(
    id: str,
    order: Order,
    size_bytes: int,
    tokens: int,
    fields: Mapping[Any, Any],
    reserved: Reserved,
    tier: str = "cold",
) -> Record:
    """The record that a reserved version will have, for its object's name and description."""

    def text(name: str) -> str:
        return str(fields.get(name, ""))

    return Record(
        id, tier, order, size_bytes, tokens, text("counter"), text("sha256"), text("type"),
        fields.get("keywords", b""), fields.get("meta", b""), True, order.epoch, None, 0, "", 0,
        reserved.created_ms, reserved.now_ms, fields.get("transform"), fields.get("outline"), None,
    )  # fmt: skip
