"""What is replayed: ids in the order of their reads, and a text of the trace's size for each id.

Recorded traces are read from a folder outside of the repository (`BENCH_TRACES`, by default `shared/traces` next to the
checkout). The Zipf trace is generated, and so always there. Contents are cut from the standard library's sources, because
the ratios of lz4 and xz have to be those of real text.
"""

from __future__ import annotations

import bisect
import gzip
import hashlib
import io
import itertools
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RECORDED = ("nasa_day", "git_caffeine")
ZIPF = "zipf"
ZIPF_IDS = 3000
ZIPF_EXPONENT = 0.9
ZIPF_SEED = 20
SIZE_MEDIAN, SIZE_SIGMA, SIZE_MAX = 8_000, 1.2, 400_000


class NoTrace(Exception):
    """The trace is not on this machine; the text is the reason."""


@dataclass(frozen=True)
class Trace:
    """`ids` in the order of the reads, and the size in bytes of each id."""

    name: str
    ids: Sequence[str]
    sizes: Mapping[str, int]

    @property
    def footprint_bytes(self) -> int:
        return sum(self.sizes.values())


def default_folder() -> Path:
    given = os.environ.get("BENCH_TRACES")
    return Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "traces"


def trace_of(name: str, accesses: int, folder: Path) -> Trace:
    """Return `accesses` reads in a row of a trace. Raises `NoTrace`."""
    return zipf(accesses) if name == ZIPF else recorded(name, accesses, folder)


def recorded(name: str, accesses: int, folder: Path) -> Trace:
    """Return the reads in the middle of a recorded trace. An id has the size of its first read there.

    Raises:
        NoTrace: The file is not there.
    """
    path = folder / f"{name}.csv.gz"
    if not path.exists():
        raise NoTrace(f"{name} is skipped: there is no {path.name} in the folder of traces (set BENCH_TRACES)")
    with gzip.open(path, "rt") as lines:
        next(lines)
        rows = [line.rstrip().split(",") for line in lines]
    first = max(0, (len(rows) - accesses) // 2)
    part = rows[first : first + accesses]
    sizes: dict[str, int] = {}
    for _, key, size in part:
        sizes.setdefault(f"page/{key}", max(1, int(size)))
    return Trace(name, [f"page/{key}" for _, key, _ in part], sizes)


def zipf(accesses: int, *, ids: int = ZIPF_IDS, seed: int = ZIPF_SEED) -> Trace:
    """Return reads whose ids are drawn by Zipf's law, and sizes from a log-normal distribution: the same on each machine."""
    chance = random.Random(seed)
    weights = list(itertools.accumulate(rank**-ZIPF_EXPONENT for rank in range(1, ids + 1)))
    all_sizes = [_size(chance) for _ in range(ids)]
    ranks = [bisect.bisect_left(weights, chance.random() * weights[-1]) for _ in range(accesses)]
    read = [f"page/{rank}" for rank in ranks]
    return Trace(ZIPF, read, {f"page/{rank}": all_sizes[rank] for rank in dict.fromkeys(ranks)})


def _size(chance: random.Random) -> int:
    normal = math.sqrt(-2 * math.log(1 - chance.random())) * math.cos(2 * math.pi * chance.random())
    return min(SIZE_MAX, max(100, round(SIZE_MEDIAN * math.exp(SIZE_SIGMA * normal))))


@cache
def corpus() -> bytes:
    """Return the sources of the standard library of this Python, without what is not ASCII."""
    sources = sorted(Path(io.__file__).parent.glob("*.py"))
    return b"".join(source.read_text("utf-8").encode("ascii", "ignore") for source in sources)


def content(id: str, size_bytes: int, version: int = 0) -> bytes:
    """Return the text of one version of an id: always the same for one version of Python."""
    source = corpus()
    at = int.from_bytes(hashlib.sha256(f"{id} {version}".encode()).digest()[:8]) % len(source)
    text = source[at : at + size_bytes]
    while len(text) < size_bytes:
        text += source[: size_bytes - len(text)]
    return text


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
