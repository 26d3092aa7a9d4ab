"""The scenarios of `failover.py` on both kinds of server. `CHAOS=long` runs each for minutes, and more often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distier import connect
from distier.errors import Recovering
from tests.servers import KINDS, Kind, available_kinds

ROOT = Path(__file__).parent.parent.parent
LONG = os.environ.get("CHAOS") == "long"
# Long, over both servers: 100,000 acknowledged calls, and 54 failovers (partition, sentinel, cluster).
ROUNDS, PACE_S, ACKS_LEAST = (9, 5.0, 10_000) if LONG else (2, 1.5, 0)
TIMEOUT_S = ROUNDS * (PACE_S + 12) + 300


def run(
    scenario: str, kind: Kind, directory: Path, *more: str, rounds: int = ROUNDS, pace_s: float = PACE_S
) -> dict[str, Any]:
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.failover", "--scenario", scenario, "--kind", kind, "--directory", directory,
         "--rounds", str(rounds), "--pace", str(pace_s), "--seed", os.environ.get("CHAOS_SEED", "1"), *more],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(TIMEOUT_S + 10)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["restart", "old-rdb", "partition", "sentinel", "cluster"])
def test_failovers_and_restarts_break_no_promise(
    scenario: str, kind: Kind, tmp_path: Path, report: Callable[[str], None]
) -> None:
    found = run(scenario, kind, tmp_path / "run")
    report(json.dumps({name: value for name, value in found.items() if name != "faults"}))
    assert not found["faults"], "\n".join(found["faults"][:40])
    assert found["disruptions"] == ROUNDS and found["acknowledged"] >= ACKS_LEAST
    assert len(found["outage_ms"]) == ROUNDS, "a call succeeded after each of them"
    assert max(found["outage_ms"]) < 120_000
    counts = found["counts"]
    for what in ("put redis ok", "put archived ok", "get ok", "delete redis ok", "read hot", "read cold"):
        assert counts.get(what, 0) >= ROUNDS, (what, counts)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("broken", "scenario"), [("look", "partition"), ("replid", "old-rdb"), ("seen", "old-rdb"), ("forget", "old-rdb")]
)
def test_deliberate_bug_is_caught(broken: str, scenario: str, tmp_path: Path) -> None:
    for attempt in range(4):  # whether a run catches it depends on chance
        found = run(
            scenario, "valkey", tmp_path / str(attempt), "--break", broken, "--seed", str(attempt), rounds=3, pace_s=3
        )
        if found["faults"]:
            return
    pytest.fail(f"the checks did not catch the bug `{broken}`")


def test_fenced_delete_is_not_acknowledged_by_a_delete_of_others(redis_url: str, tmp_path: Path):
    """A bug that `partition` found: the look for a newer epoch refused a zombie's durable delete. The delete was acknowledged
    all the same, because another zombie had deleted the module meanwhile, in Redis only."""
    settings = {"redis": {"url": redis_url}, "namespace": "t", "counter": "estimate", "near": {"enabled": False},
                "storage_tiers": {"cold": {"directory": tmp_path / "cold"}}}  # fmt: skip
    with connect(settings) as store, connect(settings) as other:
        store.put("a", b"1", durability="archived")
        archive = store._driver.archive
        put = archive.put

        def then_another_deletes(key: str, *args: Any, **more: Any) -> None:
            put(key, *args, **more)
            if key.endswith(".deleted"):
                other.delete("a")

        archive.put = then_another_deletes  # type: ignore[method-assign]
        newer = tmp_path / "cold/t/epochs/0/@00000900-aaaaaaaa-00000000"  # of another master
        newer.touch()
        with pytest.raises(Recovering):
            store.delete("a", durability="archived")
