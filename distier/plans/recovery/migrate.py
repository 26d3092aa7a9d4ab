"""Migrating a shard to another layout of its keys, step by step, while clients of the new layout work.

    begin    the shard's `layout` becomes the new number, and `migrating` the old one: from here every script refuses clients
             that know only the old layout
    steps    the records are changed, some at a time, by a plan that may run twice over the same ones
    end      `migrating` goes

A stop at any line is safe: where `migrating` is set, the next run starts again with the first record. Records that are
written meanwhile have the new layout already, and a migration must pass over them. A new layout is a row in
`MIGRATIONS`, and the number in `domain/schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from distier.domain.keys import Shard
from distier.domain.schema import LAYOUT
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import Invalid
from distier.lua import enlist
from distier.plans.common.commands import chunks, ids_of


class Migration(NamedTuple):
    """How the records of one layout become those of the next. `step` takes the ids of some records."""

    to: int
    step: Callable[[Shard, Sequence[str]], Plan[None]]


def _enlist(shard: Shard, ids: Sequence[str]) -> Plan[None]:
    """Add records of layout 1 to the index of ids. Their frames stay readable, and the other new fields come with moves."""
    for reply in (yield from Pipeline([enlist(shard, part) for part in chunks(ids, 100)])):
        collect(reply)


MIGRATIONS: Mapping[int, Migration] = {1: Migration(2, _enlist)}
"""By the layout that a migration starts from. Layout 1 is the first."""

KEYS_A_STEP = 1000


def migrate(shard: Shard, migrations: Mapping[int, Migration] = MIGRATIONS, target: int = LAYOUT) -> Plan[int]:
    """Bring a shard to the layout `target`.

    Returns:
        The number of records that the steps looked at; 0 where the shard had the layout already.

    Raises:
        Invalid: the shard has a newer layout, or no migration starts from its layout.
    """
    looked_at = 0
    while True:
        layout, migrating = yield from Command(shard, ("HMGET", shard.epoch, "layout", "migrating"), _numbers)
        source = migrating or layout
        if source in (0, target):  # 0: nobody has opened it yet
            return looked_at
        if source > target or source not in migrations:
            raise Invalid(
                f"namespace {shard.namespace!r} has key layout {source}, and this distier cannot bring it to layout {target}: "
                "use the version of distier that wrote it"
            )
        migration = migrations[source]
        begin = ("HSET", shard.epoch, "layout", migration.to, "migrating", source)
        yield from Command(shard, begin, int)
        looked_at += yield from _all_records(shard, migration)
        yield from Command(shard, ("HDEL", shard.epoch, "migrating"), int)


def _all_records(shard: Shard, migration: Migration) -> Plan[int]:
    cursor = looked_at = 0
    while True:
        scan = ("SCAN", cursor, "MATCH", shard.module_pattern(""), "COUNT", KEYS_A_STEP)
        after, keys = yield from Command(shard, scan, lambda reply: reply)
        ids = list(ids_of(shard, keys))
        looked_at += len(ids)
        if ids:
            yield from migration.step(shard, ids)
        cursor = int(after)
        if not cursor:
            return looked_at


def _numbers(reply: Sequence[bytes | None]) -> tuple[int, int]:
    layout, migrating = reply
    return int(layout or 0), int(migrating or 0)
