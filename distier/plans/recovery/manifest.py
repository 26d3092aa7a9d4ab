"""The archive's manifest: writing rows, reading all of them, and merging files (`domain/manifest.py` has the format).

There is no lock, no lease, no pointer and no conditional PUT. Files have unique names and never change.

    a writer     PUTs the objects, then a file with their rows, and only then marks the versions clean
    a reader     LISTs, GETs every file, and LISTs again where one is gone, because a compactor has merged it. It keeps what it
                 has read of files that are still there, so that it needs only the new ones and compactors cannot delay it
    a compactor  GETs some files, LISTs again and gives up where one is gone, PUTs a run with all their rows, and deletes those
                 files by name

A LIST of the objects stays the proof that a version exists, or does not. The manifest saves the GETs after it, and saves the
LIST itself where a row suffices: the sweep only needs to know which modules have more than one version. (Rejected: a rescue
from the manifest alone. One process of an older version writes objects without rows, and its versions would be lost.
`tests/model/manifest.py` has the mutant.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from distier.domain import manifest as names
from distier.domain.archived import modules_prefix
from distier.domain.keys import Shard
from distier.domain.manifest import File, Row, Writer
from distier.domain.objects import Listed
from distier.effects import (
    ArchiveDelete,
    ArchiveGet,
    ArchiveList,
    ArchivePut,
    Command,
    Count,
    NewToken,
    Offload,
    Parallel,
    Plan,
    collect,
)
from distier.errors import ArchiveUnavailable, Corrupt
from distier.plans.common.commands import chunks, numbers
from distier.plans.common.namespace import Namespace

FILE_BYTES_MAX = 256 << 20
KEYS_A_PAGE = 1000
TOGETHER = 64
RELISTS_MAX = 50
"""Each time, a reader reads only what is new. On an overloaded machine, eight times were once too few."""
SMALL_FILES_MIN = 32
"""A compaction begins at this many segments and rows: they cost a reader one GET each."""
VERSIONS_A_LOOK = 256
"""A worker looks whether a compaction is due after this many new versions of a shard, so an idle namespace costs nothing."""
MODULES_A_STEP = 512
WHAT = "reading the manifest"


def list_rows(space: Namespace, shard: Shard, rows: Sequence[Row], kind: str = "seg") -> Plan[None]:
    """Write a file with these rows, whose objects are in the archive. Raises `ArchiveUnavailable`."""
    if not rows or not space.config.storage_tiers.cold.manifest:
        return
    unique = yield from NewToken()
    key = names.file_key(space.namespace, shard.index, kind, unique)
    yield from ArchivePut(key, names.pack_rows(rows), names.CONTENT_TYPE, {})


def list_manifest(space: Namespace, shard: Shard | None = None) -> Plan[list[Listed]]:
    """List the objects of the manifest: those of a shard, or all."""
    prefix = names.manifest_prefix(space.namespace) + ("" if shard is None else f"{shard.index}/")
    found = list[Listed]()
    while True:
        page = yield from ArchiveList(prefix, start_after=found[-1].key if found else "", limit=KEYS_A_PAGE)
        found += page
        if len(page) < KEYS_A_PAGE:
            return found


def files_of(space: Namespace, listed: Sequence[Listed]) -> list[File]:
    return [file for entry in listed if (file := names.parse_file(space.namespace, entry))]


class Manifest:
    """Files of the manifest, read. Damaged ones are left out and named in `damaged`; what they listed is found by a LIST."""

    def __init__(self, space: Namespace) -> None:
        self._prefix = modules_prefix(space.namespace)
        self.files: dict[str, bytes] = {}
        self.damaged: list[str] = []
        self._rows: Iterator[Row] = iter(())
        self._next: Row | None = None

    def read(self, keys: Sequence[str]) -> Plan[bool]:
        """Read these files, and forget others. Returns False where one is gone: then the next call reads what is missing."""
        self.files = {key: self.files[key] for key in keys if key in self.files}
        self.damaged = [key for key in keys if key in self.damaged]
        missing = [key for key in keys if key not in self.files and key not in self.damaged]
        for some in chunks(missing, TOGETHER):
            results = yield from Parallel([_get_checked(key) for key in some])
            is_whole = True
            for key, result in zip(some, results, strict=True):
                if isinstance(result, Corrupt):
                    yield from Count("manifest.damaged")
                    self.damaged.append(key)
                elif (data := collect(result)) is None:
                    is_whole = False
                else:
                    self.files[key] = data
            if not is_whole:
                return False
        self._begin()
        return True

    def _begin(self) -> None:
        self._rows = names.merged(self.files)
        self._next = next(self._rows, None)

    def of(self, directory: str) -> list[Row]:
        """Return the rows of a module, by the directory of its objects. Directories come in the order of a LIST."""
        start, found = f"{directory.removeprefix(self._prefix)}/@", list[Row]()
        while self._next is not None and (self._next.key < start or self._next.key.startswith(start)):
            if self._next.key.startswith(start):
                found.append(self._next)
            self._next = next(self._rows, None)
        return found

    def groups(self, prefix: str = "") -> Iterator[list[Row]]:
        """Iterate over the rows of each module, or of those whose ids begin with `prefix`."""
        return names.grouped(names.merged(self.files, prefix))


def open_manifest(space: Namespace, shard: Shard | None = None) -> Plan[Manifest]:
    """Read the manifest of a shard, or all of it. Raises `ArchiveUnavailable`."""
    found = Manifest(space)
    for _ in range(RELISTS_MAX):
        if (yield from found.read([file.key for file in files_of(space, (yield from list_manifest(space, shard)))])):
            return found
        yield from Count("manifest.relisted")
    raise ArchiveUnavailable(f"the manifest of namespace {space.namespace!r} keeps changing; try again")


def get_files(space: Namespace, keys: Sequence[str]) -> Plan[Manifest | None]:
    """Read these files; None where one is gone."""
    found = Manifest(space)
    return found if (yield from found.read(keys)) else None


def _get_checked(key: str) -> Plan[bytes | None]:
    """Return a file that is whole."""
    got = yield from ArchiveGet(key, max_bytes=FILE_BYTES_MAX)
    if got is None:
        return None
    data = got.data
    yield from Offload(len(data), lambda: names.check_file(key, data), WHAT)
    return data


class Replacing:
    """Writes rows as a new run in the place of files: `add` in order, then `end`."""

    def __init__(self, space: Namespace, shard_index: int, inputs: Sequence[str]) -> None:
        self._space, self._index, self._inputs = space, shard_index, list(inputs)
        self._writer, self._unique, self._part = Writer(), "", 0
        self.pending = 0
        self.given_up = False

    def add(self, rows: Sequence[Row], *, pending: bool) -> Plan[None]:
        """Add the rows of one module. `pending`: a sweep has to look at it again."""
        self.pending += pending
        for row in rows:
            self._writer.add(row)
        if self._writer.is_full:
            yield from self._put()

    def _put(self) -> Plan[None]:
        """Write a part, unless another compactor has taken one of the inputs: what it dropped must not come back."""
        if self.given_up:
            return
        data = self._writer.end()
        listed = {entry.key for entry in (yield from list_manifest(self._space))}
        if not listed.issuperset(self._inputs):
            self.given_up = True
            yield from Count("manifest.given_up")
            return
        if not self._unique:
            self._unique = yield from NewToken()
        key = names.file_key(self._space.namespace, self._index, "run", self._unique, self._part, self.pending)
        self._part += 1
        yield from ArchivePut(key, data, names.CONTENT_TYPE, {})

    def write(self) -> Plan[bool]:
        """Write the rest. Returns False if another compactor was quicker: then the inputs must stay."""
        if self._writer.rows:
            yield from self._put()
        return not self.given_up

    def end(self) -> Plan[bool]:
        """Write the rest, then delete the inputs by name. Returns False if another compactor was quicker."""
        if not (yield from self.write()):
            return False
        for some in chunks(self._inputs, 1000):
            yield from ArchiveDelete(some)
        return True


def compact(space: Namespace, shard: Shard, least: int = SMALL_FILES_MIN) -> Plan[int]:
    """Merge the small files of a shard's manifest. It drops nothing, so it asks no record. Returns how many were merged."""
    listed = yield from list_manifest(space, shard)
    chosen = names.choose_small(files_of(space, listed), least)
    if len(chosen) < 2:
        return 0
    found = yield from get_files(space, [file.key for file in chosen])
    if found is None or len(found.files) < 2:
        return 0  # another compactor is at work
    run = Replacing(space, shard.index, list(found.files))
    groups = found.groups()
    while some := (yield from step_of(groups)):
        for rows in some:
            yield from run.add(rows, pending=is_pending(space, rows))
    return len(found.files) if (yield from run.end()) else 0


def step_of(groups: Iterator[list[Row]]) -> Offload[list[list[Row]]]:
    """Read the next groups, some at a time; none at the end."""

    def some() -> list[list[Row]]:
        return list(islice(groups, MODULES_A_STEP))

    return Offload(MODULES_A_STEP * 256, some, WHAT)


def is_pending(space: Namespace, rows: Sequence[Row]) -> bool:
    """Return whether a sweep may have something to delete of this module."""
    return len(rows) > space.config.storage_tiers.cold.keep_versions or any(row.deleted for row in rows)


def compact_if_due(space: Namespace, shard: Shard) -> Plan[int]:
    """Compact a shard's manifest if enough versions were given since this process last looked."""
    if not space.config.storage_tiers.cold.manifest:
        return 0
    epoch, ver = yield from Command(shard, ("HMGET", shard.epoch, "epoch", "ver"), numbers)
    position = (epoch, ver // VERSIONS_A_LOOK)
    if space.process.compacted.get(shard) == position:
        return 0
    done = yield from compact(space, shard)
    space.process.compacted[shard] = position
    return done
