"""Scripts for puts and deletes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.domain.order import Order
from distier.effects import Arg, RunScript, Sending
from distier.lua.loader import script
from distier.lua.replies import (
    Deleted,
    Move,
    Over,
    Put,
    Refused,
    Replayed,
    move_args,
    move_keys,
    over_of,
    pairs_of,
    refused_of,
    version_of,
    word_of,
)


class Write(NamedTuple):
    """One version to put, in the order of the script's arguments.

    `fields` is a flat list of names and values. A version for hot has its `content` among them, and a version for warm has a
    `frame`, which is otherwise empty. `epoch` and `ver` are the reserved position of a version that is in the archive already,
    and otherwise empty.
    """

    id: str
    write_id: str
    tier: str
    expected: str
    epoch: int | str
    ver: int | str
    archived_bytes: int
    tokens: int
    size_bytes: int
    frame: bytes
    fields: tuple[Arg, ...]


Written = Put | Replayed | Refused | Over


def put(
    shard: Shard, id: str, write_id: str, *, tier: str, expected: str, tokens: int, size_bytes: int, body: bytes,
    codec: str, fields: Sequence[Arg], moves: Sequence[Move] = (), reserved: tuple[int, int] | None = None,
    archived_bytes: int = 0, sending: Sending | None = None,
) -> RunScript[Written]:  # fmt: skip
    """Write a version.

    `body` is the content (for hot) or the frame (for warm); `fields` is a flat list of names and values. With `reserved` the
    version is in the archive already, at that position (epoch, ver), which the write `write_id` holds.
    """
    epoch, ver = reserved or ("", "")
    more: tuple[Arg, ...] = ("content", body) if tier == "hot" else ("codec", codec) if tier == "warm" else ()
    frame = body if tier == "warm" else b""
    write = Write(id, write_id, tier, expected, epoch, ver, archived_bytes, tokens, size_bytes, frame, (*fields, *more))
    return RunScript(
        shard, script("put"), *_keys_and_args(shard, (write,), moves), lambda reply: _parse_all(reply)[0],
        sending=sending or Sending(),
    )  # fmt: skip


def put_many(shard: Shard, writes: Sequence[Write], sending: Sending | None = None) -> RunScript[list[Written]]:
    """Write versions of different modules in one step of the server. There is one result for each.

    A version that has no room has the result `Over`; the others are written.
    """
    return RunScript(shard, script("put"), *_keys_and_args(shard, writes, ()), _parse_all, sending=sending or Sending())


def _keys_and_args(
    shard: Shard, writes: Sequence[Write], moves: Sequence[Move]
) -> tuple[tuple[str, ...], tuple[Arg, ...]]:
    keys, args = list(shard.fixed), list[Arg]([len(writes)])
    for write in writes:
        keys += (shard.module(write.id), shard.frame(write.id), shard.done)
        fields = write.fields
        args += write[:-1]
        args.append(len(fields) // 2)
        args += fields
    return (*keys, *move_keys(shard, moves)), (*args, *move_args(moves))


def _parse_all(reply: Any) -> list[Written]:
    word_of(reply)
    return [_parse_written(one) for one in reply[1:]]


def _parse_written(reply: Any) -> Written:
    word = reply[0]
    if word == b"OK":
        return Put(int(reply[1]), int(reply[2]), int(reply[3]))
    if word == b"REPLAYED":
        return Replayed(*version_of(reply[1]), reply[2].decode())
    return over_of(reply) if word == b"OVER" else refused_of(word.decode(), reply)


def delete(
    shard: Shard, id: str, write_id: str, expected: str = "", reserved: tuple[int, int] | None = None,
    sending: Sending | None = None,
) -> RunScript[Deleted | Refused]:  # fmt: skip
    """Delete a module. With `reserved`, the tombstone is in the archive already, at that position (epoch, ver)."""

    def parse(reply: Any) -> Deleted | Refused:
        word = word_of(reply)
        if word in ("OK", "REPLAYED", "GONE"):
            existed = None if len(reply) > 2 else word != "GONE"
            return Deleted(Order(*version_of(reply[1]), write_id), existed)
        if word == "SUPERSEDED" and reply[2] == b"1":
            word = "DELETED_SINCE"
        return refused_of(word, reply)

    keys = (*shard.fixed, *pairs_of(shard, [id]), shard.done)
    args = (id, write_id, expected, *(reserved or ("", "")))
    return RunScript(shard, script("delete"), keys, args, parse, sending=sending or Sending())
