"""The table of eviction policies. A new policy is a file like `gdsf.py`, a row here, and its name in the configuration."""

from __future__ import annotations

from collections.abc import Mapping

from distier.policy.eviction import fifo, gdsf, lfu, lru, s3fifo
from distier.policy.eviction.rank import Policy

POLICIES: Mapping[str, Policy] = {
    policy.name: policy for policy in (lru.POLICY, lfu.POLICY, fifo.POLICY, s3fifo.POLICY, gdsf.POLICY)
}


def lua_ranks() -> str:
    """Return the Lua functions of the prelude that a policy consists of. `lru` is not in them: the sets are in its order."""
    ranked = [policy for policy in POLICIES.values() if policy.name != "lru"]
    lines = ["local function rank_of(uses, size, now, floor, was, more, known)"]
    lines += [f"  if policy == '{p.name}' then return {p.lua} end" for p in ranked]
    lines += ["end", "", "local function spared_rank(rank, now)"]
    lines += [f"  if policy == '{p.name}' then return {p.lua_spared} or nil end" for p in ranked if p.spared]
    lines += ["end", ""]
    lines.append("local function kept_uses()")
    lines += [f"  if policy == '{p.name}' then return {p.kept_uses} end" for p in ranked if p.kept_uses != 1]
    lines += ["  return 1", "end", ""]
    for name, chosen in (
        ("has_floor", [p.name for p in ranked if "floor" in p.lua]),
        ("admits_all", [p.name for p in ranked if p.admits_all]),
        ("halves_ranks", [p.name for p in ranked if p.halves]),
        ("has_ghosts", [p.name for p in ranked if p.ghosts]),
    ):
        condition = " or ".join(f"policy == '{policy}'" for policy in chosen)
        lines += [f"local function {name}() return {condition} end", ""]
    return "\n".join(lines)
