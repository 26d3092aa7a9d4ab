"""Read what modules are, without their contents: this counts as no use and moves nothing."""

from __future__ import annotations

from collections.abc import Sequence

from distier.domain.described import DESCRIBED, Described, described
from distier.domain.keys import Shard
from distier.domain.module import Record, parse_record
from distier.effects import Command, Pipeline, Plan, collect
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.adopt import known_of, settle_records

_NAMES = tuple(name.encode() for name in DESCRIBED)


def described_command(shard: Shard, id: str) -> Command[Record | None]:
    """Read a record without its content, outline and copies."""

    def parse(values: Sequence[bytes | None]) -> Record | None:
        return parse_record(id, {name: v for name, v in zip(_NAMES, values, strict=True) if v is not None})

    return Command(shard, ("HMGET", shard.module(id), *DESCRIBED), parse)


def describe(space: Namespace, ids: Sequence[str]) -> Plan[dict[str, Described | None]]:
    """Return the descriptions of modules by id, None for those that do not exist: a round trip per 500.

    Raises `Corrupt` if one of the records is damaged.
    """
    found: dict[str, Described | None] = dict.fromkeys(ids)
    for chunk in chunks(list(found), 500):
        states, known = space.process.epochs, known_of(space, chunk)
        replies = yield from Pipeline([described_command(space.shard(id), id) for id in chunk])
        records = yield from settle_records(space, chunk, [collect(reply) for reply in replies], known, states)
        found |= {record.id: described(record) for record in records if record is not None}
    return found
