"""Recording the reads of all processes: what is in the trace, what it costs when nobody records, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distier import Store, connect
from distier.observe.reads import Recording
from distier.plans.common.touches import send_touch
from tests.conftest import empty
from tests.servers import TestServer, poll


def settings(server: TestServer, tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"redis__url": server.url, "namespace": "n", "counter": "estimate", "near__enabled": False,
            "storage_tiers__cold__directory": str(tmp_path / "archive"), **more}  # fmt: skip


@pytest.fixture
def store(server: TestServer, tmp_path: Path) -> Any:
    empty(server)
    with connect({}, **settings(server, tmp_path)) as found:
        yield found


def read(store: Store, ids: list[str]) -> None:
    for id in ids:
        store.get(id)
    store.run(send_touch(store.space, store._driver.uses.drain()))


def test_reads_of_every_tier_and_process_are_recorded(server: TestServer, store: Store, tmp_path: Path) -> None:
    for id in ("a", "b", "c", "gone"):
        store.put(id, f"content of {id} " * 10)
    store.archive_now()
    store.demote("b", to="warm")
    store.demote("c", to="cold")
    read(store, ["a"])
    recording = Recording(store.space)
    store.run(recording.begin())
    with connect({}, **settings(server, tmp_path)) as other:
        read(store, ["a", "b", "a", "gone"])
        read(other, ["c", "a"])
    poll(lambda: store.run(recording.step()) or len(recording.reads) >= 5, what="all reports")
    store.run(recording.end())
    read(store, ["b"])
    store.run(recording.step())
    store.run(recording.end())
    store.delete("gone")
    rows = store.run(recording.rows())
    assert Counter(id for _, id, _, _ in rows) == {"a": 3, "b": 1, "c": 1}, "the last read came after the end"
    size = len("content of a " * 10)
    assert {(bytes_, tokens > 0) for _, _, bytes_, tokens in rows} == {(size, True)}
    assert [at for at, *_ in rows] == sorted(at for at, *_ in rows)


def test_a_recorder_that_died_is_forgotten(server: TestServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distier.observe.reads.AHEAD_MS", -1)
    store.put("a", "x")
    recording = Recording(store.space)
    store.run(recording.begin())
    read(store, ["a"])
    (shard,) = store.space.keys.shards
    with server.client() as client:
        assert client.xlen(shard.reads) == 1, "only the entry of the beginning"
        assert 0 < client.pttl(shard.reads) <= 60_000


def test_a_key_of_another_type_fails_no_read(server: TestServer, store: Store) -> None:
    store.put("a", "x")
    (shard,) = store.space.keys.shards
    with server.client() as client:
        client.set(shard.reads, "foreign")
        client.hset(shard.epoch, "recording", "99999999999999")
    read(store, ["a"])
    with server.client() as client:
        assert client.zscore(shard.uses, "a") == 1


def test_command_line_records_and_simulates_a_living_namespace(
    server: TestServer, store: Store, tmp_path: Path
) -> None:
    for n in range(20):
        store.put(f"m{n}", "text " * (n + 1))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")}
    environment |= {f"DISTIER_{name.upper()}": str(value) for name, value in settings(server, tmp_path).items()}

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "distier", *words], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def reads_until_end(process: subprocess.Popen[str]) -> tuple[str, str]:
        while process.poll() is None:
            read(store, [f"m{n % 20}" for n in range(40)])
        return process.communicate(timeout=60)

    file = tmp_path / "trace.csv"
    _, err = reads_until_end(start("record", "--for", "2s", "-o", str(file)))
    lines = file.read_text().splitlines()
    assert lines[0] == "time,key,size,tokens" and len(lines) > 40, err
    simulated = subprocess.run([sys.executable, "-m", "distier", "--json", "simulate", str(file)], env=environment, text=True,
                               capture_output=True, check=True)  # fmt: skip
    assert {json.loads(line)["policy"] for line in simulated.stdout.splitlines()} >= {"lru", "gdsf"}
    for command in ("simulate", "advise"):
        out, err = reads_until_end(start("--json", command, "--live", "3s", "--budget", "50%"))
        rows = [json.loads(line) for line in out.splitlines()]
        assert rows and all("missed_tokens" in row for row in rows), err
    silent = start("simulate", "--live", "100ms")
    _, err = silent.communicate(timeout=60)
    assert silent.returncode == 2 and "no process read a module" in err
    neither = start("simulate")
    _, err = neither.communicate(timeout=60)
    assert neither.returncode == 2 and "TRACE" in err
