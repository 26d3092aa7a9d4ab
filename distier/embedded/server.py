"""A private server for one machine: with no Redis configured, this is where the modules live.

A *home* is a directory. Every process that names the same home shares one server in it, whoever came first:

    HOME/            0700, ours
      server.lock    held (flock) by the server for as long as it lives; never deleted
      server.sock    the only way in: no TCP port is opened
      server.conf    written anew at every start
      server.log     what the server says; server.log.1 is the one before
      server.pid     for people; nothing here believes it
      data/          the append-only file
      cold/          the archive (the directory store owns its inside)

**Whoever holds the lock is the server, or is becoming it.** The starter takes the lock and the server
inherits it (an flock belongs to the open file, not to a process). So the kernel answers the one question that
matters, "does a server own this data?", at every moment: a starter that is killed before the server exists
releases the lock, one that is killed a line later does not, and a server that is killed always does. A lock
of the starter alone would leave a gap, between the server's birth and its first `listen`, in which a second
server could open the same append-only file.

A pid answers that question badly: it is reused, it means something else in another container, and its file
outlives it. So no pid that a file names is ever signalled: a server is stopped by a command through its own socket,
which lies in a directory that only we can write. Where a cleaner of temporary files removed that socket (or the lock)
under a living server, nobody can reach it any more, and a second one must not open its files: then the process is
found by what the kernel says of it (it works in our data, its title names our configuration), held by a descriptor
that no other process can take over, and asked to end as `down` would; its successor has all its data.

The server runs as a daemon of its own session, so it survives the process, terminal and process group that
started it (a service manager that kills whole control groups still ends it; the next `ensure_server` then
starts it again from its append-only file). One that was killed is started again by the stores that are open
(`revive`). It knows its files by relative names only: paths with spaces or of any length work, and a home may be
renamed while it is up.
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
from distier.embedded.home import Home, check_ours, has_socket, make_reachable, no_socket, prepare, private
from distier.embedded.lost import LostServer, said_pid
from distier.embedded.talk import Running, ask, check_saved, run_id_of, shutdown
from distier.errors import ConfigError, RedisUnavailable

POLL_S = 0.02
LOG_BYTES_MAX = 1 << 20
LOG_TAIL_LINES = 12
CONFIG = """\
# Written by distier at every start of the server: changes here are lost.
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
    """The server of `home`, started if there is none. Safe to call from any number of processes at once.

    `maxmemory_bytes` counts only for the call that starts it. Raises `ConfigError` if the directory is not
    ours to use or there is no server program, `RedisUnavailable` with the end of the server's log if it does
    not start or does not answer within `timeout_s`; a server that is still loading its data goes on loading.
    """
    deadline = time.monotonic() + timeout_s
    prepare(home)
    log_from: int | None = None  # set once this call has started a server
    problem = "it does not answer"
    lost = LostServer(home)
    while True:
        try:
            if running := ask(home, _left_s(deadline), started=log_from is not None):
                return running
        except RedisUnavailable as e:
            problem = str(e)
        with _try_lock(home, fcntl.LOCK_EX) as lock:
            if lock is not None and log_from is not None:
                raise RedisUnavailable(_obituary(home, log_from))
            if lock is not None and not lost.end_rival():
                log_from = _spawn(home, lock, maxmemory_bytes, _left_s(deadline))
        if lock is None:
            lost.end_deaf()
        if time.monotonic() > deadline:
            raise RedisUnavailable(_held(home, lost.problem or problem, timeout_s))
        time.sleep(POLL_S)


def revive(home: Home, timeout_s: float) -> bool:
    """Start the server of `home` again if it has died, or lost its socket: whether this did so, or another process just has.
    False if it lives, or was stopped in order (then it removed its pid file): who stops a server does not want the next call to
    start it.

    Raises as `ensure_server`."""
    if not home.pidfile.exists() or (_is_alive(home) and has_socket(home)):
        return False
    ensure_server(home, maxmemory_bytes=_last_limit(home), timeout_s=timeout_s)
    return True


def _last_limit(home: Home) -> int | None:
    """What the server that died was started with."""
    try:
        found = re.search(r"^maxmemory (\d+)$", home.config.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def server_status(home: Home, *, timeout_s: float = 2) -> Running | None:
    """The server of `home`, or None if none runs. Raises `RedisUnavailable` if one runs but is not ready."""
    if not home.path.exists():
        return None
    check_ours(home.path)
    make_reachable(home)
    deadline = time.monotonic() + timeout_s
    while (running := ask(home, _left_s(deadline), started=False)) is None and _is_alive(home):
        if time.monotonic() > deadline:
            problem = "it does not listen" if has_socket(home) else no_socket(home, said_pid(home))
            raise RedisUnavailable(_held(home, problem, timeout_s))
        time.sleep(POLL_S)
    return running


def stop_server(home: Home, *, timeout_s: float = 10, anyway: bool = False) -> bool:
    """Stop the server of `home` after a last fsync. False if none ran. Returns when it has let go of its
    data. Raises `RedisUnavailable` if it does not within `timeout_s`; it is never killed.

    Where the disk takes no writes, what was written last is only in the server's memory: then this raises `Unsaved` and
    changes nothing, unless it shall stop `anyway`."""
    if not home.path.exists():
        return False
    check_ours(home.path)
    make_reachable(home)
    if not _is_alive(home):
        return False
    deadline = time.monotonic() + timeout_s
    stopping: str | None = None
    lost = LostServer(home)
    while _is_alive(home):
        run_id = run_id_of(home, _left_s(deadline))
        if run_id is None and stopping is None:
            lost.end_deaf()
        if stopping is None and run_id is not None:
            if not anyway:
                check_saved(home, _left_s(deadline))
            stopping = run_id
            shutdown(home, _left_s(deadline))
        elif run_id is not None and run_id != stopping:
            break  # ours is gone, and another process has already started the next one
        if time.monotonic() > deadline:
            raise RedisUnavailable(_held(home, lost.problem or "it does not stop", timeout_s))
        time.sleep(POLL_S)
    return True


def _spawn(home: Home, lock: int, maxmemory_bytes: int | None, timeout_s: float) -> int:
    """Start a server that inherits `lock`. Returns the size of the log before it, in bytes."""
    binary = find_server()
    try:
        _write_config(home, maxmemory_bytes)
        if home.log.exists() and home.log.stat().st_size > LOG_BYTES_MAX:
            home.log.rename(home.path / "server.log.1")
        # `daemonize` forks once more: the server is the child of init, so no zombie stays with us, and
        # `run` returns as soon as the configuration is read. What it prints until then is an error in it.
        with open(home.log, "ab", opener=private) as log:
            log_from = log.tell()
            done = subprocess.run(
                [binary.path, home.config.name], cwd=home.path, timeout=timeout_s, check=False,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(lock,), start_new_session=True, umask=0o077,
            )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:  # a full disk, first of all
        raise RedisUnavailable(f"cannot start the embedded server of {home.path}: {e}") from e
    if done.returncode != 0:
        raise RedisUnavailable(_obituary(home, log_from))
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
    """The descriptor of the held lock, or None if somebody else holds it. On leaving it is closed and never
    unlocked: an explicit unlock would take it from the server that inherited it."""
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
        raise ConfigError(f"the file system of {home.path} has no locks ({e}): use a local directory") from e
    else:
        try:
            yield fd
        finally:
            os.close(fd)


def _is_alive(home: Home) -> bool:
    """A server of this home exists (or is being started), whether it answers or not."""
    # A shared lock, so that two processes that look at once do not take each other for the server.
    with _try_lock(home, fcntl.LOCK_SH) as lock:
        return lock is None


def _obituary(home: Home, log_from: int) -> str:
    with home.log.open("rb") as log:
        log.seek(log_from)
        lines = log.read()[-8192:].decode(errors="replace").splitlines()
    tail = "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:])
    return (
        f"the embedded server of {home.path} did not start. The end of {home.log}:\n{tail}\n"
        f"If its data is damaged, move {home.data} away: what is in the archive comes back from there."
    )


def _held(home: Home, problem: str, timeout_s: float) -> str:
    pid = said_pid(home)
    said = f" (pid {pid} by its own word)" if pid else ""
    return f"the embedded server of {home.path}{said} is there, but {problem} (waited {timeout_s:g} s)"
