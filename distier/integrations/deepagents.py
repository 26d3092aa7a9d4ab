"""Files of Deep Agents in distier: `DistierBackend`. Needs the package `deepagents`.

agent = create_deep_agent(backend=DistierBackend(distier.connect()))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deepagents.backends.protocol import (
    BackendProtocol,
    DeleteResult,
    EditResult,
    FileDownloadResponse,
    FileUploadResponse,
    GlobResult,
    GrepResult,
    LsResult,
    ReadResult,
    WriteResult,
)

from distier.client import AsyncStore, Store
from distier.errors import DistierError
from distier.integrations.deepagents_files import Files
from distier.integrations.shared import Bridge, Steps

Result = TypeVar("Result")


class DistierBackend(BackendProtocol):
    """A backend whose files are modules of distier: `/notes/a.md` is the module `ROOT/notes/a.md`.

    Agents in all processes share the files, and people read and write them as modules. An edit that meets another writer is
    made again from the new text, so none is lost. Results and their errors are those of Deep Agents' own backends. Where
    distier fails, the error says why, and no file seems to be missing.

    Args:
        store: what `distier.connect()` returned; then asyncio methods work in a thread. With what `connect_async()`
            returned, only asyncio methods work.
        root: the first segments of the ids.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "deepagents") -> None:
        self._bridge, self._files = Bridge(store), Files(root)

    def _run(self, steps: Steps[Result], failed: Callable[..., Result]) -> Result:
        try:
            return self._bridge.run(steps)
        except DistierError as e:
            return failed(error=f"Error: {e}")

    async def _arun(self, steps: Steps[Result], failed: Callable[..., Result]) -> Result:
        try:
            return await self._bridge.arun(steps)
        except DistierError as e:
            return failed(error=f"Error: {e}")

    def ls(self, path: str) -> LsResult:
        """List the files and directories of a directory."""
        return self._run(self._files.ls(path), LsResult)

    async def als(self, path: str) -> LsResult:
        """As `ls`."""
        return await self._arun(self._files.ls(path), LsResult)

    def read(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        """Read lines of a text file, or the whole of another one."""
        return self._run(self._files.read(file_path, offset, limit), ReadResult)

    async def aread(self, file_path: str, offset: int = 0, limit: int = 2000) -> ReadResult:
        """As `read`."""
        return await self._arun(self._files.read(file_path, offset, limit), ReadResult)

    def write(self, file_path: str, content: str) -> WriteResult:
        """Write a file, or overwrite it. Keywords and meta of its module stay."""
        return self._run(self._files.write(file_path, content), WriteResult)

    async def awrite(self, file_path: str, content: str) -> WriteResult:
        """As `write`."""
        return await self._arun(self._files.write(file_path, content), WriteResult)

    def edit(self, file_path: str, old_string: str, new_string: str, replace_all: bool = False) -> EditResult:
        """Replace a string of a file."""
        return self._run(self._files.edit(file_path, old_string, new_string, replace_all), EditResult)

    async def aedit(self, file_path: str, old_string: str, new_string: str, replace_all: bool = False) -> EditResult:
        """As `edit`."""
        return await self._arun(self._files.edit(file_path, old_string, new_string, replace_all), EditResult)

    def delete(self, file_path: str) -> DeleteResult:
        """Delete a file, and all files below it if it is a directory."""
        return self._run(self._files.delete(file_path), DeleteResult)

    async def adelete(self, file_path: str) -> DeleteResult:
        """As `delete`."""
        return await self._arun(self._files.delete(file_path), DeleteResult)

    def grep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:  # fmt: skip
        """Find the lines that contain a string, 100 files at a time until there are `max_count`."""
        return self._run(self._files.grep(pattern, path, glob, max_count), GrepResult)

    async def agrep(
        self, pattern: str, path: str | None = None, glob: str | None = None, *, max_count: int | None = None
    ) -> GrepResult:  # fmt: skip
        """As `grep`."""
        return await self._arun(self._files.grep(pattern, path, glob, max_count), GrepResult)

    def glob(self, pattern: str, path: str | None = None) -> GlobResult:
        """Find files by a pattern, the one that was changed last first. No file is read."""
        return self._run(self._files.glob(pattern, path), GlobResult)

    async def aglob(self, pattern: str, path: str | None = None) -> GlobResult:
        """As `glob`."""
        return await self._arun(self._files.glob(pattern, path), GlobResult)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """Write files. Raises `distier.DistierError` if one of them could not be written; `Invalid` paths are reported."""
        return self._bridge.run(self._files.upload(files))

    async def aupload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        """As `upload_files`."""
        return await self._bridge.arun(self._files.upload(files))

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """Read whole files. Raises `distier.DistierError` if a server does not answer."""
        return self._bridge.run(self._files.download(paths))

    async def adownload_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        """As `download_files`."""
        return await self._bridge.arun(self._files.download(paths))
