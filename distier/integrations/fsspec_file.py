"""Open files of the fsspec filesystem `distier://`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile

from distier.errors import Conflict


class DistierFile(AbstractBufferedFile):
    """An open file. It reads the version that it found when it was opened, and writes one version when it is closed."""

    def __init__(self, fs: Any, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> None:
        content = fs.cat_file(path) if mode == "rb" else b""
        super().__init__(fs, path, mode, *args, **kwargs | {"size": len(content), "cache_type": "none"})
        self._content = content

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self._content[start:end])

    def _upload_chunk(self, final: bool = False) -> bool:
        if final and self.autocommit:
            self.commit()
        return final and self.autocommit  # what is not written stays in the buffer

    def commit(self) -> None:
        """Write what the buffer holds."""
        if self.mode == "ab":
            sync(self.fs.loop, self._append)
            return
        self.fs.pipe_file(self.path, self.buffer.getvalue(), mode="create" if self.mode == "xb" else "overwrite")

    def discard(self) -> None:
        """Write nothing."""

    async def _append(self) -> None:
        added, module = self.buffer.getvalue(), None
        with suppress(FileNotFoundError):
            module = await self.fs._module(self.path)
        try:
            content = module.content + added if module else added
            await self.fs._write(self.path, content, module, if_version=module.version if module else 0)
        except Conflict:  # somebody else wrote in between
            await self._append()
