"""Each program of `examples/` runs as a reader would run it, prints the output that is listed here, and stays short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distier.embedded import Home, stop_server
from tests.docs.pages import ROOT, matches
from tests.servers import Reaper, available_kinds

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES_MAX = 39

PRINTS = {
    "asyncio_store": "20 read side by side\nmissing: ['notes/20']\n20 ids below notes/",
    "claude_memory": (
        "File created successfully at: /memories/ada.md\n"
        "Here's the content of /memories/ada.md with line numbers:\n     1\t# Ada\n     2\t- likes fado\n     3\t- likes figs\n"
        "Here're the files and directories up to 2 levels deep in /memories, excluding hidden items:\n"
        "32B\t/memories\n32B\t/memories/ada.md\nrefused: File /memories/ada.md already exists\n"
        "as a module: ['# Ada', '- likes fado', '- likes figs']"
    ),
    "durable_write": (
        "a write that expects no module is refused\narchived: True\nWe use SI units.\nDates are ISO 8601."
    ),
    "fastmcp_skills": (
        "skill://pdf/SKILL.md: Fill in PDF forms, 2 files\nforms.md has b'# Fields\\n'\nchanged: Fill in and sign PDF forms"
    ),
    "fsspec_files": (
        "found: ['docs/a.md', 'docs/sub/b.json']\nread: {'b': 2}\nmodule: # A\n1 byte range: A\n"
        "b'the second line'\na second create: FileExistsError"
    ),
    "key_value_store": (
        "read: {'token': 'abc'}\nwith its time to live: True\nkeys: ['ada', 'bob']\nas a module: {'token': 'abc'}\ndeleted: 2"
    ),
    "langchain_cache": (
        "the model answers Figs.\nthe cache answers Figs.\nkeys: ['vectors/a', 'vectors/b'], values: [b'\\x02', None]"
    ),
    "langgraph_memory": (
        "the other agent reads {'likes': 'figs', 'rating': 5}\nnamespaces: [('users', 'ada'), ('users', 'bob')]\n"
        "best: [('ada', 'figs'), ('bob', 'kimchi')]\nas a module: Module(id='langgraph/users/ada/..."
    ),
    "load_directory": "tree/a/deep.md: ... tokens, hot\ntree/top.txt: ... tokens, hot\n2 loaded, 0 failed",
    "mcp_client": (
        "skills: ['Fill in PDF forms']\nRead the form first.\nwritten as version 1-...\na second write is refused: True\n"
        "as a module: The tax form has 12 fields."
    ),
    "near_cache": "100 reads needed no network\nthe change was seen\nnear cache: on",
    "pins_and_tiers": (
        "demote a pinned module: pinned\ndemoted to cold\nread from cold\npromoted to hot\n"
        "hot within its budget: True; warm: True\nthe pinned module is hot"
    ),
    "quickstart": (
        "put as version 1-1, ... tokens\ngot '# Fill PDF forms' from hot, keywords ('pdf',)\na miss is None\n"
        "ids: ['skills/pdf']\ndeleted: True"
    ),
    "two_processes": "heard: skills/shared none > hot\nWritten by another process.",
}  # fmt: skip
"""The expected output by the example's name; `...` matches any text."""
NEEDS = {"fastmcp_skills": "fastmcp.skills"}
"""What an example imports that `make` does not install. `make suites` does."""


def test_every_example_has_its_expected_output() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(PRINTS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_opens_with_what_it_shows(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith('"""') and len(lines) <= LINES_MAX


@pytest.mark.skipif(available_kinds()["valkey"] != "", reason=available_kinds()["valkey"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_its_expected_output(path: Path, short_tmp: Path, reaper: Reaper) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem], reason=f"{NEEDS[path.stem]} is not installed: `make suites`")
    tree = short_tmp / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "top.txt").write_text("At the top.\n")
    (tree / "a" / "deep.md").write_text("# Below\n")
    home = short_tmp / "home"
    reaper.watch(home)
    env = {name: value for name, value in os.environ.items() if not name.startswith("DISTIER_")}
    argv = [sys.executable, str(path), *([str(tree)] if path.stem == "load_directory" else [])]
    try:
        done = subprocess.run(
            argv, cwd=short_tmp, env=env | {"DISTIER_HOME": str(home)}, text=True, capture_output=True, timeout=100
        )
    finally:
        stop_server(Home(home))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert matches(PRINTS[path.stem], done.stdout), done.stdout
