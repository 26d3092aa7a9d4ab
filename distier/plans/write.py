"""Writing: put, put_many, delete. A write is one script; the reply says where the module landed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distier.domain.content_types import base_type, check_content_type, guess_content_type
from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.domain.module import Landed, Tier, pack_keywords, pack_meta
from distier.domain.order import Order, parse_version
from distier.effects import Count, NewToken, Offload, Parallel, Pipeline, Plan, RunScript, Word, collect
from distier.errors import Conflict, DistierError, Full, Invalid
from distier.lua import Move, Over, Put, Refused, Replayed
from distier.lua import delete as delete_script
from distier.lua import put as put_script
from distier.policy.transform import apply_transform, outline

from .records import make_frame
from .room import with_room
from .space import Space

Content = str | bytes | bytearray | memoryview
Expected = Order | str | int | None
PIPELINE_MAX_BYTES = 8 * 1024 * 1024
MAX_TOKENS = 2**40


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


def put(space: Space, item: Item) -> Plan[Landed]:
    """Write a version. Raises `Invalid`, `Conflict`, `Full`, `RedisUnavailable`."""
    prepared = yield from prepare(space, item)
    return (yield from put_prepared(space, prepared))


def prepare(space: Space, item: Item) -> Plan[Prepared]:
    """Check, transform, count and hash. Raises `Invalid` for what can never be put."""
    id, content = check_id(item.id), _bytes(item.id, item.content)
    if len(content) > space.config.max_module_bytes:
        raise Invalid(f"module {id!r} has {len(content)} bytes; max_module_bytes is {space.config.max_module_bytes}")
    content_type = check_content_type(item.content_type or guess_content_type(id, content))
    made, transform, summary = yield from Offload(len(content), lambda: _transform(space, content, content_type))
    tokens = item.tokens
    if tokens is None:
        tokens = yield from Offload(len(made), lambda: space.counter.count(made))
    elif isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= MAX_TOKENS:
        raise Invalid(f"tokens is a whole number from 0 to 2**40, not {tokens!r}")
    known: dict[str, Word | None] = {
        "sha256": hashlib.sha256(made).hexdigest(),
        "type": content_type,
        "counter": space.counter.name if item.tokens is None else "given",
        "keywords": pack_keywords(item.keywords),
        "meta": pack_meta(item.meta),
        "transform": transform,
        "outline": summary,
    }
    fields = tuple(word for name, value in known.items() if value for word in (name, value))
    tok = yield from NewToken()
    return Prepared(id, tok, made, tokens, _expected(item.if_version), transform, fields)


def _bytes(id: str, content: object) -> bytes:
    if isinstance(content, str):
        try:
            return content.encode()
        except UnicodeEncodeError as e:
            raise Invalid(f"the text of module {id!r} has a lone surrogate: it is no valid UTF-8") from e
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise Invalid(f"the content of module {id!r} is str or bytes, not {type(content).__name__}")


def _transform(space: Space, content: bytes, content_type: str) -> tuple[bytes, str | None, str | None]:
    """Content, name of the transform that made it, outline: as configured for this content type."""
    kind = base_type(content_type)
    name = space.config.transforms.get(kind)
    made = apply_transform(name, content) if name else None
    summary = outline(content, kind) if kind in space.config.outline else None
    return (made.content, name, summary) if made else (content, None, summary)


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


def put_prepared(space: Space, p: Prepared) -> Plan[Landed]:
    """Into hot, with the evictions that it takes; into warm where hot cannot take it."""
    shard = space.shard(p.id)
    reply = yield from with_room(space, shard, lambda moves: _into_hot(shard, p, moves))
    return (yield from _landed(space, shard, p, reply))


def _into_hot(shard: Shard, p: Prepared, moves: Sequence[Move]) -> RunScript[Any]:
    return put_script(
        shard, p.id, p.tok, tier="hot", expected=p.expected, tokens=p.tokens, size_bytes=len(p.content),
        body=p.content, codec="", fields=p.fields, moves=moves,
    )  # fmt: skip


def _landed(space: Space, shard: Shard, p: Prepared, reply: Any) -> Plan[Landed]:
    """What the answer to a put into hot means; goes on to warm where hot is not to be had."""
    tier: Tier = "hot"
    reason = None
    if isinstance(reply, Over) or (isinstance(reply, Refused) and reply.word == "TOO_LARGE"):
        tier, reason = "warm", "no room in hot" if isinstance(reply, Over) else "too large for hot"
        kind, frame = yield from make_frame(space, p.content)
        reply = yield from with_room(
            space, shard,
            lambda moves: put_script(
                shard, p.id, p.tok, tier="warm", expected=p.expected, tokens=p.tokens,
                size_bytes=len(p.content), body=frame, codec=kind, fields=p.fields, moves=moves,
            ),
        )  # fmt: skip
    if isinstance(reply, Put):
        yield Count("puts")
        yield Count("moves.evicted", reply.evicted)
        version = Order(reply.epoch, reply.ver, p.tok)
        evicted = reply.evicted
        return Landed(p.id, tier, version, p.tokens, len(p.content), evicted, reason, False, p.transform)
    if isinstance(reply, Replayed):
        where: Tier = "warm" if reply.tier == "warm" else "cold" if reply.tier == "cold" else "hot"
        version = Order(reply.epoch, reply.ver, p.tok)
        return Landed(p.id, where, version, p.tokens, len(p.content), 0, None, True, p.transform)
    raise _refusal(p, reply)


def _refusal(p: Prepared, reply: object) -> DistierError:
    match reply:
        case Refused("CONFLICT", version):
            now = f"is at version {version}" if version else "does not exist"
            return Conflict(f"module {p.id!r} {now}, the call expected {p.expected if p.expected != '-' else 'none'}")
        case Refused("TOO_LARGE"):
            return Invalid(
                f"module {p.id!r} ({p.tokens} tokens, {len(p.content)} bytes) is larger than the hot and the warm "
                "budget: raise storage_tiers.hot.max_size or storage_tiers.warm.max_bytes"
            )
        case _:
            return Full(
                f"no room for module {p.id!r}: all that is hot is pinned or in use by other writers, and warm is "
                "full too; nothing was changed. Raise the budgets, or end some pins"
            )


def put_many(space: Space, items: Sequence[Item]) -> Plan[list[Landed | DistierError]]:
    """One result per item, in order: where it landed, or its error. Items are pipelined while there is room; those that
    need evictions take the long way one by one. A later item of the same id wins, as in a loop over `put`."""
    results: list[Landed | DistierError] = []
    for batch in _batches(items):
        checked = yield from Parallel([prepare(space, item) for item in batch])
        good = [p for p in checked if isinstance(p, Prepared)]
        replies = yield from Pipeline([_into_hot(space.shard(p.id), p, ()) for p in good])
        landed: dict[str, Landed | DistierError] = {}
        for p, reply in zip(good, replies, strict=True):
            landed[p.tok] = yield from _finish(space, p, reply)
        results += [landed[p.tok] if isinstance(p, Prepared) else p for p in checked]
    return results


def _finish(space: Space, p: Prepared, reply: Any) -> Plan[Landed | DistierError]:
    try:
        if isinstance(reply, Over):
            return (yield from put_prepared(space, p))
        return (yield from _landed(space, space.shard(p.id), p, collect(reply)))
    except DistierError as e:
        return e


def _batches(items: Sequence[Item]) -> list[list[Item]]:
    """At most 200 items and about 8 MiB a round trip, and no id twice in one: pipelined calls have no order."""
    batches: list[list[Item]] = []
    ids: set[str] = set()
    size_bytes = 0
    for item in items:
        length = len(item.content) if hasattr(item.content, "__len__") else 0
        full = not batches or len(ids) >= 200 or size_bytes + length > PIPELINE_MAX_BYTES
        if full or item.id in ids:
            batches.append([])
            ids, size_bytes = set(), 0
        batches[-1].append(item)
        ids.add(item.id)
        size_bytes += length
    return batches


def delete(space: Space, id: str, if_version: Expected = None) -> Plan[bool]:
    """True if there was such a module. Raises `Conflict`."""
    shard, tok = space.shard(id), (yield from NewToken())
    reply = yield from delete_script(shard, id, tok, _expected(if_version))
    if isinstance(reply, Refused):
        if reply.word == "CONFLICT":
            raise Conflict(f"module {id!r} is at version {reply.version}, the call expected {if_version}")
        return False
    yield Count("deletes")
    return True
