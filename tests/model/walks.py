"""Random walks through the steps of writers, compactors, sweeps, packers and readers of the archive (`manifest.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import manifest, packs
from .manifest import GRACE, Process, World

Kind = Callable[[World], Process]
BOUNDED: tuple[Kind, ...] = (
    manifest.write_back, manifest.write_back, manifest.durable, manifest.old_writer, packs.rescue, packs.verify,
)  # fmt: skip
"""What ends within the grace. All others may sleep for ever."""
UNBOUNDED: tuple[Kind, ...] = (
    manifest.compact, manifest.compact, manifest.sweep, manifest.sweep, manifest.sweep_all, manifest.read_manifest,
    manifest.forget, packs.pack, packs.pack, packs.rewrite, packs.prove, packs.read,
)  # fmt: skip


class Focus(NamedTuple):
    """Which processes a walk starts, on which modules, how many steps it has, and how many processes live at once."""

    bounded: tuple[Kind, ...]
    unbounded: tuple[Kind, ...]
    ids: str = "abc"
    steps: int = 400
    together: int = 6
    bounded_part: float = 0.45
    losses: float = 0.02


FOCUS = {
    "all": Focus(BOUNDED, UNBOUNDED),
    "burials": Focus(
        (manifest.write_back,),
        (manifest.compact, manifest.sweep, manifest.sweep, manifest.forget),
        "a",
        1000,
        4,
        0.03,
        0,
    ),
    "packs and burials": Focus(
        (manifest.write_back,),
        (packs.pack, packs.rewrite, manifest.sweep, manifest.sweep, manifest.forget),
        "a",
        1000,
        5,
        0.1,
        0,
    ),
    "superseded packs and burials": Focus(
        (manifest.write_back,),
        (packs.pack, packs.rewrite, packs.supersede, manifest.sweep, manifest.sweep, manifest.forget),
        "a",
        1000,
        5,
        0.1,
        0,
    ),
    "superseded packs": Focus(
        (manifest.durable,),
        (
            packs.pack,
            packs.rewrite,
            packs.rewrite,
            packs.supersede,
            packs.supersede,
            manifest.sweep,
            manifest.sweep_all,
        ),
        "ab",
        800,
        5,
        0.08,
        0,
    ),
    "packs": Focus(
        (manifest.durable,),
        (packs.pack, packs.rewrite, packs.rewrite, packs.prove, packs.prove, packs.read),
        "ab",
        600,
        6,
        0.1,
        0,
    ),
}


class _Live(NamedTuple):
    process: Process
    bounded: bool
    since: int
    pace: float


def walk(seed: int, mutant: str = "", focus: str = "all") -> World:
    """Run one random walk. Raises `Violation`."""
    f = FOCUS[focus]
    w = World(seed, mutant, f.ids)
    live: list[_Live] = []
    for w.now in range(f.steps):
        if len(live) < f.together and w.rng.random() < 0.5:
            bounded = w.rng.random() < f.bounded_part
            kind = w.rng.choice(f.bounded if bounded else f.unbounded)
            if f.losses and w.rng.random() < f.losses:
                kind, bounded = manifest.lose, False
            live.append(_Live(kind(w), bounded, w.now, w.rng.choice((1, 1, 1, 0.05))))
        if mutant != "late_segment":
            live = [one for one in live if not one.bounded or w.now - one.since <= GRACE]
        if not live:
            continue
        (one,) = w.rng.choices(live, [one.pace for one in live])
        if w.rng.random() < 0.02:
            live.remove(one)  # it dies here
            continue
        try:
            next(one.process)
        except StopIteration:
            live.remove(one)
        w.check()
    return w
