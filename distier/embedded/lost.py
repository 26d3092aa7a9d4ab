"""A server that runs but cannot be reached, because something removed its socket."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from distier.embedded.home import SOCKET_NAME, Home, has_socket, lost_socket_message

CHECK_INTERVAL_S = 0.25


class LostServer:
    """Ends a running server that no client can reach any more, for a call that needs a server.

    `problem` describes what it found, for the message of an error; empty if nothing is wrong.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._terminated: int | None = None
        self._checked_s = float("-inf")
        self.problem = ""

    def end_unreachable(self) -> None:
        """Terminate the server that holds the lock if the name of the socket at which it listens is gone."""
        if has_socket(self._home):
            self.problem = ""
        elif time.monotonic() - self._checked_s >= CHECK_INTERVAL_S:
            pid = find_lost_server(self._home)
            unreachable = pid is not None and _listens(pid) and not has_socket(self._home)
            if pid is not None and unreachable:
                self._end(pid)
            # If the kernel does not show the process (another container, another system), name the pid in its file.
            named = pid or pid_from_file(self._home)
            is_lost = unreachable or (pid is None and named)
            self.problem = lost_socket_message(self._home, named) if is_lost else ""
            self._checked_s = time.monotonic()

    def end_rival(self) -> bool:
        """Terminate a server that uses our data although we hold the lock, because its own lock file was removed.

        Returns whether there is such a server.
        """
        pid = find_lost_server(self._home)
        if pid is not None:
            self._end(pid)
            self.problem = f"its lock file is gone (removed as an old temporary file?): end the process (`kill {pid}`)"
        return pid is not None

    def _end(self, pid: int) -> None:
        if pid != self._terminated and _terminate(self._home, pid):
            self._terminated = pid


def _listens(pid: int) -> bool:
    """Return whether this process listens at a unix socket with our socket's name. A starting server does not yet."""
    try:
        rows = [row.split() for row in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()]
        held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 - not a path: `socket:[7]`
    except OSError:
        return False
    return any(len(row) == 8 and row[7] == f"../{SOCKET_NAME}" and f"socket:[{row[6]}]" in held for row in rows)


def find_lost_server(home: Home) -> int | None:
    """Return the pid of the server of `home`, or None if the kernel shows none. Works on Linux only."""
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
    except OSError:  # it has ended, or belongs to another user
        return False


def _terminate(home: Home, pid: int) -> bool:
    """Send SIGTERM, on which a server syncs its file and exits as for SHUTDOWN. Returns whether it was sent."""
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


def pid_from_file(home: Home) -> int | None:
    """Return the pid in the server's pid file, for messages only: the file may be outdated."""
    try:
        return int(home.pidfile.read_text())
    except (OSError, ValueError):
        return None
