"""`distier simulate` and `distier advise`: what they read, what they print, and their exit codes. They start no server."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distier.cli import run
from distier.policy.eviction.table import POLICIES

Cli = Callable[..., tuple[int, str, str]]
SIZES = [1000, 20_000, 3000, 500, 40_000, 700, 9000, 100]


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)

    def call(*argv: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = run([str(word) for word in argv])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def lines(n: int = 3000, *, header: str = "") -> bytes:
    rng = Random(1)
    keys = [min(int(rng.paretovariate(0.5)), 900) for _ in range(n)]
    rows = [f"{at},m{key},{SIZES[key % len(SIZES)]}" for at, key in enumerate(keys)]
    return ("\n".join([header, *rows] if header else rows) + "\n").encode()


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_simulate_prints_every_policy_next_to_lru_within_80_columns(cli: Cli) -> None:
    Path("t.csv").write_bytes(lines())
    code, out, err = cli("simulate", "t.csv", "--tokens-per-byte", "0.25")
    assert (code, err) == (0, "")
    assert out.startswith("3,000 accesses to ")
    assert out.count("budget ") == 3 and "(1%)" in out and "(10%)" in out
    assert max(map(len, out.splitlines())) <= 80
    blocks = out.split("\n\n")[1:]
    for block in blocks:
        names = [line[:16].strip() for line in block.splitlines()[2:]]
        assert names == [*POLICIES, "PFOO-L (bound)", "infinite cache"]
        missed = {line[:16].strip(): float(line[16:].split("%")[0]) for line in block.splitlines()[2:]}
        assert min(missed[name] for name in POLICIES) >= missed["PFOO-L (bound)"]
        assert missed["infinite cache"] <= missed["lru"] <= 100


def test_simulate_shows_prediction_next_to_the_policies(cli: Cli) -> None:
    walk = "\n".join(f"{n},m{n % 20},1000,s{n // 200}" for n in range(2000))
    Path("t.csv").write_text(f"time,key,size,session\n{walk}\n")
    code, out, _ = cli("simulate", "t.csv", "--budget", "50%", "--prediction")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    (row,) = (line for line in out.splitlines() if line.startswith("lru, predicting  "))
    assert float(row[16:].split("%")[0]) < 50
    assert re.search(r"^prediction: [0-9,]+ modules came ahead, [0-9]+% used; [0-9.]+ x LRU", out, re.MULTILINE)
    _, out, _ = cli("simulate", "t.csv", "--budget", "50%", "--prediction", "--policy", "lru", "--json")
    found = {row["policy"]: row for row in rows(out)}
    assert found["lru, predicting"]["predicted_used"] <= found["lru, predicting"]["predicted"]
    assert found["lru, predicting"]["missed_objects"] < found["lru"]["missed_objects"]


def test_simulate_json_has_a_row_for_each_budget_and_policy(cli: Cli) -> None:
    Path("t.csv").write_bytes(lines(header="time,key,size"))
    code, out, _ = cli("simulate", "t.csv", "--budget", "64KiB", "--budget", "5%", "--policy", "gdsf", "--json")
    found = rows(out)
    assert code == 0
    assert [(row["budget"], row["policy"]) for row in found] == [
        (budget, policy) for budget in ("64KiB", "5%") for policy in ("gdsf", "PFOO-L (bound)", "infinite cache")
    ]
    first = found[0]
    assert first["budget_bytes"] == 65536
    assert first["miss_ratio_objects"] == first["missed_objects"] / 3000
    assert 0 < first["to_lru_objects"] < 1
    assert "missed_tokens" not in first


@pytest.mark.parametrize("packed", [False, True], ids=["csv", "gzip"])
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_trace_is_read_from_file_and_stdin_packed_or_not(cli: Cli, packed: bool, stdin: bool) -> None:
    data = gzip.compress(lines()) if packed else lines()
    Path("t").write_bytes(data)
    arguments = ["--budget", "5%", "--policy", "lru", "--json"]
    wanted = cli("simulate", "t", *arguments)
    assert wanted[0] == 0
    if stdin:
        assert cli("simulate", "-", *arguments, stdin=data) == wanted
    Path("plain").write_bytes(lines())
    assert cli("simulate", "plain", *arguments) == wanted


def test_modules_of_one_size_are_compared_with_min(cli: Cli) -> None:
    _, out, _ = cli("simulate", "-", "--budget", "2B", stdin=b"key\na\nb\nc\na\nb\nc\n")
    assert "MIN (bound)" in out and "PFOO-L" not in out


def test_advise_compares_half_and_twice_of_a_budget(cli: Cli) -> None:
    Path("t.csv").write_bytes(lines())
    code, out, err = cli("advise", "t.csv", "--budget", "5%", "--tokens-per-byte", "0.25")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    table = out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["budget", "missed", "archive", "reads", "tokens", "dollars"]
    assert "(+" in table[1] and "(" not in table[2] and "(-" in table[3]


def test_advise_json_has_dollars_at_the_given_price(cli: Cli) -> None:
    Path("t.csv").write_bytes(lines())
    usual = rows(cli("advise", "t.csv", "--budget", "5%", "--json")[1])
    dear = rows(cli("advise", "t.csv", "--budget", "5%", "--dollars-per-1000-gets", "0.4", "--json")[1])
    assert [row["factor"] for row in usual] == [0.5, 1, 2]
    assert [row["archive_reads"] for row in usual] == sorted((row["archive_reads"] for row in usual), reverse=True)
    for cheap, row in zip(usual, dear, strict=True):
        assert cheap["dollars"] == pytest.approx(cheap["archive_reads"] / 1000 * 0.0004)
        assert row["dollars"] == pytest.approx(cheap["dollars"] * 1000)
        assert cheap["sample_rate"] == 1


def test_advise_is_exact_where_all_modules_are_sampled(cli: Cli) -> None:
    """Modules of one size: LRU misses exactly what the reuse distances say."""
    data = b"key\n" + b"".join(b"m%d\n" % (i * i % 37) for i in range(400))
    (_, exact, *_) = rows(cli("advise", "-", "--budget", "10B", "--json", stdin=data)[1])
    (lru, *_) = rows(cli("simulate", "-", "--budget", "10B", "--policy", "lru", "--json", stdin=data)[1])
    assert exact["archive_reads"] == lru["missed_objects"]


def test_advise_takes_a_budget_in_tokens(cli: Cli) -> None:
    data = b"key,size,tokens\na,9,10\nb,9,10\na,9,10\nb,9,10\n"
    found = rows(cli("advise", "-", "--budget-tokens", "10", "--json", stdin=data)[1])
    assert [(row["budget_tokens"], row["archive_reads"], row["missed_tokens"]) for row in found] == [
        (5, 4, 40), (10, 4, 40), (20, 2, 20),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "message", "argv"),
    [
        (2, "cannot read trace 'nope'", ["simulate", "nope"]),
        (2, "cannot read trace 'cut.gz'", ["simulate", "cut.gz"]),
        (2, "cannot read trace '.'", ["advise", "."]),
        (9, "line 2 of the trace: size must be", ["simulate", "bad.csv"]),
        (9, "no accesses", ["advise", "empty"]),
        (2, "or a percentage of the footprint", ["simulate", "good.csv", "--budget", "much"]),
        (2, "less than a byte", ["advise", "good.csv", "--budget", "0%"]),
        (2, "choose from lru, lfu", ["simulate", "good.csv", "--policy", "magic"]),
        (2, "needs a trace with a column `tokens`", ["advise", "good.csv", "--budget-tokens", "10"]),
        (2, "less than a token", ["advise", "good.csv", "--tokens-per-byte", "1", "--budget-tokens", "0"]),
    ],
)
def test_impossible_call_says_why(cli: Cli, code: int, message: str, argv: list[str]) -> None:
    Path("cut.gz").write_bytes(gzip.compress(lines())[:-20])
    Path("bad.csv").write_text("1,a,2\n2,b,two\n")
    Path("good.csv").write_text("1,a,2\n")
    Path("empty").touch()
    found, out, err = cli(*argv)
    assert (found, out) == (code, "")
    assert message in err
