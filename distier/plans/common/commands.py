"""The plain commands that plans are made of, with the values that their replies mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from distier.domain.keys import Shard
from distier.domain.module import Record, parse_record
from distier.domain.schema import SIZES, VERSION
from distier.effects import Command, Pipeline, Plan, collect
from distier.errors import Invalid

T = TypeVar("T")
_VERSION = tuple(name.encode() for name in VERSION)


def record_command(shard: Shard, id: str) -> Command[Record | None]:
    """Read a whole record. HGETALL is the fastest read that Redis has, and near caches can follow it."""
    return Command(shard, ("HGETALL", shard.module(id)), lambda fields: parse_record(id, fields))


def fields_command(shard: Shard, id: str) -> Command[dict[bytes, bytes]]:
    """Read a record without parsing it, for the hot path, where every microsecond counts."""
    return Command(shard, ("HGETALL", shard.module(id)), unparsed)


def version_command(shard: Shard, id: str) -> Command[dict[bytes, bytes]]:
    """Read the version and the tier of a record, without its content, as a part of the fields of `fields_command`."""

    def parse(values: Sequence[bytes | None]) -> dict[bytes, bytes]:
        return {name: value for name, value in zip(_VERSION, values, strict=True) if value is not None}

    return Command(shard, ("HMGET", shard.module(id), *VERSION), parse)


def frame_command(shard: Shard, id: str) -> Command[bytes | None]:
    """Read the frame of a warm module."""
    return Command(shard, ("GET", shard.frame(id)), unparsed)


def unparsed(reply: Any) -> Any:
    """Return a reply as it is."""
    return reply


def numbers(reply: Sequence[bytes | None]) -> list[int]:
    """Parse the reply to an `HMGET` of whole numbers; a missing field is 0."""
    return [int(n or 0) for n in reply]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split items into sequences of at most `size`."""
    return (items[i : i + size] for i in range(0, len(items), size))


def ids_of(shard: Shard, keys: Sequence[bytes]) -> Iterator[str]:
    """Return the ids of record keys. Keys that distier never wrote are skipped."""
    for key in keys:
        with suppress(Invalid):
            yield shard.id_of(key)


def server_ms(shard: Shard) -> Command[int]:
    """Read the server's clock, in ms since the Unix epoch."""
    return Command(shard, ("TIME",), lambda t: int(t[0]) * 1000 + int(t[1]) // 1000)


def eviction_command(shard: Shard) -> Command[tuple[str, bool]]:
    """Read the eviction policy of a shard, and whether the order of eviction is that of ranks."""
    return Command(shard, ("HMGET", shard.epoch, "eviction", "ranked"), _eviction)


def _eviction(values: Sequence[bytes | None]) -> tuple[str, bool]:
    policy = (values[0] or b"lru").decode()
    return policy, policy != "lru" and bool(values[1])


def scores(reply: Sequence[Any]) -> list[tuple[str, float]]:
    """Return the members and scores of a sorted set: RESP3 replies with pairs, RESP2 with a flat list."""
    pairs = reply if reply and isinstance(reply[0], list | tuple) else list(zip(reply[::2], reply[1::2], strict=True))
    return [(member.decode(errors="replace"), float(score)) for member, score in pairs]


def sizes_command(shard: Shard, id: str) -> Command[Record | None]:
    """Read a record without its content and descriptions: what the choice of victims needs."""

    def parse(values: Sequence[bytes | None]) -> Record | None:
        fields = {name.encode(): v for name, v in zip(SIZES, values, strict=True) if v is not None}
        return parse_record(id, fields)

    return Command(shard, ("HMGET", shard.module(id), *SIZES), parse)


def read_records(shard: Shard, ids: Sequence[str], command: Callable[[Shard, str], Command[Any]]) -> Plan[list[Record]]:
    """Read several records in one round trip; ids without a record are left out."""
    if not ids:
        return []
    replies = yield from Pipeline([command(shard, id) for id in ids])
    return [record for record in map(collect, replies) if record is not None]
