"""Skills for the adapters' tests, stored as `distier put` stores them: the front matter of a `SKILL.md` in its record."""

from __future__ import annotations

from distier import AsyncStore, Item, Store
from distier.domain.frontmatter import described
from distier.plans.common.touches import send_touch

PNG = b"\x89PNG\r\n\x1a\n\xff\xfe"
SKILL_MD = """\
---
name: form-filling
description: Fill in PDF forms
license: MIT
allowed-tools: Read
metadata:
  author: ada
keywords: [acroform]
---
# Forms

Read references/FORMS.md first.
"""
FORM_FILLING: dict[str, str | bytes] = {
    "SKILL.md": SKILL_MD,
    "references/FORMS.md": "# Fields\n",
    "references/deep/table é 100%.csv": "a,b\n",
    "assets/logo.png": PNG,
    "assets/data.bin": b"\xff\xfe\x00",
    "scripts/fill.py": "print('filled')\n",
    "NOTES.md": "# Notes\n",
}


def skill_md(name: str, description: str = "About {}", text: str = "# {}\n", more: str = "") -> str:
    return f"---\nname: {name}\ndescription: {description.format(name)}\n{more}---\n{text.format(name)}"


def put_files(store: Store, directory: str, files: dict[str, str | bytes]) -> None:
    """Write the files of a skill."""
    for path, content in files.items():
        keywords, meta = described(content) if path == "SKILL.md" and isinstance(content, str) else ((), {})
        [landed] = store.put_many([Item(f"{directory}/{path}", content, keywords=keywords, meta=meta)])
        assert not isinstance(landed, Exception), landed


def put_skills(store: Store, root: str = "skills") -> None:
    """Write two valid skills, and directories that are none."""
    put_files(store, f"{root}/form-filling", FORM_FILLING)
    put_files(store, f"{root}/ops/deploy", {"SKILL.md": skill_md("deploy", "Deploy a service")})
    put_files(store, f"{root}/wrong", {"SKILL.md": skill_md("other")})
    put_files(store, f"{root}/bare", {"SKILL.md": "# Without front matter\n"})
    put_files(store, "elsewhere/secret", {"SKILL.md": skill_md("secret")})


def uses(store: Store, *others: AsyncStore) -> dict[str, tuple[float, int | None]]:
    """Return how often each module was used, and when last. A store gathers uses, so those of these are sent first."""
    stores: list[Store | AsyncStore] = [store, *others]
    for each in stores:
        store.run(send_touch(store.space, each._driver.uses.drain()))
    found = {id: store.where(id) for id in store.list()}
    return {id: (place.uses, place.last_use_ms) for id, place in found.items() if place is not None}
