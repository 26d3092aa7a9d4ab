"""Packing: versions that are small, and have been in the archive for a while, move from objects of their own into packs.

One pack is made in this order, and stopping anywhere loses nothing:

    the pack, then its index             now it exists, and a listing finds its members
    rows in the manifest, references     readers go to the pack; until then they find it by a listing
    the objects of their own are deleted

A pack whose members are no longer needed is replaced in the same way by one with the rest. So are several small packs. What a
deleted module had leaves the archive with that: `cold.pack_after` after its tombstone at the latest, plus the time between two
packings. `domain/packs.py` has the rule that makes all this safe next to other packers; `tests/model/packs.py` is the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distier.domain import archived as names
from distier.domain import manifest as files
from distier.domain.content_types import extension_for
from distier.domain.keys import Shard
from distier.domain.manifest import Row
from distier.domain.packs import (
    MEMBER_BYTES_MAX,
    NAME_BYTES_MAX,
    PACK_BYTES,
    TOKEN_CHARS,
    Index,
    Member,
    Pack,
    common_directory,
    member_name,
    module_path,
    packs_prefix,
    tar_of,
)
from distier.effects import (
    ArchiveDelete,
    ArchiveList,
    ArchivePut,
    Count,
    NewToken,
    Now,
    Offload,
    Parallel,
    Plan,
    Progress,
    collect,
)
from distier.errors import DistierError
from distier.plans.common.commands import chunks
from distier.plans.common.content import check_content
from distier.plans.common.namespace import Namespace
from distier.plans.common.objects import members_of, read_archived
from distier.plans.fleet.sweep import delete_keys, group_of, unneeded_versions, without_doubles
from distier.plans.get.history import Described
from distier.plans.recovery.describe import adoption_of
from distier.plans.recovery.manifest import Manifest, list_manifest, open_manifest, step_of
from distier.plans.recovery.packs import announce, list_packs, read_index, refer_to_packs
from distier.plans.recovery.walk import Skipped
from distier.plans.tier.writeback import compressed

REGION_BYTES = 4 * PACK_BYTES
"""Modules that are near each other in the order of ids are sorted by the names of their directories and files, this many bytes
at a time. Files of one name resemble each other, so packs of them are some percent smaller."""
PACK_BYTES_MIN = 256 << 10
"""Less content than this waits for more."""
EVERY_MS = 24 * 3_600_000
LATE_MS = 3_600_000
"""A pack whose upload took longer than this gets no index: a sweep takes a pack without one for abandoned, days later."""
TOGETHER = 32
REPLACED_MAX = 256
"""Packs that one packing of a shard replaces: the others wait for the next one."""
SLOW_CLASSES = ("GLACIER", "DEEP_ARCHIVE")
"""What these classes store cannot be read to be packed."""


@dataclass(slots=True)
class Packed:
    """What a packing did. `objects` were deleted, and `members` are in `packs` instead; `replaced` packs were deleted.

    Sizes are in bytes: of the contents, and of the packs.
    """

    members: int = 0
    packs: int = 0
    replaced: int = 0
    objects: int = 0
    content_bytes: int = 0
    packed_bytes: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Old:
    """A pack that the manifest names: how many members it has, which of them nobody needs, and the size of the others.

    `later` has the rows of later copies of members.
    """

    members: int = 0
    dead: set[str] = field(default_factory=set)
    later: list[Row] = field(default_factory=list)
    live_bytes: int = 0
    has_deleted: bool = False

    @property
    def is_wasteful(self) -> bool:
        return self.has_deleted or 4 * len(self.dead) >= self.members

    @property
    def is_small(self) -> bool:
        return self.live_bytes < PACK_BYTES // 2


def pack_if_due(space: Namespace) -> Plan[Packed | None]:
    """Pack all shards, unless somebody has since `EVERY_MS`. Returns None if there was nothing to do. Raises `Unavailable`."""
    cold = space.config.storage_tiers.cold
    if not cold.packs or not cold.manifest or cold.storage_class in SLOW_CLASSES:
        return None
    limits = space.archive_limits
    if limits is not None and limits.name_bytes < NAME_BYTES_MAX:
        return None
    now_ms = yield Now()
    markers = [e for e in (yield from list_manifest(space)) if files.is_marker(space.namespace, e.key, "packed")]
    if markers and max(e.modified_ms for e in markers) > now_ms - EVERY_MS:
        return None
    done = yield from pack_all(space, min_age_ms=cold.pack_after_ms)
    key = files.marker_key(space.namespace, "packed", (yield from NewToken()))
    yield from ArchivePut(key, b"", "application/octet-stream", {})
    if markers:
        yield from ArchiveDelete([e.key for e in markers])
    return done


def pack_all(space: Namespace, *, min_age_ms: int, everything: bool = False) -> Plan[Packed]:
    """Pack what is at least `min_age_ms` old, in all shards; with `everything`, also what is too little for a whole pack.

    It reports the numbers so far as progress. What cannot be read is left as it is, and named in `skipped`. Raises
    `Unavailable`.
    """
    report = Packed()
    for shard in space.keys.shards:
        yield from _Packing(space, shard, report, min_age_ms, (yield Now()), everything=everything).run()
    yield from Count("packs.made", report.packs)
    yield from Count("packs.members", report.members)
    return report


class _Packing:
    """One packing of a shard."""

    def __init__(
        self, space: Namespace, shard: Shard, report: Packed, min_age_ms: int, now_ms: int, *, everything: bool
    ) -> None:
        self.space, self.shard, self.report, self.everything = space, shard, report, everything
        self.before_ms, self.now_ms = now_ms - min_age_ms, now_ms
        self.skipped = Skipped()
        self.listed: dict[str, Index] = {}
        self.old: dict[str, _Old] = {}
        self.number = 0

    def run(self) -> Plan[None]:
        manifest = yield from open_manifest(self.space, self.shard)
        if manifest.damaged:
            return  # the next sweep with a LIST makes it again
        # After the files were read: a pack that is not listed now has left its rows in a later file.
        self.listed = {str(index.pack): index for index in (yield from list_packs(self.space)) if index.whole}
        self.number = max((index.pack.number for index in self.listed.values()), default=0)
        rest = yield from self._pack_fresh(manifest)
        yield from self._replace(rest)
        self.report.skipped |= {name: str(error) for name, error in self.skipped.why.items()}

    def _pack_fresh(self, manifest: Manifest) -> Plan[list[Row]]:
        """Pack objects in the order of ids. Returns the rows that are too few for a pack."""
        waiting: list[Row] = []
        size_bytes = 0
        groups = manifest.groups()
        while some := (yield from step_of(groups)):
            for row in (yield from self._look(some)):
                waiting.append(row)
                size_bytes += _bytes(row)
                if size_bytes >= REGION_BYTES:
                    _, waiting = yield from self._pack_region(waiting)
                    size_bytes = sum(map(_bytes, waiting))
        _, waiting = yield from self._pack_region(waiting)
        return waiting

    def _look(self, groups: Sequence[Sequence[Row]]) -> Plan[list[Row]]:
        """Count the members of packs, and return the rows of objects that can be packed."""
        found = [group for rows in groups if (group := group_of(self.space, rows)) is not None]
        objects, packed = yield from unneeded_versions(self.space, found, self.now_ms, self.skipped)
        unwanted = {*objects, *packed}
        fresh: list[Row] = []
        for rows in groups:
            there = [row for row in rows if row.pack is None or str(row.pack) in self.listed]
            there = without_doubles(there, self.listed)
            last = {row.key: row for row in there}
            for row in there:
                is_unwanted = names.modules_prefix(self.space.namespace) + row.key in unwanted
                if row.pack is None:
                    if not is_unwanted and self._can_be_packed(row):
                        fresh.append(row)
                    continue
                old = self.old.setdefault(str(row.pack), _Old())
                old.members += 1
                if is_unwanted or last[row.key] is not row:
                    old.dead.add(row.key)
                    old.has_deleted = old.has_deleted or rows[-1].deleted
                    if not is_unwanted:
                        old.later.append(last[row.key])
                else:
                    old.live_bytes += _bytes(row)
        return fresh

    def _can_be_packed(self, row: Row) -> bool:
        found = row.object(self.space.namespace)
        return (
            found is not None
            and found.kind == "content"
            and 0 < row.updated_ms <= self.before_ms
            and _bytes(row) <= MEMBER_BYTES_MAX
            and found.extension == extension_for(str(row.known.get("type", "")))
            and adoption_of(self.space, row) is not None
        )

    def _pack_region(self, rows: Sequence[Row], *, all_of_them: bool = False) -> Plan[tuple[set[str], list[Row]]]:
        """Pack these rows, so that similar ones come together. Returns the keys of those that are packed, and the rows that are
        left for another pack: none with `all_of_them`."""
        done: set[str] = set()
        part: list[Row] = []
        size_bytes = 0
        for row in sorted(rows, key=_similar):
            part.append(row)
            size_bytes += _bytes(row)
            if size_bytes >= PACK_BYTES:
                done |= yield from self._pack(part)
                part, size_bytes = [], 0
        if size_bytes >= PACK_BYTES_MIN or (part and all_of_them):
            done |= yield from self._pack(part)
            part = []
        return done, sorted(part, key=lambda row: row.key)

    def _replace(self, rest: Sequence[Row]) -> Plan[None]:
        """Replace packs that are wasteful, and small ones if they are enough for a larger one, together with the rows that
        are left."""
        chosen = self._choose(rest)
        live: dict[str, set[str]] = {}
        rows = list(rest) if self.everything or chosen else []
        for name in chosen:
            data = yield from read_index(self.space, self.listed[name])
            if data is None:
                continue  # another packer has replaced it
            members = [row for row in files.read_rows(data) if row.key not in self.old[name].dead]
            live[name] = {row.key for row in members}
            rows += members
        done: set[str] = set()
        for region in _regions(sorted(rows, key=lambda row: row.key)):
            packed, _ = yield from self._pack_region(region, all_of_them=True)
            done |= packed
        for name, keys in live.items():
            if keys <= done:
                yield from refer_to_packs(self.space, self.old[name].later)
                index = self.listed[name]
                yield from delete_keys([index.key], self.skipped)  # first: a pack exists while its index does
                yield from delete_keys([index.pack.key(self.space.namespace)], self.skipped)
                self.report.replaced += 1

    def _choose(self, rest: Sequence[Row]) -> list[str]:
        ripe = {name: old for name, old in self.old.items() if self.listed[name].modified_ms <= self.before_ms}
        chosen = {name for name, old in ripe.items() if old.is_wasteful}
        small = {name for name, old in ripe.items() if old.is_small} - chosen
        small_bytes = sum(ripe[name].live_bytes for name in small) + sum(map(_bytes, rest))
        if len(small) + bool(rest) > 1 and (small_bytes >= PACK_BYTES or self.everything):
            chosen |= small
        return sorted(chosen)[:REPLACED_MAX]

    def _pack(self, rows: Sequence[Row]) -> Plan[set[str]]:
        """Make a pack of these versions. Returns the keys of those that are in it, none if it was not worth it."""
        space, got = self.space, (yield from self._contents(rows))
        if len(got) < 2 and not any(row.pack for row, _ in got):
            return set()
        paths = [module_path(row.id) for row, _ in got]
        directory = common_directory(paths, [row.pack.directory for row, _ in got if row.pack])
        self.number += 1
        token = yield from NewToken()
        pack = Pack(directory, self.number, token[:TOKEN_CHARS])
        index_key, limits = pack.index_key(space.namespace, paths), space.archive_limits
        if limits is not None and len(index_key) > limits.key_bytes:
            return set()
        began_ms = yield Now()
        members = [Member(member_name(row.key), content, row.updated_ms) for row, content in got]
        content_bytes = sum(len(content) for _, content in got)
        tar = yield from Offload(content_bytes, lambda: tar_of(members), "packing")
        body = yield from compressed(space, tar)
        yield from ArchivePut(pack.key(space.namespace), body, names.CONTENT_TYPE, {})
        if (yield Now()) - began_ms > LATE_MS:
            return set()
        packed = [row.packed(pack, max(1, len(body) * len(content) // max(1, content_bytes))) for row, content in got]
        yield from ArchivePut(index_key, files.pack_rows(packed), files.CONTENT_TYPE, {})
        if not (yield from self._exists(pack)):
            return set()
        yield from announce(space, packed)
        old = [names.modules_prefix(space.namespace) + row.key for row, _ in got if row.pack is None]
        if not (yield from self._exists(pack)):
            return set()
        gone = yield from delete_keys([*old, *map(names.sidecar_key, old)], self.skipped)
        self.report.members += len(got)
        self.report.packs += 1
        self.report.objects += len(gone.intersection(old))
        self.report.content_bytes += content_bytes
        self.report.packed_bytes += len(body)
        yield Progress(self.report)
        return {row.key for row, _ in got}

    def _contents(self, rows: Sequence[Row]) -> Plan[list[tuple[Row, bytes]]]:
        """Read versions; without those that are gone or cannot be read."""
        packs = {row.pack for row in rows if row.pack}
        opened: dict[Pack, Mapping[str, bytes]] = {}
        for pack in packs:
            try:
                opened[pack] = (yield from members_of(self.space, pack)) or {}
            except DistierError as e:
                self.skipped.add(str(pack), e)
        got: list[tuple[Row, bytes]] = []
        for some in chunks(rows, TOGETHER):
            for row, result in zip(
                some, (yield from Parallel([self._content(row, opened) for row in some])), strict=True
            ):
                if isinstance(result, DistierError):
                    self.skipped.add(row.key, result)
                elif (content := collect(result)) is not None:
                    self.skipped.went_well()
                    got.append((row, content))
        return got

    def _content(self, row: Row, opened: Mapping[Pack, Mapping[str, bytes]]) -> Plan[bytes | None]:
        found, adoption = row.object(self.space.namespace), adoption_of(self.space, row)
        if found is None or adoption is None:
            return None
        record = Described(found, adoption).record
        if row.pack is None:
            return (yield from read_archived(self.space, replace(record, archived_key=None)))
        content = opened.get(row.pack, {}).get(member_name(row.key))
        return None if content is None else check_content(record, content, "packed")

    def _exists(self, pack: Pack) -> Plan[bool]:
        """Return whether the archive has the pack and its index: another packer may have replaced it already."""
        page = yield from ArchiveList(f"{packs_prefix(self.space.namespace)}{pack}.", limit=4)
        return len(page) == 2


def _regions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    region: list[Row] = []
    size_bytes = 0
    for row in rows:
        region.append(row)
        size_bytes += _bytes(row)
        if size_bytes >= REGION_BYTES:
            yield region
            region, size_bytes = [], 0
    if region:
        yield region


def _bytes(row: Row) -> int:
    size = row.known.get("bytes")
    return size if isinstance(size, int) else MEMBER_BYTES_MAX + 1


def _similar(row: Row) -> tuple[list[str], str]:
    return module_path(row.id).split("/")[-2:], row.key
