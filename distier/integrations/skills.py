"""The skills below a root, for the adapters of agent frameworks: one catalogue, shown to each host as it wants it.

A skill is a directory with a `SKILL.md` (https://agentskills.io/specification), and frameworks find it by its name. The
catalogue is made of records, so looking at it reads no content and counts as no use. Contents are read when an agent asks for
them, as by any other reader. Ids are those of the modules: nothing is encoded, and no path leads out of a skill's directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError

from distier.client.skills import SkillEntry, skills_in
from distier.domain.described import Described, Listed
from distier.domain.frontmatter import split_front_matter
from distier.domain.ids import check_id
from distier.domain.module import Module
from distier.domain.skill import FILE, FILES_MAX, NAME, NAME_CHARS, SIZE_MAX, checked
from distier.errors import Invalid, NotFound, Unavailable
from distier.integrations.shared import ROOT_BYTES, Steps, get_all
from distier.plans.get.listing import LIMIT_MAX

_REREADS = 5
_NO_PATH = re.compile(r"[A-Za-z]:|.*[\\\x00-\x1f\x7f]", re.DOTALL)
"""Begins with a drive of Windows, or has a character that no path of a skill has."""


class SkillFiles:
    """Steps that look at the skills below a root, and read them."""

    def __init__(self, root: str) -> None:
        self.prefix = f"{root.strip('/')}/" if root.strip("/") else ""
        if len(self.prefix.encode()) > ROOT_BYTES:
            raise Invalid(f"the root of skills must have less than {ROOT_BYTES} bytes, not {root[:40]!r}...")

    def records(self) -> Steps[list[Described]]:
        """Return the records of all modules below the root, in the order of their ids."""
        found: list[Described] = []
        after: str | None = ""
        while after is not None:
            page: Listed = yield partial(_page, self.prefix, after, LIMIT_MAX)
            found, after = found + list(page.modules), page.after
        return found

    def all(self) -> Steps[dict[str, SkillEntry]]:
        """Return the valid skills by name, in the order of their ids."""
        return _by_name((yield from self._entries()))

    def find(self, name: str) -> Steps[SkillEntry]:
        """Return the skill with this name. Raises `NotFound`, which says why if there is one that is not valid."""
        problem = ""
        if NAME.fullmatch(name) and len(name) <= NAME_CHARS:  # anything else is the name of no skill
            id = f"{self.prefix}{name}/{FILE}"
            module: Described | None = (yield lambda store: store.describe([id]))[id]
            if module is not None and not (first := _entry(module)).problem:
                return first
            entries = yield from self._entries()
            if (skill := _by_name(entries).get(name)) is not None:
                return skill
            problem = next((f": {each.problem}" for each in entries if each.root.split("/")[-2] == name), "")
        raise NotFound(f"no valid skill {name!r} exists below {self.prefix!r}{problem}")

    def _entries(self) -> Steps[list[SkillEntry]]:
        return list(skills_in(Listed(tuple((yield from self.records())), None)))


def _by_name(entries: Iterable[SkillEntry]) -> dict[str, SkillEntry]:
    """Return the valid ones by name. Of two with one name it is that with fewer directories, then the first one."""
    found: dict[str, SkillEntry] = {}
    for skill in entries:
        if not skill.problem:
            known = found.setdefault(name_of(skill), skill)
            if skill.root.count("/") < known.root.count("/"):
                found[name_of(skill)] = skill
    return found


def _page(prefix: str, after: str, limit: int, store: Any) -> Any:
    return store.page(prefix, after=after, limit=limit)


def _entry(module: Described) -> SkillEntry:
    return next(skills_in(Listed((module,), None)))


def name_of(skill: SkillEntry) -> str:
    """Return the name of a valid skill, which is that of its directory."""
    return skill.module.name or ""


def list_skill(skill: SkillEntry) -> Steps[dict[str, Described]]:
    """Steps that return the records of a skill's files by path, in the order of their ids.

    Raises:
        Invalid: the skill is too large, or has a file that no path of a skill can name.
    """
    files: list[Described] = []
    after: str | None = ""
    while after is not None and len(files) <= FILES_MAX:
        page: Listed = yield partial(_page, skill.root, after, FILES_MAX + 1 - len(files))
        files, after = files + list(page.modules), page.after
    return {file.id[len(skill.root) :]: file for file in checked_files(skill.root, files)}


def checked_files(root: str, files: list[Described]) -> list[Described]:
    """Return the files of a skill. Raises `Invalid` if they are too many or too large, or if one has an impossible path."""
    if len(files) > FILES_MAX:
        raise Invalid(f"the skill {root!r} has more than {FILES_MAX} files, the limit of a skill")
    if (size := sum(file.size_bytes for file in files)) > SIZE_MAX:
        raise Invalid(f"the files of the skill {root!r} have {size:,} bytes, and a skill may have {SIZE_MAX:,}")
    for file in files:
        try:
            check_path(file.id[len(root) :])
        except Invalid as e:
            raise Invalid(f"module {file.id!r} cannot be a file of a skill: {e}; rename it with `distier mv`") from e
    return files


def check_path(path: str) -> str:
    """Return the path of a file of a skill, without a `./` before it. Raises `Invalid` for a path that leaves its directory."""
    path = path.removeprefix("./")
    if _NO_PATH.match(path) or any(part in ("", ".", "..") for part in path.split("/")):
        raise Invalid(f"{path!r} is not a path within the directory of a skill, such as 'references/forms.md'")
    return path


def read_file(skill: SkillEntry, path: str) -> Steps[Module | None]:
    """Steps that read a file of a skill by its path; None if there is none. Raises as `check_path`."""
    id = skill.root + check_path(path)
    try:
        check_id(id)
    except Invalid:
        return None  # too long, or a lone surrogate: no module has such an id
    found: Module | None = yield lambda store: store.get(id)
    return found


def read_skill(skill: SkillEntry, wanted: Callable[[str], bool] = lambda path: True) -> Steps[dict[str, Module]]:
    """Steps that read a skill's files by path, all as they were at one moment.

    Raises:
        Invalid: as `list_skill`.
        NotFound: the skill was deleted meanwhile.
        Unavailable: other agents wrote the files each time that they were read.
    """
    for _ in range(_REREADS):
        listed = yield from list_skill(skill)
        if FILE not in listed:
            raise NotFound(f"the skill {skill.root!r} was deleted meanwhile")
        files = {path: file for path, file in listed.items() if wanted(path)}
        found = yield from _read_listed(files)
        if len(found) == len(files) and _versions((yield from list_skill(skill))) == _versions(listed):
            return found
    raise Unavailable(f"the files of the skill {skill.root!r} change each time that they are read; try again")


def _read_listed(files: Mapping[str, Described]) -> Steps[dict[str, Module]]:
    """Read files at the versions that were listed; those that have another one by now are left out."""
    read = yield from get_all([file.id for file in files.values()])
    found: dict[str, Module] = {}
    for path, file in files.items():
        module = read[file.id]
        if module is not None and module.version < file.version:  # the near cache has not heard of the write yet
            module = yield partial(_get_version, file)
        if module is not None and module.version == file.version:
            found[path] = module
    return found


def _get_version(file: Described, store: Any) -> Any:
    return store.get(file.id, version=file.version)


def _versions(files: Mapping[str, Described]) -> dict[str, Any]:
    return {path: file.version for path, file in files.items()}


def read_skill_md(skill: SkillEntry) -> Steps[Module]:
    """Steps that read the `SKILL.md`. Raises `NotFound` if it was deleted meanwhile."""
    module: Module | None = yield lambda store: store.get(skill.module.id)
    if module is None:
        raise NotFound(f"the skill {skill.root!r} was deleted meanwhile")
    return module


def body_of(module: Module) -> tuple[Mapping[str, Any], str]:
    """Return the front matter of a `SKILL.md`, and the text below it. Raises `Invalid` if it is not that of a skill."""
    front = checked(module.id, module.content)
    if isinstance(front, str):
        raise Invalid(f"module {module.id!r} is not the {FILE} of a skill: {front}")
    return front, split_front_matter(module.text)[1].strip()


def text_or_bytes(module: Module) -> str | bytes:
    """Return the content as text if it is UTF-8, as bytes if not."""
    try:
        return module.text
    except UnicodeDecodeError:
        return module.content


def reason_of(error: ValueError) -> str:
    """Return why a host refused a value, without the value: it may be the content of a module."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(": ".join((*map(str, each["loc"]), each["msg"])) for each in error.errors(include_input=False))
