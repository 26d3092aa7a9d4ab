"""Leases of one module, for its fetch and its write-back. A lease is a key with a time to live: it ends with its holder."""

from __future__ import annotations

from distier.domain.keys import Shard
from distier.effects import HINT_S, Command, Count, Pipeline, Plan
from distier.errors import DistierError
from distier.lua import release
from distier.plans.common.namespace import Namespace

LEASE_MS = 10_000
"""The longest that a lease lasts; see `patience_ms`."""


def patience_ms(space: Namespace) -> int:
    """How long one holder of the lease of a fetch keeps others waiting: a third of what the archive or the call may take.
    So who takes over from a holder that was killed or hangs has twice that time left for its own fetch, also where the
    archive is slow and not the holder."""
    return min(space.config.storage_tiers.cold.timeout_ms // 3, space.config.deadline_ms // 3, LEASE_MS)


def lease_command(shard: Shard, lease: str, me: str, ttl_ms: int) -> Command[bytes | None]:
    """Take a lease: None if it is mine now, else the name of its holder. `GET` makes it safe to send twice: a repeated one
    meets its own name."""
    command = ("SET", lease, me, "NX", "GET", "PX", ttl_ms)
    return Command(shard, command, lambda before: None if before == me.encode() else before, hint=HINT_S)


def take_lease(shard: Shard, lease: str, holder: str, ttl_ms: int, *, hint: float = 0.0) -> Command[bool]:
    """Whether `holder` has the lease now. `hint`: whoever asks goes on without an answer."""
    return Command(
        shard,
        lease_command(shard, lease, holder, ttl_ms).args,
        lambda before: before in (None, holder.encode()),
        hint=hint,
    )


def cut_lease(shard: Shard, lease: str, ttl_ms: int) -> Plan[None]:
    """A lease that others have does not last longer than any can: one that does is of before the server's clock went back."""
    yield from Pipeline([Command(shard, ("PEXPIRE", lease, ttl_ms, "LT"), int, hint=HINT_S)])


def give_back(shard: Shard, lease: str, holder: str) -> Plan[None]:
    """Release a lease. If that fails the lease ends by itself; it must not hide what the caller has to say."""
    try:
        yield from release(shard, lease, holder)
    except DistierError:
        yield Count("leases.left")
