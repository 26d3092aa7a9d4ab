"""A skill registry of Google's Agent Development Kit over the skills in distier: `DistierSkillRegistry`. Needs `google-adk`.

agent = LlmAgent(..., tools=[SkillToolset(registry=DistierSkillRegistry(await distier.connect_async()))])
"""

from __future__ import annotations

import logging

from google.adk.skills import Frontmatter, Resources, Script, Skill, SkillRegistry
from pydantic import ValidationError

from distier.client import AsyncStore, Store
from distier.client.skills import SkillEntry
from distier.domain.module import Module
from distier.domain.search import words_of
from distier.domain.skill import FILE
from distier.errors import Invalid
from distier.integrations.shared import Bridge, Steps
from distier.integrations.skills import SkillFiles, body_of, name_of, read_skill, reason_of, text_or_bytes

log = logging.getLogger("distier.integrations")

REFERENCES, ASSETS, SCRIPTS = "references/", "assets/", "scripts/"


class DistierSkillRegistry(SkillRegistry):
    """A registry whose skills are directories of modules below a root, such as `skills/pdf/SKILL.md`.

    `search_skills` looks at records alone. `get_skill` reads the `SKILL.md` and the files below `references/`, `assets/` and
    `scripts/`, all as they were at one moment: ADK wants a skill whole. The toolset keeps it until the end of the turn.

    Args:
        store: what `distier.connect_async()` returned, or what `connect()` returned: then calls work in a thread.
        root: the first segments of the ids.
        limit: the maximum number of results of a search.

    Raises:
        distier.NotFound: there is no such skill.
        distier.Invalid: a skill is too large, or ADK does not accept its front matter.
        distier.Unavailable: a server does not answer. This is never a missing skill.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "skills", limit: int = 20) -> None:
        self._bridge, self._files, self._limit = Bridge(store), SkillFiles(root), limit

    async def get_skill(self, *, name: str) -> Skill:
        """Read a skill."""
        files = await self._bridge.arun(self._read(name))
        fields, body = body_of(files[FILE])
        try:
            front = Frontmatter.model_validate(fields)
        except ValidationError as e:
            raise Invalid(f"ADK does not accept the front matter of module {files[FILE].id!r}: {reason_of(e)}") from e
        return Skill(
            frontmatter=front,
            instructions=body,
            resources=Resources(
                references=_below(REFERENCES, files),
                assets=_below(ASSETS, files),
                scripts=_scripts(_below(SCRIPTS, files)),
            ),
        )

    async def search_skills(self, *, query: str) -> list[Frontmatter]:
        """Return the skills with the most words of the query, the best first; without a word, as in `*`, the first ones."""
        skills = (await self._bridge.arun(self._files.all())).values()
        words = set(words_of(query))
        scores = {name_of(skill): len(words & _words(skill)) for skill in skills}
        found = sorted(skills, key=lambda skill: -scores[name_of(skill)])  # it keeps the order of equal ones
        wanted = [skill for skill in found if scores[name_of(skill)] or not words]
        return [front for skill in wanted if (front := _frontmatter(skill))][: self._limit]

    def search_tool_description(self) -> str:
        """Return what tells the model how to search."""
        return (
            "Searches skills by words of their names, descriptions and keywords. Returns those with the most of the words of "
            "`query`, the best first, and none if no skill has one of them. The query `*` returns the first skills of all."
        )

    def _read(self, name: str) -> Steps[dict[str, Module]]:
        skill = yield from self._files.find(name)
        return (yield from read_skill(skill, _is_wanted))


def _is_wanted(path: str) -> bool:
    return path == FILE or path.startswith((REFERENCES, ASSETS, SCRIPTS))


def _below(directory: str, files: dict[str, Module]) -> dict[str, str | bytes]:
    return {
        path.removeprefix(directory): text_or_bytes(module)
        for path, module in files.items()
        if path.startswith(directory)
    }


def _scripts(files: dict[str, str | bytes]) -> dict[str, Script]:
    """Return the scripts. One that is not text is left out, as by ADK's own loaders: its type has no place for bytes."""
    for path, content in files.items():
        if isinstance(content, bytes):
            log.warning("the script %r of a skill is left out: it is not UTF-8 text", path)
    return {path: Script(src=content) for path, content in files.items() if isinstance(content, str)}


def _words(skill: SkillEntry) -> set[str]:
    module = skill.module
    return set(words_of(" ".join((name_of(skill), module.description or "", *module.keywords))))


def _frontmatter(skill: SkillEntry) -> Frontmatter | None:
    """Return the front matter in a record. One that ADK does not accept is left out, so that it breaks no search."""
    try:
        return Frontmatter.model_validate(dict(skill.module.meta))
    except ValidationError as e:
        log.warning("the skill %r is left out of a search: %s", skill.root, reason_of(e))
        return None
