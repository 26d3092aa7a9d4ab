"""`api.py` covers the public names and calls, mypy accepts it, and mypy would notice a changed type."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import distier
from distier import AsyncStore, Store

API = Path(__file__).parent / "api.py"
ROOT = API.parent.parent.parent
# `run` is for plans and not part of the public API.
NOT_COVERED = {"run"}


def calls(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def mypy(path: Path, text: str) -> list[str]:
    """The errors that mypy --strict finds in a file with this text, outside of this tree, as in a program that uses
    distier.
    """
    path.write_text(text)
    argv = [sys.executable, "-m", "mypy", "--no-pretty", "--no-error-summary", str(path)]
    done = subprocess.run(argv, cwd=ROOT, text=True, capture_output=True, timeout=500)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_public_name_is_used() -> None:
    text = API.read_text("utf-8")
    assert not {name for name in distier.__all__ if len(re.findall(rf"\b{name}\b", text)) < 2}


@pytest.mark.parametrize("kind", [Store, AsyncStore])
def test_every_public_call_is_used(kind: type) -> None:
    text = API.read_text("utf-8")
    part = text.split("async def everything_async")[kind is AsyncStore].split("\ndef values")[0]
    assert not {name for name in calls(kind) - NOT_COVERED if f"store.{name}(" not in part}


def test_both_stores_take_the_same_arguments() -> None:
    for name in calls(AsyncStore):
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (AsyncStore, Store))
        assert ours == theirs, name
    assert calls(Store) - calls(AsyncStore) == {"open_existing"}


@pytest.mark.timeout(600)
def test_types_are_as_written(tmp_path: Path) -> None:
    text = API.read_text("utf-8")
    wrong = text
    for before, after in (
        ('assert_type(store.get("id"), Module | None)', 'assert_type(store.get("id"), Module)'),
        ('print(store.get("id").text)  # type: ignore[union-attr]', 'print(store.get("id").text)'),
        ("if_version=0)", "if_version=0)  # type: ignore[arg-type]"),
    ):
        assert before in wrong
        wrong = wrong.replace(before, after, 1)
    assert mypy(tmp_path / "api.py", text) == []
    found = mypy(tmp_path / "api.py", wrong)
    codes = sorted(re.findall(r"\[([a-z-]+)\]$", line)[0] for line in found if ": error: " in line)
    assert codes == ["assert-type", "union-attr", "unused-ignore"], "\n".join(found)
