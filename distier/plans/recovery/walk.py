"""A walk through all modules of the archive, in the order of its listing, where all versions of one module are together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distier.domain import archived as names
from distier.domain.archived import VersionObject
from distier.effects import ArchiveList, Command, Pipeline, Plan, collect
from distier.errors import ArchiveUnavailable, Corrupt, DistierError, Invalid, NeedsRestore
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.epochs import WrongArchive

PAGE = 5000
"""Keys per step. S3 lists 1000 per request; a directory reads all names of a level again for every page, so large pages pay."""
Position = tuple[int, int, str]
"""A position in the order, with the first 8 characters of the write id: what the name of an object has."""
NO_POSITION: Position = (0, 0, "")
UNAVAILABLE_MAX = 3


class Skipped:
    """What could not be read or deleted, by id or key, with the reason: one object that is refused does not affect the
    others.

    Where the archive itself does not reply, several fail one after the other, and the last error is raised.
    """

    def __init__(self) -> None:
        self.why: dict[str, DistierError] = {}
        self._in_a_row = 0

    def add(self, name: str, error: DistierError) -> None:
        if isinstance(error, WrongArchive) or not isinstance(error, ArchiveUnavailable | Corrupt | Invalid):
            raise error
        if isinstance(error, ArchiveUnavailable) and not isinstance(error, NeedsRestore):
            self._in_a_row += 1
            if self._in_a_row >= UNAVAILABLE_MAX:
                raise error
        self.why[name] = error

    def went_well(self) -> None:
        self._in_a_row = 0


@dataclass(slots=True)
class Group:
    """The objects of one module, as listed. Sizes are in bytes, times in ms by the archive's clock, both by key."""

    directory: str
    id: str
    objects: list[VersionObject] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    modified_ms: dict[str, int] = field(default_factory=dict)

    @property
    def newest(self) -> VersionObject | None:
        """The greatest content or tombstone."""
        present = [o for o in self.objects if o.kind != "meta"]
        return max(present, key=lambda o: o.rank) if present else None

    def sidecar_of(self, version: VersionObject) -> str | None:
        """Return the key of the sidecar that describes a version; None if it has none."""
        return next((o.key for o in self.objects if o.kind == "meta" and o.order == version.order), None)

    @property
    def lone_sidecars(self) -> list[str]:
        """Sidecars without their content that no greater version dominates."""
        present = {o.order for o in self.objects if o.kind == "content"}
        greatest = self.newest
        return [
            o.key
            for o in self.objects
            if o.kind == "meta" and o.order not in present and not (greatest and o.order < greatest.order)
        ]


def list_module(space: Namespace, id: str) -> Plan[Group]:
    """List the objects of one module; the group is empty if there are none."""
    prefix, after = names.version_prefix(space.namespace, id), ""
    group = Group(names.module_directory(space.namespace, id).rstrip("/"), id)
    while page := (yield from ArchiveList(prefix, start_after=after)):
        for entry in page:
            found = names.parse_key(entry.key)
            if found and found.is_in(prefix):
                group.objects.append(found)
                group.sizes[entry.key], group.modified_ms[entry.key] = entry.size_bytes, entry.modified_ms
        after = page[-1].key
    return group


class ArchiveWalk:
    """`step` returns the modules of the next page.

    What it could not assign is kept for the caller: `foreign` keys that distier never named, and `unreadable` directories
    with the reason (the caller clears them).
    """

    def __init__(self, space: Namespace) -> None:
        self._namespace = space.namespace
        self._prefix = names.modules_prefix(space.namespace)
        self._after = ""
        self._group: Group | None = None
        self._bad_directory = ""
        self.done = False
        self.objects = 0
        self.foreign: list[str] = []
        self.unreadable: dict[str, str] = {}

    def step(self) -> Plan[list[Group]]:
        page = yield from ArchiveList(self._prefix, start_after=self._after, limit=PAGE)
        groups: list[Group] = []
        for entry in page:
            self.objects += 1
            found = names.parse_key(entry.key)
            if found is None:
                self.foreign.append(entry.key)
                continue
            group = self._group_of(found.directory, groups)
            if group is not None:
                group.objects.append(found)
                group.sizes[entry.key] = entry.size_bytes
                group.modified_ms[entry.key] = entry.modified_ms
        if len(page) < PAGE:
            self.done = True
            groups += [self._group] if self._group else []
            self._group = None
        else:
            self._after = page[-1].key
        return groups

    def _group_of(self, directory: str, ended: list[Group]) -> Group | None:
        """Return the current group, or a new one, which ends the last; None for a directory that is no id."""
        if directory == self._bad_directory:
            return None
        if self._group is not None and self._group.directory == directory:
            return self._group
        if self._group is not None:
            ended.append(self._group)
            self._group = None
        try:
            self._group = Group(directory, names.id_of(self._namespace, directory))
        except Invalid as e:
            self._bad_directory = directory
            self.unreadable[directory] = str(e)
        return self._group


def positions_of(space: Namespace, ids: Sequence[str]) -> Plan[list[Position | None]]:
    """Return the positions of these modules' records; None where there is no record, NO_POSITION where it is damaged.

    These are plain reads: they do not show whether Redis lost something.
    """

    def parse(reply: list[bytes | None]) -> Position | None:
        tier, epoch, ver, write_id = reply
        if epoch is None or ver is None:
            return None if tier is None else NO_POSITION
        return (
            (int(epoch), int(ver), (write_id or b"").decode()[:8]) if epoch.isdigit() and ver.isdigit() else NO_POSITION
        )

    calls: list[Command[Position | None]] = []
    for id in ids:
        shard = space.shard(id)
        calls.append(Command(shard, ("HMGET", shard.module(id), "tier", "epoch", "ver", "tok"), parse))
    replies = yield from Pipeline(calls)
    return [NO_POSITION if isinstance(reply, Corrupt) else collect(reply) for reply in replies]
