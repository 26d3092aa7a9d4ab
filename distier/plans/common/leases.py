"""Leases of one module, for its fetch and its write-back. A lease is a key with a time to live: it ends with its holder."""

from __future__ import annotations

from distier.domain.keys import Shard
from distier.effects import HINT_S, Command, Count, Pipeline, Plan
from distier.errors import DistierError
from distier.lua import Released, release
from distier.plans.common.namespace import Namespace

LEASE_MS = 10_000
"""The longest time that a lease lasts; see `patience_ms`."""


def patience_ms(space: Namespace) -> int:
    """Return how long one holder of a lease keeps others waiting: a third of what the archive or the call may take.

    The reader that takes over from a holder which was killed or hangs then has twice that time for its own fetch, also where
    the archive is slow rather than the holder.
    """
    return min(space.config.storage_tiers.cold.timeout_ms // 3, space.config.deadline_ms // 3, LEASE_MS)


def lease_command(shard: Shard, lease: str, me: str, ttl_ms: int) -> Command[bytes | None]:
    """Take a lease. The value is None if the caller has it now, else the name of its holder.

    `GET` makes the command safe to send twice: a repeated one finds the caller's own name.
    """
    command = ("SET", lease, me, "NX", "GET", "PX", ttl_ms)
    return Command(shard, command, lambda before: None if before == me.encode() else before, hint=HINT_S)


def wait_for_copy(shard: Shard, id: str, ttl_ms: int) -> Plan[None]:
    """Mark that a reader waits for the copy of a module. Warm then admits it, so that not every reader fetches it in turn."""
    yield from Pipeline([Command(shard, ("SET", shard.waiting(id), 1, "PX", ttl_ms), bool, hint=HINT_S)])


def take_lease(shard: Shard, lease: str, holder: str, ttl_ms: int, *, hint: float = 0.0) -> Command[bool]:
    """Take a lease; the value says whether `holder` has it now. With `hint`, the caller continues without a reply."""
    return Command(
        shard,
        lease_command(shard, lease, holder, ttl_ms).args,
        lambda before: before in (None, holder.encode()),
        hint=hint,
    )


def cut_lease(shard: Shard, lease: str, ttl_ms: int) -> Plan[None]:
    """Limit a lease of another process to the longest time that leases have. A longer one is from before the server's clock
    went back."""
    yield from Pipeline([Command(shard, ("PEXPIRE", lease, ttl_ms, "LT"), int, hint=HINT_S)])


def give_back(shard: Shard, lease: str, holder: str, *, unless_waiting: bool = False) -> Plan[Released | None]:
    """Release a lease; with `unless_waiting`, not if readers wait for a copy of the module.

    A failure is only counted, and None is returned: the lease ends by itself, and the caller's own result matters more.
    """
    try:
        return (yield from release(shard, lease, holder, unless_waiting=unless_waiting))
    except DistierError:
        yield Count("leases.left")
        return None
