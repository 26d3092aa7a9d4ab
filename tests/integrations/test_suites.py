"""The public test suites that come as sdists pass against the adapters. `make suites` fetches them; none of their code is here.

The counts are exact: a suite that lost its tests, or a skip that hides one, shows here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import available_kinds

WHERE = Path(os.environ.get("SUITES") or Path(sys.prefix) / "suites")
PLUGINS = Path(__file__).parent / "suites"
DEEP_AGENTS = [
    f"tests/unit_tests/{each}"
    for each in (
        "backends/test_store_backend.py", "backends/test_store_backend_async.py", "backends/test_composite_backend.py",
        "backends/test_composite_backend_async.py", "backends/test_glob_semantics.py::TestStoreBackendGlobMatrix",
        "middleware/test_memory_middleware.py", "middleware/test_skills_middleware.py", "test_permissions.py",
        "test_artifacts_root.py", "test_eviction_replay.py",
    )
]  # fmt: skip
SUITES = {
    ("langgraph_checkpoint-4.3.2", "suite_langgraph", "tests/test_store.py"): (104, 13),
    ("langgraph_checkpoint_sqlite-3.1.2", "suite_langgraph", "tests/test_store.py tests/test_async_store.py"): (
        105,
        37,
    ),
    ("py-key-value", "suite_key_value", "tests/stores/memory/test_memory.py"): (67, 1),
    ("anthropic-2.14.0", "suite_anthropic", "tests/lib/tools/memory_tools/test_filesystem.py"): (74, 25),
    ("deepagents-0.7.8", "suite_deepagents", " ".join(DEEP_AGENTS)): (512, 51),
    ("deepagents-0.7.8", "suite_langgraph", " ".join(DEEP_AGENTS)): (563,),
}
"""What passed and what was skipped, by the suite's folder, our plugin and the suite's files."""
CLONED = {
    "py-key-value": "git clone --branch 0.4.4 https://github.com/strawgate/py-key-value",
    "deepagents-0.7.8": "docs/how-to/use-with-deep-agents.md",
}
"""Suites that `make suites` does not fetch, and how to run them by hand. Building the first one's sdist needs a compiler. The
second one's sdist has no tests, and its package cannot be installed next to the others."""
NO_CONFTEST = {"anthropic-2.14.0": ("--noconftest",)}  # it is for tests of their API, and needs more packages
NEEDS = ("pytest_mock", "langgraph.store.sqlite", "key_value.aio", "dirty_equals", "anthropic")
OWN_NEEDS = {"deepagents-0.7.8": ("langgraph.store.sqlite", "deepagents")}


@pytest.mark.skipif(available_kinds()["valkey"] != "", reason=available_kinds()["valkey"])
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"{suite[0]}-{suite[1]}")
def test_public_suite_passes(suite: tuple[str, str, str]) -> None:
    folder, plugin, files = suite
    if not (WHERE / folder).is_dir():
        how = CLONED.get(folder, "run `make suites`")
        pytest.skip(f"{folder} is not in {WHERE}: {how}")
    for needed in OWN_NEEDS.get(folder, NEEDS):
        pytest.importorskip(needed, reason=f"{needed} is not installed: run `make suites`")
    argv = [
        sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", ".", *NO_CONFTEST.get(folder, ()),
        "-p", "no:cacheprovider", "-p", "no:langsmith_plugin", "-p", plugin, "-o", "asyncio_mode=auto",
        "-o", "asyncio_default_fixture_loop_scope=function", *files.split(),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DISTIER_", "PYTEST_"))}
    # The folder itself first: `tests` is the suite's package, not ours.
    env["PYTHONPATH"] = os.pathsep.join([str(WHERE / folder), str(PLUGINS)])
    done = subprocess.run(argv, cwd=WHERE / folder, env=env, text=True, capture_output=True, timeout=500)
    counts = [int(n) for n in re.findall(r"(\d+) (?:passed|skipped)", done.stdout)]
    assert (done.returncode, tuple(counts)) == (0, SUITES[suite]), done.stdout[-5000:] + done.stderr
