"""Modules, their records, and the results of calls: plain frozen values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

from distier.domain.outcome import Outcome
from distier.errors import Corrupt, Invalid, OutOfStep

from .frozen import frozen
from .order import WRITE_ID_LENGTHS, Order, is_of

Tier = Literal["hot", "warm", "cold"]
TIERS: tuple[Tier, ...] = ("hot", "warm", "cold")

MAX_KEYWORDS = 64
MAX_KEYWORD_CHARS = 128
MAX_META_BYTES = 64 * 1024
MAX_CONTENT_BYTES = 256 << 20
"""The upper limit of `max_module_bytes`. A record that claims more is damaged, and no decoder is started for it."""
MAX_COUNT = 2**53
"""The largest integer up to which Lua represents all integers exactly."""


@frozen
@dataclass(frozen=True, slots=True)
class Module:
    """A module as it was put. `content` has exactly the bytes of the put, unless `transform` names a change.

    `counter` is the token counter that counted `tokens` at the put. `tier` is the tier from which this copy was read. Times
    are in milliseconds since the Unix epoch, by the clock of the Redis server. `expires_ms` is None for a module without TTL.
    """

    id: str
    content: bytes = field(repr=False)
    content_type: str
    tokens: int
    counter: str
    keywords: tuple[str, ...]
    meta: Mapping[str, Any]
    version: Order
    sha256: str
    tier: Tier
    created_ms: int
    updated_ms: int
    transform: str | None = None
    outline: str | None = None
    expires_ms: int | None = None

    @property
    def text(self) -> str:
        """The content as UTF-8 text. Raises `UnicodeDecodeError`, with the module's id, if it is not text."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as e:
            e.reason = f"{e.reason}: module {self.id!r} ({self.content_type}) is not UTF-8 text; read `content` instead"
            raise

    def __bytes__(self) -> bytes:
        return self.content


@frozen
@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a module: `content`, which begin at the byte `start` of the `size_bytes` bytes that this version has.

    `tier` is the tier from which it was read.
    """

    id: str
    content: bytes = field(repr=False)
    start: int
    size_bytes: int
    version: Order
    content_type: str
    tier: Tier

    @property
    def end(self) -> int:
        """The byte after the last one. The part ends the module if it is `size_bytes`."""
        return self.start + len(self.content)


@frozen
@dataclass(frozen=True, slots=True)
class Landed:
    """The result of `put`: the module's tier and version, and the number of modules that were evicted for it.

    `reason` says why the module is not hot (`too large for hot`, `hot is full of pinned modules`); None if it is.
    `replayed` means that an earlier attempt of the same call had been applied already.
    """

    id: str
    tier: Tier
    version: Order
    tokens: int
    size_bytes: int
    evicted: int = 0
    reason: str | None = None
    replayed: bool = False
    transform: str | None = None


@frozen
@dataclass(frozen=True, slots=True)
class Placement:
    """The result of `where`. Times are in milliseconds since the Unix epoch.

    `tier` is the tier that the record in Redis names. `stored_bytes` is the size of the copy in that tier (frame, or `.xz`
    object), and `ratio` is `size_bytes / stored_bytes` (None while hot). `ttl_ms` is what is left of the TTL of the frame;
    `expires_ms` is when the module itself expires, None if it was put without `ttl`. `nodes` are the nodes whose disks hold a
    copy, as they reported up to a second ago.
    """

    id: str
    tier: Tier
    version: Order
    tokens: int
    size_bytes: int
    stored_bytes: int
    clean: bool
    archived_key: str | None
    archived_bytes: int | None
    uses: float
    last_use_ms: int | None
    due_ms: int | None
    ttl_ms: int | None
    dirty_since_ms: int | None
    pinned_until_ms: int | None
    created_ms: int
    updated_ms: int
    content_type: str
    sha256: str
    nodes: tuple[str, ...] = ()
    expires_ms: int | None = None

    @property
    def ratio(self) -> float | None:
        if self.tier == "hot" or not self.stored_bytes:
            return None
        return self.size_bytes / self.stored_bytes


@frozen
@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One version of a module, in the result of `history`.

    `current` is True for the version that `get` returns. `archived` is False for one that only Redis has so far. If this write
    deleted the module, `deleted` is True and there is no content. `updated_ms` is in milliseconds since the Unix epoch, by the
    clock of the Redis server; 0 if the archive's object does not say. `expires_ms` is when the version expired or will expire;
    None if it has no TTL.
    """

    id: str
    version: Order
    current: bool
    archived: bool
    deleted: bool
    tokens: int
    size_bytes: int
    archived_bytes: int
    content_type: str
    sha256: str
    updated_ms: int
    expires_ms: int | None = None


@frozen
@dataclass(frozen=True, slots=True)
class Moved:
    """The result of `promote` and `demote`.

    `moved` is False if there was nothing to do, or the move was not possible; `reason` then says why.
    """

    id: str
    tier: Tier
    moved: bool
    reason: Outcome | None = None


@frozen
@dataclass(frozen=True, slots=True)
class Event:
    """One event from a shard's stream: a tier change, or an archiving (`from_` and `to` are then equal).

    `from_` and `to` are tiers, `none` or `deleted`. `at_ms` is in milliseconds of the server's clock.
    """

    stream_id: str
    id: str
    from_: str
    to: str
    reason: str
    version: str
    at_ms: int

    @property
    def is_tier_change(self) -> bool:
        return self.from_ != self.to


@frozen
@dataclass(frozen=True, slots=True)
class Record:
    """A record as it is stored in Redis.

    `content` is set exactly while the module is hot. `seen` is the epoch in which the record was last known to be the newest
    version.
    """

    id: str
    tier: str
    order: Order
    size_bytes: int
    tokens: int
    counter: str
    sha256: str
    content_type: str
    keywords: bytes
    meta: bytes
    clean: bool
    seen: int
    archived_key: str | None
    archived_bytes: int
    codec: str
    frame_bytes: int
    created_ms: int
    updated_ms: int
    transform: str | None
    outline: str | None
    content: bytes | None
    ttl_ms: int | None = None

    @property
    def expires_ms(self) -> int | None:
        """When the module expires, in ms of the server's clock; None if it does not."""
        return None if self.ttl_ms is None else self.updated_ms + self.ttl_ms

    @property
    def deleted(self) -> bool:
        return self.tier == "deleted"

    def hot_module(self) -> Module:
        """Return the module with the content in the record. Raises `Corrupt` if the content has a wrong length."""
        assert self.content is not None
        if len(self.content) != self.size_bytes:
            raise Corrupt(f"the hot copy of module {self.id!r} ({self.order}) has a wrong length; run `distier fsck`")
        return self.module(self.content, "hot")

    def described(self) -> tuple[tuple[str, ...], Mapping[str, Any]]:
        """Return the keywords and the meta. Raises `Corrupt` if they are damaged."""
        try:
            return unpack_keywords(self.keywords), unpack_meta(self.meta)
        except (ValueError, RecursionError) as e:
            raise Corrupt(f"the record of module {self.id!r} is damaged ({e!s:.100}); run `distier fsck`") from e

    def live_tier(self) -> Tier:
        """Return the tier of a module that exists. Raises `Corrupt` for a tier that there is not."""
        for tier in TIERS:
            if self.tier == tier:
                return tier
        raise Corrupt(f"the record of module {self.id!r} has the unknown tier {self.tier!r}; run `distier fsck`")

    def module(self, content: bytes, tier: Tier) -> Module:
        """Return the module that this record describes, with `content` from `tier`."""
        keywords, meta = self.described() if self.keywords or self.meta else ((), {})
        return Module(
            self.id, content, self.content_type, self.tokens, self.counter, keywords, meta, self.order, self.sha256, tier,
            self.created_ms, self.updated_ms, self.transform, self.outline,
            self.ttl_ms and self.expires_ms,
        )  # fmt: skip


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _count(value: bytes | int, greatest: int = MAX_COUNT) -> int:
    n = int(value)
    if not 0 <= n <= greatest:
        raise ValueError("a number is out of range")
    return n


def unpack_keywords(packed: bytes | None) -> tuple[str, ...]:
    """Return the keywords of a record. Raises `ValueError` or `RecursionError` for bytes that `pack_keywords` never returns."""
    words = json.loads(packed) if packed else []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("keywords are not a list of str")
    return tuple(words)


def unpack_meta(packed: bytes | None) -> Mapping[str, Any]:
    """Return the meta of a record. Raises `ValueError` or `RecursionError` for bytes that `pack_meta` never returns."""
    meta = json.loads(packed) if packed else {}
    if not isinstance(meta, dict):
        raise ValueError("meta is not a mapping")
    return meta


def parse_record(id: str, fields: Mapping[bytes, bytes]) -> Record | None:
    """Return the record with these fields of its hash (`HGETALL`); None if there is no hash.

    Unknown fields are ignored: a newer distier wrote them.

    Raises:
        Corrupt: the hash lacks a field that every record has, or a field has an impossible value.
        OutOfStep: the hash is the record of another module.
    """
    if not fields:
        return None
    try:
        get = fields.get
        if not is_of(id, fields[b"tok"]):
            raise OutOfStep(f"a request for the record of module {id!r} got the record of another module")
        return Record(
            id, fields[b"tier"].decode(),
            Order(_count(fields[b"epoch"]), _count(fields[b"ver"]), fields[b"tok"].decode()),
            _count(get(b"bytes", 0), MAX_CONTENT_BYTES), _count(get(b"tokens", 0)), get(b"counter", b"").decode(),
            get(b"sha256", b"").decode(), get(b"type", b"").decode(), get(b"keywords", b""), get(b"meta", b""),
            fields[b"clean"] == b"1", _count(get(b"seen", 0)), _text(get(b"archived_key")),
            _count(get(b"archived_bytes", 0)), get(b"codec", b"").decode(), _count(get(b"frame_bytes", 0)),
            _count(get(b"created", 0)), _count(get(b"updated", 0)),
            _text(get(b"transform")), _text(get(b"outline")), get(b"content"),
            _count(fields[b"ttl"]) if b"ttl" in fields else None,
        )  # fmt: skip
    except (KeyError, ValueError) as e:
        raise Corrupt(f"the record of module {id!r} is damaged ({e!s:.100}); run `distier fsck`") from e


def parse_hot(id: str, fields: Mapping[bytes, bytes], epoch: int, verified: int) -> Module | None:
    """Return the module of a hot record that is known in `epoch` to be the newest version; None for any other record.

    This is the fast path of the most frequent read: `parse_record(...).hot_module()` without making a `Record`.
    """
    content = fields.get(b"content")
    if content is None or fields.get(b"tier") != b"hot":
        return None
    return parse_copy(id, fields, content, "hot", epoch, verified)


def parse_copy(
    id: str, fields: Mapping[bytes, bytes], content: bytes, tier: Tier, epoch: int, verified: int
) -> Module | None:
    """Return the module of a record with its content from `tier`.

    Returns:
        The module, or None if the record is not known in `epoch` to be the newest version, has a TTL, is damaged, or does not
        fit the content's length.
    """
    try:
        if b"ttl" in fields:
            return None
        if verified < epoch and int(fields[b"seen"]) < epoch:
            return None
        get = fields.get
        if len(content) != int(fields[b"bytes"]):
            return None
        keywords, meta, tokens, write_id = get(b"keywords"), get(b"meta"), int(get(b"tokens", 0)), fields[b"tok"]
        if not 0 <= tokens <= MAX_COUNT:
            return None
        if len(write_id) in WRITE_ID_LENGTHS and write_id[-8:] != b"%08x" % crc32(id.encode()):  # `is_of`, inlined
            return None
        return Module(
            id, content, get(b"type", b"").decode(), tokens, get(b"counter", b"").decode(),
            unpack_keywords(keywords) if keywords else (), unpack_meta(meta) if meta else {},
            Order(int(fields[b"epoch"]), int(fields[b"ver"]), write_id.decode()), get(b"sha256", b"").decode(),
            tier, int(get(b"created", 0)), int(get(b"updated", 0)), _text(get(b"transform")), _text(get(b"outline")),
        )  # fmt: skip
    except (KeyError, ValueError, RecursionError):
        return None  # the caller then uses `parse_record`, which reports the defect


def pack_keywords(keywords: object) -> bytes:
    """Return keywords as the record stores them: a JSON list, or empty bytes for none. Raises `Invalid`."""
    if isinstance(keywords, str) or not all(isinstance(k, str) for k in list(keywords or ())):  # type: ignore[call-overload]
        raise Invalid(f"keywords must be a list of str, not {keywords!r:.80}")
    words = list(keywords or ())  # type: ignore[call-overload]
    if len(words) > MAX_KEYWORDS or any(not 1 <= len(k) <= MAX_KEYWORD_CHARS for k in words):
        raise Invalid(f"a module can have at most {MAX_KEYWORDS} keywords of 1 to {MAX_KEYWORD_CHARS} characters")
    return pack_json(words, "keywords") if words else b""


def pack_meta(meta: Mapping[str, Any] | None) -> bytes:
    """Return meta as the record stores it: a JSON object, or empty bytes for none. Raises `Invalid`."""
    if meta is None or meta == {}:
        return b""
    if not isinstance(meta, Mapping):
        raise Invalid(f"meta must be a mapping, not {type(meta).__name__}")
    packed = pack_json(dict(meta), "meta")
    if len(packed) > MAX_META_BYTES:
        raise Invalid(f"meta has {len(packed)} bytes of JSON; at most {MAX_META_BYTES} are allowed")
    return packed


def pack_json(value: object, what: str) -> bytes:
    """Return a value as JSON that reads back as the same value. Raises `Invalid`, which calls the value `what`."""
    try:
        packed = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as e:  # UnicodeEncodeError is a ValueError
        raise Invalid(f"{what} cannot be written as JSON: {e}") from e
    if json.loads(packed) != value:
        raise Invalid(f"{what} would not read back as given (keys of mappings are str, sequences are lists)")
    return packed
