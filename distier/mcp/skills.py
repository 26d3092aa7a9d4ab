"""The skills of a namespace: directories with a `SKILL.md` whose front matter has a name and a description.

See https://agentskills.io/specification. A directory is the part of an id before the last `/`. What a `SKILL.md` says is read
from its content, not from the record: the extension wants the whole front matter, as it is written. Nothing counts as a use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distier.client import AsyncStore
from distier.domain.described import Described
from distier.domain.skill import FILE, FILES_MAX, SIZE_MAX, checked, is_skill_file
from distier.errors import Unavailable
from distier.plans.get.peek import peek

FILE_BYTES_MAX = 1024 * 1024
PAGE = 1000
LOOKED_PAGES = 5
"""How many pages of ids one call looks at for skills. A listing that finds few continues with its cursor."""
_KNOWN_MAX = 4096
_REREADS = 5


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill: the id of its `SKILL.md`, its front matter, and its files in the order of their ids."""

    id: str
    frontmatter: Mapping[str, Any]
    files: tuple[Described, ...]

    @property
    def root(self) -> str:
        """The directory, with the `/` at its end."""
        return self.id[: -len(FILE)]


@dataclass(frozen=True, slots=True)
class Broken:
    """A directory with a `SKILL.md` that is no valid skill, and why."""

    id: str
    why: str


class Catalogue:
    """Finds skills. What it knows of a `SKILL.md` is kept by the digest of its content."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, str], Mapping[str, Any] | str] = OrderedDict()

    async def page(self, prefix: str, after: str, limit: int) -> tuple[list[Skill | Broken], str | None]:
        """Return the skills whose `SKILL.md` comes after the id `after`, and the id that continues the listing."""
        found: list[Skill | Broken] = []
        for _ in range(LOOKED_PAGES):
            listed = await self._store.page(prefix, after=after, limit=PAGE)
            for module in listed.modules:
                if is_skill_file(module.id):
                    found.append(await self._skill(module))
                    if len(found) == limit:
                        return found, module.id
            if listed.after is None:
                return found, None
            after = listed.after
        return found, after

    async def get(self, id: str) -> Skill | Broken | None:
        """Return the skill with this `SKILL.md`; None if there is no such module."""
        if not is_skill_file(id):
            return None
        module = (await self._store.describe([id]))[id]
        return None if module is None else await self._skill(module)

    async def _skill(self, module: Described) -> Skill | Broken:
        front = await self._front_matter(module)
        if isinstance(front, str):
            return Broken(module.id, front)
        root, after = module.id[: -len(FILE)], ""
        files: list[Described] = []
        while len(files) <= FILES_MAX:
            listed = await self._store.page(root, after=after, limit=FILES_MAX + 1 - len(files))
            files += listed.modules
            if listed.after is None:
                break
            after = listed.after
        if len(files) > FILES_MAX:
            return Broken(module.id, f"it has more than {FILES_MAX} files, the limit of a skill")
        total = sum(file.size_bytes for file in files)
        if total > SIZE_MAX:
            return Broken(module.id, f"its files have {total:,} bytes, and a skill may have {SIZE_MAX:,}")
        return Skill(module.id, front, tuple(files))

    async def _front_matter(self, module: Described) -> Mapping[str, Any] | str:
        key = (module.id, module.sha256)
        known = self._known.get(key)
        if known is None:
            known = await self._read(module)
            self._known[key] = known
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return known

    async def _read(self, module: Described) -> Mapping[str, Any] | str:
        if module.size_bytes > FILE_BYTES_MAX:
            return f"its {FILE} has more than {FILE_BYTES_MAX:,} bytes"
        for _ in range(_REREADS):
            seen = await self._store.run(
                peek(self._store.space, module.id, max_bytes=FILE_BYTES_MAX, from_archive=True)
            )
            if seen is None:
                return "it was deleted"
            if seen.content is not None:
                return checked(module.id, seen.content)
        raise Unavailable(f"module {module.id!r} keeps moving between tiers; try again")


def children(files: Sequence[Described], root: str) -> tuple[list[Described], list[str]]:
    """Return the files directly in a directory, and the names of its subdirectories, in order."""
    inside = [(file, file.id[len(root) :]) for file in files]
    return [file for file, rest in inside if "/" not in rest], sorted(
        {rest.partition("/")[0] for _, rest in inside if "/" in rest}
    )
