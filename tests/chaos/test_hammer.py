"""The hammer on both kinds of server; see `hammer.py`. `CHAOS=long` runs it for minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.hammer import EACH_LEAST, EVERYTHING
from tests.servers import TestServer

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60 if os.environ.get("CHAOS") == "long" else 10


@pytest.mark.timeout(SECONDS * 9 + 310)
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_kill_9_with_three_nodes_breaks_no_promise(
    server: TestServer, redis_url: str, tmp_path: Path, report: Callable[[str], None]
) -> None:
    hammer(redis_url, tmp_path, report, "--nodes", "3", seconds=max(5, SECONDS // 2))


@pytest.mark.timeout(SECONDS * 9 + 310)
def test_kill_9_breaks_no_promise(
    server: TestServer, redis_url: str, tmp_path: Path, report: Callable[[str], None]
) -> None:
    hammer(redis_url, tmp_path, report)


def hammer(redis_url: str, tmp_path: Path, report: Callable[[str], None], *more: str, seconds: int = SECONDS) -> None:
    seed = os.environ.get("CHAOS_SEED", "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.hammer", "--url", redis_url, "--directory", str(tmp_path / "hammer"),
         "--seconds", str(seconds), "--seed", seed, *more],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS * 9 + 300,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    report(f"{' '.join(more) or 'no nodes'}: {found['kills']} kills, {json.dumps(found['counts'])}")
    assert not found["faults"], "\n".join(found["faults"][:40])
    assert done.returncode == 0, done.stderr
    counts = found["counts"]
    # Everything happened, and often enough to mean something.
    assert found["kills"] >= seconds
    assert counts["samples"] >= seconds * 10
    for what in EVERYTHING:
        assert counts.get(what, 0) >= EACH_LEAST, (what, counts)
