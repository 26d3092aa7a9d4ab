"""Packs as the archive lists them, and the rows of their indexes (`domain/packs.py` has the format and the order of copies)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from distier.domain import archived as objects
from distier.domain import manifest as names
from distier.domain.content_types import type_for_extension
from distier.domain.keys import Shard
from distier.domain.manifest import Row
from distier.domain.objects import Listed
from distier.domain.packs import Index, Pack, directories_of, module_path, packs_prefix, parse_content, parse_index
from distier.effects import ArchiveGet, ArchiveList, Count, Offload, Parallel, Pipeline, Plan, collect
from distier.errors import ArchiveUnavailable, Corrupt, Invalid
from distier.lua import Reference, refer
from distier.plans.common.commands import chunks
from distier.plans.common.content import count_tokens
from distier.plans.common.namespace import Namespace
from distier.plans.common.objects import PACK_OBJECT_BYTES_MAX, members_of
from distier.plans.recovery.manifest import RELISTS_MAX, list_rows

KEYS_A_PAGE = 1000
TOGETHER = 32
REFERENCES_A_CALL = 100


def has_modules(space: Namespace) -> Plan[bool]:
    """Return whether the archive has any version, as an object of its own or in a pack."""
    # In this order: what is packed meanwhile is in a pack then.
    return bool((yield from ArchiveList(objects.modules_prefix(space.namespace), limit=1))) or bool(
        (yield from ArchiveList(packs_prefix(space.namespace), limit=1))
    )


def list_packs(space: Namespace, path: str | None = None) -> Plan[list[Index]]:
    """List the packs: all, or those that may have the module with this path, in the order of copies.

    An index without its pack counts: somebody has deleted the pack, and what it had must not seem never to have existed. Who
    deletes a copy because of another one asks for a `whole` pack.

    One request suffices for a namespace with up to 500 packs (a gigabyte of contents); otherwise one for each directory above
    the module.
    """
    prefix = packs_prefix(space.namespace)
    page = yield from ArchiveList(prefix, limit=KEYS_A_PAGE)
    listed = list(page)
    if len(page) == KEYS_A_PAGE:
        if path is None:
            listed += yield from _list_from(prefix, page[-1].key)
        else:
            listed = []
            for directory in directories_of(path):
                listed += yield from _list_from(f"{prefix}{directory}@", "")
    found = _indexes(space, listed)
    if path is not None:
        found = [index for index in found if index.may_have(path)]
    contents = {pack for entry in listed if (pack := parse_content(space.namespace, entry.key))}
    found = [index._replace(whole=index.pack in contents) for index in found]
    return sorted(found, key=lambda index: index.pack.place)


def list_contents(space: Namespace) -> Plan[list[tuple[Pack, Listed]]]:
    """List the packs themselves, whether or not they have an index."""
    listed = yield from _list_from(packs_prefix(space.namespace), "")
    return [(pack, entry) for entry in listed if (pack := parse_content(space.namespace, entry.key))]


def _list_from(prefix: str, after: str) -> Plan[list[Listed]]:
    found: list[Listed] = []
    while page := (yield from ArchiveList(prefix, start_after=after, limit=KEYS_A_PAGE)):
        found += page
        after = page[-1].key
    return found


def _indexes(space: Namespace, page: Sequence[Listed]) -> list[Index]:
    return [index for entry in page if (index := parse_index(space.namespace, entry))]


def read_index(space: Namespace, index: Index) -> Plan[bytes | None]:
    """Return an index, which is a file of rows; None if it is gone, because the pack was replaced.

    One that is damaged is made again from its pack. Raises `ArchiveUnavailable` where that is damaged too: nobody knows then
    which modules it has.
    """
    known = space.process.indexes.get(index.key)
    if known is not None:
        return known
    try:
        got = yield from ArchiveGet(index.key, max_bytes=PACK_OBJECT_BYTES_MAX)
        if got is None:
            return None
        data = got.data
        yield from Offload(len(data), lambda: names.check_file(index.key, data), "reading the index of a pack")
    except Corrupt:
        yield from Count("packs.damaged")
        data = names.pack_rows((yield from _rows_of_members(space, index)))
    space.process.indexes.put(index.key, data)
    return data


def _rows_of_members(space: Namespace, index: Index) -> Plan[list[Row]]:
    """Describe the members of a pack by their names and contents: all but keywords and meta."""
    try:
        members = yield from members_of(space, index.pack)
        if members is None:
            raise Corrupt(f"there is no pack {index.pack.key(space.namespace)}")
    except Corrupt as e:
        raise ArchiveUnavailable(
            f"the index {index.key} and its pack are damaged ({e!s:.100}), so it is not known which modules they have; restore "
            "one of them from a backup, or delete both"
        ) from e
    rows: list[Row] = []
    for name, content in members.items():
        found = objects.parse_key(f"{objects.modules_prefix(space.namespace)}{name}.xz")
        try:
            id = "" if found is None else objects.id_of(space.namespace, found.directory)
        except Invalid:
            continue
        if found is None:
            continue
        known = {
            "version": str(found.order), "tok": found.order.write_id, "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": str(len(content)), "tokens": str((yield from count_tokens(space, content))),
            "counter": space.counter.name, "type": type_for_extension(found.extension),
        }  # fmt: skip
        row = names.row_of_description(space.namespace, found.key, id, known, 0)
        rows.append(row.packed(index.pack, 0))
    return rows


def read_indexes(space: Namespace, indexes: Sequence[Index]) -> Plan[dict[str, bytes] | None]:
    """Return several indexes by key; None where one is gone."""
    found: dict[str, bytes] = {}
    for some in chunks(indexes, TOGETHER):
        for index, result in zip(
            some, (yield from Parallel([read_index(space, index) for index in some])), strict=True
        ):
            data = collect(result)
            if data is None:
                yield from Count("packs.relisted")
                return None
            found[index.key] = data
    return found


def open_packs(space: Namespace, except_for: frozenset[Pack] = frozenset()) -> Plan[dict[Index, bytes]]:
    """Return the indexes of all packs but some. Raises `ArchiveUnavailable`."""
    for _ in range(RELISTS_MAX):
        listed = [index for index in (yield from list_packs(space)) if index.pack not in except_for]
        found = yield from read_indexes(space, listed)
        if found is not None:
            return {index: found[index.key] for index in listed}
    raise ArchiveUnavailable(f"the packs of namespace {space.namespace!r} keep changing; try again")


def refer_to_packs(space: Namespace, rows: Iterable[Row]) -> Plan[None]:
    """Let the records of these versions name the packs that have them. Raises `Unavailable`."""
    by_shard: dict[Shard, list[Reference]] = {}
    for row in rows:
        found, pack = row.object(space.namespace), row.pack
        if found is not None and pack is not None:
            reference = Reference(row.id, found.order, pack.reference(row.id), row.archived_bytes)
            by_shard.setdefault(space.shard(row.id), []).append(reference)
    calls = [refer(shard, some) for shard, mine in by_shard.items() for some in chunks(mine, REFERENCES_A_CALL)]
    for reply in (yield from Pipeline(calls)) if calls else ():
        collect(reply)


def announce(space: Namespace, rows: Sequence[Row]) -> Plan[None]:
    """List versions in packs in the manifest, and let their records name the packs. Raises `Unavailable`.

    Whoever deletes a copy because of one in a pack does this first: a sweep of the manifest drops the rows of a copy that is
    gone.
    """
    by_shard: dict[Shard, list[Row]] = {}
    for row in rows:
        by_shard.setdefault(space.shard(row.id), []).append(row)
    for shard, mine in by_shard.items():
        yield from list_rows(space, shard, mine)
    yield from refer_to_packs(space, rows)


def packed_rows(space: Namespace, id: str) -> Plan[list[Row] | None]:
    """Return the rows of a module in packs; None where a pack was replaced meanwhile, so that all must be listed again."""
    found = yield from read_indexes(space, (yield from list_packs(space, module_path(id))))
    if found is None:
        return None
    return [row for data in found.values() for row in names.read_rows(data) if row.id == id]
