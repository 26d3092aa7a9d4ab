"""Misses of the policies of libcachesim, a package of the group `bench`: `python -m benchmarks.policies.peers FILE BYTES NAME`.

Each policy runs in a process of its own: one that does not end, or ends the process, must not end the benchmark.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

POLICIES = (
    "LRU", "FIFO", "LFU", "LFUDA", "ARC", "Clock", "S3FIFO", "Sieve", "TwoQ", "SLRU", "LeCaR", "Hyperbolic", "GDSF",
    "WTinyLFU", "LHD", "LRUK",
)  # fmt: skip
LIMIT_S = 20


def is_installed() -> bool:
    return importlib.util.find_spec("libcachesim") is not None


def misses(file: Path, capacity_bytes: int, policy: str) -> int | None:
    """Return the misses of a policy on the trace in a file (see `main`); None where it did not end, or failed."""
    argv = [sys.executable, "-m", "benchmarks.policies.peers", str(file), str(capacity_bytes), policy]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, cwd=Path(__file__).parents[2])
    except subprocess.TimeoutExpired:
        return None
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(file: str, capacity: str, policy: str) -> None:
    """Print the number of misses. The file is JSON: a list of keys (numbers), and a list of their sizes."""
    simulator = importlib.import_module("libcachesim")
    keys, sizes = json.loads(Path(file).read_text())
    cache = getattr(simulator, policy)(cache_size=int(capacity), hashpower=16)
    request, found = simulator.Request(), 0
    for n, key in enumerate(keys):
        if sizes[key] > int(capacity):
            found += 1
            continue
        request.obj_id, request.obj_size, request.clock_time = key + 1, sizes[key], n + 1
        found += not cache.get(request)
    print("", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
