"""The plain commands that plans are made of, with the values that their replies mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from distier.domain.keys import Shard
from distier.domain.module import Record, parse_record
from distier.effects import Command, Pipeline, Plan, collect

T = TypeVar("T")


def record_command(shard: Shard, id: str) -> Command[Record | None]:
    """A plain read of the whole record: the fastest that Redis has, and one that near caches can follow."""
    return Command(shard, ("HGETALL", shard.module(id)), lambda fields: parse_record(id, fields))


def fields_command(shard: Shard, id: str) -> Command[dict[bytes, bytes]]:
    """The same, unparsed, for the one place where every microsecond counts."""
    return Command(shard, ("HGETALL", shard.module(id)), _same)


def frame_command(shard: Shard, id: str) -> Command[bytes | None]:
    return Command(shard, ("GET", shard.frame(id)), _same)


def _same(reply: Any) -> Any:
    return reply


def numbers(reply: Sequence[bytes | None]) -> list[int]:
    """What `HMGET` answers where all fields are whole numbers; 0 for those that are not there."""
    return [int(n or 0) for n in reply]


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def server_ms(shard: Shard) -> Command[int]:
    return Command(shard, ("TIME",), lambda t: int(t[0]) * 1000 + int(t[1]) // 1000)


_SIZES = ("tier", "epoch", "ver", "tok", "bytes", "tokens", "clean", "frame_bytes")


def sizes_command(shard: Shard, id: str) -> Command[Record | None]:
    """A record without content and descriptions, for choosing only."""

    def parse(values: Sequence[bytes | None]) -> Record | None:
        fields = {name.encode(): v for name, v in zip(_SIZES, values, strict=True) if v is not None}
        return parse_record(id, fields)

    return Command(shard, ("HMGET", shard.module(id), *_SIZES), parse)


def read_records(shard: Shard, ids: Sequence[str], command: Callable[[Shard, str], Command[Any]]) -> Plan[list[Record]]:
    if not ids:
        return []
    replies = yield from Pipeline([command(shard, id) for id in ids])
    return [record for record in map(collect, replies) if record is not None]
