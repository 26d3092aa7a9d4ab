"""A source of skills for Microsoft's Agent Framework: `DistierSkillsSource`. Needs the package `agent-framework-core`.

agent = Agent(client, context_providers=[SkillsProvider(DistierSkillsSource(await distier.connect_async()))])
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from agent_framework import (
    Content,
    InlineSkillResource,
    Skill,
    SkillFrontmatter,
    SkillResource,
    SkillsSource,
    SkillsSourceContext,
)

from distier.client import AsyncStore, Store
from distier.client.skills import SkillEntry
from distier.domain.module import Module
from distier.domain.skill import FILE
from distier.errors import Invalid
from distier.integrations.shared import Bridge, Steps
from distier.integrations.skills import (
    SkillFiles,
    body_of,
    check_path,
    list_skill,
    name_of,
    read_file,
    read_skill_md,
    text_or_bytes,
)


class DistierSkillsSource(SkillsSource):
    """A source whose skills are directories of modules below a root, such as `skills/pdf/SKILL.md`.

    Each run of an agent lists the records, so it knows a skill that was written a moment ago. Tools read a file as it is when
    they are called. Compose it with the framework's sources that filter or cache. Scripts can be read, and none is run.

    Args:
        store: what `distier.connect_async()` returned, or what `connect()` returned: then calls work in a thread.
        root: the first segments of the ids.

    Raises:
        distier.Unavailable: a server does not answer. This is never a missing skill or file.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "skills") -> None:
        self._bridge, self._files = Bridge(store), SkillFiles(root)

    async def get_skills(self, context: SkillsSourceContext) -> list[Skill]:
        """Return all skills, from records alone. They are the same for every agent."""
        found = await self._bridge.arun(self._files.all())
        return [DistierSkill(self._bridge, skill) for skill in found.values()]


class DistierSkill(Skill):
    """A skill whose contents are read when they are asked for."""

    def __init__(self, bridge: Bridge, skill: SkillEntry) -> None:
        self._bridge, self._skill, self._frontmatter = bridge, skill, _frontmatter(skill)

    @property
    def frontmatter(self) -> SkillFrontmatter:
        """The front matter, from the record of the `SKILL.md`."""
        return self._frontmatter

    async def get_content(self) -> str:
        """Return the `SKILL.md`, with a list of the other files below it.

        Raises:
            distier.NotFound: the skill was deleted meanwhile.
            distier.Invalid: it is not a valid skill any more.
        """
        return await self._bridge.arun(self._content())

    async def get_resource(self, name: str) -> SkillResource | None:
        """Read a file by its path. Returns None if there is none, and for a path that leads out of the skill's directory."""
        try:
            path = check_path(name)
        except Invalid:
            return None  # the framework reports it as a resource that the skill does not have
        module = await self._bridge.arun(read_file(self._skill, path))
        return None if module is None else InlineSkillResource(name=name, function=lambda: _result(module))

    def _content(self) -> Steps[str]:
        module = yield from read_skill_md(self._skill)
        body_of(module)
        paths = [path for path in (yield from list_skill(self._skill)) if path != FILE]
        lines = "".join(f'  <resource name="{escape(path)}"/>\n' for path in paths)
        return f"{module.text}\n\n<available_resources>\n{lines}</available_resources>\n\n<available_scripts />"


def _result(module: Module) -> Any:
    """Return text as it is, and anything else as data of the module's content type, which the model gets as such."""
    content = text_or_bytes(module)
    return content if isinstance(content, str) else Content.from_data(content, module.content_type)


def _frontmatter(skill: SkillEntry) -> SkillFrontmatter:
    meta = skill.module.meta
    name, description = name_of(skill), skill.module.description or ""
    tools, more = meta.get("allowed-tools"), meta.get("metadata")
    try:
        return SkillFrontmatter(
            name=name, description=description, license=_text(meta.get("license")),
            compatibility=_text(meta.get("compatibility")),
            allowed_tools=" ".join(map(str, tools)) if isinstance(tools, list) else _text(tools),
            metadata={str(key): str(value) for key, value in more.items()} if isinstance(more, Mapping) else None,
        )  # fmt: skip
    except ValueError:  # its `compatibility` is too long: that hides no skill
        return SkillFrontmatter(name=name, description=description)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
