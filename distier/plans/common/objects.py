"""Reading the content of an archived version: from an object of its own, or from a pack."""

from __future__ import annotations

from collections.abc import Mapping

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.module import Record
from distier.domain.packs import Pack, member_name, parse_reference, read_member, read_members
from distier.effects import ArchiveGet, Count, Offload, Plan
from distier.errors import Corrupt
from distier.plans.common.content import UNPACKING, check_content
from distier.plans.common.namespace import Namespace

PACK_OBJECT_BYTES_MAX = 64 << 20
"""What no pack comes near: it bounds what a foreign object with the name of a pack can cost."""


def read_archived(space: Namespace, record: Record) -> Plan[bytes | None]:
    """Return the checked content of a version, from the object or the pack that its record names; None if that is gone.

    Raises `ArchiveUnavailable`, and `Corrupt` if the content is not that of the record.
    """
    if record.archived_key is not None and (pack := parse_reference(record.id, record.archived_key)):
        content = yield from _from_pack(space, record, pack)
        return None if content is None else check_content(record, content, "packed")
    key = record.archived_key or names.content_key(space.namespace, record)
    got = yield from ArchiveGet(key, max_bytes=record.size_bytes + record.size_bytes // 2 + 4096)
    if got is None:
        return None
    data = got.data
    yield Count("archive.bytes_read", len(data))
    try:
        content = yield from Offload(
            record.size_bytes * 4, lambda: codec.decompress_xz(data, max_bytes=record.size_bytes), UNPACKING
        )
    except Corrupt as e:
        raise Corrupt(f"the archived object {key!r} of module {record.id!r} is damaged: {e}") from e
    return check_content(record, content, "archived")


def _from_pack(space: Namespace, record: Record, pack: Pack) -> Plan[bytes | None]:
    key = names.content_key(space.namespace, record)
    name = member_name(key.removeprefix(names.modules_prefix(space.namespace)))
    try:
        known = space.process.packs.get(pack.key(space.namespace))
        if known is not None:
            return ((yield from members_of(space, pack)) or {}).get(name)
        data = yield from _get_pack(space, pack)
        if data is None:
            return None
        # The next reader of this pack unpacks all of it; most packs are read once.
        return (yield from Offload(len(data) * 8, lambda: read_member(data, name), UNPACKING))
    except Corrupt as e:
        raise Corrupt(f"pack {pack.key(space.namespace)!r} with module {record.id!r} is damaged: {e}") from e


def members_of(space: Namespace, pack: Pack) -> Plan[Mapping[str, bytes] | None]:
    """Return the contents of all members of a pack by their names; None if it is gone. Raises `Corrupt`."""
    key = pack.key(space.namespace)
    known = space.process.packs.get(key)
    data = known if known is not None else (yield from _get_pack(space, pack))
    if data is None or not isinstance(data, bytes):
        return data
    packed = data
    members = yield from Offload(len(packed) * 8, lambda: dict(read_members(packed)), UNPACKING)
    space.process.packs.put(key, members)
    return members


def _get_pack(space: Namespace, pack: Pack) -> Plan[bytes | None]:
    key = pack.key(space.namespace)
    got = yield from ArchiveGet(key, max_bytes=PACK_OBJECT_BYTES_MAX)
    if got is None:
        return None
    yield from Count("archive.bytes_read", len(got.data))
    space.process.packs.put(key, got.data)
    return got.data
