"""What a skill is: a directory with a `SKILL.md` whose front matter has a name and a description.

The rules are those of https://agentskills.io/specification. A directory is the part of an id before the last `/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .frontmatter import split_front_matter

FILE = "SKILL.md"
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
NAME_CHARS = 64
DESCRIPTION_CHARS = 1024
FILES_MAX = 512
SIZE_MAX = 16 * 1024 * 1024
"""The limits of a skill that every host accepts: files, and bytes of all files."""


def is_skill_file(id: str) -> bool:
    """Return whether an id is that of a `SKILL.md` in a directory."""
    return id.endswith("/" + FILE) and len(id) > len(FILE) + 1


def checked(id: str, content: bytes) -> Mapping[str, Any] | str:
    """Return the front matter of a `SKILL.md` as a JSON object, or why it is not that of a skill."""
    try:
        fields, _ = split_front_matter(content.decode())
        front: Mapping[str, Any] = json.loads(json.dumps(dict(fields), default=_plain, allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        return "its front matter is not text that JSON can hold"
    return problem(id, front.get("name"), front.get("description")) or front


def problem(id: str, name: object, description: object) -> str:
    """Return why a name and a description are not those of the skill with this `SKILL.md`; empty if they are."""
    directory = id.split("/")[-2]
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > NAME_CHARS:
        return f"its front matter needs a name of 1 to {NAME_CHARS} characters a-z, 0-9 and single hyphens"
    if name != directory:
        return f"its name {name!r} is not the name of its directory, {directory!r}"
    if not isinstance(description, str) or not description.strip() or len(description) > DESCRIPTION_CHARS:
        return f"its description must be text of 1 to {DESCRIPTION_CHARS} characters"
    return ""


def _plain(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
