"""What the adapters share: ids for any key, ordered listings, and one body for blocking and asyncio methods."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from distier.client import AsyncStore, Store
from distier.domain.ids import MAX_ID_BYTES
from distier.domain.module import Landed, Module
from distier.errors import DistierError, Invalid
from distier.plans.get.browse import PAGE_MAX, Page, Row, page_by_id
from distier.plans.get.listing import complete
from distier.plans.put.prepare import Expected, Item

T = TypeVar("T")
Steps = Generator[Callable[[Any], Any], Any, T]
"""The body of a method of an adapter. It yields functions of the store, and gets back what they return, awaited if needed. So
one body serves `Store` and `AsyncStore`."""
KEY = "key"
"""The field of `meta` with the whole path of a key whose id was shortened."""
ROOT_BYTES = 128
_HASHED = "~"
_ESCAPED = re.compile(r"[/%\ud800-\udfff]")
_HASH_CHARS = 64
_KEPT_BYTES = MAX_ID_BYTES - len(_HASHED) - _HASH_CHARS


class Ids:
    """Ids for paths of any strings, below a root.

    Each part is a segment of the id, with `/` and `%` percent-encoded. An id that would be too long keeps its first segments
    and ends in `~` and a hash: the whole path is then in the module's meta, so that every id can be read back.
    """

    def __init__(self, root: str) -> None:
        self._base = f"{root.strip('/')}/" if root.strip("/") else ""
        if len(self._base.encode()) > ROOT_BYTES:
            raise Invalid(f"the root of an adapter's ids must have less than {ROOT_BYTES} bytes, not {root[:40]!r}...")

    def item(self, parts: Sequence[str], content: str | bytes, content_type: str | None, **fields: Any) -> Item:
        """Return the `Item` that puts `content` under a path."""
        path = self._path(parts)
        id = shortened(path)
        meta = {} if id == path else {KEY: path}
        return Item(id, content, content_type, meta=fields.pop("meta", {}) | meta or None, **fields)

    def item_like(self, parts: Sequence[str], content: str | bytes, like: Module, **fields: Any) -> Item:
        """Return the `Item` that puts `content` under a path, described as another module is."""
        meta = {name: value for name, value in like.meta.items() if name != KEY}
        return self.item(parts, content, like.content_type, keywords=like.keywords, meta=meta, **fields)

    def id(self, parts: Sequence[str]) -> str:
        """Return the id of a path."""
        return shortened(self._path(parts))

    def prefix(self, parts: Sequence[str]) -> str:
        """Return a prefix of the ids of all paths that begin with `parts`. Other ids may have it too: compare the paths."""
        return shortened_prefix(self._path(parts) + "/" if parts else self._base)

    def parts(self, id: str, meta: Any = None) -> tuple[str, ...] | None:
        """Return the path of an id; None if the id was shortened and `meta` is not given, or if it is not one of these."""
        if not id.startswith(self._base):
            return None
        if id.rpartition("/")[2].startswith(_HASHED):
            path = (meta or {}).get(KEY)
            if not isinstance(path, str) or shortened(path) != id:
                return None
            id = path
        return tuple(
            unquote(part.removeprefix("%="), errors="surrogatepass") for part in id[len(self._base) :].split("/")
        )

    def _path(self, parts: Sequence[str]) -> str:
        return self._base + "/".join(map(_encoded, parts))


def shortened(path: str) -> str:
    """Return a path as an id: the path itself, or its first segments, `~` and a hash where it would be too long."""
    if len(path.encode()) <= MAX_ID_BYTES:
        return path
    return f"{_kept(path)}{_HASHED}{hashlib.sha256(path.encode()).hexdigest()}"


def shortened_prefix(prefix: str) -> str:
    """Return the prefix of the ids of all paths with a prefix that ends in `/`. Other ids may have it too."""
    return prefix if len(prefix.encode()) <= _KEPT_BYTES else _kept(prefix)


def is_shortened(id: str) -> bool:
    """Return whether an id looks like one of a long path. The path is then in `meta`, in the field `KEY`."""
    last = id.rpartition("/")[2]
    return last.startswith(_HASHED) and len(last) == len(_HASHED) + _HASH_CHARS


def _encoded(part: str) -> str:
    """Encode a part as a segment. It begins with `%=` where the segment would be empty or look like a hash."""
    text = _ESCAPED.sub(_quoted, part)
    return "%=" + text if not part or part.startswith(_HASHED) else text


def _quoted(found: re.Match[str]) -> str:
    # "surrogatepass": keys come from anywhere, and a lone surrogate is a str too.
    return quote(found[0], safe="", errors="surrogatepass")


def _kept(path: str) -> str:
    """Return the first segments of a path that a shortened id keeps, with the `/` after them.

    What is kept depends on these segments alone, so paths that begin alike keep alike.
    """
    end = 0
    for at, c in enumerate(path):
        if c == "/":
            if len(path[: at + 1].encode()) > _KEPT_BYTES:
                break
            end = at + 1
    return path[:end]


def list_rows(prefix: str) -> Steps[list[Row]]:
    """Steps that list the modules with this prefix, in the order of the bytes of their ids. This counts as no use.

    Each page is a call of its own with its own deadline.
    """
    yield lambda store: store.run(complete(store.space))
    found: list[Row] = []
    after: str | None = ""
    while after is not None:
        page: Page = yield partial(_page, prefix, after)
        found, after = found + page.rows, page.after
    return found


def list_files(ids: Ids, prefix: Sequence[str]) -> Steps[dict[tuple[str, ...], Row]]:
    """Steps that list the modules whose path begins with `prefix`, by path, in the order of their ids."""
    rows = {row.id: row for row in (yield from list_rows(ids.prefix(prefix)))}
    paths = {id: ids.parts(id) for id in rows}
    shortened = yield from get_all([id for id, path in paths.items() if path is None])
    paths |= {id: ids.parts(id, module.meta) for id, module in shortened.items() if module}
    return {path: rows[id] for id, path in paths.items() if path and path[: len(prefix)] == tuple(prefix)}


def list_paths(ids: Ids, prefix: Sequence[str]) -> Steps[dict[str, tuple[str, ...]]]:
    """Steps that return the path of each id whose path begins with `prefix`, in the order of the ids."""
    return {row.id: path for path, row in (yield from list_files(ids, prefix)).items()}


def _page(prefix: str, after: str, store: Any) -> Any:
    return store.run(page_by_id(store.space, prefix, after, PAGE_MAX))


def get_all(ids: Sequence[str]) -> Steps[dict[str, Module | None]]:
    """Steps that read modules by id."""
    found: dict[str, Module | None] = (yield lambda store: store.get_many(ids)) if ids else {}
    return found


def put_all(items: Sequence[Item]) -> Steps[list[Landed]]:
    """Steps that write the items. Raises the error of the first that could not be written; the others were written."""
    results = (yield lambda store: store.put_many(items)) if items else []
    for result in results:
        if isinstance(result, DistierError):
            raise result
    return results


def again(module: Module, ttl: float) -> Item:
    """Return the `Item` that writes a version again with this TTL in seconds, unless there is another version by then."""
    tokens = module.tokens if module.counter == "given" else None
    return Item(
        module.id, module.content, module.content_type, module.keywords, module.meta, tokens, module.version, ttl=ttl
    )


def delete_all(ids: Sequence[str]) -> Steps[int]:
    """Steps that delete modules, and return how many existed."""
    deleted = 0
    for id in ids:
        deleted += yield from delete(id)
    return deleted


def delete(id: str, version: Expected = None) -> Steps[bool]:
    """Steps that delete a module, and return whether it existed. Raises `Conflict` if it is not at the version."""
    existed: bool = yield lambda store: store.delete(id, if_version=version)
    return existed


class Bridge:
    """Runs steps on the store that the user gave: a `Store`, or an `AsyncStore`.

    With a `Store`, asyncio methods work in a thread. With an `AsyncStore`, blocking methods are refused: they would have to
    wait for the event loop that they block.
    """

    def __init__(self, store: Store | AsyncStore) -> None:
        if not isinstance(store, Store | AsyncStore):
            raise TypeError(f"give it what distier.connect() or connect_async() returns, not a {type(store).__name__}")
        self.store = store

    def run(self, steps: Steps[T]) -> T:
        """Run the steps of a blocking method."""
        if isinstance(self.store, AsyncStore):
            steps.close()
            raise asyncio.InvalidStateError(
                "this adapter has an AsyncStore, so only its asyncio methods work. Give it a distier.connect() for both kinds"
            )
        return run(self.store, steps)

    async def arun(self, steps: Steps[T]) -> T:
        """Run the steps of an asyncio method."""
        if isinstance(self.store, Store):
            return await asyncio.to_thread(run, self.store, steps)
        return await arun(self.store, steps)


def run(store: Store, steps: Steps[T]) -> T:
    """Run steps on a `Store`."""
    try:
        step = next(steps)
        while True:
            try:
                result = step(store)
            except Exception as e:
                step = steps.throw(e)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def arun(store: AsyncStore, steps: Steps[T]) -> T:
    """Run steps on an `AsyncStore`."""
    try:
        step = next(steps)
        while True:
            try:
                result = await step(store)
            except Exception as e:
                step = steps.throw(e)
            else:
                step = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
