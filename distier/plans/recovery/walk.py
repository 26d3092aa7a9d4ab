"""A walk through all modules of the archive, in the order of its listing, where all versions of one module are together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from distier.domain import archived as names
from distier.domain.archived import VersionObject
from distier.domain.manifest import Row, grouped, merged
from distier.domain.packs import Pack
from distier.effects import ArchiveList, Command, Pipeline, Plan, collect
from distier.errors import ArchiveUnavailable, Corrupt, DistierError, Invalid, NeedsRestore
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.epochs import WrongArchive
from distier.plans.recovery.manifest import RELISTS_MAX
from distier.plans.recovery.packs import open_packs, packed_rows

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
    """The objects of one module, as listed, and its versions in packs. Sizes are in bytes, times in ms, both by key.

    Times are those of the archive's clock, and of the Redis server's for a version in a pack. `rows` has the row of the last
    copy of each version in packs, by key, and `copies` those of all copies. `doubles` are the keys of objects whose versions
    are in packs too.
    """

    directory: str
    id: str
    objects: list[VersionObject] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    modified_ms: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    copies: list[Row] = field(default_factory=list)
    doubles: set[str] = field(default_factory=set)

    def add_packed(self, namespace: str, rows: Iterable[Row]) -> None:
        """Add versions in packs. Of several copies the last one counts, in the order of copies."""
        for row in rows:
            found = row.object(namespace)
            if found is None or found.directory != self.directory or row.id != self.id:
                continue
            self.copies.append(row)
            before = self.rows.get(found.key)
            if before is not None and before.place >= row.place:
                continue
            self.rows[found.key] = row
            if found.key in self.doubles or (before is None and found.key in self.sizes):
                self.doubles.add(found.key)  # the object is listed: of the pack, only its index was seen
                continue
            self.objects = [*(o for o in self.objects if o.key != found.key), found]
            self.sizes[found.key], self.modified_ms[found.key] = row.archived_bytes, row.updated_ms

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
    """List the versions of one module, also those in packs; the group is empty if there are none.

    Objects of their own come first: a version that is packed meanwhile is met in the pack. Raises `ArchiveUnavailable`.
    """
    for _ in range(RELISTS_MAX):
        group = yield from _list_objects(space, id)
        rows = yield from packed_rows(space, id)
        if rows is not None:
            group.add_packed(space.namespace, rows)
            return group
    raise ArchiveUnavailable(f"the packs of namespace {space.namespace!r} keep changing; try again")


def list_again(space: Namespace, group: Group) -> Plan[Group]:
    """Return the group with the objects that were put while it was listed.

    Whoever relies on the archive alone needs them. A newer version may have come after the objects were listed, and the older
    one may have left its pack before the packs were. Where there is a record, it names the newer one.
    """
    again = yield from _list_objects(space, group.id)
    again.add_packed(space.namespace, group.copies)
    return again


def _list_objects(space: Namespace, id: str) -> Plan[Group]:
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
    """`step` returns the next modules, up to `PAGE`, with their versions in packs.

    What it could not assign is kept for the caller: `foreign` keys that distier never named, and `unreadable` directories
    with the reason (the caller clears them). With `late`, the last steps are about packs that were made during the walk: their
    modules come once more, in an order of their own, because their objects may have gone before the walk came to them.
    """

    def __init__(self, space: Namespace, *, late: bool = False) -> None:
        self._space, self._namespace, self._late = space, space.namespace, late
        self._prefix = names.modules_prefix(space.namespace)
        self._after = ""
        self._group: Group | None = None
        self._ended: deque[Group] = deque()
        self._listed_all = False
        self._packed: Iterator[list[Row]] | None = None
        self._next_packed: list[Row] | None = None
        self._packs: frozenset[Pack] = frozenset()
        self._bad_directory = ""
        self.done = False
        self.objects = 0
        self.foreign: list[str] = []
        self.unreadable: dict[str, str] = {}

    def step(self) -> Plan[list[Group]]:
        if self._packed is None:
            yield from self._open_packs()
        if not self._ended and not self._listed_all:
            yield from self._list_page()
        groups: list[Group] = []
        while len(groups) < PAGE:
            packed = self._next_packed
            group = self._ended[0] if self._ended else None
            if group is None and not self._listed_all:
                return groups  # the next page may come before the next packed module
            if packed is not None and (group is None or _start(self._prefix, packed) <= f"{group.directory}/@"):
                self._pop_packed(groups, packed, group)
            elif group is not None:
                groups.append(self._ended.popleft())
            elif self._late:
                self._late = False
                yield from self._open_packs()
            else:
                self.done = True
                return groups
        return groups

    def _open_packs(self) -> Plan[None]:
        found = yield from open_packs(self._space, self._packs)
        self._packs |= {index.pack for index in found}
        self._packed = grouped(merged({index.key: data for index, data in found.items()}))
        self._next_packed = next(self._packed, None)

    def _pop_packed(self, groups: list[Group], packed: list[Row], group: Group | None) -> None:
        """Move the next packed module, with its objects if it has any, to `groups`."""
        directory = self._prefix + packed[0].key.rpartition("/")[0]
        if group is not None and group.directory == directory:
            self._ended.popleft()
        else:
            group = self._make_group(directory)
        if group is not None:
            group.add_packed(self._namespace, packed)
            groups.append(group)
        assert self._packed is not None
        self._next_packed = next(self._packed, None)

    def _list_page(self) -> Plan[None]:
        page = yield from ArchiveList(self._prefix, start_after=self._after, limit=PAGE)
        for entry in page:
            self.objects += 1
            found = names.parse_key(entry.key)
            if found is None:
                self.foreign.append(entry.key)
                continue
            group = self._group_of(found.directory)
            if group is not None:
                group.objects.append(found)
                group.sizes[entry.key] = entry.size_bytes
                group.modified_ms[entry.key] = entry.modified_ms
        if len(page) < PAGE:
            self._listed_all = True
            self._end_group()
        else:
            self._after = page[-1].key

    def _group_of(self, directory: str) -> Group | None:
        """Return the current group, or a new one, which ends the last; None for a directory that is no id."""
        if directory == self._bad_directory:
            return None
        if self._group is None or self._group.directory != directory:
            self._end_group()
            self._group = self._make_group(directory)
        return self._group

    def _end_group(self) -> None:
        if self._group is not None:
            self._ended.append(self._group)
        self._group = None

    def _make_group(self, directory: str) -> Group | None:
        try:
            return Group(directory, names.id_of(self._namespace, directory))
        except Invalid as e:
            self._bad_directory = directory
            self.unreadable[directory] = str(e)
            return None


def _start(prefix: str, rows: Sequence[Row]) -> str:
    """Return the key before all objects of a module: modules are in the order of these."""
    return f"{prefix}{rows[0].key.rpartition('/')[0]}/@"


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
