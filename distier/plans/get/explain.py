"""Why a module is where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distier.domain.module import Tier
from distier.effects import Command, Pipeline, Plan, collect
from distier.plans.common.commands import eviction_command, server_ms
from distier.plans.common.namespace import Namespace
from distier.plans.get.where import where_in_redis


@dataclass(frozen=True, slots=True)
class Explained:
    """The result of `explain`. Times are in milliseconds since the Unix epoch.

    Attributes:
        id: The module.
        tier: Where it is.
        moved_ms: When it came there; None if it has not moved since layout 2.
        came_from: The tier that it came from; `none` if it was written there.
        reason: The reason of that move, as in events.
        before: How many modules of the tier would be evicted before it; None in cold.
        of: How many modules the tier has in this shard; None in cold.
        policy: The eviction policy that decides that.
        uses: Its count of uses.
        uses_left: The uses after which it is promoted to hot; None while hot.
        clean: Whether its version is archived. A copy of one that is not stays in Redis.
        pinned_until_ms: The end of its pin.
        now_ms: The time of this look.
    """

    id: str
    tier: Tier
    moved_ms: int | None
    came_from: str | None
    reason: str | None
    before: int | None
    of: int | None
    policy: str
    uses: float
    uses_left: int | None
    clean: bool
    pinned_until_ms: int | None
    now_ms: int


def explain(space: Namespace, id: str) -> Plan[Explained | None]:
    """Return why the module is where it is; None if it does not exist. Does not count as a use."""
    placed = yield from where_in_redis(space, id)
    if placed is None:
        return None
    shard = space.shard(id)
    calls: list[Command[Any]] = [
        Command(shard, ("HGET", shard.module(id), "moved"), _moved),
        eviction_command(shard),
        server_ms(shard),
    ]
    (moved_ms, came_from, reason), (policy, is_ranked), now_ms = (
        collect(reply) for reply in (yield from Pipeline(calls))
    )
    before = of = None
    if placed.tier != "cold":
        own = {"hot": shard.hot, "warm": shard.warm}[placed.tier]
        order = shard.ranks(placed.tier) if is_ranked else own
        line = [
            Command(shard, ("ZRANK", order, id), lambda reply: reply),
            Command(shard, ("ZCARD", order), int),
        ]
        before, of = (collect(reply) for reply in (yield from Pipeline(line)))
    left = max(0, space.config.storage_tiers.promotion_threshold - int(placed.uses))
    pinned = placed.pinned_until_ms if (placed.pinned_until_ms or 0) > now_ms else None
    return Explained(
        id, placed.tier, moved_ms, came_from, reason, before, of, policy, placed.uses,
        None if placed.tier == "hot" else left, placed.clean, pinned, now_ms,
    )  # fmt: skip


def _moved(reply: bytes | None) -> tuple[int | None, str | None, str | None]:
    """Return the time, the former tier and the reason of the last move."""
    parts = (reply or b"").decode(errors="replace").split(" ", 3)
    return (int(parts[0]), parts[1], parts[3]) if len(parts) == 4 and parts[0].isdigit() else (None, None, None)
