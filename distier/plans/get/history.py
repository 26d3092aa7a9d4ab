"""Older versions of a module, from the archive: which there are, and their contents.

The sweep keeps `cold.keep_versions` versions of each module. Nothing in Redis knows the older ones, so each call lists the
module's objects: one request, and one for each version that is described or read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distier.domain.archived import VersionObject
from distier.domain.module import HistoryEntry, Module, Record
from distier.domain.order import Order, parse_version
from distier.effects import Parallel, Plan, collect
from distier.errors import Invalid
from distier.lua import Adoption
from distier.plans.common.clock import has_expired
from distier.plans.common.namespace import Namespace
from distier.plans.common.objects import read_archived
from distier.plans.get.one import get
from distier.plans.recovery.adopt import newest_version
from distier.plans.recovery.describe import Vanished, describe
from distier.plans.recovery.walk import Group, list_again, list_module

TOGETHER = 32
HISTORY_MAX = 1000


class Described(NamedTuple):
    """A version in the archive: its object, and what the archive says of it."""

    object: VersionObject
    adoption: Adoption

    @property
    def record(self) -> Record:
        """Return the record that the version had."""
        a = self.adoption
        fields = {str(name): value for name, value in zip(a.fields[::2], a.fields[1::2], strict=True)}

        def text(name: str) -> str:
            value = fields.get(name, "")
            return value.decode() if isinstance(value, bytes) else str(value)

        def number(name: str) -> int:
            return int(text(name)) if text(name).isdigit() else 0

        return Record(
            a.id, "deleted" if a.kind == "deleted" else "cold", Order(a.epoch, a.ver, a.write_id), a.size_bytes, a.tokens,
            text("counter"), text("sha256"), text("type"), text("keywords").encode(), text("meta").encode(), True, a.epoch,
            text("archived_key") or self.object.key, a.archived_bytes, "", 0, number("created"), number("updated"),
            text("transform") or None, text("outline") or None, None, number("ttl") or None,
        )  # fmt: skip


def version_of(version: Order | str) -> tuple[int, int]:
    """Return (epoch, ver) of a version as callers give it. Raises `Invalid`."""
    if isinstance(version, Order):
        return version[:2]
    if not isinstance(version, str):
        raise Invalid(f"a version is an Order or a text such as '3-41', not {type(version).__name__}")
    return parse_version(version)


def history(space: Namespace, id: str, limit: int = 100) -> Plan[list[HistoryEntry]]:
    """Return the versions of a module, the newest first; none if there is no trace of it. Raises `ArchiveUnavailable`."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= HISTORY_MAX:
        raise Invalid(f"the limit of a history is 1 to {HISTORY_MAX}, not {limit!r}")
    record = yield from newest_version(space.locate(id))
    group = yield from list_again(space, (yield from list_module(space, id)))
    entries: list[HistoryEntry] = []
    gone = record is None or record.deleted or (yield from has_expired(space, space.shard(id), record.expires_ms))
    if record is not None and not record.clean:
        entries.append(entry_of(record, current=not gone, archived=False))
    objects = versions_in(group, record)[: limit - len(entries)]
    for found in (yield from describe_all(space, group, objects)):
        current = record is not None and not gone and found.record.order[:2] == record.order[:2]
        entries.append(entry_of(found.record, current=current, archived=True))
    return entries


def entry_of(record: Record, *, current: bool, archived: bool) -> HistoryEntry:
    return HistoryEntry(
        record.id, record.order, current, archived, record.deleted, record.tokens, record.size_bytes, record.archived_bytes,
        record.content_type, record.sha256, record.updated_ms, record.expires_ms,
    )  # fmt: skip


def versions_in(group: Group, record: Record | None) -> list[VersionObject]:
    """Return the objects of a module's versions, the newest first.

    One after the record is of a write that was never applied.
    """
    best: dict[tuple[int, int], VersionObject] = {}
    for found in group.objects:
        position = found.order[:2]
        if found.kind == "meta" or (record is not None and position > record.order[:2]):
            continue
        if position not in best or best[position].rank < found.rank:
            best[position] = found
    return [best[position] for position in sorted(best, reverse=True)]


def describe_all(space: Namespace, group: Group, objects: Sequence[VersionObject]) -> Plan[list[Described]]:
    described: list[Described] = []
    for start in range(0, len(objects), TOGETHER):
        some = objects[start : start + TOGETHER]
        for result in (yield from Parallel([_describe(space, group, found) for found in some])):
            if not isinstance(result, Vanished):  # swept since the listing
                described += collect(result)
    return described


def _describe(space: Namespace, group: Group, found: VersionObject) -> Plan[list[Described]]:
    adoption = yield from describe(space, group, found)
    return [Described(found, adoption)] if adoption.kind != "none" else []


def get_version(space: Namespace, id: str, version: Order | str) -> Plan[Module | None]:
    """Return a module as it was at a version; None if neither Redis nor the archive has that version.

    Raises `Corrupt`, `ArchiveUnavailable`, `Invalid`.
    """
    wanted = version_of(version)
    record = yield from newest_version(space.locate(id))
    if record is not None and not record.deleted and record.order[:2] == wanted:
        module = yield from get(space, id)
        if module is not None and module.version[:2] == wanted:
            return module  # otherwise it was replaced meanwhile
    group = yield from list_again(space, (yield from list_module(space, id)))
    return (yield from version_in(space, group, [o for o in versions_in(group, record) if o.order[:2] == wanted]))


def version_in(space: Namespace, group: Group, objects: Sequence[VersionObject]) -> Plan[Module | None]:
    """Return the module of the first of these objects, from the archive alone."""
    for found in (yield from describe_all(space, group, objects)):
        if found.adoption.kind == "content":
            content = yield from read_archived(space, found.record)
            return None if content is None else found.record.module(content, "cold")
    return None
