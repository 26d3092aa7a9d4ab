"""A lazy source of skills for sandboxes of the OpenAI Agents SDK: `DistierSkillSource`. Needs the package `openai-agents`.

agent = SandboxAgent(..., capabilities=[Skills(lazy_from=DistierSkillSource(distier.connect()))])
"""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from agents.sandbox.capabilities.skills import LazySkillSource, SkillMetadata
from agents.sandbox.errors import SkillsConfigError, WorkspaceReadNotFoundError
from agents.sandbox.session.base_sandbox_session import BaseSandboxSession
from agents.sandbox.types import User
from agents.sandbox.workspace_paths import SandboxPathGrant
from pydantic import PrivateAttr

from distier.client import Store
from distier.client.skills import SkillEntry
from distier.errors import Invalid, NotFound
from distier.integrations.shared import Bridge, Steps
from distier.integrations.skills import SkillFiles, list_skill, name_of, read_skill

MARK = ".distier.json"
"""The file in a loaded skill with the digests of its other files. It is written last, so a part of a skill has none."""


class DistierSkillSource(LazySkillSource):
    """A source whose skills are directories of modules below a root, such as `skills/pdf/SKILL.md`.

    The index of skills is made of records. The tool `load_skill` copies a skill into the sandbox, all its files as they were at
    one moment, text or binary. A later call copies it again if any agent wrote the skill since, and reads only records if not.

    Args:
        store: what `distier.connect()` returned. The SDK lists skills with a blocking call.
        root: the first segments of the ids.

    Raises:
        SkillsConfigError: there is no such skill, or it cannot be copied; its cause is the error of distier.
        distier.Unavailable: a server does not answer. This is never a missing skill.
    """

    # Private, because the SDK copies what a capability has, at any depth, for each run.
    _bridge: Bridge = PrivateAttr()
    _files: SkillFiles = PrivateAttr()
    _loading: WeakKeyDictionary[BaseSandboxSession, asyncio.Lock] = PrivateAttr()

    def __init__(self, store: Store, *, root: str = "skills") -> None:
        super().__init__()
        if not isinstance(store, Store):
            raise TypeError(
                f"the SDK lists skills with a blocking call: give it a distier.connect(), not {type(store)}"
            )
        self._bridge, self._files = Bridge(store), SkillFiles(root)
        self._loading = WeakKeyDictionary()

    def list_skill_metadata(
        self, *, skills_path: str, source_grants: tuple[SandboxPathGrant, ...] = ()
    ) -> list[SkillMetadata]:
        """Return the names, descriptions and paths of all skills."""
        found = self._bridge.run(self._files.all())
        return [
            SkillMetadata(name=name, description=skill.module.description or "", path=Path(skills_path) / name)
            for name, skill in found.items()
        ]

    async def load_skill(
        self, *, skill_name: str, session: BaseSandboxSession, skills_path: str, user: str | User | None = None
    ) -> dict[str, str]:
        """Copy a skill into the sandbox, unless it is there as it is in distier."""
        path = Path(skills_path) / skill_name
        try:
            skill = await self._bridge.arun(self._files.find(skill_name))
            target = _Target(session, Path(session.state.manifest.root) / path, user)
            async with self._loading.setdefault(session, asyncio.Lock()):  # a model may make two calls at once
                status = "loaded" if await self._copy(skill, target) else "already_loaded"
        except (NotFound, Invalid) as e:
            context = {"skill_name": skill_name, "skills_path": skills_path}
            raise SkillsConfigError(message=str(e), context=context, cause=e) from e
        return {"status": status, "skill_name": name_of(skill), "path": path.as_posix()}

    async def _copy(self, skill: SkillEntry, target: _Target) -> bool:
        """Copy a skill, and return True; return False if it is there already."""
        if await target.mark() == await self._bridge.arun(_digests(skill)):
            return False
        files = await self._bridge.arun(read_skill(skill))
        await target.write({path: module.content for path, module in files.items()})
        await target.finish({path: module.sha256 for path, module in files.items()})
        return True


def _digests(skill: SkillEntry) -> Steps[dict[str, str]]:
    files = yield from list_skill(skill)
    if MARK in files:
        raise Invalid(
            f"module {files[MARK].id!r} has the name of a file that this source writes; rename it with `distier mv`"
        )
    return {path: file.sha256 for path, file in files.items()}


class _Target:
    """The directory of a skill in a sandbox."""

    def __init__(self, session: BaseSandboxSession, directory: Path, user: str | User | None) -> None:
        self._session, self._directory, self._user = session, directory, user

    async def mark(self) -> Any:
        """Return the digests of the skill that was copied here; None if there is no whole one."""
        try:
            file = await self._session.read(self._directory / MARK, user=self._user)
        except (FileNotFoundError, WorkspaceReadNotFoundError):
            return None
        with file:
            try:
                return json.loads(file.read())
            except ValueError:  # somebody in the sandbox wrote it
                return None

    async def write(self, files: dict[str, bytes]) -> None:
        """Replace what is here by these files. A mark that is here goes first."""
        await self._session.mkdir(self._directory, parents=True, user=self._user)
        await self._session.rm(self._directory, recursive=True, user=self._user)
        for directory in sorted({(self._directory / path).parent for path in files}):
            await self._session.mkdir(directory, parents=True, user=self._user)
        for path, content in files.items():
            await self._session.write(self._directory / path, io.BytesIO(content), user=self._user)

    async def finish(self, digests: dict[str, str]) -> None:
        """Mark what is here as a whole skill."""
        await self._session.write(self._directory / MARK, io.BytesIO(json.dumps(digests).encode()), user=self._user)
