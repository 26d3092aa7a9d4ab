"""Namespaces in the states that the page must show: healthy, thrash, archive down, full of dirty modules, empty."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distier import Item, Store
from distier.lua import claim, heartbeat

TEXT = (Path(__file__).parents[2] / "docs" / "DESIGN.md").read_text("utf-8")
FAR_MS = 3_600_000
CHANCE = random.Random(7)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "healthy": {"storage_tiers__hot__max_size": 40_000},
    "thrash": {"storage_tiers__hot__max_size": 6000, "storage_tiers__warm__max_modules": 40},
    "archive down": {},
    "dirty": {"storage_tiers__hot__max_bytes": 110_000, "storage_tiers__warm__max_bytes": 60_000},
    "empty": {},
}
LOOK = {
    "healthy": "Healthy", "thrash": "came back in the last minute", "archive down": "cannot list", "dirty": "of the budgets",
    "empty": "The namespace is empty",
}  # fmt: skip
"""What the overview says in each state."""


def text(i: int) -> str:
    at = (i * 97) % 9000
    return f"# Module {i}\n\n{TEXT[at : at + random.Random(i).randint(200, 1400)]}"


def name(i: int) -> str:
    return (
        f"{('skills', 'docs', 'memories/team-a', 'code/services')[i % 4]}/{('pdf', 'review', 'deploy')[i // 4 % 3]}-{i}"
    )


def make(state: str, open: Callable[..., Store], cold: Path) -> Store:
    """Open a store whose namespace is in that state."""
    store = open(namespace=state.replace(" ", "-"), **SETTINGS[state])
    if state == "empty":
        return store
    for shard in store.space.keys.shards:
        store.run(iter(claim(shard, "worker-1", FAR_MS)))
    store.run(iter(heartbeat(store.space.keys.shards[0], "worker-1", FAR_MS)))
    count = 130 if state == "dirty" else 200
    store.put_many([
        Item(name(i), text(i), keywords=["demo", f"k{i % 9}"], meta={"owner": "team", "n": i}) for i in range(count)
    ])  # fmt: skip
    if state == "dirty":
        return store
    store.archive_now()
    if state == "archive down":
        store.put("skills/after-the-outage", "this is not archived")
        cold.rename(cold.with_name(f"{cold.name}-away"))
    else:
        read(store, state, 300)
    return store


def read(store: Store, state: str, times: int) -> None:
    """Read as agents do: mostly the same modules, or all of them where the budget does not suffice for that."""
    for _ in range(times):
        i = CHANCE.randrange(200) if state == "thrash" else min(199, int(CHANCE.expovariate(1 / 12)))
        for _ in range(4 if state == "thrash" else 1):
            store.get(name(i))
