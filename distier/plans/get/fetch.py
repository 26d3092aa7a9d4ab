"""Single flight: one reader of a cold module fetches it from the archive, and the others wait for its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Record, Tier
from distier.effects import Cancelled, Count, LocalGet, NewToken, Pipeline, Plan, RunScript, Sleep, collect
from distier.errors import DistierError, Full, RedisUnavailable
from distier.plans.common.backoff import Patience
from distier.plans.common.commands import frame_command, version_command
from distier.plans.common.leases import give_back, lease_command, patience_ms, wait_for_copy
from distier.plans.common.namespace import Namespace
from distier.plans.get.uses import is_hot_now, is_promotable
from distier.plans.tier.keep import keep, keep_warm, to_hot
from distier.plans.tier.load import fetch_unless_moved
from distier.plans.tier.peers import ask_content, holders_of, holds_command, others

WAIT_FIRST_S = 0.002
WAIT_MAX_S = 0.05


def fetch_alone(
    space: Namespace,
    shard: Shard,
    record: Record,
    touch: RunScript[Any] | None,
    hot_now: bool = False,
    damaged: bytes | None = None,
    uses: int = 0,
) -> Plan[tuple[bytes, Tier] | None]:
    """Fetch a cold version, once in the fleet: the holder of the lease fetches, and the others wait for the copy that it
    leaves.

    The lease saves work and guards nothing: two fetches of one immutable object do no harm. A holder that dies or hangs is
    overtaken when its lease ends, or when a reader has waited for it longer than its own patience. That reader ends the
    lease, by the holder's name, and one of all readers takes it again. A slow archive thus gets one more GET for each such
    time, not one from every reader.

    Args:
        touch: a script with gathered uses, which is sent along.
        hot_now: whether the module has enough uses for hot.
        damaged: a frame that is not worth waiting for.
        uses: uses to record together with the copy.

    Returns:
        The content and the tier that it came from; None where the module changed meanwhile.
    """
    lease, me = shard.lease(record.id), (yield from NewToken())
    limit_ms, wait_s = patience_ms(space), WAIT_FIRST_S
    patience: Patience | None = None  # made when it is needed: most readers meet nobody
    while True:
        take = lease_command(shard, lease, me, limit_ms)
        nodes = yield from others(space)
        calls: list[Any] = [take, version_command(shard, record.id), frame_command(shard, record.id)]
        calls += [holds_command(shard, node, record.id) for node in nodes]
        try:
            replies = yield from Pipeline([*calls, touch] if touch is not None else calls)
        except Cancelled:  # the lease may have been granted
            yield from give_back(shard, lease, me)
            raise
        if touch is not None:
            hot_now, touch = is_hot_now(space, record.id, replies.pop()), None
        # Where Redis refuses writes (maxmemory, no replica, no disk) there are no leases, and every reader fetches.
        holder = None if isinstance(replies[0], Full | RedisUnavailable) else collect(replies[0])
        now, frame = collect(replies[1]), collect(replies[2])
        if not _is_cold_still(record, now, frame, damaged):
            if holder is None:
                yield from give_back(shard, lease, me)
            return None
        if space.node is not None:  # another process of this node may have fetched it meanwhile
            content = yield from LocalGet(record)
            if content is not None:
                if holder is None:
                    yield from give_back(shard, lease, me)
                return content, "warm"
        if holder is None:
            holding = holders_of(nodes, replies[3:])
            return (yield from _fetch_and_keep(space, shard, record, hot_now, lease, me, holding, uses))
        if patience is None:
            patience = Patience(limit_ms / 1000)
            yield from wait_for_copy(shard, record.id, limit_ms)
        if patience.is_over(holder):
            yield from give_back(shard, lease, holder.decode(errors="replace"))
            continue
        yield Count("waits.lease")
        yield Sleep(wait_s)
        patience.waited(wait_s)
        wait_s = min(wait_s * 2, WAIT_MAX_S)


def _is_cold_still(record: Record, now: Mapping[bytes, bytes], frame: bytes | None, damaged: bytes | None) -> bool:
    """Return whether the archive is still the nearest copy of this version. `now` are the fields of `version_command`."""
    version = now.get(b"epoch"), now.get(b"ver"), now.get(b"tok")
    order = record.order
    if version != (b"%d" % order.epoch, b"%d" % order.ver, order.write_id.encode()):
        return False
    return now.get(b"tier") == b"cold" or (now.get(b"tier") == b"warm" and frame in (None, damaged))


def _fetch_and_keep(
    space: Namespace,
    shard: Shard,
    record: Record,
    hot_now: bool,
    lease: str,
    holder: str,
    holding: Sequence[str],
    uses: int,
) -> Plan[tuple[bytes, Tier] | None]:
    """Fetch as the holder of the lease, keep a copy further up, and give the lease back."""
    try:
        content = yield from ask_content(space, shard, record, holding)
        tier: Tier = "cold" if content is None else "warm"
        if content is None:
            content = yield from fetch_unless_moved(space, shard, record)
        kept = (
            content is not None
            and hot_now
            and (yield from keep(to_hot(space, shard, record, content, "uses"))).is_there
        )
        if content is not None and not kept:
            yield from keep_warm(space, shard, record, content, holder, uses)
            if uses and is_promotable(space, record.id, space.process.warm.get(record.id, 0.0)):
                yield from keep(to_hot(space, shard, record, content, "uses"))  # others have used it too
            return content, tier
    except (DistierError, Cancelled):
        yield from give_back(shard, lease, holder)
        raise
    yield from give_back(shard, lease, holder)
    return None if content is None else (content, tier)
