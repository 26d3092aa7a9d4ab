"""Preparing a write, once however often it is sent: checks, transforms, counting, hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from distier.domain import archived as names
from distier.domain.content_types import base_type, check_content_type, guess_content_type
from distier.domain.frozen import frozen
from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.domain.manifest import Row
from distier.domain.module import Module, pack_keywords, pack_meta
from distier.domain.order import Order, make_write_id, parse_version
from distier.effects import Arg, Command, NewToken, Offload, Plan, Sending
from distier.errors import Invalid, Unavailable
from distier.plans.common.content import COUNTING, count_tokens
from distier.plans.common.namespace import Namespace
from distier.plans.tier.room import NOTHING
from distier.policy.eviction.victims import Need
from distier.policy.transform import Transformed, apply_transform, outline, transform_steps

Content = str | bytes | bytearray | memoryview
Expected = Order | str | int | None
Durability = Literal["redis", "replicated", "archived"]
CHECKING = "checking and hashing"
TRANSFORMING = "transforming contents"
LARGE_BYTES = 256 * 1024
"""Larger contents are prepared in steps, so that the call can end between two of them."""
COUNTING_S_PER_MIB, PACKING_S_PER_MIB = 0.5, 5.0
"""How much longer the default deadline is for large contents, in seconds for each MiB: to count tokens, and to compress for the
archive before the write is acknowledged. That is several times what they take on an idle machine."""
MAX_TOKENS = 2**40
MAX_TTL_S = 100 * 366 * 86400


@frozen
@dataclass(frozen=True, slots=True)
class Item:
    """One module for `put_many`. The fields are the arguments of `put`."""

    id: str
    content: Content
    content_type: str | None = None
    keywords: Sequence[str] = ()
    meta: Mapping[str, Any] | None = None
    tokens: int | None = None
    if_version: Expected = None
    durability: Durability | None = None
    ttl: float | None = None


def item_again(
    space: Namespace,
    module: Module,
    id: str,
    if_version: Expected,
    durability: Durability | None,
    ttl: float | None,
) -> Item:
    """Return what writes a version again, perhaps under another id. The count of tokens is kept if the same counter made it."""
    tokens = module.tokens if module.counter == space.counter.name else None
    return Item(
        id, module.content, module.content_type, module.keywords, module.meta, tokens, if_version, durability, ttl
    )


@dataclass(slots=True)
class Prepared:
    """A checked write with everything that the script needs. Not changed after it was made (`frozen` costs a microsecond)."""

    id: str
    write_id: str
    content: bytes
    tokens: int
    expected: str
    transform: str | None
    fields: tuple[Arg, ...]
    replicas: int = 0
    position: ArchivedPosition | None = None
    sending: Sending = field(default_factory=Sending)
    given_up: str = ""
    """The write that holds a position in front of the module and seems dead."""
    ahead: Need = NOTHING
    """The modules and bytes that the same call still puts into the shard."""


class ArchivedPosition(NamedTuple):
    """The position of a version that is in the archive already, its object there, and its row for the manifest."""

    epoch: int
    ver: int
    key: str
    size_bytes: int
    replid: str
    row: Row


def level_of(space: Namespace, given: str | None) -> str:
    """Return the durability of a call. Raises `Invalid`."""
    level = given or space.config.durability
    if level not in ("redis", "replicated", "archived"):
        raise Invalid(f"durability must be redis, replicated or archived, not {given!r}")
    return level


def need_replica(shard: Shard) -> Plan[None]:
    """Raise `Unavailable` where a `replicated` write could never be acknowledged, because no replica is connected."""

    def online(info: bytes | str) -> bool:
        text = info.decode() if isinstance(info, bytes) else info
        return "state=online" in text

    if not (yield from Command(shard, ("INFO", "replication"), online)):
        raise Unavailable(
            "durability `replicated` is refused: no replica is connected to this Redis; nothing was changed. "
            "Start one, or use `archived`"
        )


def prepare(space: Namespace, item: Item) -> Plan[Prepared]:
    """Check, transform, count and hash an item. Raises `Invalid` for one that can never be put."""
    write_id = yield from NewToken()
    sending = Sending(space.process.since(space.shard(check_id(item.id))))
    if length_of(item) > LARGE_BYTES:
        return (yield from made_ready_in_steps(space, item, write_id, sending))
    return (yield from Offload(length_of(item), lambda: made_ready(space, item, write_id, sending), COUNTING))


def length_of(item: Item) -> int:
    """Return the length of an item's content, before it is checked."""
    return len(item.content) if hasattr(item.content, "__len__") else 0


def deadline_s_of(space: Namespace, items: Sequence[Item]) -> float | None:
    """Return the deadline of a call that puts large contents, in seconds; None for the configured one.

    If somebody has set a deadline, it holds whatever the contents are.
    """
    extra_s = 0.0
    for item in items:
        if hasattr(item.content, "__len__") and len(item.content) > LARGE_BYTES:
            level = item.durability or space.config.durability
            extra_s += len(item.content) / 2**20 * (PACKING_S_PER_MIB if level == "archived" else COUNTING_S_PER_MIB)
    if not extra_s or space.config.explicit("deadline"):
        return None
    return space.config.deadline_ms / 1000 + extra_s


def made_ready(space: Namespace, item: Item, write_id: str, sending: Sending) -> Prepared:
    of = _checked(space, item)
    content, name = of.content, space.config.transforms.get(of.kind)
    made = apply_transform(name, content) if name else None
    tokens = space.counter.count(made.content if made else content) if item.tokens is None else item.tokens
    return _prepared(space, item, write_id, sending, of, made, tokens)


def made_ready_in_steps(space: Namespace, item: Item, write_id: str, sending: Sending) -> Plan[Prepared]:
    length = length_of(item)
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
    return (yield from Offload(length, lambda: _prepared(space, item, write_id, sending, of, made, tokens), CHECKING))


class _Checked(NamedTuple):
    """A checked content. `kind` is its content type without parameters."""

    id: str
    content: bytes
    content_type: str
    kind: str


def _checked(space: Namespace, item: Item) -> _Checked:
    """Check an item. Raises `Invalid`."""
    id, content = check_id(item.id), _bytes(item.id, item.content)
    if len(content) > space.config.max_module_bytes:
        raise Invalid(f"module {id!r} has {len(content)} bytes; max_module_bytes is {space.config.max_module_bytes}")
    if space.archive_limits is not None:
        names.check_fits(space.namespace, id, space.archive_limits)
    tokens = item.tokens
    if tokens is not None and (
        isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= MAX_TOKENS
    ):
        raise Invalid(f"tokens must be a whole number from 0 to 2**40, not {tokens!r}")
    given = item.content_type or guess_content_type(id, content)
    content_type, kind = _type_and_kind(given if isinstance(given, str) else check_content_type(given))
    return _Checked(id, content, content_type, kind)


@lru_cache(maxsize=256)
def _type_and_kind(content_type: str) -> tuple[str, str]:
    """Return a content type and its kind: the type without parameters. Raises `Invalid`."""
    return check_content_type(content_type), base_type(content_type)


def _prepared(
    space: Namespace,
    item: Item,
    write_id: str,
    sending: Sending,
    of: _Checked,
    made: Transformed | None,
    tokens: int,
) -> Prepared:
    id, content, content_type, kind = of
    kept = made.content if made else content
    counter = space.counter.name if item.tokens is None else "given"
    fields: tuple[Arg, ...] = "sha256", hashlib.sha256(kept).hexdigest(), "type", content_type, "counter", counter
    if item.ttl is not None:
        fields = "ttl", _ttl_ms(item.ttl), *fields  # first, where the script looks for it
    if item.keywords != () and (keywords := pack_keywords(item.keywords)):
        fields += "keywords", keywords
    if item.meta is not None and (meta := pack_meta(item.meta)):
        fields += "meta", meta
    if made:
        fields += "transform", made.name
    if kind in space.config.outline and (lines := outline(content, kind)):
        fields += "outline", lines
    replicas = int(level_of(space, item.durability) == "replicated")
    transform = made.name if made else None
    write_id = make_write_id(write_id, id)
    return Prepared(
        id, write_id, kept, tokens, expected_of(item.if_version), transform, fields, replicas, None, sending
    )


def _ttl_ms(ttl: float) -> int:
    """Return the TTL of a module in milliseconds. Raises `Invalid`."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= MAX_TTL_S:
        raise Invalid(f"ttl must be a number of seconds, greater than 0 and at most 100 years; not {ttl!r:.80}")
    return max(1, round(ttl * 1000))


def _bytes(id: str, content: object) -> bytes:
    if isinstance(content, str):
        try:
            return content.encode()
        except UnicodeEncodeError as e:
            raise Invalid(f"the text of module {id!r} has a lone surrogate, so it is not valid UTF-8") from e
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    raise Invalid(f"the content of module {id!r} must be str or bytes, not {type(content).__name__}")


def expected_of(if_version: Expected) -> str:
    """Return `if_version` as the scripts take it: empty for any version, `-` for none, else `epoch-ver`."""
    if if_version is None:
        return ""
    if isinstance(if_version, Order):
        return str(if_version)
    if if_version == 0 or if_version == "":
        return "-"
    if not isinstance(if_version, str):
        raise Invalid(f"if_version must be a version (`placement.version`), '3-41', or 0 for none; not {if_version!r}")
    parse_version(if_version)
    return if_version
