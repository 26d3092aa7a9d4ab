"""The command line: what it writes to which stream, and how it exits. It runs on a real embedded server, each test in
its own namespace.

Most tests call `distier.cli.run` in this process, as the script does. A child process is used for what only a process
shows: signals, a closed pipe, imports.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import __version__, connect
from distier.cli import output, run
from distier.cli.app import hoist
from distier.cli.exits import EXITS, code_of
from distier.embedded import Home, ensure_server, stop_server
from distier.errors import Conflict, DeadlineExceeded, DistierError, NotFound
from tests.servers import Reaper, free_port, poll, running_server, short_directory

BINARY = bytes(range(256)) * 3 + b"\r\n\xff"


@dataclass
class Result:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the settings of the developer's machine out of the tests."""
    for name in [n for n in os.environ if n.startswith("DISTIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def home(reaper: Reaper) -> Iterator[Path]:
    with short_directory() as path:
        path = path / "home"
        reaper.watch(path)
        yield path
        stop_server(Home(path))


Cli = Callable[..., Result]


@pytest.fixture
def words(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line exactly as given."""

    def call(*argv: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = run([str(word) for word in argv])
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return call


@pytest.fixture
def cli(words: Cli, home: Path, request: pytest.FixtureRequest) -> Cli:
    """Run a command line on the embedded server, in this test's namespace."""
    namespace = request.node.name.lower().translate(str.maketrans("[]/", "---"))[:60].rstrip("-")
    return lambda *argv, stdin=b"": words("--home", home, "-n", namespace, *argv, stdin=stdin)


def process(*argv: object) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")}
    return subprocess.Popen(
        [sys.executable, "-m", "distier", *map(str, argv)], env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


# -- put, get, rm, ls, where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"# hello\n", BINARY], ids=["empty", "text", "binary"])
def test_put_and_get_give_the_same_bytes(cli: Cli, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert cli("put", "a/file", tmp_path / "file").code == 0
    assert cli("put", "a/stdin", "-", stdin=content).code == 0
    for id in ("a/file", "a/stdin"):
        result = cli("get", id)
        assert (result.code, result.out, result.err) == (0, content, "")
    assert cli("get", "a/file", "-o", tmp_path / "back").out == b""
    assert (tmp_path / "back").read_bytes() == content


def test_get_several_ids_reports_the_missing_one(cli: Cli) -> None:
    for id in ("a", "b"):
        cli("put", id, "-", stdin=f"<{id}>".encode())
    result = cli("get", "a", "nope", "b")
    assert result.out == b"<a><b>"
    assert result.code == 3
    assert result.err.startswith("distier: there is no module 'nope'")
    assert "Traceback" not in result.err


def test_get_json_has_text_or_base64(cli: Cli) -> None:
    cli("put", "t", "-", "--keyword", "k1", "--keyword", "k2", "--meta", "who=me", "--tokens", "7", stdin=b"hi")
    cli("put", "b", "-", "--type", "image/png", stdin=b"\xff\x00")
    text, binary = cli("get", "t", "b", "--json").rows
    assert (text["content"], text["tokens"], text["keywords"], text["meta"]) == ("hi", 7, ["k1", "k2"], {"who": "me"})
    assert (binary["content_base64"], binary["content_type"]) == ("/wA=", "image/png")


def test_put_reports_where_it_landed(cli: Cli) -> None:
    result = cli("put", "a", "-", stdin=b"x")
    assert "a: hot, version" in result.text
    (row,) = cli("put", "a", "-", "--json", stdin=b"y").rows
    assert (row["tier"], row["size_bytes"], row["id"]) == ("hot", 1, "a")
    (placed,) = cli("where", "a", "--json").rows
    assert placed["version"] == row["version"]


def test_if_version_compares_and_sets(cli: Cli) -> None:
    assert cli("put", "a", "-", "--if-version", "0", stdin=b"1").code == 0
    result = cli("put", "a", "-", "--if-version", "0", stdin=b"2")
    assert result.code == 7
    assert "is at version" in result.err
    assert "hint:" in result.err
    version = cli("where", "a", "--json").rows[0]["version"]
    assert cli("put", "a", "-", "--if-version", version, stdin=b"3").code == 0
    assert cli("rm", "a", "--if-version", version).code == 7
    assert cli("get", "a").out == b"3"


def test_rm_deletes_modules(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x")
    assert cli("rm", "a").code == 0
    assert cli("get", "a").code == 3
    assert cli("rm", "a").code == 3
    assert cli("rm", "-f", "a").code == 0
    assert cli("rm", "--json", "-f", "a").rows == [{"id": "a", "deleted": False}]


def test_put_directory_writes_each_file(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    files = {"a.md": b"# a", "sub/b.bin": BINARY, "sub/deep/c.txt": b"", "skip/x.md": b"x", "sub/no.pyc": b"x"}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "link.md").symlink_to(root / "a.md")
    (root / "linked").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    result = cli("put", root, "--prefix", "p/", "--exclude", "*.pyc", "--exclude", "skip")
    assert result.code == 0, result.err
    assert result.out == b""
    assert "4 modules" in result.err
    assert result.err.count("symbolic link") == 1
    assert "not a regular file" in result.err
    assert cli("ls").text.splitlines() == ["p/a.md", "p/link.md", "p/sub/b.bin", "p/sub/deep/c.txt"]
    for name in ("a.md", "sub/b.bin", "sub/deep/c.txt"):
        assert cli("get", f"p/{name}").out == files[name]


def test_put_directory_reports_names_that_cannot_be_ids(cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.md")).write_bytes(b"x")
    (root / "good.md").write_bytes(b"x")
    result = cli("put", root)
    assert result.code == 9
    assert "not UTF-8" in result.err
    assert cli("ls").text == "tree/good.md\n"


def test_ls_lists_modules(cli: Cli) -> None:
    for id in ("a/1", "a/2", "b/1"):
        cli("put", id, "-", stdin=b"x")
    cli("demote", "a/2")
    assert cli("ls").text == "a/1\na/2\nb/1\n"
    assert cli("ls", "a/").text == "a/1\na/2\n"
    assert cli("ls", "--tier", "warm").text == "a/2\n"
    assert len(cli("ls", "--limit", "2").text.splitlines()) == 2
    assert cli("ls", "--json", "--tier", "warm").rows == [{"id": "a/2", "tier": "warm"}]
    assert [row["tier"] for row in cli("ls", "--json", "-l").rows] == ["hot", "warm", "hot"]
    long = cli("ls", "--long").text
    assert "warm*" in long
    assert "tokens" in long
    assert cli("ls", "zzz").out == b""


def test_where_prints_a_readable_description(cli: Cli) -> None:
    cli("put", "a.md", "-", stdin=b"x" * 5000)
    cli("flush")
    result = cli("where", "a.md").text
    assert "tier          hot" in result
    assert "content type  text/markdown" in result
    assert "archived      " in result and ".md.xz (" in result
    cli("demote", "a.md")
    assert "leaves warm" in cli("where", "a.md").text
    assert cli("where", "nope").code == 3


# -- moves, pins, flush, worker, stats, watch -----------------------------------------------------------------------------


def test_promote_and_demote_move_modules(cli: Cli) -> None:
    for id in ("a", "b"):
        cli("put", id, "-", stdin=b"x" * 100)
    assert [r["tier"] for r in cli("demote", "a", "b", "--json").rows] == ["warm", "warm"]
    assert cli("demote", "-", "--to", "cold", stdin=b"a\nb\n").text == "a: cold\nb: cold\n"
    assert cli("demote", "a").text == "a: cold (already)\n"
    assert cli("promote", "a").text == "a: hot\n"
    result = cli("promote", "nope", "b")
    assert result.code == 3
    assert result.text == "b: hot\n"
    assert cli("get", "a").out == b"x" * 100


def test_pinned_module_is_not_demoted(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x")
    (pinned,) = cli("pin", "a", "--ttl", "10m", "--json").rows
    assert 0 < pinned["pinned_until_ms"] / 1000 - time.time() < 601
    result = cli("demote", "a")
    assert result.code == 7
    assert "pinned" in result.err
    assert "pinned until" in cli("where", "a").text
    assert cli("unpin", "a").code == 0
    assert cli("demote", "a").code == 0
    assert cli("pin", "a", "--ttl", "soon").code == 2


def test_flush_and_one_worker_round_archive(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x")
    assert cli("stats", "--json").rows[0]["dirty_count"] == 1
    assert cli("flush").text == "1 archived\n"
    assert cli("flush", "--json").rows == [{"archived": 0}]
    (row,) = cli("worker", "--once", "--json").rows
    assert (row["rounds"], row["failures"]) == (1, 0)
    assert cli("worker", "--once").text.startswith("1 round:")


def test_stats_prints_counts_and_budgets(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x" * 1000)
    cli("put", "b", "-", stdin=b"y" * 1000)
    cli("demote", "b")
    (row,) = cli("stats", "--json").rows
    assert (row["count"], row["hot"]["count"], row["warm"]["count"], row["dirty_bytes"]) == (2, 1, 1, 2000)
    assert row["warm"]["ratio"] > 10
    result = cli("stats").text
    assert "2 modules" in result
    assert "not archived yet: 2 modules, 2 KiB" in result and "256 MiB" in result
    assert max(map(len, (line.rstrip() for line in result.splitlines()))) <= 80
    assert cli("rm", "b").code == 0
    assert "1 module\n" in cli("stats").text


@pytest.mark.parametrize(
    ("size_bytes", "printed"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (102400, "100 KiB"), (256 << 20, "256 MiB"),
     ((1 << 30) - 1, "1 GiB"), (5 << 40, "5.0 TiB")],
)  # fmt: skip
def test_sizes_are_printed_as_budgets_are_written(size_bytes: int, printed: str) -> None:
    assert output.size(size_bytes) == printed


def test_watch_prints_past_events(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x")
    cli("demote", "a", "--to", "cold")
    rows = cli("watch", "--since", "0", "--no-wait", "--json").rows
    assert [(r["from"], r["to"]) for r in rows] == [("none", "hot"), ("hot", "cold")]
    everything = cli("watch", "--since", "0", "--no-wait", "--all", "--json").rows
    assert [r["reason"] for r in everything] == ["put", "archive", "request"]
    assert cli("watch", "other", "--since", "0", "--no-wait").out == b""
    assert cli("watch", "--since", everything[-1]["stream_id"], "--no-wait").out == b""
    assert "hot > cold" in cli("watch", "--since", "0", "--no-wait").text


def test_watch_prints_new_events_until_ctrl_c(cli: Cli, home: Path) -> None:
    cli("put", "seen", "-", stdin=b"x")  # creates the namespace, so that the watcher only has to connect
    watcher = process(
        "--home", home, "-n", "test_watch_prints_new_events_until_ctrl_c", "watch", "--json", "--since", "0"
    )
    assert watcher.stdout and watcher.stderr
    assert json.loads(watcher.stdout.readline())["id"] == "seen"
    cli("put", "live", "-", stdin=b"x")
    assert json.loads(watcher.stdout.readline())["id"] == "live"
    watcher.send_signal(signal.SIGINT)
    out, err = watcher.communicate(timeout=60)
    assert (watcher.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_worker_exits_after_its_current_round(cli: Cli, home: Path, end: signal.Signals, request: Any) -> None:
    cli("put", "a", "-", stdin=b"x")
    namespace = cli("stats", "--json").rows[0]["namespace"]
    env = {"DISTIER_STORAGE_TIERS__COLD__ARCHIVE_AFTER": "0s", "DISTIER_WORKER__INTERVAL": "50ms"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "distier", "--home", home, "-n", namespace, "worker", "--json"],
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    poll(lambda: cli("stats", "--json").rows[0]["dirty_count"] == 0, what="the write-back")
    worker.send_signal(end)
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    report = json.loads(out)
    assert report["did"]["archived"] == 1
    assert report["failures"] == 0
    assert b"working on namespace" in err
    assert b"Traceback" not in err


# -- the embedded server, the configuration ---------------------------------------------------------------------------------


def test_up_and_down_start_and_stop_the_server(words: Cli, short_tmp: Path, reaper: Reaper) -> None:
    home = short_tmp / "h"
    reaper.watch(home)
    result = words("--home", home, "up")
    assert result.code == 0
    assert result.text.startswith("unix://")
    assert "started in" in result.err
    (row,) = words("--home", home, "up", "--json").rows
    assert (row["started"], row["url"]) == (False, result.text.strip())
    with redis.Redis.from_url(row["url"]) as client:
        assert client.ping()
    result = words("--home", home, "down")
    assert (result.code, result.out) == (0, b"")
    assert "stopped" in result.err
    assert words("--home", home, "down", "--json").rows[0]["stopped"] is False
    assert words("--home", home, "up", "--maxmemory", "lots").code == 2


def test_up_refuses_a_configured_server_url(words: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTIER_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path))
    result = words("up")
    assert result.code == 9
    assert "DISTIER_REDIS_URL" in result.err


def test_config_show_names_sources_and_hides_secrets(
    words: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("namespace: team\nredis: {url: 'redis://me:hunter2@host', password: hunter3}\n"
                    "storage_tiers: {cold: {directory: cold}}\n")  # fmt: skip
    monkeypatch.setenv("DISTIER_DEADLINE", "2s")
    rows = {r["key"]: r for r in words("-c", file, "config", "show", "--json", "--deadline", "3s").rows}
    assert (rows["namespace"]["value"], rows["namespace"]["source"]) == ("team", f"file {file}:1")
    assert (rows["deadline"]["value"], rows["deadline"]["source"]) == ("3s", "argument")
    assert rows["shards"]["source"] == "default"
    result = words("config", "show", "-c", file)
    assert "environment DISTIER_DEADLINE" in result.text
    assert "hunter" not in result.text + result.err + json.dumps(rows)


def test_config_check_accepts_good_and_rejects_bad_files(words: Cli, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("namespace: team\n")
    bad.write_text("namespace: team\nstorage_tiers: {hot: {max_sise: 5}}\n")
    assert words("config", "check", good).text.startswith("ok: namespace 'team'")
    result = words("config", "check", bad)
    assert result.code == 9
    assert "max_size" in result.err
    assert words("-c", tmp_path / "none.yaml", "ls").code == 9


# -- exit codes --------------------------------------------------------------------------------------------------------


def test_exit_codes_are_distinct() -> None:
    codes = [e.code for e in EXITS]
    assert len(codes) == len(set(codes))
    assert (code_of(NotFound("x")), code_of(Conflict("x")), code_of(DeadlineExceeded("x"))) == (3, 7, 4)
    assert code_of(DistierError("x")) == 9


@pytest.mark.parametrize(
    "argv",
    [
        ["frob"], ["put"], ["put", "a", "/does/not/exist"], ["put", "a", "/tmp"], ["put", "/etc/hostname"], ["get"],
        ["ls", "--tier", "lukewarm"], ["put", "a", "-", "--meta", "novalue"], ["put", "a", "-", "--prefix", "p"],
        ["get", "a", "b", "-o", "x"], ["--url", "redis://x", "ls"], ["--nonsense"], ["demo", "--url", "redis://x"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(cli: Cli, argv: list[str]) -> None:
    result = cli(*argv)
    assert result.code == 2, result
    assert result.out == b""
    assert result.err.startswith("distier: ")
    assert "Traceback" not in result.err


def test_help_and_version_exit_with_0(words: Cli) -> None:
    assert words("--version").text == f"distier {__version__}\n"
    result = words("--help")
    assert result.code == 0
    for code, _, what in EXITS:
        assert f"{code:>3}  {what}" in result.text
    assert max(map(len, result.text.splitlines())) <= 80
    assert words().code == 2


def test_redis_down_exits_with_4(words: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))
    began = time.monotonic()
    result = words("--url", f"redis://127.0.0.1:{free_port()}", "--deadline", "300ms", "get", "a")
    assert result.code == 4
    assert result.out == b""
    assert result.err.startswith("distier: Redis did not answer")
    assert "distier doctor" in result.err
    assert time.monotonic() - began < 50


def test_archive_down_exits_with_5(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("put", "a", "-", stdin=b"x")
    for name, value in {
        "URL": "s3://bucket", "ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "REGION": "us-east-1",
        "ACCESS_KEY": "k", "SECRET_KEY": "s", "TIMEOUT": "200ms",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"DISTIER_STORAGE_TIERS__COLD__{name}", value)
    assert cli("get", "a").out == b"x"  # a hot module needs no archive
    result = cli("demote", "a", "--to", "cold", "--deadline", "2s")
    assert result.code == 5, result
    assert result.err.startswith("distier: ")


def test_damaged_copy_exits_with_6(cli: Cli, home: Path) -> None:
    cli("put", "a", "-", stdin=b"x" * 100)
    cli("demote", "a")
    with redis.Redis.from_url(ensure_server(Home(home)).url) as client:
        (key,) = client.keys("distier:{test_damaged_copy_exits_with_6}:warm:a")
        client.setrange(key, 20, b"\xff\xff\xff")
    result = cli("get", "a")
    assert result.code == 6, result
    assert result.out == b""


def test_no_room_exits_with_8(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__HOT__MAX_SIZE", "100")
    cli("put", "small", "-", "--tokens", "90", stdin=b"x")
    cli("put", "large", "-", "--tokens", "101", stdin=b"x")
    result = cli("promote", "large")
    assert result.code == 8, result
    assert "too large for hot" in result.err


def test_invalid_id_exits_with_9(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x")
    result = cli("get", "x" * 257)
    assert result.code == 9
    assert "256 bytes" in result.err


def test_verbose_prints_the_traceback(cli: Cli) -> None:
    assert "Traceback" not in cli("get", "x" * 257).err
    assert "Traceback" in cli("get", "x" * 257, "--verbose").err


def test_closed_pipe_prints_no_error(home: Path) -> None:
    with connect(home, namespace="pipe") as store:
        store.put("big", b"x" * 4_000_000, tokens=1)
    reader = process("--home", home, "-n", "pipe", "get", *["big"] * 20)
    assert reader.stdout and reader.stderr
    assert reader.stdout.read(10) == b"x" * 10
    reader.stdout.close()
    assert reader.wait(60) == 141
    with reader.stderr as err:
        assert err.read() == b""


def test_global_options_are_accepted_anywhere() -> None:
    assert hoist(["ls", "--json", "a", "-n", "team"]) == ["--json", "-n", "team", "ls", "a"]
    assert hoist(["get", "--deadline=5s", "a"]) == ["--deadline=5s", "get", "a"]
    assert hoist(["get", "--", "--json"]) == ["get", "--", "--json"]
    assert hoist(["ls", "--url"]) == ["--url", "ls"]


def test_id_that_looks_like_an_option_follows_two_dashes(cli: Cli) -> None:
    assert cli("put", "--", "--json", "-", stdin=b"x").code == 0
    assert cli("get", "--", "--json").out == b"x"


@pytest.mark.parametrize(
    ("argv", "without"),
    [
        (["--help"], {"rich", "boto3", "redis", "pydantic"}),
        (["get", "a"], {"rich", "boto3", "bpe_openai", "yaml"}),
        (["stats"], {"rich", "boto3", "bpe_openai", "yaml"}),
    ],
    ids=["help", "get", "stats"],
)
def test_start_imports_only_what_it_needs(home: Path, argv: list[str], without: set[str]) -> None:
    code = (
        "import sys\nfrom distier.cli import run\nrun(sys.argv[1:])\n"
        f"sys.stderr.write('|' + ' '.join({without!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--home", str(home), *argv], capture_output=True, text=True, check=True
    )
    assert done.stderr.rpartition("|")[2] == ""


# -- doctor -------------------------------------------------------------------------------------------------------------------


def test_doctor_passes_a_good_home(cli: Cli) -> None:
    result = cli("doctor", "--json")
    found = {row["check"]: row for row in result.rows}
    assert result.code == 0
    assert {row["status"] for row in found.values()} == {"ok"}
    assert {"redis", "eviction", "memory", "persistence", "scripts", "clock", "archive", "tokens"} <= set(found)
    assert "appendfsync everysec" in found["persistence"]["found"]
    assert cli("doctor").text.startswith("ok    redis")


def doctor_on(
    words: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, *argv: str
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))
    result = words("--url", url, "--deadline", "1s", "doctor", "--json", *argv)
    return result.code, {row["check"]: row for row in result.rows}


def test_doctor_warns_of_a_server_that_evicts(words: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_server("valkey", args=("--maxmemory", "50mb", "--appendonly", "no")) as server:
        for policy, status, code in (("allkeys-lru", "fail", 1), ("volatile-lru", "warn", 0), ("noeviction", "ok", 0)):
            with server.client() as client:
                client.config_set("maxmemory-policy", policy)
            got, found = doctor_on(words, monkeypatch, tmp_path, server.socket_url)
            assert (got, found["eviction"]["status"]) == (code, status)
        assert found["memory"]["status"] == "warn"  # budgets of 1.3 GB
        assert found["persistence"]["status"] == "warn"


def test_doctor_works_without_permission_for_config_and_scripts(
    words: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_server("valkey") as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-config")
        code, found = doctor_on(words, monkeypatch, tmp_path, server.socket_url)
        assert code == 0
        assert "cannot be checked" in found["persistence"]["found"] and "fencing" not in found
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-info")
        code, found = doctor_on(words, monkeypatch, tmp_path, server.socket_url)
        assert code == 0 and found["scripts"]["status"] == "ok"
        assert found["fencing"]["status"] == "warn" and "no new epoch begins" in found["fencing"]["found"]
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-@scripting", "-info")
        code, found = doctor_on(words, monkeypatch, tmp_path, server.socket_url)
        assert code == 1
        assert found["redis"]["status"] == "warn"
        assert found["scripts"]["status"] == "fail"


def test_doctor_fails_without_redis_and_archive(words: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cold").write_text("not a directory")
    code, found = doctor_on(words, monkeypatch, tmp_path, f"redis://127.0.0.1:{free_port()}")
    assert code == 1
    assert found["redis"]["status"] == found["archive"]["status"] == "fail"


def test_doctor_reports_another_number_of_shards(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_SHARDS", "2")
    cli("put", "a", "-", stdin=b"x")
    monkeypatch.setenv("DISTIER_SHARDS", "4")
    result = cli("doctor", "--json")
    assert result.code == 1
    assert "shards=2" in {row["check"]: row for row in result.rows}["scripts"]["found"]
    assert cli("get", "a").code == 9


def test_doctor_distinguishes_one_shard_from_four(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard has another tag than the first of four: their scripts never meet."""
    cli("put", "a", "-", stdin=b"x")
    monkeypatch.setenv("DISTIER_SHARDS", "4")
    result = cli("doctor", "--json")
    assert result.code == 1
    assert (
        "was made with shards=1; this client is configured for shards=4"
        in {r["check"]: r for r in result.rows}["scripts"]["found"]
    )


def test_doctor_distinguishes_a_new_namespace_from_a_lost_one(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that are opened at once see each other's claims, so a new one may begin with any epoch."""
    monkeypatch.setenv("DISTIER_SHARDS", "8")
    tag = "test_doctor_distinguishes_a_new_namespace_from_a_lost_one"
    claim = home / "cold" / tag / "epochs" / "3" / "@00000005-0123abcd-0123456789abcdef"
    claim.parent.mkdir(parents=True)
    claim.touch()
    cli("put", "a", "-", stdin=b"x")
    assert cli("flush").code == 0
    row = cli("stats", "--json").rows[0]
    assert row["namespace"] == tag and all(
        incarnation["epoch"] > 5 and incarnation["first"] for incarnation in row["epochs"]
    )
    assert "was lost" not in cli("stats").text
    with redis.Redis(unix_socket_path=str(Home(home).socket)) as client:
        for key in client.scan_iter(f"distier:{{{tag}.*", count=1000):
            client.delete(key)
    assert cli("get", "a").out == b"x"
    assert cli("stats").text.count("(Redis restarted or was lost)") == 8
