"""The project's pages name files that exist, and its tools run the same checks everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "tests/README.md")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# The folders with sources, without the files that git ignores.
PARTS = ("distier", "tests", "docs", "deploy", "examples")


def named_paths(page: str) -> set[str]:
    """Return the words in backquotes on a page that look like a file or folder of this tree."""
    quoted = re.findall(r"`([^`\s]+)`", (ROOT / page).read_text("utf-8"))
    return {text for text in quoted if text.split("/")[0] in (*PARTS, ".ci") and "/" in text}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    paths = named_paths(page)
    assert paths
    assert not {path for path in paths if not (ROOT / path).exists()}


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8"))
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_a_page_names_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    named = set(
        re.findall(r"make ([a-z]+)", " ".join(re.findall(r"`[^`]+`|^ {4}.*$", (ROOT / page).read_text(), re.M)))
    )
    assert named <= targets


def test_every_folder_of_tests_is_described() -> None:
    page = (ROOT / "tests" / "README.md").read_text("utf-8")
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)) == folders


def fast() -> list[str]:
    """Return the files and folders of `make check`."""
    (words,) = re.findall(r"^FAST +:= ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    return [word for word in words.replace("\\\n", " ").split() if not word.startswith("$")]


def test_fast_tests_exist() -> None:
    assert len(fast()) > 5
    assert not [path for path in fast() if not (ROOT / path).exists()]


def lint_commands() -> set[str]:
    """Return the programs that `make lint` runs, without their arguments."""
    lines = re.findall(r"^(?:lint|spell):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return {" ".join(re.findall(r"\$\(BIN\)/([a-z]+)( check| format)?", line)[0]).replace("  ", " ").strip()
            for block in lines for line in block.splitlines()}  # fmt: skip


def test_hooks_run_what_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    entries = [hook["entry"].removeprefix(".venv/bin/") for repo in config["repos"] for hook in repo["hooks"]]
    hooks = {re.sub(r" --?\S+", "", entry).strip() for entry in entries}
    assert hooks == lint_commands() == {"ruff check", "ruff format", "codespell", "mypy"}


def test_hooks_are_valid() -> None:
    argv = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    done = subprocess.run(argv, text=True, capture_output=True, timeout=100)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), "for unknown keys there is only a warning"


def sources() -> Iterator[str]:
    for part in PARTS:
        for path in (ROOT / part).rglob("*"):
            if path.suffix in (".py", ".lua", ".md", ".yaml", ".yml"):
                yield path.read_text("utf-8", errors="replace").lower()


def test_words_that_the_spelling_check_ignores_are_used() -> None:
    wanted = set(PROJECT["tool"]["codespell"]["ignore-words-list"])
    found: set[str] = set()
    for text in sources():
        found |= {word for word in wanted - found if re.search(rf"(?<![a-z]){word}(?![a-z])", text)}
    assert found == wanted
