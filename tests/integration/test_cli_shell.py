# ruff: noqa: F811 - the fixtures of test_cli are used by their names
"""The command line in real shells: closed and full streams, locales, lists of odd ids, and error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

import distier
from distier import connect
from distier.embedded import Home, ensure_server
from tests.integration.test_cli import Cli, _no_settings, cli, home, words  # noqa: F401
from tests.integration.test_cli_tree import ids, make

ODD = ["line\nbreak", "cr\r", '"quoted"', '"a\\nb"', " lead", "\ufeffbom", "ünï", "-", "a\tb"]


def shell(home: Path, script: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in which `$D` is the command line on the namespace `shell`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("DISTIER_", "LC_", "LANG", "PYTHON"))}
    code = f"D='{sys.executable} -m distier --home {home} -n shell'\n{script}"
    return subprocess.run(["bash", "-c", code], env=clean | env, capture_output=True, timeout=100)


@pytest.fixture
def filled(home: Path) -> Path:
    with connect(home, namespace="shell", near={"enabled": False}) as store:
        for id in (*ODD, "plain"):
            store.put(id, f"<{id}>")
    return home


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("$D ls > /dev/full", 2), ("$D get plain > /dev/full", 2), ("$D ls >&-", 2), ("$D get plain >&-", 2),
        ("$D ls --json >&-", 2), ("$D where plain >&-", 2), ("$D --help >/dev/full", 2), ("$D put x - <&-", 2),
        ("$D get - <&-", 2), ("$D get nope 2>&-", 3), ("$D get nope 2>/dev/full", 3), ("$D rm -f nope >&- 2>&- <&-", 0),
        ("set -o pipefail; $D get $(yes plain | head -n 30000) | head -c 3", 141),
    ],
)  # fmt: skip
def test_unusable_streams_give_an_exit_code_and_no_traceback(filled: Path, script: str, code: int) -> None:
    done = shell(filled, script)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    if "2>" not in script and done.returncode == 2:
        assert b"cannot " in done.stderr and done.stderr.count(b"\n") <= 2


def test_ascii_locale_changes_no_id(filled: Path) -> None:
    for env in ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}):
        done = shell(filled, "$D ls ü; $D get ünï; $D ls | $D where - --json | wc -l; $D get nöpe", **env)
        assert done.returncode == 3 and b"Traceback" not in done.stderr
        assert done.stdout.decode().split() == ["ünï", "<ünï>10"]


def test_odd_ids_keep_a_list_intact(filled: Path) -> None:
    done = shell(filled, "$D ls | $D where - --json; $D ls -0 | $D where -0 - --json; $D ls | $D get - --json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["id"] for line in done.stdout.splitlines()]
    assert found == sorted([*ODD, "plain"]) * 3


def test_id_lists_from_editors_are_accepted(cli: Cli) -> None:
    for id in ("a", "b", "c"):
        cli("put", id, "-", stdin=id.encode())
    assert cli("get", "-", stdin=b"\xef\xbb\xbfa\r\nb\r\n\r\nc").out == b"abc"
    result = cli("get", "-", stdin=b"a\n\xff\xfe\nc\n")
    assert (result.code, result.out) == (9, b"ac")
    assert cli("get", "-0", "-", stdin=b"a\0b\0").out == b"ab"


def test_get_writes_a_temporary_file_and_renames_it(cli: Cli, tmp_path: Path) -> None:
    cli("put", "a", "-", stdin=b"new")
    old = make(tmp_path / "o", {"f": "old"}) / "f"
    old.chmod(0o640)
    inode = old.stat().st_ino
    (tmp_path / "link").symlink_to(old)
    assert cli("get", "a", "-o", tmp_path / "link").code == 0
    assert (old.read_bytes(), old.stat().st_mode & 0o777) == (b"new", 0o640)
    assert old.stat().st_ino != inode and (tmp_path / "link").is_symlink()
    assert [p.name for p in old.parent.iterdir()] == ["f"]
    assert cli("get", "a", "-o", "/dev/stdout").out == b"new"
    assert cli("get", "a", "-o", "/dev/full").code == 2


def test_full_disk_keeps_the_old_file(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("put", "a", "-", stdin=b"new")
    (tmp_path / "f").write_text("old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = cli("get", "a", "-o", tmp_path / "f")
    assert result.code == 2 and "No space left" in result.err
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_endless_stdin_stops_at_the_size_limit(home: Path) -> None:
    done = shell(home, "yes | $D put x -", DISTIER_MAX_MODULE_BYTES="1000000")
    assert done.returncode == 9 and b"more than 1000000 bytes" in done.stderr


def test_get_prefix_reverses_put_directory(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, str | bytes] = {"a.md": "a", "sub/b.bin": b"\xff\x00", "sub/ü ": "", "sub/line\nbreak": "x"}
    root = make(tmp_path / "tree", files)
    cli("put", root)
    cli("put", "tree2/x", "-", stdin=b"x")
    for bad in ("tree/../../evil", "tree//abs", "tree/a.md/below", "tree/out/evil"):
        cli("put", bad, "-", stdin=b"evil")
    back = make(tmp_path / "back", {})
    back.mkdir()
    (back / "out").symlink_to(tmp_path)
    result = cli("get", "--prefix", "tree/", "-o", back)
    assert result.code == 9 and result.err.count("tree/../../evil") == 1
    found = {p.relative_to(back).as_posix() for p in back.rglob("*") if p.is_file()}
    assert {n: (back / n).read_bytes() for n in files} == {n: (root / n).read_bytes() for n in files}
    assert "evil" not in {p.name for p in tmp_path.iterdir()} and found - set(files) <= {"out/evil"}
    cli("rm", "--prefix", "tree/../")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    cli("get", "--prefix", "tree2")
    assert Path("tree2/x").read_bytes() == b"x"


def test_rm_promote_and_demote_accept_prefixes(cli: Cli) -> None:
    for id in ("a/1", "a/2", "b/1"):
        cli("put", id, "-", stdin=b"x")
    assert [r["tier"] for r in cli("demote", "--prefix", "a/", "--json").rows] == ["warm", "warm"]
    assert [r["id"] for r in cli("promote", "--prefix", "a/1", "--json").rows] == ["a/1"]
    assert cli("rm", "--prefix", "a/").code == 0
    assert ids(cli) == ["b/1"]
    for verb in ("rm", "promote", "demote", "get"):
        assert cli(verb).code == cli(verb, "b/1", "--prefix", "b").code == 2
    assert ids(cli) == ["b/1"]


def test_long_lists_truncate_no_id_or_tier_at_80_columns(home: Path) -> None:
    pty = pytest.importorskip("pty")
    id = "skills/" + "x" * 60 + "/SKILL.md"
    with connect(home, namespace="long", near={"enabled": False}) as store:
        store.put(id, "x")
    parent, child = pty.openpty()
    env = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")} | {"COLUMNS": "80"}
    argv = [sys.executable, "-m", "distier", "--home", str(home), "-n", "long", "ls", "-l"]
    subprocess.run(argv, env=env, stdout=child, check=True, timeout=60)
    os.close(child)
    text = os.read(parent, 10000).decode()
    os.close(parent)
    assert id in text and "hot*" in text and "…" not in text


def test_errors_are_json_with_json(cli: Cli) -> None:
    cli("put", "a", "-", stdin=b"x")
    for argv, kind, code in (
        (["get", "nope"], "NotFound", 3),
        (["get", "x" * 300], "Invalid", 9),
        (["frob"], "UsageError", 2),
    ):
        result = cli(*argv, "--json")
        (row,) = [json.loads(line) for line in result.err.splitlines()]
        assert (row["error"], row["exit_code"], result.code) == (kind, code, code)
        assert row["message"]


def test_watch_shows_a_new_epoch(cli: Cli, home: Path, request: pytest.FixtureRequest) -> None:
    cli("put", "a", "-", stdin=b"x")
    cli("flush")
    tag = request.node.name
    with redis.Redis.from_url(ensure_server(Home(home)).url) as client:
        client.delete(*client.keys(f"distier:{{{tag}}}:*"))
    assert cli("get", "a").out == b"x"
    result = cli("watch", "some/prefix", "--since", "0", "--no-wait")
    assert "epoch" in result.text and "lost" in result.text


def test_pin_reports_a_module_that_is_not_hot(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__HOT__MAX_SIZE", "100")
    cli("put", "large", "-", "--tokens", "101", stdin=b"x")
    result = cli("pin", "large")
    assert result.code == 8
    assert "too large for hot" in result.err and "large: warm, pinned until" in result.text
    cli("put", "full", "-", "--tokens", "90", stdin=b"x")
    cli("put", "other", "-", "--tokens", "90", stdin=b"x")
    assert cli("pin", "full").code == 0
    result = cli("pin", "other")
    assert result.code == 8 and "no room in hot" in result.err
    result = cli("demote", "full")
    assert result.code == 7 and "it is pinned" in result.err and "version" not in result.err


@pytest.mark.parametrize("name", ["hot", "dirty", "usage", "epoch", "events", "uses"])
def test_fsck_names_the_foreign_key_that_stops_it(
    cli: Cli, home: Path, request: pytest.FixtureRequest, name: str
) -> None:
    cli("put", "a", "-", stdin=b"x")
    (key,) = [f"distier:{{{ns}}}:{name}" for ns in [cli("stats", "--json").rows[0]["namespace"]]]
    with redis.Redis.from_url(ensure_server(Home(home)).url) as client:
        client.delete(key)
        client.set(key, "foreign")
    result = cli("fsck")
    assert result.code in (1, 6) and key in result.text + result.err and "Traceback" not in result.err


# -- the library's names ---------------------------------------------------------------------------------------------------


def test_public_names_are_complete_and_import_nothing() -> None:
    code = "import sys, distier; names = dir(distier); print(len(sys.modules)); " \
        "print({'redis', 'pydantic', 'distier.client', 'distier.errors'} & set(sys.modules)); print(*names)"  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[1] == "set()"
    from distier import errors

    wanted = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.DistierError)}
    wanted |= {"Worker", "Tier", "Store", "TokenCounter", "connect"}
    assert wanted <= set(out[2].split())
    for name in distier.__all__:
        assert getattr(distier, name) is not None
    assert distier.Conflict is errors.Conflict
    with pytest.raises(AttributeError, match="nonsense"):
        distier.nonsense  # noqa: B018


def test_module_text_of_binary_content_names_the_id(home: Path) -> None:
    with connect(home, namespace="text") as store:
        store.put("bin/x", b"\xff\x00")
        module = store.get("bin/x")
        assert module
        for _ in range(2):
            with pytest.raises(UnicodeDecodeError, match="'bin/x'") as raised:
                module.text  # noqa: B018
            assert str(raised.value).count("bin/x") == 1
        for name in ("text", "content", "nonsense"):
            with pytest.raises(AttributeError, match=name):
                setattr(module, name, "x")


def keys(home: Path) -> set[bytes]:
    with redis.Redis(unix_socket_path=str(Home(home).socket)) as client:
        return set(client.keys("*"))


@pytest.mark.parametrize(
    "argv",
    [["stats"], ["ls"], ["ls", "-l"], ["where", "a"], ["get", "a"], ["watch", "--no-wait"], ["rm", "a"], ["promote", "a"],
     ["demote", "--prefix", ""], ["pin", "a"], ["unpin", "a"], ["fsck"], ["sweep"], ["rescue"], ["archive", "adopt"],
     ["get", "--prefix", "a"]],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("shards", ["1", "3"])
def test_mistyped_namespace_is_reported_and_not_created(
    words: Cli, home: Path, argv: list[str], shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTIER_SHARDS", shards)
    words("--home", home, "up")
    before, archived = keys(home), sorted((home / "cold").rglob("*"))
    result = words("--home", home, "-n", "typo", *argv)
    assert result.code == 3 and "there is no namespace 'typo'" in result.err, result
    assert result.out == b""
    assert keys(home) == before and sorted((home / "cold").rglob("*")) == archived


def test_read_only_commands_write_no_key(cli: Cli, home: Path) -> None:
    cli("put", "a", "-", stdin=b"x")
    before = keys(home)
    for argv in (["stats"], ["ls"], ["ls", "-l"], ["where", "a"], ["watch", "--no-wait", "--since", "0"]):
        assert cli(*argv).code == 0
    assert keys(home) == before


def test_namespace_that_exists_only_in_the_archive_is_read(
    cli: Cli, home: Path, request: pytest.FixtureRequest
) -> None:
    cli("put", "a", "-", stdin=b"x")
    cli("flush")
    tag = request.node.name
    with redis.Redis(unix_socket_path=str(Home(home).socket)) as client:
        client.delete(*client.keys(f"distier:{{{tag}}}*"))
    assert cli("ls").text == "a\n"


def test_read_only_commands_need_no_archive(cli: Cli, words: Cli, home: Path, request: pytest.FixtureRequest) -> None:
    cli("put", "a", "-", stdin=b"x")
    base = ("--url", Home(home).url, "-n", request.node.name)
    assert words(*base, "ls").text == "a\n"
    assert words(*base, "stats").text.startswith(f"namespace {request.node.name}: 1 module")
    assert words(*base, "where", "a").code == 0
    assert words(*base, "watch", "--no-wait", "--since", "0").text.count("put") == 1
    result = words(*base, "put", "b", "-", stdin=b"x")
    assert result.code == 9 and "an archive is required" in result.err


def test_globs_and_id_lists_select_modules(cli: Cli, tmp_path: Path) -> None:
    ids = ["docs/a.md", "docs/deep/b.md", "docs/c.txt", "other*", "with space"]
    for id in ids:
        cli("put", id, "-", stdin=f"<{id}>".encode())
    assert cli("get", "--glob", "docs/*.md").out == b"<docs/a.md><docs/deep/b.md>"
    assert cli("get", "--glob", "other[*]").out == b"<other*>"
    assert cli("get", "--glob", "*.md", "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "docs" / "deep" / "b.md").read_bytes() == b"<docs/deep/b.md>"
    every = "".join(f"{id}\0" for id in ids).encode()
    assert cli("pin", "-0", "-", stdin=every).text.count("pinned until") == 5
    assert cli("demote", "docs/a.md").code == 7
    assert cli("unpin", "--prefix", "docs/").code == 0
    assert cli("demote", "--glob", "docs/?.*").text.count("warm") == 2
    assert cli("demote", "other*").code == 7
    assert cli("unpin", "-0", "-", stdin=every).code == 0
    assert cli("pin", "--prefix", "docs/").text.count("docs/") == 3
    assert cli("promote", "--glob", "docs/*.md").code == 0
    assert cli("rm", "--glob", "docs/*.md").code == 0
    assert cli("ls").text.split("\n")[:3] == ["docs/c.txt", "other*", "with space"]
    for argv in (["get"], ["rm", "a", "--prefix", "a"], ["pin", "--prefix", "a", "--glob", "b"], ["unpin"]):
        assert cli(*argv).code == 2


def complete(*argv: str, env: dict[str, str] | None = None) -> list[str]:
    """The completions that bash gets for the last word."""
    done = subprocess.run(
        [sys.executable, "-m", "distier"], capture_output=True, text=True, cwd="/", check=False,
        env=dict(os.environ) | {"_DISTIER_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("distier", *argv)),
                                "COMP_CWORD": str(len(argv))} | (env or {}),
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shards", ["1", "3"])
def test_shell_completion_offers_ids(
    cli: Cli, words: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str
) -> None:
    monkeypatch.setenv("DISTIER_SHARDS", shards)
    namespace = f"completed-{shards}"
    for id in ("docs/a", "docs/b", "other"):
        words("--home", home, "-n", namespace, "put", id, "-", stdin=b"x")
    base = ("--home", str(home), "-n", namespace)
    for verb in ("get", "rm", "where", "promote", "demote", "pin", "unpin", "ls"):
        assert complete(*base, verb, "docs/") == ["docs/a", "docs/b"], verb
    assert complete(*base, "get", "nope") == []
    env = {"DISTIER_REDIS__URL": Home(home).url, "DISTIER_NAMESPACE": namespace}  # and no archive
    assert complete("get", "o", env=env) == ["other"]
    (tmp_path / "docs").mkdir()
    assert complete(*base, "put", "docs") == ["docs/a", "docs/b"]
    assert complete(*base, "put", f"{tmp_path}/do") == [f"{tmp_path}/docs/"], "a directory"


def test_flush_does_not_create_a_misspelt_namespace(cli: Cli, words: Cli, home: Path) -> None:
    cli("put", "a", "-", stdin=b"x")
    result = words("--home", home, "-n", "mispelt-name", "flush")
    assert result.code == 3 and "there is no namespace 'mispelt-name'" in result.err
    assert words("--home", home, "-n", "mispelt-name", "stats").code == 3


def test_completion_starts_no_server_and_prints_no_error(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert complete("--home", str(home), "get", "a") == []
    assert not home.exists()
    assert complete("--url", "redis://127.0.0.1:1", "get", "a") == []
    assert complete("--config", "/nope", "get", "a") == []
    assert complete("-n", "not/good", "get", "a") == []


def test_stats_count_deletions_separately_from_modules(cli: Cli) -> None:
    for id in ("a", "b"):
        cli("put", id, "-", stdin=b"x")
    cli("flush")
    cli("rm", "a", "b")
    assert "not archived yet: 0 modules, 0 B; 2 deletions" in cli("stats").text
    row = cli("stats", "--json").rows[0]
    assert (row["dirty_count"], row["dirty_deletions"]) == (2, 2)


def test_each_stats_column_has_its_own_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_SHARDS", "2")
    cli("put", "a", "-", stdin=b"x")
    heads = [line.split("  ") for line in cli("stats").text.splitlines() if line.startswith(("tier ", "shard "))]
    names = [[name.strip() for name in head if name.strip()] for head in heads]
    assert len(names) == 2 and all(len(set(head)) == len(head) for head in names)
    row = cli("stats", "--json").rows[0]
    assert {"tokens", "max_tokens"} <= set(row["hot"]) and "tokens" in row["warm"]


@pytest.mark.parametrize(
    "argv", [[], ["nope"], ["put"], ["config"], ["archive"], ["ls", "--limit", "x"], ["get"], ["ls", "-c"]]
)
def test_usage_errors_are_json_with_json(words: Cli, argv: list[str]) -> None:
    result = words("--json", *argv)
    assert result.code == 2 and result.out == b""
    (line,) = result.err.splitlines()
    assert set(json.loads(line)) == {"error", "message", "hint", "exit_code"}
