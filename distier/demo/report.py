"""What a demo is asked for, and what came of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from distier.domain.module import Event, Module
from distier.plans.fleet.statistics import Stats

HOT_SHARE = 0.04
WARM_SHARE = 0.15
SKEW = 0.9
"""The exponent of Zipf's law in the agents' choice of modules."""
SAMPLE_S = 0.005
CHECK_SAMPLE_S = 0.05
"""Less often while the check needs the processor."""
MOVES_S = 0.3
LAST_MOVES = 4
SLICES = 10
END_S = 2.0
"""How long an interrupted demo waits for its processes; then they are killed."""
TELL_S = 0.25
BATCH = 64
READ_BACK, DEMOTING, READ_ARCHIVE = "reading back", "demoting all to the archive", "reading from the archive"
SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Settings:
    """`home`: keep the data there, instead of in a temporary directory."""

    seconds: float = 15.0
    agents: int = 4
    modules: int = 700
    seed: int = 1
    home: Path | None = None


class Ack(NamedTuple):
    """A version that somebody was told is written, and the SHA-256 of its content."""

    epoch: int
    ver: int
    sha256: str


Acks = dict[str, Ack]


class Problem(NamedTuple):
    """Something that must not be. `kind` says which check it fails: `budget`, `read back`, `archive`, `accounts`,
    `read` (while working) or `run`."""

    kind: str
    text: str


class AgentRow(NamedTuple):
    """One agent's work. `hits`: reads that were answered near or hot; `times_us`: of its single reads."""

    name: str
    operations: int
    reads: int
    hits: int
    writes: int
    times_us: Sequence[int]


@dataclass
class Report:
    """What happened. Times in microseconds by kind of call (`get hot`, `put`, ...); `problems` is empty if all is well."""

    settings: Settings
    modules: int = 0
    size_bytes: int = 0
    load_s: float = 0.0
    work_s: float = 0.0
    check_s: float = 0.0
    total_s: float = 0.0
    times_us: dict[str, list[int]] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    stats: Stats | None = None
    peaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    samples: int = 0
    worker: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    agents: list[AgentRow] = field(default_factory=list)
    hit_rates: list[float] = field(default_factory=list)
    """The share of reads that were answered near or hot, in equal parts of the time."""
    last_moves: list[Event] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems and all(ok for ok, _ in self.checks())

    @property
    def operations(self) -> int:
        return sum(map(len, self.times_us.values()))

    def checks(self) -> list[tuple[bool, str]]:
        """What was checked, and whether it held."""
        bad = {problem.kind for problem in self.problems}
        n, back, archive = self.modules, self.checked.get(READ_BACK, 0), self.checked.get(READ_ARCHIVE, 0)
        checks = {
            "budget": f"no budget was exceeded in any of {self.samples:,} samples",
            "read": "no read had wrong bytes, or was older than the reader's own write",
            "run": "no call failed, and no process ended early",
            "read back": f"{back:,} of {n:,} modules read back byte-exact, by a fresh process",
            "archive": f"{archive:,} of {n:,} read back byte-exact from the archive alone",
            "accounts": "the accounts equal a recount, before and after",
        }
        undone = {"budget": not self.samples, "read back": back != n, "archive": archive != n}
        return [(kind not in bad and not undone.get(kind), what) for kind, what in checks.items()]


@dataclass
class Progress:
    """How it stands, for a live view. `done` of `total` are modules, or seconds while working."""

    phase: str
    done: float = 0
    total: float = 0
    operations: int = 0
    rate: float = 0.0
    stats: Stats | None = None
    samples: int = 0
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    last_moves: Sequence[Event] = ()
    again: Callable[[], Progress] | None = None
    """The same at this moment: what the servers hold changes all the time, also in a long step."""


Tell = Callable[[Progress], None]


def merge(many: Iterable[Mapping[str, Sequence[Any]]]) -> Acks:
    """The greatest acknowledged version of each module."""
    found: Acks = {}
    for acks in many:
        for id, ack in acks.items():
            found[id] = max(found.get(id, Ack(0, 0, "")), Ack(*ack))
    return found


def verdict(id: str, expected: Ack, found: Module | None, unanswered: Iterable[str] = ()) -> str | None:
    """What is wrong with a module that was read back; None if it is the greatest acknowledged version, byte by byte.

    `unanswered`: the SHA-256 of writes that failed without an answer. They may have been applied, or not.
    """
    if found is None:
        return f"{id}: missing, version {expected.epoch}-{expected.ver} was acknowledged"
    sha256 = hashlib.sha256(found.content).hexdigest()
    version = (found.version.epoch, found.version.ver)
    if version == (expected.epoch, expected.ver):
        return None if sha256 == expected.sha256 else f"{id}: version {found.version} has other bytes than were put"
    if version < (expected.epoch, expected.ver):
        return f"{id}: reads as version {found.version}, {expected.epoch}-{expected.ver} was acknowledged"
    return None if sha256 in unanswered else f"{id}: version {found.version} was never acknowledged to anybody"


def account_errors(usage: Mapping[str, int], counted: Mapping[str, int]) -> list[str]:
    """Where the accounts of a shard differ from the recount."""
    names = sorted(set(usage) | set(counted))
    return [
        f"{name}: the account says {usage.get(name, 0)}, the recount {counted.get(name, 0)}"
        for name in names
        if usage.get(name, 0) != counted.get(name, 0)
    ]


def hit_rates(reads: Sequence[tuple[int, int]], slices: int = SLICES) -> list[float]:
    """The share of hits in equal parts of the time, from sums of reads and hits that were noted at equal distances."""
    n = len(reads) - 1
    ends = [reads[i * n // slices] for i in range(slices + 1)] if n >= slices else list(reads)
    parts = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]
    return [hits / reads for reads, hits in parts if reads]
