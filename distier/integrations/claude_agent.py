"""Transcripts of the Claude Agent SDK in distier: `DistierSessionStore`. Needs the package `claude-agent-sdk`.

options = ClaudeAgentOptions(session_store=DistierSessionStore(await distier.connect_async()), resume=session_id)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from claude_agent_sdk import SessionKey, SessionStoreEntry, SessionStoreListEntry, fold_session_summary
from claude_agent_sdk.types import SessionListSubkeysKey, SessionSummaryEntry

from distier.client import AsyncStore, Store
from distier.domain.described import Described
from distier.domain.module import Module
from distier.errors import Conflict
from distier.integrations.shared import Bridge, Ids, Steps, delete_all, get_all, list_paths, put_all

PART_BYTES = 128 * 1024
"""A transcript is continued in another module once the last one has this size: an append rewrites the last one only."""
MAIN, SUB = "main", "sub"
SUMMARY = "summary"


class DistierSessionStore:
    """A `SessionStore` whose transcripts are modules of distier, so that any process can resume a session of another one.

    A transcript is a number of modules `ROOT/PROJECT/SESSION/main/00000001`, ..., with an entry as JSON in each line. That of a
    subagent has `sub/SUBPATH` instead of `main`. The summary of a session is in the meta of its last module, so one write
    stores both.

    Appends of several processes to one session are all kept, in the order in which they are stored. An entry whose `uuid` is in
    one of the last two modules already is not stored again.

    Args:
        store: what `distier.connect_async()` returned, or what `connect()` returned: then calls work in a thread.
        root: the first segments of the ids.

    Every method raises `distier.Unavailable` if a server does not answer; the SDK then repeats an append.
    """

    def __init__(self, store: Store | AsyncStore, *, root: str = "claude-sessions") -> None:
        self._bridge, self._ids = Bridge(store), Ids(root)
        self._last: dict[tuple[str, ...], int] = {}
        """The number of the last module of a transcript, as far as this process knows: a later one may exist."""

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append entries to a transcript."""
        if entries:
            await self._bridge.arun(self._append(key, entries))

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """Return the entries of a transcript; None if there is none."""
        return await self._bridge.arun(self._load(_path(key)))

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """Return the sessions of a project, each with the time of its last append."""
        last = await self._bridge.arun(self._last_modules(project_key))
        return [{"session_id": session, "mtime": module.updated_ms} for session, module in last.items()]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """Return the summaries of the sessions of a project."""
        last = await self._bridge.arun(self._last_modules(project_key))
        return [
            {"session_id": session, "mtime": module.updated_ms, "data": _data(module)}
            for session, module in last.items()
            if SUMMARY in module.meta
        ]

    async def delete(self, key: SessionKey) -> None:
        """Delete a session with its subagents, or, if the key has a `subpath`, that subagent's transcript."""
        await self._bridge.arun(self._delete(_path(key) if "subpath" in key else _path(key)[:2]))

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """Return the subpaths of a session."""
        return await self._bridge.arun(self._subkeys((key["project_key"], key["session_id"], SUB)))

    def _append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> Steps[None]:
        path = _path(key)
        if path not in self._last:
            self._last[path] = max((yield from self._parts(path)), default=1)
        while True:
            number = self._last[path]
            ids = [self._id(path, n) for n in (number - 1, number) if n]
            found = yield from get_all(ids)
            part = found[ids[-1]]
            if part is not None and len(part.content) >= PART_BYTES:
                self._last[path] = number + 1
                continue
            before = [module for module in found.values() if module is not None]
            known = {entry.get("uuid") for module in before for entry in _entries(module)} - {None}
            added = [entry for entry in entries if entry.get("uuid") not in known]
            if not added:
                return
            meta = (
                {} if "subpath" in key else {SUMMARY: json.dumps(_folded(key, before[-1] if before else None, added))}
            )
            content = (b"" if part is None else part.content) + b"".join(map(_line, added))
            fields = {"meta": meta, "if_version": 0 if part is None else part.version}
            try:
                yield from put_all([self._ids.item((*path, _name(number)), content, "application/jsonl", **fields)])
            except Conflict:  # another process appended
                continue
            return

    def _load(self, path: tuple[str, ...]) -> Steps[list[SessionStoreEntry] | None]:
        numbers = yield from self._parts(path)
        found = yield from get_all([self._id(path, number) for number in sorted(numbers)])
        modules = [module for module in found.values() if module is not None]
        return [entry for module in modules for entry in _entries(module)] if modules else None

    def _parts(self, path: tuple[str, ...]) -> Steps[list[int]]:
        return _numbers(path, (yield from list_paths(self._ids, path)).values())

    def _last_modules(self, project: str) -> Steps[dict[str, Described]]:
        """Return the last module of each session's own transcript."""
        last: dict[str, int] = {}
        for path in (yield from list_paths(self._ids, (project,))).values():
            if len(path) == 4 and path[2] == MAIN and path[3].isdecimal():  # a user may have put other modules there
                last[path[1]] = max(last.get(path[1], 0), int(path[3]))
        ids = {session: self._id((project, session, MAIN), number) for session, number in last.items()}
        found = yield lambda store: store.describe(list(ids.values()))
        return {session: found[id] for session, id in ids.items() if found[id] is not None}

    def _delete(self, path: tuple[str, ...]) -> Steps[None]:
        for known in [known for known in self._last if known[: len(path)] == path]:
            del self._last[known]
        yield from delete_all(list((yield from list_paths(self._ids, path))))

    def _subkeys(self, path: tuple[str, ...]) -> Steps[list[str]]:
        paths = yield from list_paths(self._ids, path)
        return sorted({found[3] for found in paths.values() if len(found) == 5})

    def _id(self, path: tuple[str, ...], number: int) -> str:
        return self._ids.id((*path, _name(number)))


def _path(key: SessionKey) -> tuple[str, ...]:
    session = key["project_key"], key["session_id"]
    return (*session, SUB, key["subpath"]) if "subpath" in key else (*session, MAIN)


def _name(number: int) -> str:
    return f"{number:08}"


def _numbers(path: tuple[str, ...], paths: Iterable[tuple[str, ...]]) -> list[int]:
    """Return the numbers of the modules of one transcript."""
    return [int(found[-1]) for found in paths if found[:-1] == path and found[-1].isdecimal()]


def _line(entry: SessionStoreEntry) -> bytes:
    return json.dumps(entry, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _entries(module: Module) -> list[SessionStoreEntry]:
    return [json.loads(line) for line in module.content.splitlines()]


def _folded(key: SessionKey, last: Described | Module | None, entries: list[SessionStoreEntry]) -> Any:
    """Return the summary after these entries. `last` is the last module before them."""
    previous: SessionSummaryEntry | None = None
    if last is not None and SUMMARY in last.meta:
        previous = {"session_id": key["session_id"], "mtime": last.updated_ms, "data": _data(last)}
    return fold_session_summary(previous, key, entries)["data"]


def _data(module: Described | Module) -> dict[str, Any]:
    """Return the summary of a module. It is stored as text, because the meta that a store returns cannot be changed."""
    data: dict[str, Any] = json.loads(module.meta[SUMMARY])
    return data
