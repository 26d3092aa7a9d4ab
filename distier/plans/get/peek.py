"""Look at a module's content and archived versions without using or moving it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from distier.domain.archived import VersionObject
from distier.domain.codec import WITH_DICTIONARY
from distier.domain.module import unpack_keywords, unpack_meta
from distier.domain.packs import parse_pack
from distier.effects import Command, LocalGet, Pipeline, Plan, collect
from distier.plans.common.commands import record_command
from distier.plans.common.content import content_or_none, content_unless_moved
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.walk import list_module
from distier.plans.tier.load import fetch_cold

VERSIONS_MAX = 100


@dataclass(frozen=True, slots=True)
class Peeked:
    """What a module is, with its content where it could be read cheaply.

    `content` is None where `why` says: `moving` (look again), `too large`, or `archived` (it must be read from the archive,
    and the caller has not asked for that).
    """

    id: str
    keywords: tuple[str, ...]
    meta: dict[str, Any]
    content: bytes | None
    why: str = ""


class Version(NamedTuple):
    """A version in the archive: its object, the key to read (that of its pack, if it is in one), its size there in bytes, and
    when it was written, in ms."""

    object: VersionObject
    key: str
    size_bytes: int
    modified_ms: int


def peek(space: Namespace, id: str, *, max_bytes: int, from_archive: bool = False) -> Plan[Peeked | None]:
    """Return the module without counting a use, leaving a copy or taking a lease; None if there is no record.

    The size is read first, because Redis cannot return a part of a field: no content of more than `max_bytes` is read. Other
    nodes are not asked, since they would count that as a use of their copy.
    """
    shard = space.shard(id)
    about: Command[Any] = Command(shard, ("HMGET", shard.module(id), "tier", "bytes", "keywords", "meta"), list)
    tier, size, keywords, meta = yield from about
    if tier in (None, b"deleted"):
        return None
    try:
        words, more = unpack_keywords(keywords), dict(unpack_meta(meta))
    except (ValueError, RecursionError):
        words, more = (), {}  # a damaged record: fsck says so, and the page still shows what it can

    def made(content: bytes | None, why: str = "") -> Peeked:
        return Peeked(id, words, more, content, why)

    if int(size or 0) > max_bytes:
        return made(None, "too large")
    record, frame = map(
        collect,
        (
            yield from Pipeline(
                [record_command(shard, id), Command(shard, ("GET", shard.frame(id)), lambda reply: reply)]
            )
        ),
    )
    if record is None or record.deleted:
        return None
    if record.size_bytes > max_bytes:
        return made(None, "too large")
    if record.clean and record.codec.startswith(WITH_DICTIONARY):
        content = yield from content_or_none(space, shard, record, frame)
    else:
        content = yield from content_unless_moved(space, shard, record, frame)
    if content is None and space.node is not None and record.clean:
        content = yield from LocalGet(record)
    if content is None and record.clean:
        if not from_archive:
            return made(None, "archived")
        content = yield from fetch_cold(space, record)
    return made(content, "" if content is not None else "moving")


def archived_versions(space: Namespace, id: str) -> Plan[list[Version]]:
    """Return the first versions of a module that the archive lists, at most 100, without reading a content."""
    group = yield from list_module(space, id)
    found = sorted((o for o in group.objects if o.kind != "meta"), key=lambda o: o.rank)[:VERSIONS_MAX]
    versions = []
    for o in found:
        pack = parse_pack(o.pack)
        key = pack.key(space.namespace) if pack else o.key
        versions.append(Version(o, key, group.sizes[o.key], group.modified_ms[o.key]))
    return versions
