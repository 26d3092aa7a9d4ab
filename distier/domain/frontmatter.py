"""Front matter: the YAML between two lines of `---` with which a skill or prompt file says what it is.

It is read by a YAML parser, because names and descriptions are written as block scalars, in quotes, with comments. What is no
mapping, too long, or refers to itself (an alias is a way to write gigabytes in a line) says nothing: a hint never fails a put.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distier.errors import Invalid

from .module import MAX_KEYWORD_CHARS, MAX_KEYWORDS, pack_meta

MAX_CHARS = 64 * 1024
EXTENSIONS = ("md", "markdown", "mdx", "mdc", "prompty")
KEYWORD_FIELDS = ("keywords", "tags")

_BLOCK = re.compile(r"---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


def split_front_matter(text: str) -> tuple[Mapping[str, Any], str]:
    """`(fields, rest)`: what the front matter of `text` says, and the text below it. No fields where there is none, or no
    YAML mapping."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = _BLOCK.match(text, 0, MAX_CHARS) if text.startswith("---") else None
    return (_mapping(found[1] or ""), text[found.end() :]) if found else ({}, text)


def _mapping(text: str) -> Mapping[str, Any]:
    import yaml  # here: most modules have none

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            return {}
        made = yaml.load(text, Loader=loader)  # noqa: S506 - one of the two safe loaders
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        return {}
    return made if isinstance(made, dict) else {}


def described(text: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """`(keywords, meta)` of a module with this text: `keywords` and `tags` of its front matter, and every other field that can
    be kept as JSON."""
    fields, _ = split_front_matter(text)
    words = [word for name in KEYWORD_FIELDS for word in _words(fields.get(name))]
    meta: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(name, str) and name not in KEYWORD_FIELDS:
            value = value.isoformat() if hasattr(value, "isoformat") else value
            if value is not None and _fits(meta | {name: value}):
                meta[name] = value
    return tuple(dict.fromkeys(words))[:MAX_KEYWORDS], meta


def _words(value: object) -> list[str]:
    """A list, or one string with commas, as both are written."""
    found = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    words = [str(word).strip() for word in found if isinstance(word, str | int | float)]
    return [word for word in words if 1 <= len(word) <= MAX_KEYWORD_CHARS]


def _fits(meta: Mapping[str, Any]) -> bool:
    try:
        pack_meta(meta)
    except Invalid:
        return False
    return True
