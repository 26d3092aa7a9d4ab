"""The skills below a prefix, as their records describe them. No content is read, and nothing counts as a use.

`distier put` keeps the front matter of each `SKILL.md` in the record: `name` and `description` in meta, and keywords.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from distier.client.aio import AsyncStore
from distier.client.store import Store
from distier.domain.described import Described, Listed
from distier.domain.skill import FILE, is_skill_file, problem
from distier.plans.get.listing import LIMIT_MAX


@dataclass(frozen=True, slots=True)
class SkillEntry:
    """A directory with a `SKILL.md`.

    `module` describes the `SKILL.md`: its name, description, keywords, size, digest and version. `problem` says why it is not
    valid as a skill, and is empty if it is.
    """

    module: Described
    problem: str

    @property
    def root(self) -> str:
        """The prefix of the skill's files, with the `/` at its end."""
        return self.module.id.removesuffix(FILE)


def list_skills(store: Store, prefix: str = "") -> Iterator[SkillEntry]:
    """Iterate over the skills whose ids have this prefix, in the order of the bytes of their ids.

    It reads the records of all modules with the prefix, in pages: a skill's other files are passed over.

    Args:
        store: An open store.
        prefix: The beginning of the ids; empty for all ids.

    Raises:
        Corrupt: One of the records is damaged.
    """
    after: str | None = ""
    while after is not None:
        page = store.page(prefix, after=after, limit=LIMIT_MAX)
        yield from skills_in(page)
        after = page.after


async def list_skills_async(store: AsyncStore, prefix: str = "") -> AsyncIterator[SkillEntry]:
    """As `list_skills`."""
    after: str | None = ""
    while after is not None:
        page = await store.page(prefix, after=after, limit=LIMIT_MAX)
        for skill in skills_in(page):
            yield skill
        after = page.after


def skills_in(page: Listed) -> Iterator[SkillEntry]:
    """Iterate over the skills of a page of a listing."""
    for module in page.modules:
        if is_skill_file(module.id):
            yield SkillEntry(module, problem(module.id, module.meta.get("name"), module.meta.get("description")))
