"""Asking another node for its copy.

The nodes that hold a copy are a hint (`held:<node>`, a set for each shard and node), which is read in a pipeline that is
sent anyway. One of them is asked: by an entry in its list, with the reply in a list of a fresh name, so that no other reply
can be taken for it. The caller waits at most `warm.peer_timeout`, and does not ask a silent node again for ten seconds.
Where a node is silent, or has no copy any more, the archive is read. A copy from another node is checked like every copy.

    ask     ["skills/pdf", "<write id>", "copy", "<reply>"]     or "hot": promote it there, the content is not wanted
    reply   "=" codec, NUL, bytes     "^" it is hot now     "-" there is no such copy
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from zlib import crc32

from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.effects import HINT_S, Command, Count, NewToken, Offload, Peers, PeerSilent, Pipeline, Plan, collect
from distier.errors import Corrupt, DistierError, Invalid
from distier.plans.common.commands import unparsed
from distier.plans.common.content import LZ4, check_content
from distier.plans.common.namespace import Located, Namespace

ASKS_MAX = 64
ASKS_TTL_MIN_MS = 2000
PROMOTED = b"^"
ABSENT = b"-"
COPY = b"="
Want = Literal["copy", "hot"]


class Ask(NamedTuple):
    """An entry in a node's list."""

    id: str
    write_id: str
    want: str
    answer: str

    @staticmethod
    def parse(entry: bytes) -> Ask:
        """Parse an entry. Raises `Invalid` for one that distier did not write."""
        try:
            words = json.loads(entry)
        except (ValueError, RecursionError) as e:
            raise Invalid("an ask that is not JSON") from e
        if not isinstance(words, list) or len(words) != 4 or not all(isinstance(w, str) for w in words):
            raise Invalid("an ask that is not a list of four strings")
        return Ask(*words)

    def pack(self) -> str:
        return json.dumps(self, ensure_ascii=False)


def others(space: Namespace) -> Plan[tuple[str, ...]]:
    """Return the nodes that may be asked now."""
    if space.node is None or not space.config.storage_tiers.warm.peer_timeout_ms:
        return ()
    return (yield from Peers())


def holds_command(shard: Shard, node: str, id: str) -> Command[bool]:
    return Command(shard, ("SISMEMBER", shard.held(node), id), bool)


def holders_of(nodes: Sequence[str], replies: Sequence[Any]) -> list[str]:
    """Return the nodes that hold a copy. `replies` are those to their `holds_command`s."""
    return [node for node, reply in zip(nodes, replies, strict=True) if reply is True]


def find_holders(at: Located) -> Plan[list[str]]:
    """Return the nodes that may be asked now and hold a copy, where there is no pipeline to read that in."""
    nodes = yield from others(at.space)
    if not nodes:
        return []
    return holders_of(nodes, (yield from Pipeline([holds_command(at.shard, node, at.id) for node in nodes])))


def ask(space: Namespace, shard: Shard, record: Record, holders: Sequence[str], want: Want) -> Plan[bytes | None]:
    """Ask one of `holders`. Returns its raw reply, None where there is none in time. It raises nothing: the archive has the
    copy."""
    if not holders or not record.clean:
        return None
    node = holders[crc32(record.id.encode()) % len(holders)]
    # The archive must have time left when nobody replies.
    timeout_ms = min(space.config.storage_tiers.warm.peer_timeout_ms, space.config.deadline_ms // 3)
    entry = Ask(record.id, record.order.write_id, want, (yield from NewToken()))
    first, answer = space.keys.shards[0], shard.answer(entry.answer)
    asks = first.asks(node)
    wait_s = timeout_ms / 1000 + HINT_S
    calls: list[Command[Any]] = [
        Command(first, ("RPUSH", asks, entry.pack()), unparsed, retry=False, hint=wait_s),
        Command(first, ("LTRIM", asks, -ASKS_MAX, -1), unparsed, retry=False, hint=wait_s),
        Command(first, ("PEXPIRE", asks, max(ASKS_TTL_MIN_MS, 2 * timeout_ms)), unparsed, retry=False, hint=wait_s),
        popped(shard, answer, timeout_ms / 1000, hint=wait_s),
    ]
    yield Count("peers.asked")
    replies = yield from Pipeline(calls)
    if any(isinstance(reply, DistierError) for reply in replies) or replies[3] is None:
        yield Count("peers.silent")
        yield from PeerSilent(node)
        return None
    got: bytes = replies[3]
    yield Count("peers.answered" if got[:1] in (COPY, PROMOTED) else "peers.absent")
    return got


def ask_content(space: Namespace, shard: Shard, record: Record, holders: Sequence[str]) -> Plan[bytes | None]:
    """Return the checked content of this version from another node; None where it has to come from the archive."""
    got = yield from ask(space, shard, record, holders, "copy")
    if got is None or got[:1] != COPY:
        return None
    try:
        return (yield from Offload(record.size_bytes, lambda: opened(record, got), LZ4))
    except Corrupt:
        yield Count("peers.damaged")
        return None


def packed(content: bytes) -> bytes:
    """Pack a copy as a reply."""
    kind, data = codec.compress_block(content, level=0)
    return b"%b%b\0%b" % (COPY, kind.encode(), data)


def opened(record: Record, answer: bytes) -> bytes:
    """Return the content in a reply. Raises `Corrupt` where it is not that of the record."""
    kind, _, data = answer[1:].partition(b"\0")
    content = codec.decompress_block(kind.decode("ascii", "replace"), data, size_bytes=record.size_bytes)
    return check_content(record, content, "other node's")


def _popped(reply: Any) -> bytes | None:
    return bytes(reply[1]) if reply else None


def popped(shard: Shard, key: str, wait_s: float, *, hint: float = 0.0) -> Command[bytes | None]:
    """Take the first entry of a list, and wait for one. It is not sent twice: the entry in a lost reply is gone."""
    return Command(shard, ("BLPOP", key, wait_s), _popped, retry=False, hint=hint)


class DiskSums(NamedTuple):
    """What a node's disk holds in total."""

    modules: int
    size_bytes: int
    max_modules: int
    max_bytes: int


def look_for_nodes(space: Namespace) -> list[Command[Any]]:
    """Return the commands for `read_nodes`, to be sent with other calls: the time, and the nodes."""
    first = space.keys.shards[0]
    return [
        Command(first, ("TIME",), lambda t: int(t[0]) * 1000 + int(t[1]) // 1000),
        Command(first, ("ZRANGE", first.nodes, 0, -1, "WITHSCORES"), lambda r: [(n.decode(), float(s)) for n, s in r]),
    ]


def read_nodes(space: Namespace, looked: Sequence[Any] | None = None) -> Plan[dict[str, DiskSums]]:
    """Return the live nodes, with the sums of their disks. `looked`: the replies to `look_for_nodes`."""
    now_ms, found = map(collect, looked or (yield from Pipeline(look_for_nodes(space))))
    first, names = space.keys.shards[0], [name for name, until_ms in found if until_ms >= now_ms]
    if not names:
        return {}
    fields = ("modules", "bytes", "max_modules", "max_bytes")
    calls = [
        Command(first, ("HMGET", first.node(n), *fields), lambda r: DiskSums(*(int(x or 0) for x in r))) for n in names
    ]
    return dict(zip(names, map(collect, (yield from Pipeline(calls))), strict=True))
