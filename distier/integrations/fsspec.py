"""The fsspec filesystem `distier://`: modules as files, whose paths are their ids. Needs the extra `fsspec`.

    fsspec.open("distier://skills/pdf/SKILL.md")                     # the namespace of ./distier.yaml or the embedded server
    fsspec.filesystem("distier", source="redis://host", settings={"namespace": "team"})

As in an object store, a directory exists while a file is in it. Only `FileNotFoundError`, `FileExistsError` and
`IsADirectoryError` are errors of the host. All others are those of distier, because fsspec takes an `OSError` in a listing for
something that is not there, and a server that is down is not that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import DEFAULT_CALLBACK

from distier.client import AsyncStore, connect_async
from distier.domain.module import Module
from distier.errors import Conflict
from distier.integrations.fsspec_file import DistierFile
from distier.integrations.shared import KEY, arun, is_shortened, list_rows, shortened, shortened_prefix
from distier.plans.get.browse import Row, page_by_id

DELETES_AT_ONCE = 32


class DistierFileSystem(AsyncFileSystem):
    """A namespace of distier as a filesystem, blocking and asyncio (`asynchronous=True`).

    Args:
        source: as for `distier.connect`.
        settings: settings by name, as the keyword arguments of `distier.connect`.
        kwargs: those of `fsspec.asyn.AsyncFileSystem`.
    """

    protocol = "distier"
    root_marker = ""

    def __init__(self, source: Any = None, settings: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._source, self._settings = source, dict(settings or {})
        self._opening: asyncio.Future[AsyncStore] | None = None

    async def _store(self) -> AsyncStore:
        """Return the store, which the first call opens. Calls that come meanwhile wait for it."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(connect_async(self._source, **self._settings))
        try:
            return await asyncio.shield(self._opening)
        except BaseException:
            if self._opening is not None and self._opening.done():
                self._opening = None  # the next call tries again
            raise

    async def _close(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            await (await opening).close()

    def close(self) -> None:
        """Close the connections. The next call opens them again."""
        sync(self.loop, self._close)

    async def _module(self, path: str) -> Module:
        path = self._strip_protocol(path)
        module = await (await self._store()).get(shortened(path)) if path else None
        if module is None:
            raise (IsADirectoryError if await self._isdir(path) else FileNotFoundError)(path)
        return module

    async def _write(self, path: str, content: bytes, like: Module | None = None, **expected: Any) -> None:
        path = self._strip_protocol(path)
        if not path:
            raise IsADirectoryError(path)
        id, meta = shortened(path), dict(like.meta) if like else {}
        meta.pop(KEY, None)
        meta |= {} if id == path else {KEY: path}
        kind = like.content_type if like else None
        keywords = like.keywords if like else ()
        await (await self._store()).put(
            id, content, content_type=kind, keywords=keywords, meta=meta or None, **expected
        )

    async def _rows(self, prefix: str) -> list[tuple[str, Row]]:
        """Return (path, row) of the modules below a prefix that ends in `/`."""
        store = await self._store()
        found = [(row.id, row) for row in await arun(store, list_rows(shortened_prefix(prefix)))]
        hashed = await store.get_many([id for id, _ in found if is_shortened(id)])
        paths = {id: str(module.meta.get(KEY, id)) for id, module in hashed.items() if module}
        return [(paths.get(id, id), row) for id, row in found if paths.get(id, id).startswith(prefix)]

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        store = await self._store()
        if path and (place := await store.where(shortened(path))) is not None:
            return {
                "name": path, "size": place.size_bytes, "type": "file", "created": place.created_ms / 1000,
                "mtime": place.updated_ms / 1000, "version": str(place.version), "sha256": place.sha256,
                "content_type": place.content_type, "tokens": place.tokens,
            }  # fmt: skip
        prefix = f"{path}/" if path else ""
        listed = shortened_prefix(prefix)
        rows = None if listed != prefix else (await store.run(page_by_id(store.space, prefix, "", 1))).rows
        if path and not (await self._rows(prefix) if rows is None else rows):
            raise FileNotFoundError(path)
        return _directory(path)

    async def _isfile(self, path: str) -> bool:
        return await self._type(path) == "file"  # the host's own takes every error for no

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == "directory"

    async def _type(self, path: str) -> str | None:
        try:
            return str((await self._info(path))["type"])
        except FileNotFoundError:
            return None

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """As `find` of the host, from one listing of the index of ids."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        prefix = f"{path}/" if path else ""
        found: dict[str, dict[str, Any]] = {}
        for name, row in await self._rows(prefix):
            parts = name[len(prefix) :].split("/")
            depths = range(1, len(parts) if maxdepth is None else min(len(parts), maxdepth + 1))
            for directory in (prefix + "/".join(parts[:depth]) for depth in depths if withdirs):
                found.setdefault(directory, _directory(directory))
            if maxdepth is None or len(parts) <= maxdepth:
                found[name] = {"name": name, "size": row.size_bytes, "type": "file", "mtime": row.updated_ms / 1000}
        if (found and withdirs and path) or (not found and await self._isfile(path)):
            found[path] = await self._info(path)
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        path = self._strip_protocol(path)
        found = await self._find(path, maxdepth=1, withdirs=True, detail=True)
        if not found and path:
            raise FileNotFoundError(path)
        if len(found) > 1:
            found.pop(path, None)  # the directory itself
        return list(found.values()) if detail else list(found)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        id, first = shortened(self._strip_protocol(path)), start or 0
        if id and (first > 0 or end is not None) and 0 <= first <= (first if end is None else end):
            length = None if end is None else end - first
            part = await (await self._store()).get_range(id, first, length)
            if part is not None:
                return part.content
        return (await self._module(path)).content[start:end]

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        try:
            await self._write(path, value, if_version=0 if mode == "create" else None)
        except Conflict as e:
            raise FileExistsError(path) from e

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        with suppress(IsADirectoryError):  # a directory comes with its files
            module = await self._module(path1)
            await self._write(path2, module.content, module)

    async def _put_file(
        self, lpath: str, rpath: str, mode: str = "overwrite", callback: Any = DEFAULT_CALLBACK, **_: Any
    ) -> None:
        if await asyncio.to_thread(Path(lpath).is_dir):
            return
        content = await asyncio.to_thread(Path(lpath).read_bytes)
        callback.set_size(len(content))
        await self._pipe_file(rpath, content, mode)
        callback.absolute_update(len(content))

    async def _get_file(self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **_: Any) -> None:
        if await self._isdir(rpath):
            await asyncio.to_thread(Path(lpath).mkdir, parents=True, exist_ok=True)
            return
        content = await self._cat_file(rpath)
        callback.set_size(len(content))
        await asyncio.to_thread(_to_file, Path(lpath), content)
        callback.absolute_update(len(content))

    async def _rm_file(self, path: str, **_: Any) -> None:
        path = self._strip_protocol(path)
        if not path or not await (await self._store()).delete(shortened(path)):
            raise (IsADirectoryError if await self._isdir(path) else FileNotFoundError)(path)

    async def _rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        store, paths = await self._store(), await self._expand_path(path, recursive=recursive, maxdepth=maxdepth)
        if not recursive:
            for each in paths:
                await self._rm_file(each)
        for at in range(0, len(paths) if recursive else 0, DELETES_AT_ONCE):  # directories are no modules
            ids = [shortened(each) for each in paths[at : at + DELETES_AT_ONCE] if each]
            await asyncio.gather(*(store.delete(id) for id in ids))

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Do nothing: a directory exists while a file is in it."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """As `mkdir`."""

    def created(self, path: str) -> datetime:
        """Return when the module was created."""
        return datetime.fromtimestamp(self.info(path)["created"], UTC)

    def modified(self, path: str) -> datetime:
        """Return when the module was last written."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> DistierFile:
        if "x" in mode and self.exists(path):
            raise FileExistsError(path)
        return DistierFile(self, path, mode, **kwargs)


def _directory(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _to_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
