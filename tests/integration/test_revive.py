"""The embedded server is killed under open stores. One of them starts it again, and all continue with the acknowledged
writes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import connect, connect_async
from distier.embedded import Home, server_status, stop_server
from distier.errors import Unavailable
from tests.deadlines import short_deadline
from tests.integration.world import Face
from tests.servers import Reaper, poll

ROOT = Path(__file__).parent.parent.parent
SETTINGS: dict[str, Any] = {"counter": "estimate", "near__enabled": False, "deadline": "20s"}


@pytest.fixture
def home(short_tmp: Path, reaper: Reaper) -> Iterator[Home]:
    home = Home(short_tmp / "home")
    reaper.watch(home.path)
    yield home
    stop_server(home)


def kill(home: Home) -> int:
    running = server_status(home)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    poll(lambda: not Path(f"/proc/{running.pid}").exists(), what="the end of the server")
    return running.pid


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_open_store_restarts_a_killed_server(home: Home, kind: str) -> None:
    open_it = connect if kind == "sync" else None
    store = open_it(home.path, **SETTINGS) if open_it else await connect_async(home.path, **SETTINGS)
    face = Face(store)
    for i in range(3):
        await face.put("a", str(i))
        before = kill(home)
        assert (await face.get("a")).text == str(i)
        running = server_status(home)
        assert running is not None and running.pid != before
    await face.close()


async def test_stopped_server_stays_stopped(home: Home) -> None:
    store = connect(home.path, **SETTINGS)
    store.put("a", "a")
    assert stop_server(home)
    with short_deadline(store, 0.5), pytest.raises(Unavailable):
        store.get("a")
    assert server_status(home) is None
    store.close()


PROGRAM = """
import sys, distier
store = distier.connect(sys.argv[1], counter="estimate", near__enabled=False, deadline="30s")
name = sys.argv[2]
print("ready", flush=True)
for line in sys.stdin:
    store.put(name, line.strip())
    print(store.get(name).text, flush=True)
"""


def test_only_one_of_several_processes_restarts_the_server(home: Home) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(home.path), f"m{i}"],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for i in range(4)
    ]
    try:
        assert [hear(p) for p in processes] == ["ready"] * 4
        for n in range(2):
            before = kill(home)
            for p in processes:
                say(p, str(n))
            assert [hear(p) for p in processes] == [str(n)] * 4
            running = server_status(home)
            assert running is not None and running.pid != before
            log = home.log.read_text(errors="replace")
            assert log.count("Ready to accept connections") == n + 2, "started more than once"
    finally:
        for p in processes:
            p.kill()
            p.communicate()


def say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_memory_limit_survives_a_restart(home: Home) -> None:
    from distier.embedded import ensure_server

    ensure_server(home, maxmemory_bytes=200 << 20)
    store = connect(home.path, **SETTINGS)
    kill(home)
    assert store.get("none") is None
    assert "maxmemory 209715200" in home.config.read_text()
    store.close()


def test_failed_restart_is_reported_and_not_repeated_by_every_call(home: Home) -> None:
    store = connect(home.path, **SETTINGS)
    kill(home)
    binaries = home.path / "data" / "appendonlydir"
    for file in binaries.iterdir():
        file.write_bytes(b"damaged" * 1000)
    for _ in range(2):
        with short_deadline(store, 1.0), pytest.raises(Unavailable):
            store.get("a")
    assert home.log.read_text(errors="replace").count("Server initialized") <= 3
    store.close()
