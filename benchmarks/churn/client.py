"""One client process of a replay: `python -m benchmarks.churn.client JOB.json`.

It reads its part of the warm-up, prints `ready`, waits for a line, reads its part of what is measured, prints the figures as
JSON, and waits for another line, so that all clients are connected until all are done.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.churn.caches import Cache, open_cache
from benchmarks.churn.traces import content, digest


@dataclass(frozen=True)
class Job:
    """`client` of `clients` has each `clients`-th access. Each `puts`-th of its accesses writes; 0: none does."""

    kind: str
    url: str
    archive: str
    work: str
    """A JSON file with `ids`, `sizes`, `digests` and `objects`."""
    settings: Mapping[str, Any]
    near_bytes: int
    warmup: int
    measured: int
    client: int
    clients: int
    delay_s: float
    puts: int


@dataclass
class Figures:
    """What one client measured."""

    us: list[float]
    cpu_s: float
    archive_reads: int
    wrong_bytes: int
    """Bytes of reads with another content than was put."""
    written: dict[str, int] = field(default_factory=dict)
    """The version of each id that this client wrote."""


def cpu_s() -> float:
    """CPU time of all threads of this process and of its children."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def wrong_bytes(get: Callable[[str], bytes | None], sizes: Mapping[str, int], digests: Mapping[str, str]) -> int:
    """Read each id of `digests`. Returns the bytes of those that are missing or have another content."""
    lost = 0
    for id, wanted in digests.items():
        found = get(id)
        if found is None or digest(found) != wanted:
            lost += sizes[id]
    return lost


def measure(
    cache: Cache, ids: Sequence[str], sizes: Mapping[str, int], *, puts: int = 0, owned: Collection[str] = ()
) -> Figures:
    """Read `ids` in turn. With `puts`, each `puts`-th access writes the next version of its id instead, if it is `owned`:
    two clients never write one id, so the last version of each is known."""
    written: dict[str, int] = {}
    us: list[float] = []
    wrong, reads, begin_cpu_s = 0, cache.delay.reads, cpu_s()
    get, clock = cache.get, time.perf_counter
    for n, id in enumerate(ids, 1):
        if puts and n % puts == 0 and id in owned:
            written[id] = written.get(id, 0) + 1
            data = content(id, sizes[id], written[id])
            begin = clock()
            cache.put(id, data)
            us.append((clock() - begin) * 1e6)
            continue
        begin = clock()
        found = get(id)
        us.append((clock() - begin) * 1e6)
        if found is None or len(found) != sizes[id]:
            wrong += sizes[id]
    return Figures(us, cpu_s() - begin_cpu_s, cache.delay.reads - reads, wrong, written)


def main(path: str) -> None:
    job = Job(**json.loads(Path(path).read_text()))
    work = json.loads(Path(job.work).read_text())
    sizes, digests = work["sizes"], work["digests"]
    mine = slice(job.client, None, job.clients)
    before = work["ids"][: job.warmup][mine]
    ids = work["ids"][job.warmup : job.warmup + job.measured][mine]
    cache = open_cache(job.kind, job.url, Path(job.archive), work["objects"], job.settings, job.near_bytes)
    wrong = sum(wrong_bytes(cache.get, sizes, {id: digests[id]}) for id in before)
    cache.delay.seconds = job.delay_s
    numbers = {id: n for n, id in enumerate(sizes)}
    print("ready", flush=True)
    sys.stdin.readline()
    owned = {id for id, n in numbers.items() if n % job.clients == job.client}
    found = measure(cache, ids, sizes, puts=job.puts, owned=owned)
    found.wrong_bytes += wrong
    print(json.dumps(asdict(found)), flush=True)
    sys.stdin.readline()
    cache.close()


if __name__ == "__main__":
    main(sys.argv[1])
