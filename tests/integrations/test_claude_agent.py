"""`DistierSessionStore`: the contracts that claude-agent-sdk ships, and what they leave open."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from distier import AsyncStore, Store

pytest.importorskip("claude_agent_sdk", reason="claude-agent-sdk is not installed: run `make suites`")

from claude_agent_sdk import SessionKey
from claude_agent_sdk.testing import run_session_store_conformance

from distier.integrations import claude_agent
from distier.integrations.claude_agent import DistierSessionStore

KEY: SessionKey = {"project_key": "p", "session_id": "s"}
AGENT: SessionKey = {**KEY, "subpath": "subagents/agent-1"}


def entry(n: int, **fields: Any) -> Any:
    return {"type": "user", "uuid": str(n), **fields}


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_sdks_own_contracts_hold(kind: str, store: Store, async_store: AsyncStore) -> None:
    roots = (f"sessions-{n}" for n in itertools.count())
    await run_session_store_conformance(
        lambda: DistierSessionStore(store if kind == "sync" else async_store, root=next(roots))
    )


async def test_a_long_transcript_has_several_modules(async_store: AsyncStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claude_agent, "PART_BYTES", 300)
    sessions = DistierSessionStore(async_store)
    entries = [entry(n, message="é" * 20) for n in range(30)]
    for one in entries:
        await sessions.append(KEY, [one])
    assert await sessions.load(KEY) == await DistierSessionStore(async_store).load(KEY) == entries
    ids = [id async for id in async_store.list("claude-sessions/")]
    assert len(ids) > 5 and ids[0] == "claude-sessions/p/s/main/00000001"
    (summary,) = await sessions.list_session_summaries("p")
    assert summary["data"] and summary["session_id"] == "s"


async def test_what_several_processes_append_is_all_kept(
    async_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claude_agent, "PART_BYTES", 400)
    writers = [DistierSessionStore(async_store) for _ in range(4)]

    async def write(writer: int) -> None:
        for n in range(10):
            await writers[writer].append(KEY, [entry(100 * writer + n)])

    await asyncio.gather(*map(write, range(4)))
    found = [int(one["uuid"]) for one in await writers[0].load(KEY) or ()]
    assert sorted(found) == [100 * writer + n for writer in range(4) for n in range(10)]
    for writer in range(4):
        assert [n for n in found if n // 100 == writer] == [100 * writer + n for n in range(10)], (
            "in the order of its calls"
        )


async def test_an_append_that_is_repeated_is_stored_once(
    async_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try was stored, and its reply was lost. A module became full meanwhile."""
    monkeypatch.setattr(claude_agent, "PART_BYTES", 60)
    sessions = DistierSessionStore(async_store)
    title: Any = {"type": "title", "title": "t"}
    await sessions.append(KEY, [entry(1), entry(2), title])
    await sessions.append(KEY, [entry(2), entry(3), title])
    assert await sessions.load(KEY) == [entry(1), entry(2), title, entry(3), title]


async def test_any_key_is_a_session(async_store: AsyncStore) -> None:
    sessions = DistierSessionStore(async_store)
    for name in ("a/b", "~x", "é%", "x" * 600, "..", ""):
        key: SessionKey = {"project_key": name, "session_id": name, "subpath": f"subagents/{name}"}
        await sessions.append(key, [entry(1)])
        main: SessionKey = {"project_key": name, "session_id": name}
        await sessions.append(main, [entry(2)])
        assert await sessions.load(key) == [entry(1)] and await sessions.load(main) == [entry(2)], name
        assert [one["session_id"] for one in await sessions.list_sessions(name)] == [name]
        assert await sessions.list_subkeys({"project_key": name, "session_id": name}) == [f"subagents/{name}"]
        await sessions.delete(main)
        assert await sessions.load(key) is None and await sessions.load(main) is None


async def test_modules_that_are_no_transcripts_are_passed_over(async_store: AsyncStore) -> None:
    sessions = DistierSessionStore(async_store)
    await sessions.append(KEY, [entry(1)])
    for id in ("p/other/main", "p/s/main/notes", "p/s/main/00000009/x", "p/s/sub"):
        await async_store.put(f"claude-sessions/{id}", "not a transcript")
    assert [one["session_id"] for one in await sessions.list_sessions("p")] == ["s"]
    assert await sessions.load(KEY) == [entry(1)] and await sessions.list_subkeys(KEY) == []


async def test_a_session_that_was_deleted_by_another_process_begins_again(async_store: AsyncStore) -> None:
    ours, theirs = DistierSessionStore(async_store), DistierSessionStore(async_store)
    await ours.append(KEY, [entry(1)])
    await ours.append(AGENT, [entry(9)])
    await theirs.delete(KEY)
    await ours.append(KEY, [entry(2)])
    assert await theirs.load(KEY) == [entry(2)] and await theirs.load(AGENT) is None
