# ruff: noqa: F811 - the fixtures of test_cli are used by their names
"""`distier put DIR` and its inverse, as the owner of a repository of skills uses them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distier import connect
from distier.domain.frontmatter import described, split_front_matter
from distier.policy.transform import outline
from tests.integration.test_cli import Cli, _no_settings, cli, home, words  # noqa: F401

FILES = dict[str, "str | bytes"]


def make(root: Path, files: FILES) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def ids(cli: Cli, prefix: str = "") -> list[str]:
    return cli("ls", prefix).text.splitlines()


def test_files_ignored_by_git_are_skipped_and_reported(cli: Cli, tmp_path: Path) -> None:
    root = make(
        tmp_path / "skills",
        {
            ".gitignore": "\ufeff*.log\r\n!keep.log\r\n/build/\r\n[z-a]\r\ndoc/*.tmp\r\n",
            ".distierignore": "private/\n!important.log\n",
            "a.md": "a", "x.log": "x", "keep.log": "k", "important.log": "i", "build/out.md": "b", "sub/build/in.md": "b",
            "doc/x.tmp": "x", "doc/y.md": "y", "private/key.md": "p", "sub/.gitignore": "*.md\n!README.md\n",
            "sub/README.md": "r", "sub/other.md": "o", ".git/config": "c", ".env": "SECRET=1", ".env.local": "S",
            ".env.example": "E", "node_modules/m/index.js": "j", "__pycache__/a.pyc": "p", ".mypy_cache/x.json": "{}",
        },
    )  # fmt: skip
    result = cli("put", root)
    assert result.code == 0, result.err
    kept = {".distierignore", ".gitignore", ".env.example", "a.md", "keep.log", "important.log", "doc/y.md",
            "sub/.gitignore", "sub/README.md"}  # fmt: skip
    assert set(ids(cli)) == {f"skills/{name}" for name in kept}
    for word in (".git", ".env", "node_modules", "__pycache__", ".gitignore", ".distierignore", "--no-ignore"):
        assert word in result.err.partition("excluded: ")[2], result.err
    assert "'[z-a]' is not a pattern" in result.err
    assert cli("put", root, "--prefix", "all/", "--no-ignore", "--exclude", ".git").code == 0
    assert len(ids(cli, "all/")) == 20


def test_ignore_rules_of_the_enclosing_repository_apply(cli: Cli, tmp_path: Path) -> None:
    repo = make(tmp_path / "repo", {".gitignore": "*.tmp\nskills/draft/\nout/\n", "skills/a.md": "a", "skills/b.tmp": "b",
                                    "skills/draft/c.md": "c", "out/d.md": "d"})  # fmt: skip
    (repo / ".git").mkdir()
    assert cli("put", repo / "skills").code == 0
    assert ids(cli) == ["skills/a.md"]
    assert cli("put", repo / "out").code == 0  # naming an ignored directory includes it on purpose
    assert ids(cli, "out/") == ["out/d.md"]


def test_links_inside_the_tree_are_followed_and_none_escapes(cli: Cli, tmp_path: Path) -> None:
    secret = make(tmp_path / "outside", {"secret.md": "SECRET"})
    root = make(tmp_path / "tree", {"a.md": "a", "dir/b.md": "b", ".env": "SECRET", ".git/config": "SECRET"})
    links: dict[str, str | Path] = {
        "link.md": "a.md", "linked": "dir", "dir/loop": "..", "self": "self", "out.md": secret / "secret.md",
        "out": secret, "up.md": "../outside/secret.md", "env.md": ".env", "git": ".git", "conf.md": ".git/config",
        "gone.md": "nowhere",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "twice.md").symlink_to("out.md")
    result = cli("put", root)
    assert ids(cli) == [f"tree/{n}" for n in ("a.md", "dir/b.md", "link.md", "linked/b.md")], result.err
    assert result.err.count("a symbolic link to a path outside the tree") == 4
    assert result.err.count("a symbolic link to an excluded path") == 3


def test_two_trees_do_not_overwrite_each_other(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = make(tmp_path / "one", {"SKILL.md": "1"}), make(tmp_path / "two", {"SKILL.md": "2"})
    assert cli("put", one).code == cli("put", f"{two}/").code == 0
    assert ids(cli) == ["one/SKILL.md", "two/SKILL.md"]
    monkeypatch.chdir(one)
    (one / "more.md").write_text("m")
    assert cli("put", ".").code == 0
    assert ids(cli) == ["one/SKILL.md", "one/more.md", "two/SKILL.md"]
    (tmp_path / "three").symlink_to(one)
    assert (
        cli("put", tmp_path / "three").code
        == cli("put", tmp_path / "two" / ".." / "two" / "..", "--only", "x").code - 9
        == 0
    )
    assert ids(cli, "three/") == ["three/SKILL.md", "three/more.md"]
    assert cli("put", one, "--prefix", "").code == 0
    assert "SKILL.md" in ids(cli)


def test_unchanged_files_are_not_rewritten(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(
        tmp_path / "t", {"a.md": "---\nkeywords: [x]\n---\na", "b.json": '{ "b" : 1 }', "c.bin": b"\xff\x00", "e": ""}
    )
    monkeypatch.setenv("DISTIER_TRANSFORMS", '{"application/json": "json-whitespace"}')

    def versions() -> dict[str, str]:
        return {row["id"]: row["version"] for row in cli("ls", "-l", "--json").rows}

    assert cli("put", root).code == 0
    cli("demote", "t/a.md")
    cli("demote", "t/c.bin", "--to", "cold")
    before = versions()
    result = cli("put", root)
    assert result.code == 0 and "nothing was put; 4 unchanged" in result.err
    assert versions() == before
    (root / "c.bin").write_bytes(b"\xff\x01")
    (root / "new").write_text("new")
    result = cli("put", root, "--json")
    assert {row["id"] for row in result.rows if not row.get("unchanged")} == {"t/c.bin", "t/new"}
    assert {id for id, version in versions().items() if before.get(id) != version} == {"t/c.bin", "t/new"}
    changes: list[str] = []
    for more in ("--keyword=k", "--meta=a=b", "--type=text/x-log"):
        changes.append(more)
        assert "5 modules" in cli("put", root, *changes).err, more
    cli("rm", "t/new")
    assert "1 module" in cli("put", root, *changes).err
    assert cli("stats", "--json").rows[0]["dirty_count"] > 0
    assert "5 modules" in cli("put", root, *changes, "--durability", "archived").err  # none was archived yet
    assert "5 unchanged" in cli("put", root, *changes, "--durability", "archived").err


def test_failures_are_listed_last_with_a_command_to_retry_them(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTIER_MAX_MODULE_BYTES", "100")
    root = make(
        tmp_path / "my tree", {"a.md": "a", "it's big.md": "x" * 101, f"{'d' * 200}/{'n' * 80}.md": "long", "z.md": "z"}
    )
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)  # sparse: no machine could read it
    result = cli("put", root)
    assert result.code == 9
    assert ids(cli) == ["my tree/a.md", "my tree/z.md"]
    end = result.err.partition("3 files failed:\n")[2].splitlines()
    assert sorted(line.strip().partition(": ")[0] for line in end[:3])[1:] == ["my tree/huge", "my tree/it's big.md"]
    again = shlex.split(end[-1].partition(": ")[2])
    assert again[:2] == ["distier", "--home"] and "--only" in again and "a.md" not in again
    monkeypatch.setenv("DISTIER_MAX_MODULE_BYTES", "1000")
    (root / "a.md").write_text("changed")
    (root / "huge").write_text("small now")
    from distier.cli import run

    assert run(again[1:]) == 9  # the name that is too long still fails
    assert ids(cli) == ["my tree/a.md", "my tree/huge", "my tree/it's big.md", "my tree/z.md"]
    assert cli("get", "my tree/a.md").text == "a"


def test_summary_reports_final_tiers(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__HOT__MAX_SIZE", "2000")
    root = make(tmp_path / "t", {f"{i:02}.md": f"word {i} " * 100 for i in range(40)})
    result = cli("put", root)
    tiers = [row["tier"] for row in cli("ls", "--json").rows]
    assert tiers.count("warm") > 20
    assert f"{tiers.count('hot')} hot, {tiers.count('warm')} warm" in result.err


def test_ctrl_c_reports_progress_and_the_same_command_continues(home: Path, tmp_path: Path) -> None:
    root = make(tmp_path / "t", {f"{i:04}.md": f"{i} " * 300 for i in range(1000)})
    words = [sys.executable, "-m", "distier", "--home", str(home), "-n", "interrupted", "put", str(root), "--json"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")}
    code = f"import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv={words[2:]!r}; " \
        "from distier.cli import main; main(sys.argv[1:])"  # fmt: skip
    loader = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert loader.stdout
    seen = json.loads(loader.stdout.readline())
    loader.send_signal(signal.SIGINT)
    _, err = loader.communicate(timeout=60)
    assert loader.returncode == 130, err
    text = err.decode()
    assert "interrupted: " in text and "run the same command again to put the rest" in text and "Traceback" not in text
    with connect(home, namespace="interrupted", near={"enabled": False}) as store:
        landed = len(list(store.list()))
        assert 0 < landed <= 1000
        version = store.where(seen["id"]).version  # type: ignore[union-attr]
        done = subprocess.run([*words], env=env, capture_output=True, timeout=120, check=True)
        assert b"unchanged" in done.stderr
        assert len(list(store.list())) == 1000
        assert store.where(seen["id"]).version == version  # type: ignore[union-attr]


# -- front matter -------------------------------------------------------------------------------------------------------

SKILL = """---
name: "pdf: tools"
description: >
  Reads PDF files,
  and fills forms.
keywords: [pdf, 'a, b', 3]
tags: forms, pdf
license: MIT  # a comment
date: 2026-01-02
metadata:
  version: 1.5
nothing:
---
# Heading
"""


def test_front_matter_becomes_keywords_meta_and_outline(cli: Cli, tmp_path: Path) -> None:
    root = make(tmp_path / "s", {"SKILL.md": SKILL, "crlf.mdc": SKILL.replace("\n", "\r\n"), "x.py": SKILL})
    cli("put", root, "--meta", "license=mine", "-k", "mine")
    for id in ("s/SKILL.md", "s/crlf.mdc"):
        (row,) = cli("get", id, "--json").rows
        assert row["keywords"] == ["mine", "pdf", "a, b", "3", "forms"]
        assert row["meta"] == {"name": "pdf: tools", "description": "Reads PDF files, and fills forms.\n",
                               "license": "mine", "date": "2026-01-02", "metadata": {"version": 1.5}}  # fmt: skip
    assert cli("get", "s/x.py", "--json").rows[0]["keywords"] == ["mine"]
    cli("put", "one.md", root / "SKILL.md")
    assert cli("get", "one.md", "--json").rows[0]["meta"]["name"] == "pdf: tools"
    assert (outline(SKILL.encode(), "text/markdown") or "").startswith("Reads PDF files, and fills forms.\n# Heading")


@pytest.mark.parametrize(
    "text",
    [
        "---\n- a\n- list\n---\n", "---\n: : :\n\t-\n---\n", "---\nnever closed", "---\na: &a [x]\nb: [*a, *a]\n---\n",
        "---\n---\n", "----\na: b\n---\n", "---\n" + "[" * 5000 + "\n---\n", "---\nx: !!python/object:os.system {}\n---\n",
        "---\nd: 0000-00-00\n---\n", "---\nx: 1" + "0" * 5000 + "\n---\n", "--- not\na: b\n---\n",
    ],
)  # fmt: skip
def test_malformed_front_matter_is_ignored(text: str) -> None:
    assert described(text) == ((), {})


def test_oversized_front_matter_is_left_out() -> None:
    words, meta = described(
        "---\nx: .nan\ny: " + "z" * 70000 + "\nok: 1\n1: 2\nkeywords: ['" + "k" * 200 + "', fine]\n---\n"
    )
    assert (words, meta) == ((), {})  # too long as a whole
    words, meta = described("---\nx: .nan\nok: 1\n1: 2\nkeywords: ['" + "k" * 200 + "', fine]\n---\n")
    assert (words, meta) == (("fine",), {"ok": 1})
    assert split_front_matter("---\na: b\n...\nrest")[1] == "rest"


def test_prompt_and_notebook_files_get_their_types(cli: Cli, tmp_path: Path) -> None:
    root = make(tmp_path / "t", {"a.ipynb": '{"cells": []}', "b.prompty": "---\nname: b\n---\n", "c.mdc": "c"})
    cli("put", root)
    types = {row["id"]: row["content_type"] for row in cli("ls", "-l", "--json").rows}
    assert types == {"t/a.ipynb": "application/x-ipynb+json", "t/b.prompty": "text/x-prompty", "t/c.mdc": "text/x-mdc"}
    cli("flush")
    assert ".prompty.xz" in cli("where", "t/b.prompty").text and ".ipynb.xz" in cli("where", "t/a.ipynb").text


def test_invalid_skills_are_reported_and_stored(cli: Cli, tmp_path: Path) -> None:
    def skill(name: str, description: str) -> str:
        return f"---\nname: {name}\ndescription: {description}\nkeywords: [k]\n---\n# Text\n"

    invalid: FILES = {
        "no-name/SKILL.md": "# Text\n", "other/SKILL.md": skill("another", "d"), "Upper/SKILL.md": skill("Upper", "d"),
        "no-text/SKILL.md": skill("no-text", "' '"), "long-text/SKILL.md": skill("long-text", "d" * 1025),
        f"{'n' * 65}/SKILL.md": skill("n" * 65, "d"), "latin/SKILL.md": "---\nname: \xe9\n---\n".encode("latin-1"),
    }  # fmt: skip
    valid: FILES = {
        "pdf/SKILL.md": skill("pdf", "d" * 1024), f"{'n' * 64}/SKILL.md": skill("n" * 64, "d"),
        "pdf/scripts/run.py": "x = 1\n", "pdf/notes.md": "# Notes\n",
    }  # fmt: skip
    root = make(tmp_path / "skills", invalid | valid)
    for _ in range(2):  # the second time nothing is written, and the reports are the same
        result = cli("put", root)
        assert result.code == 0, result.err
        _, _, reported = result.err.partition("7 invalid skills, put like other files:\n")
        assert {line.split(":")[0].strip() for line in reported.splitlines()} == {f"skills/{id}" for id in invalid}
    assert "11 unchanged" in result.err
    assert set(ids(cli)) == {f"skills/{id}" for id in invalid | valid}
    (root / "other/SKILL.md").write_text(skill("other", "d"))
    assert "6 invalid skills" in cli("put", root).err
