"""What it costs that uses are reported late: each client reports them when it has used 64 modules."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.churn.traces import Trace
from benchmarks.policies.server import archived, replay
from benchmarks.table import Table
from distier.policy.eviction.rank import Policy, Ranked
from distier.policy.eviction.simulate import Tier
from distier.policy.eviction.table import POLICIES

CLIENTS, BATCH, PART = 8, 64, 0.05
POLICY = "gdsf"


class LateTier(Tier[str]):
    """A simulated tier that hears of hits in batches, and of misses at once: a fetch tells its use together with the copy."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        super().__init__(policy, capacity)
        self._pending: list[list[str]] = [[] for _ in range(CLIENTS)]
        self._reads = 0

    def access(self, key: str, size: int) -> bool:
        pending = self._pending[self._reads % CLIENTS]
        self._reads += 1
        if key not in self:
            return super().access(key, size)
        self.hits += 1
        pending.append(key)
        if len(set(pending)) >= BATCH:
            for one in pending:
                self._use(one)
            pending.clear()
        return True

    def _use(self, key: str) -> None:
        self._now += 1
        self.uses[key] = self.uses.get(key, 0.0) + 1
        self._sample()
        was = self._ranks.get(key)
        if was is not None:
            rank = self.policy.rank(Ranked(self.uses[key], self.sizes[key], self._now, self._floor, was))
            self._set(key, rank)


def late(whole: Sequence[Trace], parts: Sequence[Trace]) -> Table:
    """Compare uses that are reported at once and late: whole traces are simulated, `parts` go through the real server."""
    table = Table(
        f"Uses reported late: misses an access under {POLICY}, {PART:.0%} of the footprint in warm",
        ("trace", "measured", "accesses", "at once", f"{CLIENTS} clients, batches of {BATCH}", "points lost"),
        notes="A second of a replay is hours of the trace, so clients report by number and not each second. At the beginning "
        "of a trace the uses that are not reported yet are a large part of all.",
    )

    def row(trace: Trace, how: str, misses: Sequence[int]) -> None:
        now, then = (n / len(trace.ids) for n in misses)
        table.add(trace.name, how, len(trace.ids), f"{now:.4f}", f"{then:.4f}", (then - now) * 100)
        table.figures[f"points lost by late uses, {how}, {trace.name}"] = (then - now) * 100

    for trace in whole:
        row(trace, "simulated", [_misses(Tier, trace), _misses(LateTier, trace)])
    for trace in parts:
        budget = int(trace.footprint_bytes * PART)
        with archived(trace) as archive:
            found = [
                replay(trace, archive, POLICY, "warm", budget, clients=n, batch=b)
                for n, b in ((1, 1), (CLIENTS, BATCH))
            ]
        row(trace, "real server", [one.misses for one in found])
    return table


def _misses(kind: type[Tier[str]], trace: Trace) -> int:
    tier = kind(POLICIES[POLICY], int(trace.footprint_bytes * PART))
    for id in trace.ids:
        tier.access(id, trace.sizes[id])
    return tier.misses
