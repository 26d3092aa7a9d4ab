"""The files of `DistierBackend`: paths, contents, and the steps of each of its methods."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from deepagents.backends.protocol import (
    DeleteResult,
    EditResult,
    FileData,
    FileDownloadResponse,
    FileInfo,
    FileUploadResponse,
    GlobResult,
    GrepMatch,
    GrepResult,
    LsResult,
    ReadResult,
    WriteResult,
)
from deepagents.backends.utils import (
    InvalidGlobPatternError,
    _get_backend_read_file_type,
    compile_grep_include_glob,
    grep_matches_from_files,
    perform_string_replacement,
    slice_read_response,
)

from distier.domain.described import Described
from distier.domain.module import Module
from distier.errors import Conflict, Invalid
from distier.integrations.shared import Ids, Steps, delete_all, get_all, list_files, put_all
from distier.plans.get.browse import Row

Path = tuple[str, ...]
READ_AT_ONCE = 100
"""How many files `grep` reads at a time."""


File = Row | Described
"""What a listing needs of a file. It is read without the content, which counts as no use."""


class Files:
    """The steps of the methods, for blocking and asyncio ones. `Invalid` is raised for paths that are none."""

    def __init__(self, root: str) -> None:
        self._ids = Ids(root)

    def _below(self, directory: str | None) -> Steps[dict[str, File]]:
        """Return the files of a directory and below it, and the file of this name, by name."""
        path = _parsed(directory or "/")
        found: dict[str, File] = {_named(each): row for each, row in (yield from list_files(self._ids, path)).items()}
        if path:
            id = self._ids.id(path)
            described = (yield lambda store: store.describe([id]))[id]
            if described is not None:
                found[_named(path)] = described
        return found

    def _get(self, name: str) -> Steps[Module | None]:
        id = self._ids.id(_parsed(name))
        return (yield from get_all([id]))[id]

    def ls(self, path: str) -> Steps[LsResult]:
        start = path if path.endswith("/") else path + "/"
        entries: dict[str, FileInfo] = {}
        for name, file in (yield from self._below(path)).items():
            first, slash, _ = name.removeprefix(start).partition("/")
            if name.startswith(start):
                entries[start + first + slash] = (
                    {"path": f"{start}{first}/", "is_dir": True, "size": 0, "modified_at": ""}
                    if slash
                    else _info(name, file)
                )
        return LsResult(entries=[entries[name] for name in sorted(entries)])

    def read(self, name: str, offset: int, limit: int) -> Steps[ReadResult]:
        module = yield from self._get(name)
        if module is None:
            return ReadResult(error=f"File '{name}' not found")
        data = _data(module)
        # The tools read an image or a PDF by its name, whole, also if its bytes happen to be text.
        if data["encoding"] != "utf-8" or _get_backend_read_file_type(name) != "text":
            return ReadResult(file_data=data)
        return slice_read_response(data, offset, limit)

    def write(self, name: str, content: str) -> Steps[WriteResult]:
        path, was = _parsed(name), (yield from self._get(name))
        item = self._ids.item(path, content, None) if was is None else self._ids.item_like(path, content, was)
        yield from put_all([item])
        return WriteResult(path=name)

    def edit(self, name: str, old: str, new: str, replace_all: bool) -> Steps[EditResult]:
        while True:
            module = yield from self._get(name)
            if module is None:
                return EditResult(error=f"Error: File '{name}' not found")
            data = _data(module)
            if data["encoding"] != "utf-8":
                return EditResult(error="Error: Cannot edit binary files with text replacements.")
            result = perform_string_replacement(data["content"], old, new, replace_all)
            if isinstance(result, str):
                return EditResult(error=result)
            try:
                yield from put_all([self._ids.item_like(_parsed(name), result[0], module, if_version=module.version)])
            except Conflict:  # another agent wrote it meanwhile
                continue
            return EditResult(path=name, occurrences=result[1])

    def delete(self, name: str) -> Steps[DeleteResult]:
        found = yield from self._below(name)
        if not (yield from delete_all([file.id for file in found.values()])):
            return DeleteResult(error=f"Error: File '{name}' not found")
        return DeleteResult(path=name)

    def grep(self, pattern: str, path: str | None, glob: str | None, max_count: int | None) -> Steps[GrepResult]:
        try:
            below = yield from self._below(path)
            names = list(_matching(below, glob, path))
        except InvalidGlobPatternError as e:
            return GrepResult(error=str(e))
        matches: list[GrepMatch] = []
        for start in range(0, len(names), READ_AT_ONCE):
            ids = {below[name].id: name for name in names[start : start + READ_AT_ONCE]}
            modules = yield from get_all(list(ids))
            files = {ids[id]: _data(module) for id, module in modules.items() if module is not None}
            left = None if max_count is None else max_count - len(matches)
            found = grep_matches_from_files(files, pattern, max_count=left)
            matches += found.matches or []
            if found.truncated:
                return GrepResult(matches=matches, truncated=True)
        return GrepResult(matches=matches)

    def glob(self, pattern: str, path: str | None) -> Steps[GlobResult]:
        files = yield from self._below(path)
        try:
            names = list(_matching(files, pattern, path))
        except InvalidGlobPatternError as e:
            return GlobResult(error=str(e))
        names.sort(key=lambda name: -files[name].updated_ms)
        return GlobResult(matches=[_info(name, files[name]) for name in names])

    def upload(self, files: Sequence[tuple[str, bytes]]) -> Steps[list[FileUploadResponse]]:
        responses = []
        for name, content in files:
            try:
                yield from put_all([self._ids.item(_parsed(name), content, None)])
                responses.append(FileUploadResponse(path=name))
            except Invalid:
                responses.append(FileUploadResponse(path=name, error="invalid_path"))
        return responses

    def download(self, names: Sequence[str]) -> Steps[list[FileDownloadResponse]]:
        responses = []
        for name in names:
            module = yield from self._get(name)
            responses.append(
                FileDownloadResponse(path=name, error="file_not_found")
                if module is None
                else FileDownloadResponse(path=name, content=module.content)
            )
        return responses


def _parsed(name: str) -> Path:
    """Return the parts of an absolute path. Raises `Invalid` for others."""
    if not name.startswith("/"):
        raise Invalid(f"a path must start with '/', not {name!r:.100}")
    parts = tuple(name.strip("/").split("/"))
    if ".." in parts:
        raise Invalid(f"a path must not contain '..': {name!r:.100}")
    return () if parts == ("",) else parts


def _named(path: Path) -> str:
    return "/" + "/".join(path)


def _matching(names: Iterable[str], glob: str | None, path: str | None) -> Iterator[str]:
    """Yield the names that a pattern matches, relative to the directory in which is searched."""
    matches = None if glob is None else compile_grep_include_glob(glob)
    start = len(_named(_parsed(path or "/")).rstrip("/")) + 1
    for name in names:
        if matches is None or matches(name[start:] or name.rpartition("/")[2]):
            yield name


def _data(module: Module) -> FileData:
    times = {"created_at": _iso(module.created_ms), "modified_at": _iso(module.updated_ms)}
    try:
        return FileData(content=module.content.decode(), encoding="utf-8", **times)  # type: ignore[typeddict-item]
    except UnicodeDecodeError:
        content = base64.standard_b64encode(module.content).decode()
        return FileData(content=content, encoding="base64", **times)  # type: ignore[typeddict-item]


def _info(name: str, file: File) -> FileInfo:
    return {"path": name, "is_dir": False, "size": file.size_bytes, "modified_at": _iso(file.updated_ms)}


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()
