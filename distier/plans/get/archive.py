"""The archive by itself: what it has, now or at an earlier time, without Redis.

Listings come from the manifest once a sweep has compared it with a LIST (`full-` in the manifest's directory); before that,
and where a file of it is damaged, from a LIST of all objects, described by the rows that there are. Of a version without a
row, such a listing knows no tokens, and takes the time at which its object was written for that of the version. One module is
always read by a LIST of its own objects, so that a miss is proven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from distier.domain import archived as names
from distier.domain.manifest import Row, is_marker, last_copies
from distier.domain.module import HistoryEntry, Module, Record
from distier.domain.order import Order
from distier.effects import Now, Plan, Progress
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.plans.get.history import describe_all, entry_of, version_in, version_of, versions_in
from distier.plans.recovery.manifest import Manifest, list_manifest, open_manifest, step_of
from distier.plans.recovery.walk import ArchiveWalk, Group, list_again, list_module


class Archived(NamedTuple):
    """A module in the archive, at its newest version or at that of an earlier time. `tokens` and `size_bytes` are None if only
    the object itself knows them."""

    id: str
    version: str
    key: str
    archived_bytes: int
    updated_ms: int
    tokens: int | None = None
    size_bytes: int | None = None
    content_type: str = ""


def list_archive(space: Namespace, prefix: str = "", at_ms: int | None = None) -> Plan[int]:
    """Report the modules whose ids begin with `prefix`, in the order of their objects' keys, as progress: some at a time.

    Args:
        space: the namespace.
        prefix: the beginning of the ids.
        at_ms: report what existed at that time, in milliseconds since the Unix epoch; None for now.

    Returns:
        The number of modules.

    Raises:
        ArchiveUnavailable: the archive did not answer.
    """
    when_ms = (yield from Now()) if at_ms is None else at_ms
    return (yield from _each_group(space, partial(_report, prefix, at_ms, when_ms), prefix))


def list_versions(space: Namespace) -> Plan[int]:
    """Report the rows of all versions, those of a module together with the newest last, as progress: some modules at a time.

    Returns the number of modules. Raises `ArchiveUnavailable`.
    """
    return (yield from _each_group(space, _report_rows))


def _report_rows(groups: Iterable[Sequence[Row]]) -> Plan[int]:
    found = [last_copies(rows) for rows in groups if rows]
    if found:
        yield Progress(found)
    return len(found)


def _each_group(
    space: Namespace, report: Callable[[Iterable[Sequence[Row]]], Plan[int]], prefix: str = ""
) -> Plan[int]:
    """Report the rows of all modules, some at a time: those of the manifest if it is whole, else what a listing says. Returns
    the sum of the results.

    `prefix`: other modules may be left out.
    """
    n = 0
    listed = yield from list_manifest(space)
    manifest = yield from open_manifest(space)
    if not manifest.damaged and any(is_marker(space.namespace, e.key, "full") for e in listed):
        groups = manifest.groups(prefix)
        while some := (yield from step_of(groups)):
            n += yield from report(some)
        return n
    walk = ArchiveWalk(space, late=True)
    while not walk.done:
        for part in chunks((yield from walk.step()), 512):
            n += yield from report([_rows_of(space, group, manifest) for group in part])
    return n


def _report(prefix: str, at_ms: int | None, when_ms: int, groups: Iterable[Sequence[Row]]) -> Plan[int]:
    found = [
        made
        for rows in groups
        if rows and rows[0].id.startswith(prefix) and (made := newest_at(rows, at_ms, when_ms)) is not None
    ]
    if found:
        yield Progress(found)
    return len(found)


def newest_at(rows: Sequence[Row], at_ms: int | None, when_ms: int) -> Archived | None:
    """Return what a module was at a time (None for now), which is `when_ms`; None if it did not exist, was deleted or had
    expired."""
    before = [row for row in rows if at_ms is None or row.updated_ms <= at_ms]
    if not before or before[-1].deleted:
        return None
    row = before[-1]
    if row.expires_ms is not None and row.expires_ms <= when_ms:
        return None
    stem = row.key.rpartition("/")[2]
    epoch, ver = (int(part) for part in stem[1:].split("-")[:2])
    known = row.known

    def number(name: str) -> int | None:
        return known[name] if isinstance(known.get(name), int) else None

    return Archived(
        row.id, f"{epoch}-{ver}", row.key, row.archived_bytes, row.updated_ms, number("tokens"), number("bytes"),
        str(known.get("type", "")),
    )  # fmt: skip


def _rows_of(space: Namespace, group: Group, manifest: Manifest) -> list[Row]:
    """Return the rows of the versions that were listed; those that the manifest lacks with what a listing alone says."""
    prefix = names.modules_prefix(space.namespace)
    known = {prefix + row.key: row for row in manifest.of(group.directory) if row.pack is None} | group.rows
    objects = sorted((o for o in group.objects if o.kind != "meta"), key=lambda o: o.rank)
    return [
        known.get(o.key)
        or Row(
            o.key.removeprefix(prefix),
            group.id,
            {"archived_bytes": group.sizes[o.key], "updated": group.modified_ms[o.key]},
        )
        for o in objects
    ]


def archived_history(space: Namespace, id: str, limit: int = 100) -> Plan[list[HistoryEntry]]:
    """Return the versions of a module in the archive, the newest first."""
    group = yield from list_again(space, (yield from list_module(space, id)))
    described = yield from describe_all(space, group, versions_in(group, None)[:limit])
    now_ms = yield from Now()
    return [
        entry_of(found.record, current=i == 0 and _exists(found.record, now_ms), archived=True)
        for i, found in enumerate(described)
    ]


def _exists(record: Record, at_ms: int) -> bool:
    return not record.deleted and (record.expires_ms is None or record.expires_ms > at_ms)


def read_archived(
    space: Namespace, id: str, version: Order | str | None = None, at_ms: int | None = None
) -> Plan[Module | None]:
    """Return a module from the archive: its newest version, a given one, or that of an earlier time. None if there is none.

    A version that has expired is read only if it is given. Without Redis, the clock for that is the one of this machine.

    Raises `Corrupt`, `ArchiveUnavailable`, `Invalid`.
    """
    group = yield from list_again(space, (yield from list_module(space, id)))
    objects = versions_in(group, None)
    if version is not None:
        wanted = version_of(version)
        return (yield from version_in(space, group, [o for o in objects if o.order[:2] == wanted]))
    when_ms = (yield from Now()) if at_ms is None else at_ms
    for found in (yield from describe_all(space, group, objects[:1] if at_ms is None else objects)):
        record = found.record
        written_ms = record.updated_ms or group.modified_ms[found.object.key]
        if at_ms is None or written_ms <= at_ms:
            return (yield from version_in(space, group, [found.object])) if _exists(record, when_ms) else None
    return None
