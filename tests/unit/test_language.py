"""The house language: words of the old dialect do not come back (docs/STYLE.md has the glossary)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile", "docker-compose.yml"]
FOLDERS = {
    "distier": (".py", ".lua"),
    "docs": (".md", ".py"),
    "deploy": (".lua", ".md", ".yml", ".yaml", ".sh"),
    "examples": (".py",),
    "tests": (".py", ".lua", ".md"),
    "benchmarks": (".py",),
}
BANNED = {
    r"\btoks?\b": "write id",
    r"\bbeats?\b": "heartbeat",
    r"\banew\b": "again, or: rebuild",
    r"\bso many\b": "a number, or: maximum number",
    r"\bstand(s|ing)? (back|over)\b": "back off, or: takes precedence",
    r"\b(another|new|this|that|old|earlier|same|one|its own|server's) (life|lives)\b": "incarnation",
    r"\blives? of (a|the|its|one|another)? ?(server|shard|Redis)s?\b": "incarnation",
    r"\bbeside\b": "next to, or: in addition to",
    r"\b(who is|that is|are) cut off\b": "partitioned",
    r"\bchanges hands\b": "keeps changing its primary",
    r"\ba reply to nothing\b": "unsolicited reply",
    r"\bof its own making\b": "that it starts itself",
    r"\bone server, please\b": "cannot be combined with",
}
# A stored name keeps its spelling where it is quoted as one, and the glossary has to name what it replaces.
QUOTED = re.compile(r"""b?['"`<]toks?['"`>]|`[^`]*\btok\b[^`]*`|answer:<tok>|["'][^"']*\btok\b[^"']*["']""")
ALLOWED = {"docs/STYLE.md", "docs/BENCHMARKS.md", "tests/unit/test_language.py"}


def pages() -> Iterator[Path]:
    yield from (ROOT / page for page in PAGES)
    for folder, kinds in FOLDERS.items():
        yield from (path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds)


def found_in(text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        plain = QUOTED.sub("", line)
        found += [
            f"line {number}: {match[0]!r}; write: {instead}"
            for pattern, instead in BANNED.items()
            if (match := re.search(pattern, plain, re.IGNORECASE))
        ]
    return found


@pytest.mark.parametrize("path", list(pages()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_word_of_the_old_dialect(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() not in ALLOWED:
        assert not found_in(path.read_text("utf-8"))


def test_the_words_are_found() -> None:
    assert len(found_in("the tok of a write\nmade anew, beside the other\nanother life of the server")) == 4
    assert found_in("HMGET 'epoch', 'tok'\nthe field `tok`") == []
