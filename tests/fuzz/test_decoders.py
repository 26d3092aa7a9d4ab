"""Any bytes give a right value, `Corrupt` or `Invalid`, and never take more than 128 MB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distier.config import load_config
from distier.domain.module import MAX_CONTENT_BYTES
from distier.errors import ConfigError
from tests.fuzz.decoders import ROOM_BYTES, WEIGHTS

INPUTS = 240_000


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="no /proc: the limit of memory is set by what it says"
)
def test_decoders_return_or_refuse_within_their_memory(report: Callable[[str], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.decoders", str(INPUTS)], cwd=Path(__file__).parents[2], check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout)
    counts = found["counts"]
    total = sum(c["inputs"] for c in counts.values())
    report(
        f"decoder fuzzing: {total} inputs in {found['seconds']} s, at most {ROOM_BYTES >> 20} MiB more than at the start"
    )
    for name, by_word in counts.items():
        report(f"  {name:17} " + ", ".join(f"{n} {word}" for word, n in sorted(by_word.items())))
    assert set(counts) == set(WEIGHTS) and sum(c["inputs"] for c in counts.values()) >= INPUTS
    for name, by_word in counts.items():
        good = by_word["inputs"] - by_word.get("Corrupt", 0) - by_word.get("Invalid", 0) - by_word.get("refused", 0)
        assert good > by_word["inputs"] // 200, f"{name}: the mutations leave nothing whole: {by_word}"
        assert good < by_word["inputs"], f"{name}: the mutations break nothing: {by_word}"


def test_the_most_that_a_record_may_claim_is_the_most_that_can_be_configured() -> None:
    assert load_config({}, max_module_bytes=MAX_CONTENT_BYTES).max_module_bytes == MAX_CONTENT_BYTES
    with pytest.raises(ConfigError):
        load_config({}, max_module_bytes=MAX_CONTENT_BYTES + 1)
