"""How long `distier rescue` takes to rebuild the records of 100,000 modules from a directory archive. All modules must
read back byte-equal; every 20th was deleted and must stay deleted. Fails above 60 s.

    python -m benchmarks.bench_rescue [number] [manifest]

With the word `manifest`, the archive's manifest is rebuilt before the rescue.

The archive has the files that the write-back writes (content and sidecar of each module), but they are written as plain
files. Durable writes would sync 200,000 files and measure the disk.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from distier import Store, connect
from distier.domain import archived as names
from distier.domain import codec
from distier.domain.module import Record
from distier.domain.order import Order
from distier.plans.recovery.rescue import rescue
from tests.servers import running_server

N = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
LIMIT_S = 60.0
DELETED_EACH = 20


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
        if i % DELETED_EACH == 0:
            later = Order(1, n + i + 1, order.write_id[::-1])
            (root / names.content_key("bench", replace(record, tier="deleted", order=later, size_bytes=0))).touch()


def check(store: Store, n: int) -> None:
    for start in range(0, n, 500):
        wanted = range(start, min(start + 500, n))
        found = store.get_many([id_of(i) for i in wanted])
        for i in wanted:
            module = found[id_of(i)]
            if i % DELETED_EACH == 0:
                assert module is None, i
            else:
                assert module is not None, i
                assert (module.content, module.keywords) == (content_of(i), ("bench",)), i


def as_env(settings: dict[str, Any]) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("DISTIER_")}
    return env | {f"DISTIER_{name.upper()}": str(value) for name, value in settings.items()}


def main() -> int:
    with tempfile.TemporaryDirectory() as tmp, running_server("valkey", args=("--save", "")) as server:
        root = Path(tmp) / "cold"
        root.mkdir()
        write_archive(root, N)
        settings: dict[str, Any] = {
            "redis__url": server.socket_url, "namespace": "bench", "deadline": "60s", "counter": "estimate",
            "storage_tiers__warm__max_modules": N, "storage_tiers__cold__directory": root,
        }  # fmt: skip
        if "manifest" in sys.argv:
            subprocess.run([sys.executable, "-m", "distier", "manifest", "rebuild"], env=as_env(settings), check=True)
        begin = time.perf_counter()
        words = [sys.executable, "-m", "distier", "--url", server.socket_url, "rescue", "--json"]
        done = subprocess.run(words, env=as_env(settings), capture_output=True, text=True, check=True)
        took_s = time.perf_counter() - begin
        rate = N / took_s
        print(
            f"`distier rescue`: {N} modules in {took_s:.1f} s ({rate:.0f} a second); it printed {done.stdout.strip()[-300:]}"
        )
        with connect({}, **settings) as store:
            begin = time.perf_counter()
            again = store.run(rescue(store.space), deadline_s=3600)
            print(f"run again, with nothing to do: {time.perf_counter() - begin:.1f} s", flush=True)
            assert again.adopted == 0 and not again.unreadable
            check(store, N)
            print(f"all {N - N // DELETED_EACH} were read back byte-equal, {N // DELETED_EACH} stay deleted")
    return int(100_000 / rate > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
