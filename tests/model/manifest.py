"""Model of the archive's manifest and packs: real steps in random order, with crashes, losses of Redis, and rivals.

A process is a generator that does one request between two `yield`s; PUT, GET, LIST and DELETE are single steps. A walk picks a
process at random for each step, and may end it there. This samples the orders (`model.py` searches all of its small cases), so
a rule counts as held only after many walks, and each mutant must be caught by some walk.

What must hold in every state:

    M1   the version of a clean record can be read: as a single object, or from a pack that the record or the manifest names
    M2   a clean version is in the manifest, unless a writer that knows no manifest wrote it, or a reader found it by LIST
    M3   a reader of the manifest, next to writers and compactors, finds every version that was clean when it began
    M4   a rescue that ends has every version that was ever clean, or a later one, also those of writers that know no manifest
    M5   a module that was deleted and buried is not in the manifest again
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


class Row(NamedTuple):
    version: Version
    pack: str = ""


class Record(NamedTuple):
    version: Version
    clean: bool
    pack: str = ""


class World:
    """The archive, Redis, and what was promised so far."""

    def __init__(self, seed: int, mutant: str = "", ids: str = "abc") -> None:
        self.rng, self.mutant, self.ids = random.Random(seed), mutant, ids
        self.vers, self.names = itertools.count(1), itertools.count(1)
        self.singles: set[Version] = set()
        self.packs: dict[str, frozenset[Version]] = {}
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
        self.now = self.complete_reads = self.rescues = 0

    # -- single requests -------------------------------------------------------------------------------------------

    def new(self, id: str, deleted: bool = False) -> Version:
        version = Version(id, next(self.vers), deleted)
        self.made_at[version] = self.now
        return version

    def put_file(self, kind: str, rows: set[Row]) -> None:
        self.files[f"{kind}-{next(self.names)}"] = frozenset(rows)

    def commit(self, version: Version, pack: str = "") -> None:
        """Mark a version clean, if it is still the record's."""
        record = self.records.get(version.id)
        if record and record.version == version:
            self.records[version.id] = Record(version, True, record.pack or pack)
            self.keep(version)

    def apply(self, version: Version, pack: str = "") -> None:
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

    def check(self) -> None:
        rows = self.rows()
        best = greatest(rows)
        listed = {row.version for row in rows}
        packs_of: dict[Version, set[str]] = {}
        for row in rows:
            packs_of.setdefault(row.version, set()).add(row.pack)
        for record in self.records.values():
            version = record.version
            if not record.clean or version.deleted:
                continue
            packs = {record.pack} | packs_of.get(version, set())
            if version not in self.singles and not any(version in self.packs.get(pack, ()) for pack in packs):
                raise Violation(f"M1: {version} is clean and cannot be read")
            if version not in listed and version not in self.unlisted:
                raise Violation(f"M2: {version} is clean and not in the manifest")
        for id, tombstone in self.buried.items():
            if id in best and best[id].version.ver < tombstone.ver:
                raise Violation(f"M5: {best[id].version} is in the manifest again, after {tombstone} was buried")


def greatest(rows: set[Row]) -> dict[str, Row]:
    """Merge rows: the greatest version of each module. A row in a pack comes before the single one of the same version."""
    best: dict[str, Row] = {}
    for row in sorted(rows):
        old = best.get(row.version.id)
        if old is None or (old.version.ver, old.pack) < (row.version.ver, row.pack):
            best[row.version.id] = row
    return best


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
    best, keep = greatest(rows), set(rows)
    for row in sorted(rows):
        id, top = row.version.id, best[row.version.id].version
        if row.version == top:
            alone = all(other.version.id != id or other == row for other in rows)
            if top.deleted and alone:
                yield from _bury(w, row, keep)
            continue
        yield
        if _is_committed(w, row.version, top):
            keep.discard(row)
            if not row.pack:
                w.singles.discard(row.version)
    for row in sorted(keep):  # a single whose version is in a pack, left by a packer that died
        if not row.pack and any(other.version == row.version and other.pack for other in keep):
            yield
            if _is_flipped(w, row.version) and (current := best[row.version.id]).pack:
                w.singles.discard(row.version)
                keep -= {row} - {current}
    if w.mutant == "sweeps_current_pack":
        stale = {row.pack for row in rows - keep} - {""}
    else:
        stale = {row.pack for row in rows - keep} - {row.pack for row in keep} - {""}
    for pack in sorted(stale):
        yield
        w.packs.pop(pack, None)
    yield from _replace(w, got, keep)


def _is_committed(w: World, version: Version, top: Version) -> bool:
    if w.mutant == "sweeps_unasked":
        return True
    record = w.records.get(version.id)
    return record is not None and record.clean and version.ver < record.version.ver <= top.ver


def _is_flipped(w: World, version: Version) -> bool:
    record = w.records.get(version.id)
    return record is not None and (record.version != version or bool(record.pack))


def _bury(w: World, row: Row, keep: set[Row]) -> Process:
    """Delete an old tombstone, if a LIST of the module shows nothing else."""
    version = row.version
    yield
    others = {s for s in w.singles if s.id == version.id} - {version}
    if w.now - w.made_at[version] > GRACE and version.id not in w.records and not others:
        w.singles.discard(version)
        keep.discard(row)
        if w.kept.get(version.id) == version:
            del w.kept[version.id]
            w.buried[version.id] = version


def sweep_all(w: World) -> Process:
    """The rare sweep with a LIST of everything: what is not in the manifest gets a row, and rows without an object go."""
    yield
    got = yield from _gather(w, sorted(w.files))
    rows = set().union(*got.values())
    yield
    there = set(w.singles)
    keep = {row for row in rows if row.pack or row.version in there or row.version.deleted}
    keep |= {Row(version) for version in there}
    yield from _replace(w, got, keep)


# -- packs -------------------------------------------------------------------------------------------------------------


def pack(w: World) -> Process:
    """Pack some versions: the pack, its rows, the references of the records, and only then the single objects go."""
    yield
    rows = {row for row in w.rows() if not row.pack and not row.version.deleted}
    chosen = [row.version for row in sorted(rows) if row.version in w.singles][:4]
    if len(chosen) < 2:
        return
    members = frozenset(chosen[1:] if w.mutant == "forgets_member" else chosen)
    name = f"pack-{next(w.names)}"
    yield
    w.packs[name] = members
    if w.mutant != "no_run":
        yield
        w.put_file("run", {Row(version, name) for version in chosen})
    for version in chosen:
        yield
        record = w.records.get(version.id)
        if record and (record.version == version or w.mutant == "flips_blindly") and record.clean:
            w.records[version.id] = record._replace(pack=name)
            if w.mutant == "flips_blindly":
                w.singles.discard(record.version)
    for version in chosen:
        yield
        if w.mutant == "no_run" or _listed_packed(w, version):
            w.singles.discard(version)


def _listed_packed(w: World, version: Version) -> bool:
    return any(row.version == version and version in w.packs.get(row.pack, ()) for row in w.rows())


# -- readers -----------------------------------------------------------------------------------------------------------


def read_manifest(w: World) -> Process:
    """A reader of the manifest: LIST, GET each; where one is gone, LIST again."""
    for _ in range(50):
        must = {r.version for r in w.records.values() if r.clean and r.version not in w.unlisted}
        yield
        names = sorted(w.files)
        got = yield from _gather(w, names)
        if len(got) < len(names) and w.mutant != "no_second_list":
            continue
        best = greatest(set().union(*got.values()))
        for version in must:
            found = best.get(version.id)
            buried = version.id not in w.records
            if (found is None or found.version.ver < version.ver) and not buried:
                raise Violation(f"M3: a reader of the manifest missed {version}")
        w.complete_reads += 1
        return


def rescue(w: World) -> Process:
    """After a loss: the single objects by LIST, then the packed ones by the manifest; the greatest is adopted."""
    incarnation = w.incarnation
    found: set[Row] = set()
    if w.mutant != "rescue_without_list":
        for id in w.ids:
            yield
            found |= {Row(version) for version in w.singles if version.id == id}
    while True:
        yield
        names = sorted(w.files)
        got = yield from _gather(w, names)
        if len(got) == len(names):
            break
    rows: set[Row] = set().union(*got.values())
    found |= {row for row in rows if row.pack or w.mutant == "rescue_without_list"}
    missing = {row for row in greatest(found).values() if row not in rows}
    if missing and w.mutant != "adopts_unlisted":
        yield
        w.put_file("seg", missing)
    for row in greatest(found).values():
        yield
        if w.incarnation == incarnation:
            w.apply(row.version, row.pack)
    yield
    if w.incarnation != incarnation:
        return
    w.rescues += 1
    for id, version in w.kept.items():
        record = w.records.get(id)
        if (record is None and not version.deleted) or (record is not None and record.version.ver < version.ver):
            raise Violation(f"M4: the rescue has lost {version}")


def verify(w: World) -> Process:
    """A read in a new epoch adopts what one LIST shows. It writes no row: a reader needs no right to write."""
    id = w.rng.choice(w.ids)
    yield
    found = [version for version in w.singles if version.id == id]
    yield
    if found:
        version = max(found, key=lambda version: version.ver)
        w.unlisted.add(version)
        w.apply(version)


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


BOUNDED = (write_back, write_back, durable, old_writer, rescue, verify)
"""What ends within the grace. All others may sleep for ever."""
UNBOUNDED = (compact, compact, sweep, sweep, sweep_all, pack, read_manifest, forget)


class _Live(NamedTuple):
    process: Process
    bounded: bool
    since: int
    pace: float


def walk(seed: int, mutant: str = "", *, burials: bool = False) -> World:
    """Run one random walk, with `burials` a long one of few kinds of steps on one module. Raises `Violation`."""
    w = World(seed, mutant, "a" if burials else "abc")
    bounded_kinds: tuple[Kind, ...] = (write_back,) if burials else BOUNDED
    others: tuple[Kind, ...] = (compact, sweep, sweep, forget) if burials else UNBOUNDED
    live: list[_Live] = []
    for w.now in range(1000 if burials else 400):
        if len(live) < (4 if burials else 6) and w.rng.random() < 0.5:
            bounded = w.rng.random() < (0.03 if burials else 0.45)
            kind = w.rng.choice(bounded_kinds if bounded else others)
            if not burials and w.rng.random() < 0.02:
                kind, bounded = lose, False
            live.append(_Live(kind(w), bounded, w.now, w.rng.choice((1, 1, 1, 0.05))))
        if mutant != "late_segment":
            live = [one for one in live if not one.bounded or w.now - one.since <= GRACE]
        if not live:
            continue
        (one,) = w.rng.choices(live, [one.pace for one in live])
        if w.rng.random() < 0.02:
            live.remove(one)  # it dies here
            continue
        try:
            next(one.process)
        except StopIteration:
            live.remove(one)
        w.check()
    return w
