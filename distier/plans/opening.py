"""Opening a namespace: its shape is checked, its limits are stored, and a new shard gets an epoch.

An epoch is claimed by writing `<ns>/epochs/@<number>-<tok8>` into the archive, above the greatest that is there, and
only then installed in Redis. So a Redis that lost everything never continues an order that already exists in the
archive: whatever it writes comes after.
"""

from __future__ import annotations

import re

from distier.domain.keys import Shard
from distier.effects import ArchiveList, ArchivePut, NewToken, Plan
from distier.errors import Unavailable
from distier.lua import open_shard

from .space import Space


def open_space(space: Space) -> Plan[list[int]]:
    """Open every shard; their epochs. Raises `Invalid` where the namespace has another shape than configured."""
    epochs = []
    for shard in space.keys.shards:
        epochs.append((yield from _open(space, shard)))  # noqa: PERF401 - no yield in a comprehension
    return epochs


def _open(space: Space, shard: Shard) -> Plan[int]:
    opened = yield from open_shard(shard, space.limits)
    if opened is None:
        epoch = yield from _claim(space, shard)
        opened = yield from open_shard(shard, space.limits, epoch=epoch)
    if opened is None:
        raise Unavailable(f"shard {shard.index} of namespace {shard.namespace!r} lost its epoch while it was opened")
    return opened.epoch


def _claim(space: Space, shard: Shard) -> Plan[int]:
    prefix = f"{space.namespace}/epochs/{shard.index}/@"
    greatest, after = 0, ""
    while True:
        page = yield from ArchiveList(prefix, start_after=after)
        for entry in page:
            found = re.fullmatch(r"@(\d{8})-[0-9a-f]{8}", entry.key.rpartition("/")[2])
            greatest = max(greatest, int(found[1])) if found else greatest
        if not page:
            break
        after = page[-1].key
    epoch, tok = greatest + 1, (yield from NewToken())
    yield from ArchivePut(f"{prefix}{epoch:08d}-{tok[:8]}", b"", "application/octet-stream", {})
    return epoch
