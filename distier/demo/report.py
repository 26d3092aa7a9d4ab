"""Settings, progress and report of a demo."""

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
"""Exponent of the Zipf distribution by which agents choose modules."""
SAMPLE_S = 0.005
CHECK_SAMPLE_S = 0.05
"""Longer, because the check needs the processor."""
MOVES_S = 0.3
LAST_MOVES = 4
SLICES = 10
END_S = 2.0
"""Seconds that an interrupted demo waits for its processes before it kills them."""
REPORT_INTERVAL_S = 0.25
BATCH = 64
READ_BACK, DEMOTING, READ_ARCHIVE = "reading back", "demoting all to the archive", "reading from the archive"
SKIPPED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a demo. With `home`, the data is kept there instead of in a temporary directory."""

    seconds: float = 15.0
    agents: int = 4
    modules: int = 700
    seed: int = 1
    home: Path | None = None


class Ack(NamedTuple):
    """An acknowledged version, and the SHA-256 of its content."""

    epoch: int
    ver: int
    sha256: str


Acks = dict[str, Ack]


class Problem(NamedTuple):
    """An error that the demo detected. `kind` is the check that fails: `budget`, `read back`, `archive`, `accounts`, `read`
    (during the work) or `run`."""

    kind: str
    text: str


class AgentRow(NamedTuple):
    """One agent's work. `hits` counts reads from the near cache or hot; `times_us` are the times of its single reads."""

    name: str
    operations: int
    reads: int
    hits: int
    writes: int
    times_us: Sequence[int]


@dataclass
class Report:
    """The result of a demo. `times_us` are the times by kind of call (`get hot`, `put`, ...), in microseconds."""

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
    """Fraction of reads from the near cache or hot, in equal parts of the time."""
    last_moves: list[Event] = field(default_factory=list)
    predicted: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By source of predictions: modules that were loaded ahead, and those of them that were used."""

    @property
    def good(self) -> bool:
        return not self.problems and all(ok for ok, _ in self.checks())

    @property
    def operations(self) -> int:
        return sum(map(len, self.times_us.values()))

    def checks(self) -> list[tuple[bool, str]]:
        """Return each check as `(passed, description)`."""
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
    """The current state, for a live view. `done` and `total` count modules, or seconds while agents work."""

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
    """Returns the state now: the contents of the servers change continuously, also during a long step."""


OnProgress = Callable[[Progress], None]


def merge(many: Iterable[Mapping[str, Sequence[Any]]]) -> Acks:
    """Return the greatest acknowledged version of each module."""
    found: Acks = {}
    for acks in many:
        for id, ack in acks.items():
            found[id] = max(found.get(id, Ack(0, 0, "")), Ack(*ack))
    return found


def verdict(id: str, expected: Ack, found: Module | None, unanswered: Iterable[str] = ()) -> str | None:
    """Return what is wrong with a module that was read back.

    Args:
        id: The module's id.
        expected: Its greatest acknowledged version.
        found: The module as it was read.
        unanswered: The SHA-256 of failed writes. They may or may not have been applied.

    Returns:
        The error, or None if `found` is the expected version, byte by byte.
    """
    if found is None:
        return f"{id}: missing, but version {expected.epoch}-{expected.ver} was acknowledged"
    sha256 = hashlib.sha256(found.content).hexdigest()
    version = (found.version.epoch, found.version.ver)
    if version == (expected.epoch, expected.ver):
        return None if sha256 == expected.sha256 else f"{id}: version {found.version} has other bytes than were put"
    if version < (expected.epoch, expected.ver):
        return f"{id}: reads as version {found.version}, but {expected.epoch}-{expected.ver} was acknowledged"
    return None if sha256 in unanswered else f"{id}: version {found.version} was never acknowledged"


def account_errors(usage: Mapping[str, int], counted: Mapping[str, int]) -> list[str]:
    """Return the differences between the accounts of a shard and a recount."""
    names = sorted(set(usage) | set(counted))
    return [
        f"{name}: the account is {usage.get(name, 0)}, the recount is {counted.get(name, 0)}"
        for name in names
        if usage.get(name, 0) != counted.get(name, 0)
    ]


def hit_rates(reads: Sequence[tuple[int, int]], slices: int = SLICES) -> list[float]:
    """Return the fraction of hits in equal parts of the time, from running totals of reads and hits at equal intervals."""
    n = len(reads) - 1
    ends = [reads[i * n // slices] for i in range(slices + 1)] if n >= slices else list(reads)
    parts = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]
    return [hits / reads for reads, hits in parts if reads]
