"""What changed between two versions of a module."""

from __future__ import annotations

import difflib

from distier.errors import Invalid

from .module import Module


def diff_lines(before: Module, after: Module, shown: str) -> list[str]:
    """Return a unified diff of two versions, which names the module as `shown`. Raises `Invalid` if they are not text."""
    try:
        old, new = before.text.splitlines(), after.text.splitlines()
    except UnicodeDecodeError:
        raise Invalid(f"module {after.id!r} is not text, so its versions cannot be shown as a diff") from None
    names = (f"{shown}@{before.version}", f"{shown}@{after.version}")
    return list(difflib.unified_diff(old, new, *names, lineterm=""))
