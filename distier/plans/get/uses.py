"""Uses: a process gathers them, sends them to Redis in batches, and guesses which one promotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.effects import Plan, RunScript, Used
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.touches import send_touch

TOGETHER_MAX = 256
"""The most modules whose uses are sent at once."""


def use(at: Located) -> Plan[RunScript[Any] | None]:
    """Note a use. Returns the script to send where uses are due, or where this use may be the one that promotes, as far as
    this process knows."""
    space, shard, id = at
    touch: RunScript[Any] | None = yield Used(shard, id, flush=_may_promote(space, id))
    return touch


def use_with_copy(at: Located) -> Plan[tuple[RunScript[Any] | None, int]]:
    """Note the use of a cold module. Returns the script to send before the fetch, if this use may be the one that promotes,
    and the uses to record together with the warm copy that the fetch leaves."""
    space, id = at.space, at.id
    if space.local_only or is_promotable(space, id, space.process.warm.get(id, 0.0) + 1):
        return (yield from use(at)), 0
    return None, 1


def is_promotable(space: Namespace, id: str, uses: float) -> bool:
    """Return whether this many uses suffice for hot. A module that hot did not admit needs twice as many as at the last try."""
    return uses >= max(space.config.storage_tiers.promotion_threshold, space.process.not_admitted.get(id, 0.0))


def _may_promote(space: Namespace, id: str) -> bool:
    """Count one use more in the guess. Returns whether this use may be the one that promotes, as far as this process knows."""
    guess = space.process.warm.get(id, space.config.storage_tiers.promotion_threshold) + 1
    space.process.guess_warm(id, guess)
    return is_promotable(space, id, guess)


def use_many(
    space: Namespace, used: Mapping[Shard, Sequence[str]], *, below_hot: bool = False
) -> Plan[dict[str, float]]:
    """Note one use of each module. Returns the counts of those that were sent to Redis.

    They are sent, in a round trip of their own, when a batch is due, or when one of them is `below_hot` and may be promoted.
    """
    touches = []
    for shard, ids in used.items():
        flush = below_hot and True in [_may_promote(space, id) for id in ids]
        for part in chunks(ids, TOGETHER_MAX):
            touch = yield Used(shard, part, flush)
            if touch is not None:
                touches.append(touch)
    return (yield from send_touch(space, touches))


def is_hot_now(space: Namespace, id: str, touched: Any) -> bool:
    """Return whether the use that was sent is enough for hot. `touched` is the value of the script, None if it was not sent."""
    if not isinstance(touched, dict):
        return False
    space.process.learn_uses(touched)
    return is_promotable(space, id, touched.get(id, 0.0))
