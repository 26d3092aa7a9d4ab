"""What a node with copies on its own disk does besides its calls.

It reports that it is alive and what it holds, and replies to what others ask it for. Any process of the node may do all of
it; several of them do no harm.

    nodes           the name of each node, until when it counts as alive: renewed every `HEARTBEAT_S`
    nodes:<node>    the sums of its disk, for `stats`
    held:<node>     the ids that it holds, for `where` and for readers that look for a copy: a second behind the disk
    asks:<node>     a list that the node waits on

A node that died is in `nodes` with a time that has passed: nobody asks it, and the worker removes the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.effects import HINT_S, Command, Count, LocalGet, Pipeline, Plan, collect
from distier.errors import DistierError, Invalid, Unavailable
from distier.plans.common.commands import chunks, record_command
from distier.plans.common.namespace import Namespace
from distier.plans.tier.keep import keep, to_hot
from distier.plans.tier.peers import ABSENT, PROMOTED, Ask, DiskSums, packed, popped

HEARTBEAT_S = 2.0
ALIVE_MS = 6000
"""Three heartbeats: one may be late and one lost."""
FORGET_MS = 60_000
"""How long the list of a dead node is kept, in case it comes back."""
ASK_WAIT_S = 0.5
ANSWER_TTL_MS = 5000
MANY = 500


def heartbeat(
    space: Namespace,
    node: str,
    held: DiskSums,
    changes: Mapping[str, bool],
    all_ids: Callable[[], Sequence[str]],
    *,
    rebuild: bool,
) -> Plan[tuple[str, ...]]:
    """Report that the node is alive, and what came to its disk and left it. Returns the other live nodes.

    A node that was not known, or no longer, reports everything that it holds (`all_ids`), and so does one whose last changes
    may be lost (`rebuild`). A shard that does not reply gets everything with a later heartbeat, and the others are not
    affected; only the first shard must reply.
    """
    first = space.keys.shards[0]
    now_ms = yield from Command(first, ("TIME",), lambda t: int(t[0]) * 1000 + int(t[1]) // 1000)
    sums = (
        "modules",
        held.modules,
        "bytes",
        held.size_bytes,
        "max_modules",
        held.max_modules,
        "max_bytes",
        held.max_bytes,
    )
    calls: list[Command[Any]] = [
        Command(first, ("ZADD", first.nodes, now_ms + ALIVE_MS, node), int),
        Command(first, ("HSET", first.node(node), *sums, "updated", now_ms), int),
        Command(first, ("PEXPIRE", first.node(node), ALIVE_MS), int),
        Command(first, ("ZRANGEBYSCORE", first.nodes, now_ms, "+inf"), lambda r: [n.decode() for n in r]),
    ]
    told = _held_calls(space, node, changes)
    found = yield from Pipeline([*calls, *told])
    replies = [collect(reply) for reply in found[: len(calls)]]
    late = [s for s in space.keys.shards if (s, node) in space.process.unannounced]
    _note(space, node, told, found[len(calls) :])
    if replies[0] or rebuild:
        late = list(space.keys.shards)
    if late:
        yield from _announce_all(space, node, all_ids(), late)
    return tuple(other for other in replies[3] if other != node)


def _held_calls(space: Namespace, node: str, changes: Mapping[str, bool]) -> list[Command[Any]]:
    words: dict[tuple[Shard, str], list[str]] = {}
    for id, came in changes.items():
        words.setdefault((space.shard(id), "SADD" if came else "SREM"), []).append(id)
    return [
        Command(shard, (verb, shard.held(node), *part), int, retry=False, hint=HINT_S)
        for (shard, verb), ids in words.items()
        for part in chunks(ids, MANY)
    ]


def announce_changes(space: Namespace, node: str, changes: Mapping[str, bool]) -> Plan[None]:
    """Report what came to the disk and left it, between two heartbeats."""
    calls = _held_calls(space, node, changes)
    _note(space, node, calls, (yield from Pipeline(calls)))


def _announce_all(space: Namespace, node: str, ids: Sequence[str], shards: Sequence[Shard]) -> Plan[None]:
    """Report everything that the node holds. What was reported before may be wrong, because of changes while nobody
    listened."""
    calls = [Command(s, ("UNLINK", s.held(node)), int, retry=False, hint=HINT_S) for s in shards]
    # First: a shard that fails while this runs is noted again.
    space.process.unannounced.difference_update((s, node) for s in shards)
    _note(space, node, calls, (yield from Pipeline(calls)))
    ready = {s for s in shards if (s, node) not in space.process.unannounced}
    for part in chunks([id for id in ids if space.shard(id) in ready], 20 * MANY):
        yield from announce_changes(space, node, dict.fromkeys(part, True))


def _note(space: Namespace, node: str, calls: Sequence[Command[Any]], replies: Sequence[Any]) -> None:
    """Note the shards that did not reply. Raises every other error."""
    for call, reply in zip(calls, replies, strict=True):
        if isinstance(reply, Unavailable):
            space.process.unannounced.add((call.shard, node))
        else:
            collect(reply)


def wait_for_ask(space: Namespace, node: str, wait_s: float) -> Plan[bytes | None]:
    """Return the next entry of the node's list; None if there is none in time."""
    first = space.keys.shards[0]
    return (yield from popped(first, first.asks(node), wait_s))


def answer(space: Namespace, node: str, entry: bytes) -> Plan[None]:
    """Reply to one ask: with the copy, by promoting it, or that there is none, so that nobody waits in vain."""
    try:
        ask = Ask.parse(entry)
        shard = space.shard(check_id(ask.id))
    except Invalid:
        yield Count("asks.invalid")
        return
    record = yield from record_command(shard, ask.id)
    content = None
    if record is not None and record.clean and not record.deleted and record.order.write_id == ask.write_id:
        content = yield from LocalGet(record)
    reply, more = ABSENT, []
    if record is None or content is None:
        more = [Command(shard, ("SREM", shard.held(node), ask.id), int)]
    elif ask.want == "hot":
        outcome = yield from keep(to_hot(space, shard, record, content, "request"))
        reply = PROMOTED if outcome.is_there else ABSENT
    else:
        reply = packed(content)
    key = shard.answer(ask.answer)
    yield Count("asks.absent" if reply == ABSENT else "asks.answered")
    calls = [
        Command(shard, ("RPUSH", key, reply), int, retry=False),
        Command(shard, ("PEXPIRE", key, ANSWER_TTL_MS), int),
    ]
    for result in (yield from Pipeline([*calls, *more])):
        if isinstance(result, DistierError):
            yield Count("asks.lost")


def forget_dead(space: Namespace) -> Plan[int]:
    """Remove what nodes reported that have been dead for a minute. Returns how many."""
    first = space.keys.shards[0]
    now_ms = yield from Command(first, ("TIME",), lambda t: int(t[0]) * 1000 + int(t[1]) // 1000)
    words = ("ZRANGEBYSCORE", first.nodes, "-inf", now_ms - FORGET_MS, "LIMIT", 0, 64)
    names: list[str] = yield from Command(first, words, lambda r: [n.decode() for n in r])
    for node in names:
        keys = [(s, s.held(node)) for s in space.keys.shards] + [(first, first.asks(node))]
        calls = [Command(shard, ("UNLINK", key), int, retry=False, hint=HINT_S) for shard, key in keys]
        replies = yield from Pipeline(calls)
        if any(isinstance(reply, Unavailable) for reply in replies):
            continue  # until all shards reply
        for reply in replies:
            collect(reply)
        # Last: until then the next round finds it again. A node that came back meanwhile reports everything that it holds.
        yield from Command(first, ("ZREM", first.nodes, node), int)
    return len(names)
