"""The quotas of the shards: brought to the configured totals, and moved to where they are worth most (`tier/ledger.py`)."""

from __future__ import annotations

from distier.effects import Parallel, Plan, collect
from distier.errors import RedisUnavailable
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.epochs import refuses_writes
from distier.plans.tier.ledger import (
    TRIES_MAX,
    Contended,
    apply_limits,
    change,
    limits_now,
    lower,
    make_ledger,
    move_quotas,
    packed,
    read_holdings,
    read_ledger,
    settled,
)
from distier.policy.quotas import Amounts, Ledger, rebalance, scaled


def totals(space: Namespace) -> tuple[Amounts, tuple[bool, ...]]:
    """Return the configured budgets of the namespace, and which of them somebody has set."""
    tiers, explicit = space.config.storage_tiers, space.config.explicit
    amounts = Amounts(tiers.hot.max_size, tiers.hot.max_bytes, tiers.warm.max_modules, tiers.warm.max_bytes)
    keys = ("hot.max_size", "hot.max_bytes", "warm.max_modules", "warm.max_bytes")
    return amounts, tuple(explicit(f"storage_tiers.{key}") for key in keys)


def open_quotas(space: Namespace) -> Plan[None]:
    """Bring the totals to what the configuration sets explicitly. The quotas keep their proportion.

    Where totals are lowered, no shard takes more from now on, and the worker evicts the excess.
    """
    if space.config.shards == 1:
        return
    configured, explicit = totals(space)
    for _ in range(TRIES_MAX):
        ledger, holds = yield from read_ledger(space)
        if not holds:
            if not any(explicit):
                return  # a user with read access can open it; the worker makes it
            yield from make_ledger(space, ledger)
            continue
        total = Amounts(*(c if e else t for c, e, t in zip(configured, explicit, ledger.total, strict=True)))
        if total == ledger.total:
            return
        quotas = scaled(ledger.quotas, total)
        fields = {"total": packed(total)} | {str(i): packed(quota) for i, quota in enumerate(quotas)}
        fields |= {f"next.{i}": "" for i in ledger.next}  # a change under way is undone
        try:
            version = yield from change(space, ledger, fields)
        except RedisUnavailable as e:
            if refuses_writes(e):
                return  # reads work; the next process that opens it sets them
            raise
        if version is not None:
            yield from apply_limits(space, Ledger(version, total, quotas))
            return
    raise Contended("the quotas of the shards change too often; retry")


def balance(space: Namespace, fence: str = "") -> Plan[int]:
    """Move the quotas by one step to where they are worth most. Returns 1 if any moved.

    It also repairs what a stopped process left behind: a change under way, limits other than those of the ledger, a shard
    that holds more. With a `fence` it does nothing where another worker has taken the lease of the first shard since.
    """
    if space.config.shards == 1:
        return 0
    ledger = yield from settled(space, fence=fence)
    found = yield from limits_now(space)
    wrong = [i for i, (amounts, _) in enumerate(found) if amounts != ledger.limit(i)]
    lowering = [lower(space, space.keys.shards[i], ledger.version, ledger.limit(i)) for i in wrong]
    for result in (yield from Parallel(lowering)):
        collect(result)
    changes = rebalance(ledger, (yield from read_holdings(space)), space.config.worker.headroom)
    return int(bool(changes) and (yield from move_quotas(space, ledger, changes, fence=fence)))
