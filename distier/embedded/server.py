"""The embedded server: a private server for one machine, which keeps the modules if no Redis is configured.

A *home* is a directory. All processes with the same home share one server, which the first of them starts:

    HOME/            mode 0700, owned by this user
      server.lock    locked (flock) by the server while it runs; never deleted
      server.sock    the only access: no TCP port is opened
      server.conf    rewritten at every start
      server.log     the server's log; server.log.1 is the previous one
      server.pid     for people; no code here relies on it
      data/          the append-only file
      cold/          the archive (its contents belong to the directory store)

**The holder of the lock is the server, or is starting it.** The starter takes the lock and the server inherits it (an
flock belongs to the open file, not to a process). So the kernel can always say whether a server owns this data. If a
starter is killed before the server exists, its lock is released; if it is killed a line later, the server keeps the lock;
and the lock of a server that is killed is always released. A lock held by the starter alone would leave a gap between the
server's start and its first `listen`, in which a second server could open the same append-only file.

A pid cannot show this: pids are reused, they differ between containers, and a pid file outlives its process. So a process
is never signalled because a file names its pid: a server is stopped by a command through its own socket, which is in a
directory that only this user can write. If something removes that socket (or the lock file) while the server runs, as
cleaners of temporary files do, no client can reach the server, and a second one must not open its files. The process is
then identified by what the kernel shows: its working directory is our data directory and its title names our
configuration. It is held by a descriptor that no other process can take over, and receives SIGTERM, which stops it as
`down` does. Its successor has all its data.

The server runs as a daemon in its own session, so it survives the process, terminal and process group that started it. A
service manager that kills whole control groups still ends it; the next `ensure_server` then restarts it from its
append-only file. Open stores restart a server that was killed (`revive`). The server uses relative file names only, so
paths with spaces or of any length work, and a home may be renamed while the server runs.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distier.embedded.binary import find_server
from distier.embedded.home import Home, check_owner, has_socket, lost_socket_message, make_reachable, prepare, private
from distier.embedded.lost import LostServer, pid_from_file
from distier.embedded.talk import Running, ask, check_saved, run_id_of, shutdown
from distier.errors import ConfigError, RedisUnavailable

POLL_S = 0.02
LOG_BYTES_MAX = 1 << 20
LOG_TAIL_LINES = 12
CONFIG = """\
# distier rewrites this file at every start of the server: changes are lost.
daemonize yes
supervised no
port 0
unixsocket ../server.sock
unixsocketperm 700
protected-mode yes
enable-debug-command no
pidfile ../server.pid
logfile ../server.log
proc-title-template "{title} {config-file}"
dir data
save ""
appendonly yes
appendfsync everysec
aof-use-rdb-preamble yes
aof-load-truncated yes
maxmemory-policy noeviction
"""


def ensure_server(home: Home, *, maxmemory_bytes: int | None = None, timeout_s: float = 10) -> Running:
    """Return the server of `home`, and start it if it is not running. Any number of processes may call this at once.

    Args:
        home: The directory of the server.
        maxmemory_bytes: The server's memory limit. Ignored if the server already runs.
        timeout_s: How long to wait for the server, in seconds. A server that is still loading its data continues.

    Raises:
        ConfigError: The directory cannot be used, or there is no server program.
        RedisUnavailable: The server did not start or reply in time. The message contains the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    prepare(home)
    log_from: int | None = None  # set once this call has started a server
    problem = "it does not reply"
    lost = LostServer(home)
    while True:
        try:
            if running := ask(home, _left_s(deadline), started=log_from is not None):
                return running
        except RedisUnavailable as e:
            problem = str(e)
        with _try_lock(home, fcntl.LOCK_EX) as lock:
            if lock is not None and log_from is not None:
                raise RedisUnavailable(_failed_start_message(home, log_from))
            if lock is not None and not lost.end_rival():
                log_from = _spawn(home, lock, maxmemory_bytes, _left_s(deadline))
        if lock is None:
            lost.end_unreachable()
        if time.monotonic() > deadline:
            raise RedisUnavailable(_not_ready_message(home, lost.problem or problem, timeout_s))
        time.sleep(POLL_S)


def revive(home: Home, timeout_s: float) -> bool:
    """Restart the server of `home` if it crashed or lost its socket.

    Returns whether this call or another process restarted it. Returns False if the server runs. Also returns False after a
    regular stop, which removes the pid file: a user who stops the server does not want the next call to start it.

    Raises:
        ConfigError: As `ensure_server`.
        RedisUnavailable: As `ensure_server`.
    """
    if not home.pidfile.exists() or (_is_alive(home) and has_socket(home)):
        return False
    ensure_server(home, maxmemory_bytes=_last_limit(home), timeout_s=timeout_s)
    return True


def _last_limit(home: Home) -> int | None:
    """Return the memory limit of the last start, in bytes."""
    try:
        found = re.search(r"^maxmemory (\d+)$", home.config.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def server_status(home: Home, *, timeout_s: float = 2) -> Running | None:
    """Return the running server of `home`, or None.

    Raises:
        ConfigError: The directory belongs to another user.
        RedisUnavailable: A server runs but is not ready within `timeout_s`.
    """
    if not home.path.exists():
        return None
    check_owner(home.path)
    make_reachable(home)
    deadline = time.monotonic() + timeout_s
    while (running := ask(home, _left_s(deadline), started=False)) is None and _is_alive(home):
        if time.monotonic() > deadline:
            problem = "it does not listen" if has_socket(home) else lost_socket_message(home, pid_from_file(home))
            raise RedisUnavailable(_not_ready_message(home, problem, timeout_s))
        time.sleep(POLL_S)
    return running


def stop_server(home: Home, *, timeout_s: float = 10, anyway: bool = False) -> bool:
    """Stop the server of `home` after a last fsync, and wait until it has released its data. It is never killed.

    Args:
        home: The directory of the server.
        timeout_s: How long to wait, in seconds.
        anyway: Stop even if the disk rejects writes, so that the latest writes are lost.

    Returns:
        Whether a server was running.

    Raises:
        RedisUnavailable: The server did not stop in time.
        Unsaved: The disk rejects writes, so the latest writes are only in the server's memory. The server still runs.
    """
    if not home.path.exists():
        return False
    check_owner(home.path)
    make_reachable(home)
    if not _is_alive(home):
        return False
    deadline = time.monotonic() + timeout_s
    stopping: str | None = None
    lost = LostServer(home)
    while _is_alive(home):
        run_id = run_id_of(home, _left_s(deadline))
        if run_id is None and stopping is None:
            lost.end_unreachable()
        if stopping is None and run_id is not None:
            if not anyway:
                check_saved(home, _left_s(deadline))
            stopping = run_id
            shutdown(home, _left_s(deadline))
        elif run_id is not None and run_id != stopping:
            break  # ours is gone, and another process has already started the next one
        if time.monotonic() > deadline:
            raise RedisUnavailable(_not_ready_message(home, lost.problem or "it does not stop", timeout_s))
        time.sleep(POLL_S)
    return True


def _spawn(home: Home, lock: int, maxmemory_bytes: int | None, timeout_s: float) -> int:
    """Start a server that inherits `lock`. Returns the size of the log before the start, in bytes."""
    binary = find_server()
    try:
        _write_config(home, maxmemory_bytes)
        if home.log.exists() and home.log.stat().st_size > LOG_BYTES_MAX:
            home.log.rename(home.path / "server.log.1")
        # `daemonize` forks again, so the server becomes a child of init and leaves no zombie here. `run` returns as soon as
        # the server has read its configuration. If it prints anything before that, the configuration has an error.
        with open(home.log, "ab", opener=private) as log:
            log_from = log.tell()
            done = subprocess.run(
                [binary.path, home.config.name], cwd=home.path, timeout=timeout_s, check=False,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(lock,), start_new_session=True, umask=0o077,
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:  # most often a full disk
        raise RedisUnavailable(f"cannot start the embedded server of {home.path}: {e}") from e
    if done.returncode != 0:
        raise RedisUnavailable(_failed_start_message(home, log_from))
    return log_from


def _write_config(home: Home, maxmemory_bytes: int | None) -> None:
    limit = f"maxmemory {maxmemory_bytes}\n" if maxmemory_bytes is not None else ""
    home.config.unlink(missing_ok=True)
    with open(home.config, "x", opener=private) as config:
        config.write(CONFIG + limit)


def _left_s(deadline: float) -> float:
    return max(deadline - time.monotonic(), POLL_S)


@contextmanager
def _try_lock(home: Home, kind: int) -> Iterator[int | None]:
    """Yield the descriptor of the lock, or None if another process holds it.

    At the end the descriptor is closed but never unlocked: an explicit unlock would also release the lock of the server
    that inherited it.
    """
    try:
        fd = os.open(home.lockfile, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise ConfigError(f"cannot open the lock of the embedded server: {e}") from e
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        yield None
    except OSError as e:
        os.close(fd)
        raise ConfigError(f"the file system of {home.path} does not support locks ({e}): use a local directory") from e
    else:
        try:
            yield fd
        finally:
            os.close(fd)


def _is_alive(home: Home) -> bool:
    """Return whether a server of this home exists or is starting, even if it does not reply."""
    # A shared lock, so that two processes that check at once do not mistake each other for the server.
    with _try_lock(home, fcntl.LOCK_SH) as lock:
        return lock is None


def _failed_start_message(home: Home, log_from: int) -> str:
    with home.log.open("rb") as log:
        log.seek(log_from)
        lines = log.read()[-8192:].decode(errors="replace").splitlines()
    tail = "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:])
    return (
        f"the embedded server of {home.path} did not start. The end of {home.log}:\n{tail}\n"
        f"If its data is damaged, move {home.data} away: archived modules are then restored from the archive."
    )


def _not_ready_message(home: Home, problem: str, timeout_s: float) -> str:
    pid = pid_from_file(home)
    named = f" (pid {pid} according to {home.pidfile.name})" if pid else ""
    return f"the embedded server of {home.path}{named} is running, but {problem} (waited {timeout_s:g} s)"
