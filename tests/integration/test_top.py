"""`distier top`: what one look shows, keys, and a live run in a real terminal of 80x24."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from distier import Item, Store, connect
from distier.cli.top import COLUMNS, FIXED_LINES, LINES, ORDERS, Flows, View, _look, as_json, frame, problems
from tests.conftest import empty
from tests.servers import TestServer, poll


@pytest.fixture
def store(server: TestServer, tmp_path: Path) -> Iterator[Store]:
    empty(server)
    with connect({"counter": "estimate"}, redis__url=server.url, namespace="top", near__enabled=False,
                 storage_tiers__cold__directory=tmp_path / "cold") as opened:  # fmt: skip
        yield opened


def printed(store: Store, view: View, flows: Flows, width: int = COLUMNS) -> list[str]:
    seen = _look(store, view, flows, LINES - FIXED_LINES)
    console = Console(width=width, file=None, record=True, force_terminal=False, highlight=False)
    with console.capture() as captured:
        for line in frame("top", seen, flows, view, width):
            console.print(line, no_wrap=True, overflow="ellipsis")
    return captured.get().splitlines()


def test_look_fits_into_80_columns_and_24_lines(store: Store) -> None:
    store.put_many([Item(f"skills/{'long name ' * 8}{n}", "x" * n * 100) for n in range(30)])
    for id in list(store.list())[:4]:
        store.demote(id)
    flows = Flows()
    for rank, _ in ORDERS.values():
        lines = printed(store, View(rank), flows)
        assert len(lines) <= LINES - 1, "one line is left for the keys"
        assert max(map(len, lines)) <= COLUMNS
    text = "\n".join(printed(store, View(), flows))
    assert "4 hot > warm" in text
    assert "30 none > hot" in text
    assert "hot > warm   request" in text


def test_look_names_what_is_wrong(store: Store) -> None:
    store.put("a", "x")
    seen = _look(store, View(), Flows(), 5)
    assert problems(seen) == ["no worker maintains shard 0"]
    assert printed(store, View(), Flows())[1] == "LOOK  no worker maintains shard 0"


def test_look_as_data_has_the_modules_of_the_order(store: Store) -> None:
    store.put_many([Item("small", "x"), Item("large", "x" * 5000), Item("other", "x" * 50)])
    found = as_json("top", _look(store, View("biggest", "l"), Flows(), 5), Flows(), View("biggest", "l"))
    assert [row["id"] for row in found["modules"]] == ["large"]
    assert found["stats"]["count"] == 3
    assert json.dumps(found)


def test_keys_choose_order_filter_pause_and_end() -> None:
    view = View()
    for key in "b/sk\x7fki\r ":
        view.press(key)
    assert (view.rank, view.prefix, view.paused, view.typing) == ("biggest", "ski", True, None)
    for key in "/nothing\x1b":
        view.press(key)
    assert (view.prefix, view.typing) == ("ski", None)
    assert not view.ended
    view.press("q")
    assert view.ended


def command(server: TestServer, tmp_path: Path, *more: str) -> list[str]:
    config = tmp_path / "distier.yaml"
    config.write_text(json.dumps({"redis": {"url": server.url}, "namespace": "top", "counter": "estimate"}))
    return [sys.executable, "-m", "distier", "--config", str(config), *more]


def test_output_that_is_no_terminal_gets_one_look(store: Store, server: TestServer, tmp_path: Path) -> None:
    store.put("a", "x")
    done = subprocess.run(command(server, tmp_path, "top"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("distier top   top   lru")
    once = subprocess.run(
        command(server, tmp_path, "--json", "top", "--once"), capture_output=True, text=True, timeout=60
    )
    assert [row["id"] for row in json.loads(once.stdout)["modules"]] == ["a"]
    wrong = subprocess.run(
        command(server, tmp_path, "top", "--order", "odd"), capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2
    assert "--order must be one of lru" in wrong.stderr


def test_live_view_follows_keys_and_restores_the_terminal(store: Store, server: TestServer, tmp_path: Path) -> None:
    store.put_many([Item("small", "x"), Item("large", "x" * 5000)])
    pid, terminal = pty.fork()
    if pid == 0:
        argv = command(server, tmp_path, "top", "--every", "0.2")
        os.execve(argv[0], argv, {**os.environ, "TERM": "xterm"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        end_s = time.monotonic() + 60
        while wanted not in seen:
            assert time.monotonic() < end_s, seen
            if select.select([terminal], [], [], 0.5)[0]:
                seen += os.read(terminal, 65536)

    try:
        until(b"longest unused")
        os.write(terminal, b"b")
        until(b"biggest (2 in all)")
        store.demote("small")
        until(b"hot > warm")
        os.write(terminal, b"q")
        until(b"\x1b[?1049l")  # the screen of before
        poll(lambda: os.waitpid(pid, os.WNOHANG) == (pid, 0), what="the end of the command, with exit code 0")
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
