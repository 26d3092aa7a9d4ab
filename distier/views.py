"""The JSON shapes of results: one for each, which the CLI, the page and integrations share.

A shape only gains fields: others parse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distier.domain.fitted import Choice
from distier.domain.module import Event, Landed, Module, Moved, Placement
from distier.domain.order import Order

if TYPE_CHECKING:
    from distier.plans.fleet.statistics import PredictionStats, SourceStats, Stats
    from distier.plans.get.explain import Explained
    from distier.plans.recovery.fsck.findings import Finding, Findings


def view(thing: Module | Landed | Placement | Moved | Event | Choice) -> dict[str, Any]:
    """Return the fields of a value by name, without content. Versions are strings, `epoch-ver`."""
    fields = {name: getattr(thing, name) for name in type(thing).__dataclass_fields__ if name != "content"}
    if isinstance(thing, Choice):
        del fields["module"], fields["outline"]
    made = {name.rstrip("_"): str(v) if isinstance(v, Order) else v for name, v in fields.items()}
    if isinstance(thing, Placement):
        made["ratio"] = thing.ratio
    if isinstance(thing, Module):
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
