"""A provider of skills for FastMCP servers: `DistierSkillProvider`. Needs the package `fastmcp`.

server = FastMCP("skills", providers=[DistierSkillProvider(await distier.connect_async())], ...)
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from fastmcp.exceptions import ResourceError
from fastmcp.skills import Skill, SkillFile, SkillFrontmatter, SkillManifest
from fastmcp.skills.provider import SkillFileResource, SkillManifestProvider

from distier.client import AsyncStore, Store
from distier.client.skills import skills_in
from distier.domain.described import Described, Listed
from distier.domain.module import Module
from distier.domain.skill import FILE
from distier.errors import DistierError, Invalid, Unavailable
from distier.integrations.shared import Bridge, Steps
from distier.integrations.skills import SkillFiles, checked_files, reason_of
from distier.plans.get.peek import Peeked, peek

log = logging.getLogger("distier.integrations")

FILE_BYTES_MAX = 1024 * 1024
_KNOWN_MAX = 4096
_REREADS = 5


class DistierSkillProvider(SkillManifestProvider):
    """A provider whose skills are directories of modules below a root: `ROOT/pdf/SKILL.md` is `skill://pdf/SKILL.md`.

    Each request of a client lists the records below the root, which have the digests and sizes of all files. A file is read
    when a client reads it. FastMCP announces the whole front matter of a skill, which a record does not have, so the provider
    also reads each version of a `SKILL.md` once. That counts as no use.

    A directory in a skill belongs to it, even if it has a `SKILL.md`. Skills that are not valid, or not to FastMCP, are left
    out: `left_out` has the reasons of the last request by path, and the log has each one once.

    Args:
        store: what `distier.connect_async()` returned, or what `connect()` returned: then calls work in a thread.
        root: the first segments of the ids.

    Raises:
        ResourceError: a file was changed or deleted while it was read, or distier failed; its cause is the error of distier.
        distier.Unavailable: a server does not answer. FastMCP logs this and serves no skills from here, unless the setting
            `mounted_components_raise_on_load_error` makes it an error of the request.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "skills") -> None:
        super().__init__()
        self._bridge, self._files = Bridge(store), SkillFiles(root)
        self._known: OrderedDict[str, SkillFrontmatter | str] = OrderedDict()
        self.left_out: dict[str, str] = {}

    async def load_manifests(self) -> Mapping[str, SkillManifest]:
        """Return the manifests of all skills by path."""
        return await self._bridge.arun(self._manifests())

    async def read_file(self, resource: SkillFileResource) -> bytes:
        """Read a file of a skill, with the content that its manifest describes."""
        try:
            return await self._bridge.arun(self._read(resource))
        except DistierError as e:
            raise ResourceError(str(e)) from e

    def _manifests(self) -> Steps[dict[str, SkillManifest]]:
        found: dict[str, SkillManifest] = {}
        skills, problems = _by_skill((yield from self._files.records()))
        for root, files in skills.items():
            try:
                found[self._path(root)] = yield from self._manifest(root, files)
            except Invalid as e:
                problems[root] = str(e)
        before, self.left_out = self.left_out, {self._path(root): why for root, why in problems.items()}
        for path, why in self.left_out.items():
            if before.get(path) != why:
                log.warning("the skill %r is left out: %s", path, why)
        return found

    def _path(self, root: str) -> str:
        return root[len(self._files.prefix) : -1]

    def _manifest(self, root: str, files: list[Described]) -> Steps[SkillManifest]:
        front = yield from self._front_matter(next(file for file in files if file.id == root + FILE))
        listed = {
            file.id[len(root) :]: SkillFile(digest=f"sha256:{file.sha256}", size=file.size_bytes)
            for file in checked_files(root, files)
        }
        try:
            return SkillManifest(frontmatter=front, files=listed)
        except ValueError as e:
            raise Invalid(f"FastMCP does not accept it: {reason_of(e)}") from e

    def _front_matter(self, skill_md: Described) -> Steps[SkillFrontmatter]:
        known = self._known.get(skill_md.sha256)
        if known is None:
            known = _parsed((yield from self._peeked(skill_md)), skill_md.id)
            self._known[skill_md.sha256] = known
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        if isinstance(known, str):
            raise Invalid(known)
        return known

    def _peeked(self, skill_md: Described) -> Steps[bytes]:
        """Return the content of a `SKILL.md` without counting a use."""
        if skill_md.size_bytes > FILE_BYTES_MAX:
            raise Invalid(f"its {FILE} has more than {FILE_BYTES_MAX:,} bytes")
        for _ in range(_REREADS):
            seen: Peeked | None = yield lambda store: store.run(
                peek(store.space, skill_md.id, max_bytes=FILE_BYTES_MAX, from_archive=True)
            )
            if seen is None:
                raise Invalid("it was deleted meanwhile")
            if seen.content is not None:
                return seen.content
        raise Unavailable(f"module {skill_md.id!r} keeps moving between tiers; try again")

    def _read(self, resource: SkillFileResource) -> Steps[bytes]:
        id = f"{self._files.prefix}{resource.skill_path}/{resource.file_path}"
        module: Module | None = yield lambda store: store.get(id)
        if not _is(module, resource):
            # The near cache may not have heard of a write yet that the records of this request have.
            listed: Described | None = (yield lambda store: store.describe([id]))[id]
            if listed is not None and _is(listed, resource):
                version = listed.version
                module = yield lambda store: store.get(id, version=version)
        if module is None or not _is(module, resource):
            raise Unavailable(f"module {id!r} was changed or deleted while it was read; read the skill again")
        return module.content


def _is(module: Module | Described | None, resource: SkillFileResource) -> bool:
    return module is not None and f"sha256:{module.sha256}" == resource.file.digest


def _parsed(content: bytes, id: str) -> SkillFrontmatter | str:
    """Return the front matter as FastMCP reads it, because its clients compare the two; or why it does not."""
    try:
        return Skill.from_files({FILE: content}).frontmatter
    except ValueError as e:
        return f"FastMCP does not accept the front matter of {id!r}: {reason_of(e)}"


def _by_skill(modules: Sequence[Described]) -> tuple[dict[str, list[Described]], dict[str, str]]:
    """Return the files of each skill by its directory, which ends in `/`, and why other directories are no skills.

    A directory within a skill is a part of it.
    """
    entries = {skill.root: skill.problem for skill in skills_in(Listed(tuple(modules), None))}
    found: dict[str, list[Described]] = {}
    problems: dict[str, str] = {}
    for module in modules:
        ends = (at + 1 for at, c in enumerate(module.id) if c == "/")
        roots = [module.id[:end] for end in ends if module.id[:end] in entries]
        valid = next((root for root in roots if not entries[root]), None)
        if valid is not None:
            found.setdefault(valid, []).append(module)
        elif roots:
            problems[roots[-1]] = entries[roots[-1]]
    return found, problems
