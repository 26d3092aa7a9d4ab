"""The fenced blocks of a page of the documentation, and how each kind is tested.

| fence | what happens to it |
|---|---|
| ```` ```sh ```` | run by bash, which stops at the first command that fails |
| ```` ```python ```` | run as its own program |
| with `title="NAME"` | written to that file, for the commands that follow |
| ```` ```yaml ```` without a title | loaded as a configuration |
| ```` ```text ```` | compared with the output of the block before it; `...` matches anything |

A block after `<!-- not run: REASON -->` is skipped together with the output that follows it. Other languages are
refused. To add one, describe here what happens to it.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KINDS = ("sh", "python", "yaml", "text")
_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>[^\n]+?) -->\n *)?"
    r"```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is the line number of its fence in the page."""

    kind: str
    text: str
    title: str | None
    reason: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order. Raises `ValueError` for an unknown fence."""
    text = page.read_text("utf-8")
    found = [
        Block(m["kind"], textwrap.dedent(m["text"]), m["title"], m["reason"], text.count("\n", 0, m.start()) + 1)
        for m in _FENCE.finditer(text)
    ]
    if text.count("```") != 2 * len(found):
        raise ValueError(f"{page.name}: a fence that is not as {__name__} describes, or that does not end")
    if odd := [block for block in found if block.kind not in KINDS]:
        raise ValueError(f"{page.name}:{odd[0].line}: {odd[0].kind!r} is none of {KINDS}")
    return found


def matches(expected: str, printed: str) -> bool:
    """Return whether the output is as the page shows it. `...` matches anything within its line, and any lines if it is
    alone on its line.
    """
    pattern = "".join(_line(line) for line in expected.rstrip("\n").splitlines())
    return re.fullmatch(pattern, printed.rstrip("\n") + "\n") is not None


def _line(line: str) -> str:
    return r"(?:[^\n]*\n)*" if line == "..." else "[^\n]*".join(map(re.escape, line.split("..."))) + r"\n"
