"""Each alert links to a section of OPERATIONS, whose first command works on a live system."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import connect
from distier.worker import Worker
from tests.servers import available_kinds, short_directory
from tests.unit.test_deploy import TOP, _Started, rules

PAGE = TOP / "docs" / "OPERATIONS.md"
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n\n(.+?)(?=^#|\Z)", PAGE.read_text(), flags=re.M | re.S))


def anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


ANCHORS = {anchor(title): title for title in SECTIONS}


def first_commands(text: str) -> list[str]:
    """Return the commands of the first block of a section."""
    block = re.search(r"^(?:    .+\n?)+", text, flags=re.M)
    assert block, "the section has no command"
    return [line.strip() for line in block[0].splitlines()]


RUNBOOKS = sorted({rule["annotations"]["runbook"].removeprefix("docs/OPERATIONS.md#") for rule in rules()})


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alert_links_to_a_section_that_starts_with_what_the_reader_sees(rule: dict[str, Any]) -> None:
    page, _, section = rule["annotations"]["runbook"].partition("#")
    assert TOP / page == PAGE
    text = SECTIONS[ANCHORS[section]]
    assert text.startswith("You see: ")
    before = text[: text.index("\n    ")]
    assert len(before) < 400, "the first command comes early"


@pytest.fixture(scope="module")
def live() -> Iterator[dict[str, str]]:
    """A server with the roles of `deploy/`, a namespace with modules, a worker. Yields the environment for commands."""
    if reason := available_kinds()["valkey"]:
        pytest.skip(reason)
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed (Debian: redis-tools)")
    with short_directory() as at:
        server = _Started("valkey", at, WORKER_PASSWORD="wo", OPERATOR_PASSWORD="op", ADMIN_PASSWORD="ad")
        own: dict[str, Any] = {
            "redis__url": f"unix://worker:wo@{server.socket}",
            "storage_tiers__cold__directory": str(at / "archive"),
        }
        try:
            with connect({}, **own) as store, Worker(store):
                store.put("skills/pdf", "# PDF\n")
                store.pin("skills/pdf", ttl=60)
                programs = at / "programs"
                programs.mkdir()
                cli = programs / "redis-cli"
                cli.write_text(f'#!/bin/sh\nexec {shutil.which("redis-cli")} -s {server.socket} "$@"\n')
                cli.chmod(0o755)
                environment = {k: v for k, v in os.environ.items() if not k.startswith("DISTIER_")}
                environment |= {f"DISTIER_{name.upper()}": value for name, value in own.items()}
                path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
                deploy = subprocess.run(
                    ["distier", "deploy-functions"], capture_output=True, text=True, check=False, timeout=60,
                    env=environment | {"PATH": path, "DISTIER_REDIS__URL": f"unix://admin:ad@{server.socket}"},
                )  # fmt: skip
                assert deploy.returncode == 0, deploy.stderr
                yield environment | {"PATH": path, "REDISCLI_AUTH": "op"}
        finally:
            server.stop()


@pytest.mark.parametrize("section", RUNBOOKS)
def test_first_command_of_a_runbook_works(section: str, live: dict[str, str]) -> None:
    for command in first_commands(SECTIONS[ANCHORS[section]]):
        words = shlex.split(command.replace("{t}", "{default}"))
        assert words[0] in ("redis-cli", "distier"), command
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=live)
        assert done.returncode in (0, 1 if words[0] == "distier" else 0), done.stderr
        assert done.stdout and not re.match(r"\(?(ERR|NOPERM|NOAUTH|error)", done.stdout, flags=re.I), done.stdout
