"""The processes of the tests: they inherit clean signal handlers, and processes that are left are found."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import default_signals, end, homes, left
from tests.servers import poll, short_directory

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
SH = "/bin/sh"


@pytest.fixture
def as_under_nohup() -> Iterator[None]:
    """Ignore signals as `nohup make test &` does for pytest."""
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_children_begin_with_the_default_signals(as_under_nohup: None) -> None:
    default_signals()
    words = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    standard = 2**31 - 1  # the C library uses two signals after these itself
    found = dict(line.split(":\t", 1) for line in words.splitlines() if line.startswith("Sig") and ":\t" in line)
    assert (int(found["SigIgn"], 16) & standard, int(found["SigBlk"], 16) & standard) == (0, 0)
    signal.raise_signal(signal.SIGINT)  # this process still ignores it


def test_this_run_starts_children_with_default_signals() -> None:
    """This holds however pytest was started."""
    words = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    assert int(words.split()[1], 16) & (2**31 - 1) == 0


@pytest.mark.parametrize("how", ["a child", "an orphan", "an orphan without its environment, in a home"])
def test_process_left_behind_is_found_and_named(how: str) -> None:
    before = set(left())
    with short_directory() as home:
        program = home / "program"
        program.symlink_to(sys.executable)
        sleeps = f"{program} -S -c 'import time; print(1, flush=True); time.sleep(60)'"
        command = {"a child": f"exec {sleeps}", "an orphan": f"{sleeps} & read line"}.get(
            how, f"env -i {sleeps} & read line"
        )
        with subprocess.Popen([SH, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
            assert shell.stdin and shell.stdout
            assert shell.stdout.readline() == b"1\n"
            try:
                if how != "a child":
                    shell.stdin.write(b"\n")
                    shell.stdin.flush()
                    assert shell.wait() == 0
                assert home in homes
                (pid,) = set(left()) - before
                assert str(program) in left()[pid]
                assert ("test_process_left" in left()[pid]) == (how != "an orphan without its environment, in a home")
            finally:
                end(pid for pid in set(left()) - before)
        poll(lambda: set(left()) == before, what="its end")
