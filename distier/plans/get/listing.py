"""Listings in the order of the bytes of the ids: pages from the index of ids, each bounded work at any size.

A page is complete: it has each module with the prefix that existed all the time, between the id that it began after and the one
that continues it. So the shards must be compared with the archive, and their epochs must be the same before and after the page
was read: a primary that lost its data has an index without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from distier.domain.described import Described, Listed, described
from distier.domain.module import TIERS, Tier
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import ArchiveUnavailable, DeadlineExceeded, Invalid, Recovering
from distier.lua import state
from distier.plans.common.clock import expiry_of, has_expired, unexpired
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.plans.get.browse import next_ids
from distier.plans.get.describe import described_command
from distier.plans.recovery.rescue import rescue_if_needed

T = TypeVar("T")
LIMIT_MAX = 1000
LOOKED_MAX = 2000
"""How many ids one page looks at, at most. A page that filters may have fewer rows, and continues where it stopped."""
REREADS_MAX = 8


class Part(NamedTuple, Generic[T]):
    """A part of a listing. `after` continues it; None at the end."""

    rows: list[T]
    after: str | None


def complete(space: Namespace) -> Plan[None]:
    """Make sure that every archived module has a record, as far as the archive can be read.

    After a loss of Redis some have none until a rescue, and a listing would silently lack them. Raises `Recovering` where
    the rescue takes longer than this call has time for.
    """
    try:
        yield from rescue_if_needed(space)
    except (ArchiveUnavailable, DeadlineExceeded) as e:
        raise Recovering(
            f"Redis was restarted or lost, and namespace {space.namespace!r} has not been compared with its archive yet, so a "
            "listing might lack modules. Run `distier rescue` or a worker"
        ) from e


def list_page(space: Namespace, prefix: str, after: str, limit: int, tier: Tier | None = None) -> Plan[Listed]:
    """Return the descriptions of the modules after the id `after` that have this prefix.

    Raises:
        Invalid: an argument is impossible.
        Recovering: the namespace could not be compared with its archive in time, or is being migrated.
    """

    def read(ids: Sequence[str]) -> Plan[list[Described | None]]:
        replies = yield from Pipeline([described_command(space.shard(id), id) for id in ids])
        records = yield from unexpired(space, [collect(reply) for reply in replies])
        return [None if record is None or record.deleted else described(record) for record in records]

    modules, following = yield from _page(space, (prefix, after, limit, tier), read, lambda module: module.tier)
    return Listed(tuple(modules), following)


def list_ids(
    space: Namespace, prefix: str, after: str, limit: int, tier: Tier | None = None
) -> Plan[Part[tuple[str, Tier]]]:
    """Return (id, tier) of these modules. Raises as `list_page`."""

    def read(ids: Sequence[str]) -> Plan[list[tuple[str, Tier] | None]]:
        calls = [
            Command(shard, ("HMGET", shard.module(id), "tier", "updated", "ttl"), _tier_and_expiry)
            for id in ids
            for shard in [space.shard(id)]
        ]
        found: list[tuple[str, Tier] | None] = []
        for id, reply in zip(ids, (yield from Pipeline(calls)), strict=True):
            tier, expires_ms = collect(reply)
            gone = tier is None
            if expires_ms is not None:
                gone = gone or (yield from has_expired(space, space.shard(id), expires_ms))
            found.append(None if gone else (id, tier))
        return found

    return (yield from _page(space, (prefix, after, limit, tier), read, lambda pair: pair[1]))


def all_ids(space: Namespace, prefix: str, limit: int) -> Plan[list[str]]:
    """Return the ids with this prefix in order, at most `limit`. Raises as `list_page`."""
    found: list[str] = []
    after: str | None = ""
    while after is not None and len(found) < limit:
        pairs, after = yield from list_ids(space, prefix, after, min(LIMIT_MAX, limit - len(found)))
        found += [id for id, _ in pairs]
    return found


def check_listing(prefix: str, after: str, limit: int | None, tier: str | None, limit_min: int = 0) -> None:
    """Raise `Invalid` for impossible arguments of a listing."""
    if tier is not None and tier not in TIERS:
        raise Invalid(f"tier must be hot, warm or cold, not {tier!r}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < limit_min):
        raise Invalid(f"limit must be a whole number from {limit_min}, not {limit!r}")
    for name, text in (("prefix", prefix), ("after", after)):
        if not isinstance(text, str):
            raise Invalid(f"{name} must be a str, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise Invalid(f"{name} has a lone surrogate, so it is not valid UTF-8") from e


_Asked = tuple[str, str, int, Tier | None]


def _page(
    space: Namespace, asked: _Asked, read: Callable[[Sequence[str]], Plan[list[T | None]]], tier_of: Callable[[T], str]
) -> Plan[Part[T]]:
    prefix, after, limit, tier = asked
    check_listing(prefix, after, limit, tier, 1)
    for _ in range(REREADS_MAX):
        before = yield from _epochs(space)
        if before is None:
            yield from complete(space)
            continue
        rows, looked, last, more = list[T](), 0, after, True
        while more and len(rows) < limit and looked < LOOKED_MAX:
            step = min(limit - len(rows) if tier is None else LIMIT_MAX, LOOKED_MAX - looked)
            ids, more = yield from next_ids(space, prefix, last, step)
            for part in chunks(ids, 500):
                for id, row in zip(part, (yield from read(part)), strict=True):
                    if len(rows) == limit:
                        more = True
                        break
                    looked, last = looked + 1, id
                    if row is not None and tier in (None, tier_of(row)):
                        rows.append(row)
        if (yield from _epochs(space)) == before:
            return Part(rows, last if more else None)
    raise Recovering(
        f"namespace {space.namespace!r} keeps changing its primary, so a listing might lack modules; retry"
    )


def _epochs(space: Namespace) -> Plan[list[int] | None]:
    """Return the epochs of the shards; None if one was not compared with the archive in its epoch."""
    shards = space.keys.shards
    looks: list[Command[Any]] = [Command(shard, ("HEXISTS", shard.epoch, "migrating"), bool) for shard in shards]
    replies = [collect(r) for r in (yield from Pipeline([*(state(shard) for shard in shards), *looks]))]
    states, migrating = replies[: len(shards)], replies[len(shards) :]
    if any(migrating):
        raise Recovering(
            f"namespace {space.namespace!r} is being migrated, so its index of ids is not complete; run `distier migrate`, "
            "and retry"
        )
    return [found.epoch for found in states] if all(found.verified >= found.epoch for found in states) else None


def _tier_and_expiry(values: Sequence[bytes | None]) -> tuple[Tier | None, int | None]:
    text = (values[0] or b"").decode(errors="replace")
    return next((tier for tier in TIERS if tier == text), None), expiry_of(*values[1:])
