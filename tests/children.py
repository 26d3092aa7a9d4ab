"""The processes that tests start: each begins with the default signals, whatever this process inherited, and none is alive
after the tests."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

MARK = "TESTS_OF_DISTIER"
# Unique to this process, because pytest-xdist runs several next to each other. Its children inherit it.
TOKEN = secrets.token_hex(8)
# The homes of servers that outlive their starter: such servers overwrite their environment with a title, and lose their parent.
homes: set[Path] = set()
# Python ignores these itself, and `subprocess` gives them back.
OF_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def _ignored_still(*_: object) -> None:
    """Do nothing, as if the signal were ignored; but an exec makes a handled signal the default again."""


def default_signals() -> None:
    """Let children start with the default signals, also under `nohup` and in the background of a shell, where SIGINT, SIGQUIT
    and SIGHUP are ignored. This process itself still ignores them."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - OF_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            # `wait` does not know children that the kernel has reaped
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else _ignored_still)


def mark() -> None:
    """Mark the children that start from now on as those of this process."""
    os.environ[MARK] = TOKEN


def left(ours: int | None = None) -> dict[int, str]:
    """Return the living descendants of this process: their descriptions by pid. Empty without /proc."""
    ours = ours or os.getpid()
    parents = {pid: parent for pid, state, parent in _processes() if state not in "ZX"}
    found = {}
    for pid in parents:
        if pid == ours or not (_descends(pid, ours, parents) or _marked(pid) or _lives_at_home(pid)):
            continue
        words = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        if words and "multiprocessing.resource_tracker" not in words:  # it ends with this process
            found[pid] = f"{words[:200]} (started by {_test_of(pid) or 'a test'})"
    return found


def left_in_the_end(patience_s: float = 20.0) -> dict[int, str]:
    """Kill the descendants that do not end by themselves, and return their descriptions."""
    end_s = time.monotonic() + patience_s
    while (found := left()) and time.monotonic() < end_s:
        time.sleep(0.05)
    end(found)
    return found


def end(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def freeze(pid: int, patience_s: float = 60.0) -> None:
    """Stop a process with SIGSTOP, and wait until each of its threads has stopped.

    The signal goes to one thread, which stops the others. On a busy machine they run until it gets a CPU.
    """
    os.kill(pid, signal.SIGSTOP)
    end_s = time.monotonic() + patience_s
    while any(state not in "TtZX" for state in _threads(pid)):
        assert time.monotonic() < end_s, f"process {pid} does not stop"
        time.sleep(0.001)


def _threads(pid: int) -> Iterator[str]:
    """Iterate over the states of the threads of a process. There are none without /proc."""
    for path in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        try:
            yield (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended
            continue


def _processes() -> Iterator[tuple[int, str, int]]:
    for path in Path("/proc").glob("[0-9]*"):
        # "pid (name) state parent ...", and a name may have brackets and spaces
        if words := _read(int(path.name), "stat").rpartition(b")")[2].split():
            yield int(path.name), words[0].decode(), int(words[1])


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def _descends(pid: int, ours: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ours:
            return True
    return False


def _marked(pid: int) -> bool:
    return f"{MARK}={TOKEN}".encode() in _read(pid, "environ").split(b"\0")


def _lives_at_home(pid: int) -> bool:
    words = _read(pid, "cmdline")
    return any(os.fsencode(f"{home}/") in words for home in homes)


def _test_of(pid: int) -> str:
    """Return the test that started a process, from the environment variable of pytest."""
    for setting in _read(pid, "environ").split(b"\0"):
        if setting.startswith(b"PYTEST_CURRENT_TEST="):
            return setting.partition(b"=")[2].decode(errors="replace")
    return ""
