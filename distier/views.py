"""The JSON shapes of results: one for each, which the CLI, the page and integrations share.

A shape only gains fields: others parse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distier.domain.described import Described
from distier.domain.fitted import Choice
from distier.domain.module import Event, HistoryEntry, Landed, Module, Moved, Placement
from distier.domain.order import Order

if TYPE_CHECKING:
    from distier.plans.fleet.health import Health
    from distier.plans.fleet.statistics import PredictionStats, SourceStats, Stats
    from distier.plans.get.browse import Page
    from distier.plans.get.explain import Explained
    from distier.plans.get.peek import Version
    from distier.plans.recovery.folders import Folder
    from distier.plans.recovery.fsck.findings import Finding, Findings


def view(thing: Module | Described | Landed | Placement | Moved | Event | Choice | HistoryEntry) -> dict[str, Any]:
    """Return the fields of a value by name, without content. Versions are strings, `epoch-ver`."""
    fields = {name: getattr(thing, name) for name in type(thing).__dataclass_fields__ if name != "content"}
    if isinstance(thing, Choice):
        del fields["module"], fields["outline"]
    made = {name.rstrip("_"): str(v) if isinstance(v, Order) else v for name, v in fields.items()}
    if isinstance(thing, Placement):
        made["ratio"] = thing.ratio
    if isinstance(thing, Module | Described):
        made |= {"keywords": list(thing.keywords), "meta": dict(thing.meta)}
    return made


def stats_view(stats: Stats) -> dict[str, Any]:
    """Return the totals of a namespace."""

    def fields(of: Any) -> dict[str, Any]:
        return {name: getattr(of, name) for name in type(of).__dataclass_fields__}

    return {
        "count": stats.count,
        "hot": fields(stats.hot),
        "warm": fields(stats.warm) | {"ratio": stats.warm.ratio},
        "cold": fields(stats.cold) | {"ratio": stats.cold.ratio},
        "dirty_count": stats.dirty_count,
        "dirty_bytes": stats.dirty_bytes,
        "dirty_deletions": stats.dirty_deletions,
        "eviction": fields(stats.eviction),
        "reads": fields(stats.reads) | {"hit_ratio": stats.reads.hit_ratio},
        "epochs": [fields(incarnation) for incarnation in stats.epochs],
        "shares": [fields(quota) for quota in stats.quotas],
        "prediction": _prediction_view(stats.prediction),
        "node": stats.node,
        "nodes": {name: held._asdict() for name, held in sorted(stats.nodes.items())},
    }


DIRTY_LATE_MS = 600_000
"""A module that waits longer than this to be archived needs a look. `distier_health` has the same limit."""
DIRTY_PART = 0.5
"""Dirty modules that fill more than this part of the budgets of bytes need a look: puts find no room at the end."""


def health_view(
    stats: Stats, health: Health, *, archive: str | None = None, thrash: str | None = None
) -> dict[str, Any]:
    """Return what an operator looks at first: the checks of a namespace, and whether all are good.

    Args:
        stats: The totals of the namespace.
        health: Its workers and what waits for the archive.
        archive: Why the archive does not reply; empty if it does, None if that was not checked.
        thrash: What shows that modules move back and forth; None if that was not checked.
    """
    late = [e for e in stats.epochs if not e.verified]
    idle = [s.shard for s in health.shards if s.worker is None]
    oldest, budgets = health.oldest, budgets_view(stats)
    over = [b["name"] for b in budgets if b["used"] > b["max"]]
    dirty = stats.dirty_bytes / max(1, stats.hot.max_bytes + stats.warm.max_bytes)
    waits = "everything is archived"
    if oldest is not None:
        waits = f"the oldest module that is not archived waits since {span(oldest.dirty_ms)}: {oldest.oldest_dirty}"
    checks = [
        ("epochs", not late, f"{_shards([e.shard for e in late])} not compared with the archive since Redis restarted"
         if late else "all records were compared with the archive in this epoch"),
        ("worker", not idle, f"no worker maintains {_shards(idle)}" if idle
         else f"{_counted(len(health.workers), 'worker')} of the fleet: {', '.join(health.workers)}"),
        ("write-back", oldest is None or oldest.dirty_ms < DIRTY_LATE_MS, waits),
        ("dirty", dirty < DIRTY_PART, f"{_counted(stats.dirty_count, 'version')} not archived yet, {dirty:.0%} of the budgets"),
        ("budgets", not over, f"more than the budget of {', '.join(over)}" if over
         else ", ".join(f"{b['name']} {b['part']:.0%}" for b in budgets)),
    ]  # fmt: skip
    if archive is not None:
        checks.insert(2, ("archive", not archive, archive or "the archive replies"))
    if thrash is not None:
        checks.append(("thrash", not thrash, thrash or "modules do not move back and forth"))
    made = [{"check": name, "ok": ok, "text": text} for name, ok, text in checks]
    return {"healthy": all(ok for _, ok, _ in checks), "checks": made}


def budgets_view(stats: Stats) -> list[dict[str, Any]]:
    """Return the four budgets of a namespace, with what they hold and the part that is full."""
    hot, warm = stats.hot, stats.warm
    rows = (
        ("hot tokens", "hot", "tokens", hot.tokens, hot.max_tokens),
        ("hot bytes", "hot", "bytes", hot.size_bytes, hot.max_bytes),
        ("warm modules", "warm", "modules", warm.count, warm.max_modules),
        ("warm bytes", "warm", "bytes", warm.stored_bytes, warm.max_bytes),
    )
    return [
        {"name": name, "tier": tier, "unit": unit, "used": used, "max": most, "part": used / most if most else 0.0}
        for name, tier, unit, used, most in rows
    ]


def fleet_view(health: Health) -> dict[str, Any]:
    """Return the workers that are alive, and who maintains each shard."""
    return {
        "workers": list(health.workers),
        "shards": [{name: getattr(s, name) for name in type(s).__dataclass_fields__} for s in health.shards],
        "now_ms": health.now_ms,
    }


def page_view(page: Page) -> dict[str, Any]:
    """Return a part of a listing of modules."""
    rows = [{name: getattr(row, name) for name in type(row).__dataclass_fields__} for row in page.rows]
    return {"modules": rows, "after": page.after, "looked": page.looked, "of": page.of, "now_ms": page.now_ms}


def version_view(v: Version) -> dict[str, Any]:
    """Return a version in the archive."""
    o = v.object
    named = {"version": str(o.order), "kind": o.kind, "key": v.key}
    return named | {"size_bytes": v.size_bytes, "modified_ms": v.modified_ms}


def folder_view(f: Folder) -> dict[str, Any]:
    """Return a part of a folder of the archive."""
    objects = [{"key": o.key, "size_bytes": o.size_bytes, "modified_ms": o.modified_ms} for o in f.objects]
    return {"path": f.path, "folders": list(f.folders), "objects": objects, "after": f.after}


def _shards(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
    return f"shard {shown}" if len(numbers) == 1 else f"shards {shown}"


def explained_view(e: Explained) -> dict[str, Any]:
    """Return why a module is where it is."""
    fields = {name: getattr(e, name) for name in type(e).__dataclass_fields__ if name != "now_ms"}
    return fields | {"text": explained_text(e)}


REASONS = {
    "put": "it was written", "get": "it was read from the archive", "uses": "it was used often enough",
    "evict": "others needed the room", "headroom": "the worker keeps room free", "idle": "nobody used it",
    "expire": "its copy expired", "recover": "it was found in the archive", "predict": "it was predicted",
    "operator": "an operator moved it", "pin": "it was pinned", "request": "it was requested",
}  # fmt: skip
"""What the reasons of moves mean. `lua/functions/where.lua` has the same table, and a test compares them."""


def explained_text(e: Explained) -> str:
    """Return why a module is where it is, in sentences; what `distier_explain` prints, and what it takes to be promoted."""
    if e.moved_ms is None or e.came_from is None:
        told = "it has not moved since layout 2"
    else:
        came = f"came to {e.tier}" if e.came_from == "none" else f"went from {e.came_from} to {e.tier}"
        told = f"it {came} {span(e.now_ms - e.moved_ms)} ago because {REASONS.get(e.reason or '', f'of {e.reason}')}"
    text = f"{e.id} is {e.tier}: {told}."
    if e.pinned_until_ms is not None:
        text += f" It is pinned for {span(e.pinned_until_ms - e.now_ms)}, so it does not leave."
    elif e.before is not None:
        text += f" {_counted(e.before, 'module')} of {e.of:,} would leave {e.tier} before it."
    if not e.clean:
        text += " It is not archived yet, so a copy stays in Redis."
    if e.uses_left is not None:
        text += f" It has {_counted(int(e.uses), 'use')}."
    if e.uses_left:
        text += f" {_counted(e.uses_left, 'more use')} would make it hot."
    return text


def span(ms: float) -> str:
    """Return a time span like `5 min`."""
    seconds = max(0.0, ms) / 1000
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return "0 s" if seconds < 1 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _prediction_view(p: PredictionStats) -> dict[str, Any]:
    def outcomes(of: PredictionStats | SourceStats) -> dict[str, Any]:
        return {"issued": of.issued, "used": of.used, "wasted": of.wasted, "precision": of.precision}

    sources = {name: outcomes(source) for name, source in p.sources.items()}
    return {"enabled": p.enabled, "sessions": p.sessions, "threshold": p.threshold, **outcomes(p), "by_source": sources}


def finding_view(f: Finding) -> dict[str, Any]:
    """Return one finding of `fsck`."""
    named = {"kind": f.kind, "level": f.level, "what": f.what, "repair": f.repair, "repaired": f.repaired}
    return named | {"id": f.id, "key": f.key, "detail": f.detail}


def findings_view(found: Findings) -> dict[str, Any]:
    """Return the numbers of a run of `fsck`."""
    levels = {"notes": found.count("note"), "faults": found.count("fault"), "lost": found.count("lost")}
    checked = {"objects": found.objects, "records": found.records, "contents": found.contents}
    return checked | levels | {"remaining": found.remaining, "found": found.found, "repaired": found.repaired}
