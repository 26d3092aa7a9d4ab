"""Front matter: the YAML between two lines of `---` in which a skill or prompt file describes itself.

A YAML parser reads it, because names and descriptions come as block scalars, in quotes and with comments. Front matter that is
not a mapping, is too long, or has an alias (a line of aliases can expand to gigabytes) is ignored: a hint never fails a put.
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
    """Split a text into the fields of its front matter and the text below it.

    Without front matter that is a YAML mapping there are no fields.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = _BLOCK.match(text, 0, MAX_CHARS) if text.startswith("---") else None
    return (_mapping(found[1] or ""), text[found.end() :]) if found else ({}, text)


def _mapping(text: str) -> Mapping[str, Any]:
    import yaml  # imported here, because most modules have no front matter

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            return {}
        fields = yaml.load(text, Loader=loader)  # noqa: S506 - one of the two safe loaders
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        return {}
    return fields if isinstance(fields, dict) else {}


def described(text: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the keywords and meta that the front matter of a text gives its module.

    The fields `keywords` and `tags` become keywords; every other field that JSON can hold goes into meta.
    """
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
    """Accept a list, or one string with commas: people write both."""
    found = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    words = [str(word).strip() for word in found if isinstance(word, str | int | float)]
    return [word for word in words if 1 <= len(word) <= MAX_KEYWORD_CHARS]


def _fits(meta: Mapping[str, Any]) -> bool:
    try:
        pack_meta(meta)
    except Invalid:
        return False
    return True
