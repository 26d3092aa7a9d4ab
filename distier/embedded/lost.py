"""A server that runs and cannot be reached, because something removed its socket."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from distier.embedded.home import SOCKET_NAME, Home, has_socket, no_socket

LOOK_EVERY_S = 0.25


class LostServer:
    """Looks after a living server that nobody can reach any more, for a call that wants to reach it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._asked: int | None = None
        self._looked_s = float("-inf")
        self.problem = ""

    def end_deaf(self) -> None:
        """Ask the server that has the lock to end, if it listens at a socket whose name is gone."""
        if has_socket(self._home):
            self.problem = ""
        elif time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            pid = find_lost_server(self._home)
            deaf = pid is not None and _listens(pid) and not has_socket(self._home)
            if pid is not None and deaf:
                self._end(pid)
            # Without a word of the kernel (another container, another system) its own must do.
            named = pid or said_pid(self._home)
            self.problem = no_socket(self._home, named) if deaf or (pid is None and named) else ""
            self._looked_s = time.monotonic()

    def end_rival(self) -> bool:
        """Whether a server works in our data though the lock is ours, because the one that it holds was removed. It is asked
        to end."""
        pid = find_lost_server(self._home)
        if pid is not None:
            self._end(pid)
            self.problem = f"its lock is gone (removed by a cleaner of temporary files?): end it (`kill {pid}`)"
        return pid is not None

    def _end(self, pid: int) -> None:
        if pid != self._asked and _ask_to_end(self._home, pid):
            self._asked = pid


def _listens(pid: int) -> bool:
    """Whether this process listens at a unix socket that was called as ours is. Only then has it had its name."""
    try:
        rows = [row.split() for row in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()]
        held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 - no path: `socket:[7]`
    except OSError:
        return False
    return any(len(row) == 8 and row[7] == f"../{SOCKET_NAME}" and f"socket:[{row[6]}]" in held for row in rows)


def find_lost_server(home: Home) -> int | None:
    """The process that runs as the server of `home`, as far as the kernel tells (Linux)."""
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return None
    return next((pid for pid in pids if _is_server(home, pid)), None)


def _is_server(home: Home, pid: int) -> bool:
    process = Path(f"/proc/{pid}")
    try:
        return process.joinpath("cwd").readlink() == home.data and os.fsencode(home.config.name) in (
            process.joinpath("cmdline").read_bytes()
        )
    except OSError:  # it has ended, or is somebody else's
        return False


def _ask_to_end(home: Home, pid: int) -> bool:
    """SIGTERM, which to a server is what SHUTDOWN is: it syncs its file, and ends."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _is_server(home, pid):
            return False
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except OSError:
        return False
    finally:
        os.close(process)
    return True


def said_pid(home: Home) -> int | None:
    try:
        return int(home.pidfile.read_text())
    except (OSError, ValueError):
        return None
