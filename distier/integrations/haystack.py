"""A skill store of Haystack over the skills in distier: `DistierSkillStore`. Needs the package `haystack-ai`.

agent = Agent(chat_generator=..., tools=SkillToolset(DistierSkillStore(distier.connect())))
"""

from __future__ import annotations

import base64
import mimetypes
import threading
from typing import Any

from haystack.core.serialization import default_from_dict, default_to_dict
from haystack.dataclasses.file_content import FileContent
from haystack.dataclasses.image_content import IMAGE_MIME_TYPES, ImageContent
from haystack.dataclasses.skill_info import SkillInfo

from distier.client import Store, connect
from distier.domain.module import Module
from distier.domain.skill import FILE
from distier.errors import Invalid
from distier.integrations.shared import Bridge, Steps
from distier.integrations.skills import (
    SkillFiles,
    body_of,
    check_path,
    list_skill,
    read_file,
    read_skill_md,
    text_or_bytes,
)

PDF = "application/pdf"


class DistierSkillStore:
    """A `SkillStore` whose skills are directories of modules below a root, such as `skills/pdf/SKILL.md`.

    The list is made of records. `load_skill` reads the `SKILL.md`, and `read_skill_file` one file, as they are then.

    Args:
        store: what `distier.connect()` returned. Without one, the first use connects with the configuration of the process, and
            `close` disconnects. Only such a skill store can be serialized.
        root: the first segments of the ids.

    Raises:
        KeyError: there is no such skill (`distier.NotFound`).
        FileNotFoundError: the skill has no such file.
        PermissionError: the path leads out of the skill's directory.
        ValueError: a file is neither text, nor an image, nor a PDF; or a skill is not valid (`distier.Invalid`).
        distier.Unavailable: a server does not answer. This is never a missing skill.
    """

    def __init__(self, store: Store | None = None, *, root: str = "skills") -> None:
        if store is not None and not isinstance(store, Store):
            raise TypeError(
                f"Haystack's skill stores are blocking: give it a distier.connect(), not {type(store).__name__}"
            )
        self.root = root
        self._given, self._files = store, SkillFiles(root)
        self._own: Store | None = None
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Connect, if no store was given."""
        self._open()

    def close(self) -> None:
        """Close the connection that `warm_up` made. A store that was given stays open."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def list_skills(self) -> dict[str, SkillInfo]:
        """Return the names and descriptions of all skills, by name."""
        found = self._run(self._files.all())
        return {name: SkillInfo(name, skill.module.description or "") for name, skill in found.items()}

    def load_skill(self, name: str) -> tuple[str, list[str]]:
        """Return the text of a skill below its front matter, and the sorted paths of its other files."""
        loaded: tuple[str, list[str]] = self._run(self._load(name))
        return loaded

    def read_skill_file(self, name: str, path: str) -> str | ImageContent | FileContent:
        """Read a file of a skill."""
        module = self._run(self._read(name, path))
        kind = _kind(module, path)
        if kind != PDF and kind not in IMAGE_MIME_TYPES:
            content = text_or_bytes(module)
            if isinstance(content, bytes):
                raise Invalid(
                    f"module {module.id!r} is neither UTF-8 text, nor an image, nor a PDF ({module.content_type})"
                )
            return content
        encoded = base64.b64encode(module.content).decode()
        if kind == PDF:
            return FileContent(encoded, mime_type=kind, filename=path.rpartition("/")[2], validation=False)
        return ImageContent(encoded, mime_type=kind, validation=False)

    def to_dict(self) -> dict[str, Any]:
        """Serialize it. Raises `distier.Invalid` if it was given an open store."""
        if self._given is not None:
            raise Invalid(
                "an open store cannot be serialized; leave it out, and the skill store connects with the configuration of the "
                "process (DISTIER_REDIS__URL, distier.yaml)"
            )
        data: dict[str, Any] = default_to_dict(self, root=self.root)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DistierSkillStore:
        """Make one from what `to_dict` returned. It connects with the configuration of the process."""
        made: DistierSkillStore = default_from_dict(cls, data)
        return made

    def _run(self, steps: Steps[Any]) -> Any:
        return Bridge(self._open()).run(steps)

    def _open(self) -> Store:
        if self._given is not None:
            return self._given
        with self._lock:  # an agent calls tools in several threads
            if self._own is None:
                self._own = connect()
            return self._own

    def _load(self, name: str) -> Steps[tuple[str, list[str]]]:
        skill = yield from self._files.find(name)
        _, body = body_of((yield from read_skill_md(skill)))
        return body, sorted(path for path in (yield from list_skill(skill)) if path != FILE)

    def _read(self, name: str, path: str) -> Steps[Module]:
        skill = yield from self._files.find(name)
        try:
            path = check_path(path)
        except Invalid as e:
            raise PermissionError(str(e)) from e
        module = yield from read_file(skill, path)
        if module is None:
            files = ", ".join(sorted((yield from list_skill(skill))))
            raise FileNotFoundError(f"the skill {name!r} has no file {path!r}; it has {files}")
        return module


def _kind(module: Module, path: str) -> str:
    """Return the MIME type of the record, or what the file's name says where the record says nothing about it."""
    if module.content_type == PDF or module.content_type in IMAGE_MIME_TYPES:
        return module.content_type
    return mimetypes.guess_type(path)[0] or ""
