"""Rules of the code that a program can check: imports go downwards only, and logic reads neither clocks nor random numbers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distier

ROOT = Path(distier.__file__).parent
# Each layer imports only from those after it (and from itself).
LAYERS = [
    "__main__", "testing", "cli", "web", "mcp", "integrations", "views",
    "demo", "worker", "client", "doctor", "node", "embedded", "near",
    "observe", "http", "drive", "stores", "plans", "lua", "effects", "browse", "policy", "domain", "config", "errors",
]  # fmt: skip
BANNED = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
# Logic gets time and random numbers by effects (Now and NewToken) and from the scripts' clock. It never reads them itself.
LOGIC = ("browse", "domain", "policy", "plans", "lua", "effects")
TAKERS = {
    "random",
    "secrets",
    "uuid",
    "time",
    "datetime",
    "threading",
    "asyncio",
    "socket",
    "subprocess",
    "redis",
    "boto3",
}

MODULES = sorted(p for p in ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the absolute names that a module imports, and whether only for types.

    `from distier.plans import get` gives `distier.plans.get`.
    """
    tree = ast.parse(path.read_text("utf-8"))
    typed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield from ((f"{base}.{alias.name}", id(node) in typed) for alias in node.names)


def test_every_package_has_a_layer() -> None:
    parts = {layer_of(name_of(p)) for p in MODULES} - {""}
    assert parts <= set(LAYERS), "add it to LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    module, mine = name_of(path), layer_of(name_of(path))
    for name, _ in imports(path):
        theirs = layer_of(name)
        if not name.startswith("distier.") or theirs not in LAYERS or not mine:
            continue  # the package itself gathers the public names
        assert LAYERS.index(theirs) >= LAYERS.index(mine), f"{module} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_unpickled(path: Path) -> None:
    assert not {name.partition(".")[0] for name, _ in imports(path)} & BANNED


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(name_of(p)) in LOGIC], ids=name_of)
def test_logic_takes_no_time_no_chance_and_no_connection(path: Path) -> None:
    assert not {name.partition(".")[0] for name, _ in imports(path)} & TAKERS


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(name_of(p)) in LOGIC], ids=name_of)
def test_logic_opens_no_files(path: Path) -> None:
    called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)}
    assert not called & {"open", "print", "input", "eval", "exec"}


# Within the plans, each package imports only from those before it. `fsck` repairs by writing, so it is above the writes.
PLANS = ["common", "recovery", "tier", "get", "predict", "put", "fleet", "recovery.fsck"]
LINES_MAX = 500


def package_of_plan(module: str) -> str:
    parts = module.split(".")[2:4]
    return "recovery.fsck" if parts == ["recovery", "fsck"] else parts[0] if parts else ""


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(name_of(p)) == "plans"], ids=name_of)
def test_imports_of_plans_go_downwards(path: Path) -> None:
    mine = package_of_plan(name_of(path))
    for name, _ in imports(path):
        theirs = package_of_plan(name) if name.startswith("distier.plans.") else ""
        if mine and theirs:
            assert PLANS.index(theirs) <= PLANS.index(mine), f"{name_of(path)} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_file_is_short_enough(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LINES_MAX


HEAVY = {
    "redis", "pydantic", "boto3", "lmdb", "typer", "yaml", "fsspec", "langgraph", "langchain_core", "key_value", "anthropic",
    "starlette", "uvicorn",
}  # fmt: skip


def test_import_distier_loads_nothing_heavy() -> None:
    code = f"import sys, distier; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
