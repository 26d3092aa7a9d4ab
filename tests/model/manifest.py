"""Model of the archive's manifest: real steps in random order, with crashes, losses of Redis, and rivals.

A process is a generator that does one request between two `yield`s; PUT, GET, LIST and DELETE are single steps. A walk
(`walks.py`) picks a process at random for each step, and may end it there. This samples the orders (`model.py` searches all of
its small cases), so a rule counts as held only after many walks, and each mutant must be caught by some walk.

What must hold in every state:

    M1   the version of a clean record exists: as a single object, or in a pack with an index (`packs.py`)
    M2   a clean version is in the manifest, unless a writer that knows no manifest wrote it, or a reader found it by LIST
    M3   a reader of the manifest, next to writers and compactors, finds every version that was clean when it began
    M4   a rescue that ends has every version that was ever clean, or a later one, also those of writers that know no manifest
    M5   a module that was deleted and buried is not in the manifest again
    M6   a listing of a module finds the version that was clean when it began, or a later one
    M7   a read of a clean version never reports it as lost
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator
from typing import NamedTuple

GRACE = 40
"""Steps after which a tombstone may go, first its record and then its object. What wrote or listed something before that has
ended: the one assumption about time (PROTOCOL.md)."""
Process = Generator[None, None, None]
Kind = Callable[["World"], Process]


class Violation(AssertionError):
    """An invariant is broken."""


class Version(NamedTuple):
    id: str
    ver: int
    deleted: bool = False


class Pack(NamedTuple):
    """A pack's place in the order in which a listing of a module sees packs: those of deeper directories first."""

    up: int
    number: int


class Row(NamedTuple):
    version: Version
    pack: Pack | None = None


class Record(NamedTuple):
    version: Version
    clean: bool
    pack: Pack | None = None


NOT_PACKED = Pack(-1, 0)


class World:
    """The archive, Redis, and what was promised so far."""

    def __init__(self, seed: int, mutant: str = "", ids: str = "abc") -> None:
        self.rng, self.mutant, self.ids = random.Random(seed), mutant, ids
        self.vers, self.names = itertools.count(1), itertools.count(1)
        self.singles: set[Version] = set()
        self.packs: dict[Pack, frozenset[Version]] = {}
        self.indexes: dict[Pack, frozenset[Version]] = {}
        self.packed_at: dict[Pack, int] = {}
        self.files: dict[str, frozenset[Row]] = {}
        self.records: dict[str, Record] = {}
        self.incarnation = 0
        self.kept: dict[str, Version] = {}
        """The greatest version of each module that was ever clean."""
        self.unlisted: set[Version] = set()
        """Versions of writers that know no manifest, and those that a reader adopted without a row."""
        self.buried: dict[str, Version] = {}
        """The last tombstone of each module that was buried."""
        self.made_at: dict[Version, int] = {}
        self.now = self.complete_reads = self.rescues = self.proofs = self.rewritten = self.from_packs = 0

    # -- single requests -------------------------------------------------------------------------------------------

    def new(self, id: str, deleted: bool = False) -> Version:
        version = Version(id, next(self.vers), deleted)
        self.made_at[version] = self.now
        return version

    def put_file(self, kind: str, rows: set[Row]) -> None:
        self.files[f"{kind}-{next(self.names)}"] = frozenset(rows)

    def commit(self, version: Version) -> None:
        """Mark a version clean, if it is still the record's."""
        record = self.records.get(version.id)
        if record and record.version == version:
            self.records[version.id] = record._replace(clean=True)
            self.keep(version)

    def apply(self, version: Version, pack: Pack | None = None) -> None:
        """Make an archived version the record, unless the record has a greater one: a durable write, or an adoption."""
        record = self.records.get(version.id)
        if record is None or record.version.ver < version.ver:
            self.records[version.id] = Record(version, True, pack)
            self.keep(version)

    def keep(self, version: Version) -> None:
        if version.id not in self.kept or self.kept[version.id].ver < version.ver:
            self.kept[version.id] = version

    # -- invariants ------------------------------------------------------------------------------------------------

    def rows(self) -> set[Row]:
        return set().union(*self.files.values())

    def exists(self, version: Version) -> bool:
        return version in self.singles or any(
            version in members and version in self.packs.get(pack, ()) for pack, members in self.indexes.items()
        )

    def check(self) -> None:
        rows = self.rows()
        best = greatest(rows)
        listed = {row.version for row in rows}
        for record in self.records.values():
            version = record.version
            if not record.clean or version.deleted:
                continue
            if not self.exists(version):
                raise Violation(f"M1: {version} is clean and does not exist")
            if version not in listed and version not in self.unlisted:
                raise Violation(f"M2: {version} is clean and not in the manifest")
        for id, tombstone in self.buried.items():
            if id in best and best[id].version.ver < tombstone.ver:
                raise Violation(f"M5: {best[id].version} is in the manifest again, after {tombstone} was buried")


def greatest(rows: set[Row]) -> dict[str, Row]:
    """Merge rows: the greatest version of each module. Of one version, the row of the latest pack counts."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=place):
        best[row.version.id] = row
    return best


def place(row: Row) -> tuple[int, Pack]:
    return row.version.ver, row.pack or NOT_PACKED


# -- writers -----------------------------------------------------------------------------------------------------------


def write_back(w: World) -> Process:
    """One batch: the objects, then their segment, then the script that marks each of them clean."""
    batch = []
    for id in w.rng.sample(w.ids, w.rng.randrange(1, len(w.ids) + 1)):
        version = w.new(id, deleted=w.rng.random() < (0.2 if len(w.ids) > 1 else 0.5))
        w.records[id] = Record(version, False)
        batch.append(version)
    for version in batch:
        yield
        w.singles.add(version)
    if w.mutant == "commit_before_segment":
        for version in batch:
            yield
            w.commit(version)
    yield
    w.put_file("seg", {Row(version) for version in batch})
    for version in batch:
        yield
        w.commit(version)


def durable(w: World) -> Process:
    """A durable put: its object, its row, then the script that applies it."""
    version = w.new(w.rng.choice(w.ids))
    yield
    w.singles.add(version)
    yield
    w.put_file("row", {Row(version)})
    yield
    w.apply(version)


def old_writer(w: World) -> Process:
    """A write-back by a process that knows no manifest."""
    version = w.new(w.rng.choice(w.ids))
    w.records[version.id] = Record(version, False)
    w.unlisted.add(version)
    yield
    w.singles.add(version)
    yield
    w.commit(version)


# -- compaction and sweep ----------------------------------------------------------------------------------------------


def _gather(w: World, names: list[str]) -> Generator[None, None, dict[str, frozenset[Row]]]:
    """GET files. One that is gone was merged by another compactor."""
    got = {}
    for name in names:
        yield
        if name in w.files:
            got[name] = w.files[name]
    return got


def _replace(w: World, got: dict[str, frozenset[Row]], rows: set[Row]) -> Process:
    """Write a run in the place of files, unless another compactor has taken one of them meanwhile."""
    yield
    if w.mutant != "no_second_look" and not set(got) <= set(w.files):
        return  # no pause here: an upload takes less than the grace
    if rows:
        w.put_file("run", rows)
    gone = set(w.files) - {max(w.files, default="", key=_number)} if w.mutant == "delete_by_interval" else set(got)
    for name in sorted(gone):
        yield
        w.files.pop(name, None)


def _number(name: str) -> int:
    return int(name.partition("-")[2] or 0)


def compact(w: World) -> Process:
    """Merge some files. It drops nothing, so it asks nobody."""
    yield
    names = sorted(w.files)
    w.rng.shuffle(names)
    got = yield from _gather(w, names[: w.rng.randrange(2, 9)])
    yield from _replace(w, got, set().union(*got.values()))


def sweep(w: World) -> Process:
    """Merge all files. The losers of the merge are deleted, where the record says that a later version is committed."""
    yield
    names = sorted(w.files)
    got = yield from _gather(w, names)
    if len(got) < len(names):
        return  # another compactor is at work
    rows = set().union(*got.values())
    yield
    packs = set(w.indexes)  # listed after the files were read: a pack that is gone has left its rows in a later file
    known, rows = rows, {row for row in rows if row.pack is None or row.pack in packs}
    best, keep = greatest(rows), set(rows)
    for row in sorted(rows, key=place):
        id, top = row.version.id, best[row.version.id].version
        if row.version == top:
            # also no row of a pack that is gone: while the files are deleted one by one, it could be the last one left
            alone = all(
                other.version.id != id or other == row for other in (rows if w.mutant == "buries_early" else known)
            )
            if top.deleted and alone:
                yield from _bury(w, row, keep)
            continue
        yield
        if row.pack is None and _is_committed(w, row.version, top):
            keep.discard(row)
            w.singles.discard(row.version)
    yield from _replace(w, got, keep)


def _is_committed(w: World, version: Version, top: Version) -> bool:
    if w.mutant == "sweeps_unasked":
        return True
    record = w.records.get(version.id)
    return record is not None and record.clean and version.ver < record.version.ver <= top.ver


def _bury(w: World, row: Row, keep: set[Row]) -> Process:
    """Delete an old tombstone, if a LIST of the module shows nothing else."""
    version = row.version
    yield
    others = {s for s in w.singles if s.id == version.id} - {version}
    yield
    others |= {s for members in w.indexes.values() for s in members if s.id == version.id}
    if w.now - w.made_at[version] > GRACE and version.id not in w.records and not others:
        w.singles.discard(version)
        keep.discard(row)
        if w.kept.get(version.id) == version:
            del w.kept[version.id]
            w.buried[version.id] = version


def sweep_all(w: World) -> Process:
    """The rare sweep with a LIST of everything: what is not in the manifest gets a row, rows without an object go, and so do
    single objects that are in a pack, and packs without an index that nobody is writing any more."""
    yield
    got = yield from _gather(w, sorted(w.files))
    yield
    indexes = dict(w.indexes)
    orphans = {
        p for p in w.packs if p not in indexes and (w.now - w.packed_at[p] > GRACE or w.mutant == "young_orphans")
    }
    yield
    there = set(w.singles)
    keep = {Row(version) for version in there} | {Row(v, pack) for pack, members in indexes.items() for v in members}
    yield from _replace(w, got, keep)
    for version in sorted(there):
        if any(version in members for members in indexes.values()):
            yield
            w.singles.discard(version)
    for pack in sorted(orphans):
        yield
        w.packs.pop(pack, None)


# -- readers -----------------------------------------------------------------------------------------------------------


def read_manifest(w: World) -> Process:
    """A reader of the manifest: LIST, GET each; where one is gone, LIST again, and GET what is new."""
    got: dict[str, frozenset[Row]] = {}
    for _ in range(50):
        must = {r.version for r in w.records.values() if r.clean and r.version not in w.unlisted}
        yield
        names = sorted(w.files)
        got = {name: got[name] for name in names if name in got}
        got |= yield from _gather(w, [name for name in names if name not in got])
        if len(got) < len(names) and w.mutant != "no_second_list":
            continue
        best = greatest(set().union(*got.values()))
        for version in must:
            found = best.get(version.id)
            buried = version.id not in w.records or (version.deleted and version not in w.singles)
            if (found is None or found.version.ver < version.ver) and not buried:
                raise Violation(f"M3: a reader of the manifest missed {version}")
        w.complete_reads += 1
        return


def lose(w: World) -> Process:
    """Redis loses its memory."""
    yield
    w.records.clear()
    w.incarnation += 1


def forget(w: World) -> Process:
    """The record of an archived tombstone expires."""
    yield
    for id, record in list(w.records.items()):
        if record.clean and record.version.deleted and w.now - w.made_at[record.version] > GRACE:
            del w.records[id]
