"""How long it takes to rebuild N records from a directory archive, and that they read back byte-equal.

    RESCUE_N=100000 python -m tests.bench.bench_rescue

The archive is written as the write-back writes it (content and sidecar of each module), but by plain files: durable
writes would sync 200,000 files and measure the disk.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distier import Store, connect
from distier.domain import archived as names
from distier.domain import codec
from distier.domain.module import Record
from distier.domain.order import Order
from distier.plans.rescue import rescue
from tests.servers import running_server

N = int(os.environ.get("RESCUE_N", "20000"))
LIMIT_S = 60.0


def content_of(i: int) -> bytes:
    return f"# Module {i}\n\nIt says {hashlib.sha256(b'%d' % i).hexdigest()} and no more.\n".encode() * 4


def id_of(i: int) -> str:
    return f"docs/{i % 100:02d}/module-{i:06d}"


def write_archive(root: Path, n: int) -> None:
    for i in range(n):
        content = content_of(i)
        order = Order(1, i + 1, hashlib.md5(b"%d" % i, usedforsecurity=False).hexdigest())
        record = Record(
            id_of(i), "cold", order, len(content), 50, "estimate", hashlib.sha256(content).hexdigest(), "text/markdown",
            b'["bench"]', b"", True, 1, None, 0, "", 0, 1, 1, None, None, None,
        )  # fmt: skip
        key = names.content_key("bench", record)
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(codec.compress_xz(content, level=0))
        (root / names.sidecar_key(key)).write_bytes(names.pack_sidecar(names.describe(record)))


def check(store: Store, n: int) -> None:
    for start in range(0, n, 500):
        wanted = range(start, min(start + 500, n), 7)
        found = store.get_many([id_of(i) for i in wanted])
        for i in wanted:
            module = found[id_of(i)]
            assert module is not None
            assert (module.content, module.keywords) == (content_of(i), ("bench",)), i


def main() -> int:
    with tempfile.TemporaryDirectory() as tmp, running_server("valkey", args=("--save", "")) as server:
        root = Path(tmp) / "cold"
        root.mkdir()
        write_archive(root, N)
        settings: dict[str, Any] = {
            "redis__url": server.socket_url, "namespace": "bench", "deadline": "60s",
            "storage_tiers__warm__max_modules": N,
        }  # fmt: skip
        with connect({"counter": "estimate"}, storage_tiers__cold__directory=root, **settings) as store:
            begin = time.perf_counter()
            report = store.run(rescue(store.space), deadline_s=3600)
            took_s = time.perf_counter() - begin
            begin = time.perf_counter()
            again = store.run(rescue(store.space), deadline_s=3600)
            again_s = time.perf_counter() - begin
            assert (report.adopted, report.unreadable, again.known) == (N, {}, N)
            rate = N / took_s
            print(f"rescued {N} modules in {took_s:.1f} s ({rate:.0f} a second, {100_000 / rate:.0f} s for 100,000)")
            print(f"run again, with nothing to do: {again_s:.1f} s", flush=True)
            check(store, N)
            print("every 7th was read back byte-equal")
    return int(100_000 / rate > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
