"""A separate process that uses the node's disk, for `test_local.py`: `local_child.py DIRECTORY WORD [SEED]`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from distier.stores.local import LocalStore
from tests.conformance.test_local import keep, keep_in_turn, read


def main(directory: str, word: str, seed: str = "0") -> None:
    counts: Counter[str] = Counter()
    store = LocalStore(
        Path(directory), namespace="ns", max_modules=60, max_bytes=64 << 20, ttl_ms=3_600_000,
        count=lambda name, n: counts.update({name: n}),
    )  # fmt: skip
    if word == "once":
        kept = keep_in_turn(store, f"m{seed}") and read(store, f"m{seed}") is not None
        print(json.dumps({"kept": kept, "counts": counts}))
        return
    if word == "grow":
        store = LocalStore(
            Path(directory), namespace="ns", max_modules=100, max_bytes=64 << 20, ttl_ms=10**9, level=None
        )
        print(sum(keep(store, f"m{i}", size_bytes=100_000) for i in range(39)))
        return
    if word == "hold":
        with store._shared.writing() as mine:
            assert mine
            print("ready", flush=True)
            time.sleep(60)
    if word == "reading":
        with store._shared.reader() as txn:
            txn.get(b"x", db=store._shared.copies)
            print("ready", flush=True)
            time.sleep(60)


main(*sys.argv[1:])
