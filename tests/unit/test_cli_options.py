"""Options of commands and the global ones, which may stand anywhere on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distier.cli.app import GLOBALS, command


def commands(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in getattr(found, "commands", {}).items():
        yield f"{path} {name}".strip(), one
        yield from commands(one, f"{path} {name}")


def test_no_command_has_an_option_that_is_a_global_one() -> None:
    """`hoist` would take it from the command: `history ID -n 5` once read the namespace `5`."""
    seen = dict(commands(command()))
    assert len(seen) > 40 and "archive history" in seen
    taken = {
        f"{path} {option}"
        for path, one in seen.items()
        for parameter in one.params
        for option in parameter.opts
        if option in GLOBALS
    }
    assert taken == set()
