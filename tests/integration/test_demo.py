"""The demo: a short real run, and proof that its checks can fail."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distier.cli.demo import live_table, percentile, report_view
from distier.demo import (
    DEMOTING,
    READ_ARCHIVE,
    READ_BACK,
    Ack,
    AgentRow,
    Problem,
    Progress,
    Report,
    Settings,
    account_errors,
    corpus,
    demo_config,
    hit_rates,
    merge,
    open_demo,
    run,
    run_check,
    verdict,
)
from distier.domain.module import Event, Module
from distier.domain.order import Order
from distier.embedded import Home, stop_server
from distier.plans.fleet.statistics import Stats
from tests.children import freeze
from tests.servers import Reaper, poll


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def module(content: bytes, epoch: int = 1, ver: int = 5) -> Module:
    order = Order(epoch, ver, "0" * 32)
    return Module("m", content, "text/plain", 1, "given", (), {}, order, sha(content), "hot", 0, 0)


# -- verdicts -------------------------------------------------------------------------------------------------------


def test_verdict_names_what_is_wrong_with_a_read() -> None:
    ack = Ack(1, 5, sha(b"new"))
    assert verdict("m", ack, module(b"new")) is None
    assert "missing" in str(verdict("m", ack, None))
    assert "other bytes" in str(verdict("m", ack, module(b"damaged")))
    assert "reads as version 1-4" in str(verdict("m", ack, module(b"new", ver=4)))
    assert "never acknowledged" in str(verdict("m", ack, module(b"newer", ver=6)))
    assert "never acknowledged" in str(verdict("m", ack, module(b"newer", epoch=2, ver=1)))
    assert verdict("m", ack, module(b"newer", ver=6), [sha(b"newer")]) is None


def test_merge_keeps_the_greatest_acknowledged_version() -> None:
    merged = merge([{"a": Ack(1, 9, "x"), "b": Ack(1, 1, "b")}, {"a": [1, 10, "y"]}, {"a": [1, 2, "z"]}])
    assert merged == {"a": Ack(1, 10, "y"), "b": Ack(1, 1, "b")}


def test_accounts_are_compared_both_ways() -> None:
    assert account_errors({"hot_count": 2, "x": 0}, {"hot_count": 2}) == []
    assert len(account_errors({"hot_count": 2, "warm_count": 1}, {"hot_count": 3, "cold_count": 1})) == 3


def done() -> Report:
    checked = {"reading back": 3, "reading from the archive": 3}
    return Report(Settings(), modules=3, samples=1, checked=checked)


def test_report_is_good_only_if_everything_was_checked() -> None:
    assert done().good
    assert not replace(done(), samples=0).good
    assert not replace(done(), checked={"reading back": 3, "reading from the archive": 2}).good
    for kind in ("budget", "read", "run", "read back", "archive", "accounts"):
        bad = replace(done(), problems=[Problem(kind, "it is")])
        assert not bad.good
        assert [ok for ok, _ in bad.checks()].count(False) == 1


@pytest.fixture
def config(short_tmp: Path, reaper: Reaper) -> Iterator[dict[str, Any]]:
    home = short_tmp / "h"
    reaper.watch(home)
    yield demo_config(home, {"m": b"x" * 1000})
    stop_server(Home(home))


def test_check_finds_lost_older_and_damaged_modules(config: dict[str, Any]) -> None:
    with open_demo(config) as store:
        acks: dict[str, Any] = {}
        for id in ("good", "lost", "older", "damaged"):
            version = store.put(id, id.encode()).version
            acks[id] = (version.epoch, version.ver, sha(id.encode()))
        store.delete("lost")
        acks["older"] = (acks["older"][0], acks["older"][1] + 100, acks["older"][2])
        acks["damaged"] = (*acks["damaged"][:2], sha(b"something else"))
        messages: list[Any] = []
        job = {"config": config, "acks": acks, "unanswered": {}}
        run_check(job, threading.Event(), messages.append)
        problems = [Problem(*p) for p in messages[-1]["report"]["problems"]]
        by_kind = Counter(p.kind for p in problems)
        assert by_kind["read back"] == 3
        assert by_kind["archive"] >= 3
        assert by_kind["accounts"] == 0
        assert messages[-1]["report"]["checked"] == {"reading back": 1, "reading from the archive": 1}


def test_check_finds_a_wrong_account(config: dict[str, Any]) -> None:
    import redis

    with open_demo(config) as store:
        version = store.put("m", b"x").version
        (shard,) = store.space.keys.shards
        with redis.Redis.from_url(Home(Path(config["home"])).url) as client:
            client.hincrby(shard.usage, "hot_tokens", 1)
        messages: list[Any] = []
        acks = {"m": (version.epoch, version.ver, sha(b"x"))}
        run_check({"config": config, "acks": acks, "unanswered": {}}, threading.Event(), messages.append)
    kinds = {Problem(*p).kind for p in messages[-1]["report"]["problems"]}
    assert kinds == {"accounts"}


def test_corpus_is_real_code_of_bounded_size() -> None:
    found = corpus(50)
    assert len(found) == 50
    assert not any(part in ("test", "tests", "site-packages") for id in found for part in id.split("/"))
    assert sum(map(len, found.values())) > 100_000
    assert len(corpus(100_000)) > 400


# -- display -----------------------------------------------------------------------------------------------------------


def text_of(*things: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_report_and_live_view_fit_in_80_columns(config: dict[str, Any]) -> None:
    with open_demo(config) as store:
        stats = store.stats()
    calls = ("get near", "get hot", "get warm", "get cold", "get_many", "put")
    report = replace(
        done(), stats=stats, times_us={kind: [123_456_789] * 3 for kind in calls}, work_s=1.0, size_bytes=10**10,
        peaks=dict.fromkeys(("hot tokens", "hot bytes", "warm modules", "warm bytes"), (10**10, 10**10)),
        moves=Counter({("deleted", "deleted", "headroom"): 10**9}), samples=10**9,
    )  # fmt: skip
    progress = Progress("reading from the archive", 700, 700, 10**7, 99999, stats, 10**6)
    for line in (text_of(*report_view(report)) + text_of(live_table(progress))).splitlines():
        assert len(line.rstrip()) <= 80, line


def full_report(stats: Stats, agents: int = 4) -> Report:
    event = Event("1-1", "some/where/module.py", "hot", "warm", "headroom", "1-5", 1_700_000_000_000)
    return replace(
        done(), stats=stats, times_us={f"get {tier}": [100] for tier in ("near", "hot", "warm", "cold")}, work_s=1.0,
        peaks=dict.fromkeys(("hot tokens", "hot bytes", "warm modules", "warm bytes"), (99, 100)), samples=10**4,
        moves=Counter({("hot", "warm", "headroom"): 4000, ("hot", "warm", "evict"): 5, ("none", "hot", "put"): 3}),
        agents=[AgentRow(f"agent-{i}", 1000, 800, 400, 50, [10, 20]) for i in range(agents)], hit_rates=[0.1, 0.25] * 5,
        last_moves=[event] * 4,
    )  # fmt: skip


@pytest.mark.parametrize("agents", [1, 4, 64])
def test_report_fits_one_screen_and_ends_with_the_verdict(config: dict[str, Any], agents: int) -> None:
    with open_demo(config) as store:
        report = full_report(store.stats(), agents)
    lines = text_of(*report_view(report)).splitlines()
    assert len(lines) <= 23 and max(len(line.rstrip()) for line in lines) <= 80, "\n".join(lines)
    assert lines[-1].startswith("passed:")
    shown = "\n".join(lines)
    assert "agent-0" in shown and "10% 25% 10%" in shown and "4,005 hot > warm" in shown and "headroom" in shown
    bad = replace(report, problems=[Problem("accounts", "one is wrong")])
    assert text_of(*report_view(bad)).splitlines()[-1] == "FAILED: 1 check of 6 failed"


def test_hit_rates_cover_equal_parts_of_the_reads() -> None:
    assert hit_rates([(0, 0), (10, 1), (20, 6), (20, 6), (30, 16)], 4) == [0.1, 0.5, 1.0]  # one part has no reads
    assert hit_rates([(0, 0)]) == []
    assert hit_rates([(10 * i, 5 * i) for i in range(101)]) == [0.5] * 10


def test_live_view_changes_during_the_final_checks(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this phase all modules go to the archive and come back."""
    monkeypatch.setenv("TMPDIR", str(short_tmp))
    monkeypatch.setattr(tempfile, "tempdir", None)
    seen: dict[str, set[tuple[int, int, int]]] = {}

    def record_progress(p: Progress) -> None:
        now = p.again() if p.again else p
        if now.stats:
            s = now.stats
            seen.setdefault(now.phase, set()).add((s.hot.count, s.warm.count, s.cold.count))

    report = run(Settings(1.0, 1, 120), record_progress)
    assert report.good, report.problems
    checking = set().union(*(seen.get(phase, set()) for phase in (READ_BACK, DEMOTING, READ_ARCHIVE)))
    assert len(checking) > 1, seen
    assert report.agents[0].operations > 0 and report.last_moves


def test_percentile_of_no_one_and_many_values() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([5], 0.99) == 5
    assert percentile(list(range(100, 0, -1)), 0.99) == 100


# -- whole runs --------------------------------------------------------------------------------------------------------


def demo(tmp: Path, *argv: str) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")}
    # A setting that would break the demo if the demo used it.
    env |= {"TMPDIR": str(tmp), "DISTIER_REDIS_URL": "redis://127.0.0.1:1"}
    return subprocess.Popen(
        [sys.executable, "-m", "distier", "demo", *argv], env=env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def processes_of(tmp: Path) -> list[str]:
    """The processes that were started with this TMPDIR. (A server writes its title over its environment, and the title
    contains the path.)
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp).encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


MOVES = {("hot", "warm"), ("warm", "cold"), ("cold", "warm")}


@pytest.mark.timeout(300)
def test_short_demo_passes(short_tmp: Path) -> None:
    for seconds in (3, 30):  # a quick machine shows this in three seconds, a busy one needs longer
        with demo(short_tmp, "--seconds", str(seconds), "--modules", "120", "--json") as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        report = json.loads(out)
        if report["samples"] > 50 and len({(m["from"], m["to"]) for m in report["moves"]} & MOVES) == len(MOVES):
            break
    assert report["good"] is True
    assert all(check["ok"] for check in report["checks"])
    assert report["modules"] == 120
    assert report["samples"] > 50
    assert {"warm", "cold"} <= set(report["hits"])
    assert {(m["from"], m["to"]) for m in report["moves"]} >= MOVES
    budget = report["budgets"]["hot tokens"]
    assert 0.8 < budget["most_seen"] / budget["limit"] <= 1
    assert err.startswith("distier demo: starting\n")
    assert "agents at work" in err
    assert list(short_tmp.iterdir()) == []
    assert processes_of(short_tmp) == []


def test_demo_prints_a_report_and_keeps_a_given_home(short_tmp: Path, reaper: Reaper) -> None:
    home = short_tmp / "kept"
    reaper.watch(home)
    words = ("--seconds", "1", "--modules", "40", "--agents", "2", "--home", str(home))
    with demo(short_tmp, *words) as process:
        out, err = process.communicate(timeout=110)
    assert process.returncode == 0, out + err
    assert len(re.findall(r"^ ok  ", out, re.MULTILINE)) == 6
    assert "40 of 40 modules read back byte-exact" in out
    assert "distier --home" in err
    assert (home / "cold").is_dir()
    assert processes_of(short_tmp) == []
    with demo(short_tmp, *words) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 9
    assert "is not empty" in err


def test_demo_with_hanging_agents_ends_and_reports_that_first(short_tmp: Path) -> None:
    with demo(short_tmp, "--modules", "60") as process:
        assert process.stderr
        next(line for line in process.stderr if "agents at work" in line)
        hung = [pid for pid in processes_of(short_tmp) if pid != str(process.pid) and is_child(pid)]
        for pid in hung:
            freeze(int(pid))
        process.send_signal(signal.SIGINT)
        first = next(line for line in process.stderr if "agents at work" not in line)
        assert re.search(r"interrupted: ending \d processes and the server", first)
        process.send_signal(signal.SIGINT)  # a second one leaves nothing behind either
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "its data is deleted" in err
    assert len(hung) == 5
    assert list(short_tmp.iterdir()) == [] and processes_of(short_tmp) == []


def is_child(pid: str) -> bool:
    return b"distier.demo" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process_and_no_file(short_tmp: Path, end: signal.Signals) -> None:
    with demo(short_tmp, "--modules", "60", "--agents", "2") as process:
        assert process.stderr
        seen = next(line for line in process.stderr if "agents at work" in line)
        assert seen
        process.send_signal(end)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert list(short_tmp.iterdir()) == []
    assert processes_of(short_tmp) == []


def test_children_end_when_the_demo_is_killed(short_tmp: Path) -> None:
    with demo(short_tmp, "--modules", "60") as process:
        assert process.stderr
        next(line for line in process.stderr if "agents at work" in line)
        (home,) = short_tmp.glob("distier-demo-*")
        assert len(processes_of(short_tmp)) > 5
        process.kill()
        process.communicate()
    assert stop_server(Home(home))  # it outlives every process by design
    poll(lambda: processes_of(short_tmp) == [], what="the end of all children")
