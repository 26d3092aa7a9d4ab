"""A namespace with skills, and `distier mcp` as a process of its own for clients of the official SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp.server.lowlevel", reason="mcp is not installed")

from distier import Store, connect
from tests.conftest import empty
from tests.servers import TestServer

SKILL = "---\nname: {name}\ndescription: {description}\nlicense: MIT\n---\n# {name}\n\nRead ref/FORMS.md.\n"
CONTENTS: dict[str, str | bytes] = {
    "docs/long.md": "".join(f"line {n}: words of a long document\n" for n in range(1, 2001)),
    "docs/picture.png": b"\x89PNG\xff\xfe",
    "prompts/hello.md": "---\ndescription: Greets\narguments: [name]\n---\nHello {{name}} and {{other}}!",
    "skills/form-filling/SKILL.md": SKILL.format(name="form-filling", description="Fill in forms"),
    "skills/form-filling/ref/FORMS.md": "# Forms\n",
    "skills/form-filling/ref/deep/table é.csv": "a,b\n",
    "skills/wrong/SKILL.md": SKILL.format(name="other", description="Its name is not that of its directory"),
}


@pytest.fixture
def settings(valkey_server: TestServer, tmp_path: Path) -> dict[str, Any]:
    empty(valkey_server)
    return {"redis__url": valkey_server.url, "namespace": "n", "counter": "estimate",
            "storage_tiers__cold__directory": str(tmp_path / "archive")}  # fmt: skip


@pytest.fixture
def store(settings: dict[str, Any]) -> Iterator[Store]:
    """What the tests look at: it has no near cache, because a hit may be as far behind the server's writes as a push."""
    with connect({}, **settings, near__enabled=False) as found:
        for id, content in CONTENTS.items():
            meta = {"description": "Greets", "arguments": ["name"]} if id.startswith("prompts/") else None
            found.put(id, content, meta=meta)
        yield found


@pytest.fixture
def environment(settings: dict[str, Any], store: Store) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISTIER_")}
    return kept | {f"DISTIER_{name.upper()}": str(value) for name, value in settings.items()}


Serve = Callable[..., str]


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Serve]:
    """Start `distier mcp --http` and return its URL."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> str:
        command = [sys.executable, "-m", "distier", "mcp", "--http", "127.0.0.1:0", *words]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        output = processes[-1].stdout
        assert output is not None
        return output.readline().strip()

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=30)
