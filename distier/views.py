"""The JSON shapes of results: one for each, which the CLI, the page and integrations share.

A shape only gains fields: others parse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distier.domain.module import Event, Landed, Module, Moved, Placement
from distier.domain.order import Order

if TYPE_CHECKING:
    from distier.plans.fleet.statistics import PredictionStats, SourceStats, Stats
    from distier.plans.recovery.fsck.findings import Finding, Findings


def view(thing: Module | Landed | Placement | Moved | Event) -> dict[str, Any]:
    """Return the fields of a value by name, without content. Versions are strings, `epoch-ver`."""
    fields = {name: getattr(thing, name) for name in type(thing).__dataclass_fields__ if name != "content"}
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
