"""Model of packs: several versions in one object, which has an index. Requests are steps, as in `manifest.py`.

Rules that the walks check:

    a pack exists while its index is listed; the index is put after the pack, and deleted before it
    copies of a version are ordered: the single object, then packs of deeper directories, then packs by number
    a copy goes only because of a later one, or because the version is not needed; so the last one ever made stays
    a listing of a module looks in that order, so it meets a copy that moves while it runs
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

from .manifest import GRACE, Pack, Process, Row, Version, Violation, World, greatest, place

LEVELS = 3


def pack(w: World) -> Process:
    """Pack some single objects: the pack, its index, its rows, the references of the records, and only then the singles go."""
    yield
    rows = {row for row in w.rows() if row.pack is None and not row.version.deleted}
    if w.mutant != "packs_young":
        rows = {row for row in rows if w.now - w.made_at[row.version] > GRACE}  # a listing takes less time
    chosen = [row.version for row in sorted(rows, key=place) if row.version in w.singles][:4]
    if len(chosen) < 2:
        return
    made = yield from _make(w, chosen, [], w.rng.randrange(LEVELS))
    if made is None:
        return
    for version in chosen:
        yield
        if version in w.indexes.get(made, ()) or w.mutant == "forgets_member":
            w.singles.discard(version)


def _make(w: World, members: list[Version], inputs: list[Pack], up: int) -> Generator[None, None, Pack | None]:
    """Put a pack, its index and its rows, and refer the records to it."""
    numbers = [p.number for p in w.indexes]
    new = Pack(max([up, *(p.up for p in inputs)]), 1 + max([*numbers, 0]))
    while new in w.packs or new in w.packed_at:
        new = new._replace(number=new.number + 1)  # its token makes the name of a pack unique
    if inputs and w.mutant == "moves_down":
        new = new._replace(up=0)
    if inputs and w.mutant == "old_number":
        new = new._replace(number=min(p.number for p in inputs) - len(w.packed_at) - 1)
    began, content = w.now, frozenset(members[1:] if w.mutant == "forgets_member" else members)
    w.packed_at[new] = w.now
    if w.mutant == "index_first":
        yield
        w.indexes[new] = content
    yield
    w.packs[new] = content
    if w.mutant != "index_first":
        yield
        if w.now - began > GRACE and w.mutant != "late_index":
            return None  # a sweep may take the pack for one whose writer died
        w.indexes[new] = content
    yield
    if new not in w.indexes and w.mutant != "late_rows":
        return None  # rewritten already; no pause here: an upload takes less than the grace
    w.put_file("seg", {Row(version, new) for version in content})
    for version in content:
        yield
        record = w.records.get(version.id)
        if record and record.version == version and record.clean:
            w.records[version.id] = record._replace(pack=new)
    return new


def rewrite(w: World) -> Process:
    """Replace packs by one without the versions that nobody needs, nor those that a later pack has, as the manifest says."""
    yield
    rows, listed = w.rows(), dict(w.indexes)
    if not listed:
        return
    inputs = w.rng.sample(sorted(listed), w.rng.randrange(1, min(len(listed), 3) + 1))
    live: set[Version] = set()
    for one in inputs:
        for version in sorted(listed[one]):
            others = [p for p, members in listed.items() if version in members and p not in inputs]
            others = [p for p in others if Row(version, p) in rows or w.mutant == "copy_without_rows"]
            if any(p > one or w.mutant == "any_other_copy" for p in others):
                continue
            yield
            record = w.records.get(version.id)
            later = record is not None and record.clean and version.ver < record.version.ver
            if w.mutant == "rewrites_unasked":
                later = any(v.id == version.id and v.ver > version.ver for v in w.singles)
            if not later:
                live.add(version)
    if live:
        found: set[Version] = set()
        for one in inputs:
            yield
            found |= w.packs.get(one, frozenset())
        if not live <= found:
            return  # a rival has rewritten one of them
        made = yield from _make(w, sorted(live), inputs, 0)
        if made is None:
            return
        yield
        if made not in w.indexes:
            return
    w.rewritten += 1
    for one in inputs:
        yield
        w.indexes.pop(one, None)
        yield
        w.packs.pop(one, None)


def supersede(w: World) -> Process:
    """Delete packs whose members are all in later packs. Rows of the later copies come first: their packer may be between its
    index and its rows, or dead, and a sweep takes the rows of a pack that is gone for those of one that left newer rows."""
    yield
    indexes = {pack: members for pack, members in w.indexes.items() if pack in w.packs}
    for one in sorted(indexes):
        later = {version: max(p for p, members in indexes.items() if version in members) for version in indexes[one]}
        if one in later.values() or not later:
            continue
        yield
        if not set(later.values()) <= set(w.indexes) and w.mutant != "supersedes_late":
            continue  # they were replaced too; no pause here: an upload takes less than the grace
        if w.mutant != "supersedes_unlisted":
            w.put_file("seg", {Row(version, pack) for version, pack in later.items()})
        for version, pack in sorted(later.items()):
            yield
            record = w.records.get(version.id)
            if record and record.version == version and record.clean:
                w.records[version.id] = record._replace(pack=pack)
        yield
        w.indexes.pop(one, None)
        yield
        w.packs.pop(one, None)


# -- readers -----------------------------------------------------------------------------------------------------------


def list_module(w: World, id: str) -> Generator[None, None, set[Row]]:
    """LIST the single objects of a module, then the packs of each level, and GET their indexes. If one is gone, LIST again."""
    while True:
        found: set[Row] = set()
        if w.mutant != "packs_first":
            yield
            found |= {Row(version) for version in w.singles if version.id == id}
        gone = False
        for up in range(LEVELS):
            yield
            listed = [p for p in w.indexes if p.up == up]
            rows = yield from _indexes(w, listed)
            gone = gone or rows is None
            found |= {row for row in rows or () if row.version.id == id}
        if w.mutant == "packs_first":
            yield
            found |= {Row(version) for version in w.singles if version.id == id}
        if not gone or w.mutant == "passes_gone_index":
            return found


def _indexes(w: World, listed: Iterable[Pack]) -> Generator[None, None, set[Row] | None]:
    rows: set[Row] = set()
    gone = False
    for one in sorted(listed):
        yield
        if one in w.indexes:
            rows |= {Row(version, one) for version in w.indexes[one]}
        else:
            gone = True
    return None if gone and w.mutant != "passes_gone_index" else rows


def prove(w: World) -> Process:
    """Look for a module in the archive alone."""
    id = w.rng.choice(w.ids)
    clean, began = w.kept.get(id), w.now
    found = yield from list_module(w, id)
    if w.mutant != "one_look":  # a version that was put meanwhile may have replaced the one that a pack had
        yield
        found |= {Row(version) for version in w.singles if version.id == id}
    if w.now - began > GRACE:
        return  # a call ends at its deadline
    best = greatest(found).get(id)
    w.proofs += 1
    if clean and not clean.deleted and (best is None or best.version.ver < clean.ver):
        raise Violation(f"M6: a listing of the module missed {clean}")


def read(w: World) -> Process:
    """Read a clean version: where the record says, else where a listing shows it, as long as the record stays."""
    id = w.rng.choice(w.ids)
    for _ in range(50):
        yield
        record = w.records.get(id)
        if record is None or not record.clean or record.version.deleted:
            return
        yield
        there = w.singles if record.pack is None else w.packs.get(record.pack, frozenset())
        if record.version in there:
            w.from_packs += record.pack is not None
            return
        if w.mutant != "reads_once":
            for row in (yield from list_module(w, id)):
                if row.version == record.version:
                    yield
                    if row.version in (w.singles if row.pack is None else w.packs.get(row.pack, frozenset())):
                        w.from_packs += row.pack is not None
                        return
        yield
        if w.records.get(id) == record and not w.exists(record.version):
            raise Violation(f"M7: {record.version} is clean and cannot be read")
        if w.mutant == "reads_once" and w.records.get(id) == record:
            raise Violation(f"M7: {record.version} is reported as lost")


def rescue(w: World) -> Process:
    """After a loss: the packs, then the single objects by LIST, then what was packed meanwhile; the greatest is adopted."""
    incarnation = w.incarnation
    found: set[Row] = set()
    while True:
        yield
        first = set(w.indexes)
        packed = yield from _indexes(w, first)
        if packed is not None:
            break
    if w.mutant != "rescue_without_list":
        for id in w.ids:
            yield
            found |= {Row(version) for version in w.singles if version.id == id}
    while True:
        yield
        names = sorted(w.files)
        got = {name: w.files[name] for name in names}
        if len(got) == len(names):
            break
    rows: set[Row] = set().union(*got.values())
    found |= packed | ({row for row in rows if w.mutant == "rescue_without_list"})
    while w.mutant != "no_late_look":
        yield
        late = yield from _indexes(w, set(w.indexes) - first)
        if late is not None:
            found |= late
            break
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
    """A read in a new epoch adopts what a listing of the module shows. It writes no row: a reader needs no right to write."""
    id = w.rng.choice(w.ids)
    found = yield from list_module(w, id)
    yield
    row = greatest(found).get(id)
    if row is not None:
        w.unlisted.add(row.version)
        w.apply(row.version, row.pack)
