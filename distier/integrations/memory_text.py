"""The memory tool's paths, and what it shows and does to a text, in the words of Anthropic's tool for local files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from anthropic.lib.tools import ToolError

from distier.domain.module import Module

TOP = "/memories"
Path = tuple[str, ...]
LINES_MAX = 999_999
WIDTH = len(str(LINES_MAX))
LEVELS = 2


def parsed(path: str) -> Path:
    """Return the parts of a path below /memories."""
    if path != TOP and not path.startswith(f"{TOP}/"):
        raise ToolError(f"Path must start with {TOP}, got: {path}")
    parts: list[str] = []
    for part in path[len(TOP) :].split("/"):
        if part == ".." and not parts:
            raise ToolError(f"Path {path} would escape {TOP} directory")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def text_of(module: Module, path: str) -> str:
    try:
        return module.text
    except UnicodeDecodeError as e:
        raise ToolError(f"Unsupported file type for {path}") from e


def numbered(path: str, text: str, view_range: Sequence[int] | None) -> str:
    """Return the lines of a file with their numbers. A range is (first line, last line or -1)."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        raise ToolError(f"File {path} exceeds maximum line limit of 999,999 lines.")
    first, last = 1, len(lines)
    if view_range and len(view_range) == 2:
        first, last = max(1, view_range[0]), len(lines) if view_range[1] == -1 else view_range[1]
    return f"Here's the content of {path} with line numbers:\n" + _with_numbers(lines, first, last)


def listing(path: str, sizes: Mapping[tuple[str, ...], int]) -> str:
    """Return the files and directories of a directory, from the size of each file below it."""
    totals: dict[tuple[str, ...], int] = {}
    for parts, size in sizes.items():
        if any(part.startswith(".") for part in parts):
            continue
        for depth in range(1, min(len(parts), LEVELS) + 1):
            totals[parts[:depth]] = totals.get(parts[:depth], 0) + size
    lines = [f"{_size(sum(sizes.values()))}\t{path}"]
    lines += [
        f"{_size(totals[parts])}\t{path}/{'/'.join(parts)}{'' if parts in sizes else '/'}" for parts in sorted(totals)
    ]
    return f"Here're the files and directories up to 2 levels deep in {path}, excluding hidden items:\n" + "\n".join(
        lines
    )


def replaced(path: str, text: str, old: str, new: str) -> tuple[str, str]:
    """Return the text with `old` replaced, which must occur once, and what to report."""
    if not old or not (count := text.count(old)):
        raise ToolError(f"No replacement was performed, old_str `{old}` did not appear verbatim in {path}.")
    if count > 1:
        starts = [found.start() for found in re.finditer(f"(?={re.escape(old)})", text)]
        lines = ", ".join(str(text.count("\n", 0, at) + 1) for at in starts)
        raise ToolError(
            f"No replacement was performed. Multiple occurrences of old_str `{old}` in lines: {lines}. "
            "Please ensure it is unique"
        )
    changed = text[: text.index(old)].count("\n")
    text = text.replace(old, new)
    shown = _with_numbers(text.split("\n"), max(1, changed - 1), changed + 3)
    return (
        text,
        f"The memory file has been edited. Here is the snippet showing the change (with line numbers):\n{shown}",
    )


def inserted(path: str, text: str, line: int, added: str) -> tuple[str, str]:
    """Return the text with lines inserted after a line (0: at the beginning), and what to report."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not 0 <= line <= len(lines):
        raise ToolError(f"Invalid `insert_line` parameter: {line}. It should be within the range [0, {len(lines)}].")
    lines.insert(line, added.rstrip("\n"))
    changed = "\n".join(lines)
    return changed if changed.endswith("\n") else changed + "\n", f"The file {path} has been edited."


def _with_numbers(lines: Sequence[str], first: int, last: int) -> str:
    shown = enumerate(lines[first - 1 : max(0, last)], first)
    return "\n".join(f"{number:>{WIDTH}}\t{line}" for number, line in shown)


def _size(size: int) -> str:
    unit = min(max(0, size.bit_length() - 1) // 10, 3)
    scaled = size / 1024**unit
    return f"{scaled:.0f}{'BKMG'[unit]}" if scaled.is_integer() else f"{scaled:.1f}{'BKMG'[unit]}"
