"""The memory tool where Anthropic's own tests do not look. `test_suites.py` runs those."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from distier import AsyncStore, RedisUnavailable, Store

pytest.importorskip("anthropic.tools.memory", reason="anthropic is not installed (the extra `anthropic`)")

from anthropic.lib.tools import ToolError

from distier.integrations.anthropic import AsyncDistierMemoryTool, DistierMemoryTool


@pytest.fixture
def tool(store: Store) -> DistierMemoryTool:
    return DistierMemoryTool(store)


def do(tool: DistierMemoryTool, command: str, path: str = "", **fields: Any) -> str:
    where = {"path": f"/memories{path}"} if path or command == "view" else {}
    return str(tool.call({"command": command} | where | fields))


def test_a_file_is_a_module_of_the_type_of_its_name(tool: DistierMemoryTool, store: Store) -> None:
    do(tool, "create", "/notes/a.md", file_text="# A\n")
    module = store.get("memories/notes/a.md")
    assert module is not None and (module.text, module.content_type) == ("# A\n", "text/markdown")


def test_a_directory_shows_two_levels_with_sizes_and_no_hidden_files(tool: DistierMemoryTool) -> None:
    for path in ("/b.txt", "/d/x/deep.txt", "/d/y.txt", "/.hidden", "/d/.also/z"):
        do(tool, "create", path, file_text="12")
    assert do(tool, "view").splitlines()[1:] == [
        "10B\t/memories", "2B\t/memories/b.txt", "4B\t/memories/d/", "2B\t/memories/d/x/", "2B\t/memories/d/y.txt",
    ]  # fmt: skip


def test_an_empty_memory_can_be_viewed(tool: DistierMemoryTool) -> None:
    assert do(tool, "view").splitlines()[1:] == ["0B\t/memories"]


def test_a_path_too_long_for_an_id_is_viewed_renamed_and_deleted(tool: DistierMemoryTool, store: Store) -> None:
    long = "/d/" + "n" * 300
    do(tool, "create", long, file_text="x")
    assert f"/memories{long}" in do(tool, "view", "/d")
    do(tool, "rename", old_path=f"/memories{long}", new_path="/memories/short")
    module = store.get("memories/short")
    assert module is not None and not module.meta
    do(tool, "rename", old_path="/memories/short", new_path=f"/memories{long}")
    assert "x" in do(tool, "view", long)
    do(tool, "delete", "/d")
    assert list(store.list()) == []


def test_a_directory_is_renamed_with_its_files(tool: DistierMemoryTool, store: Store) -> None:
    for path in ("/a/1", "/a/b/2", "/ab"):
        do(tool, "create", path, file_text=path)
    do(tool, "rename", old_path="/memories/a", new_path="/memories/c/d")
    assert sorted(store.list()) == ["memories/ab", "memories/c/d/1", "memories/c/d/b/2"]
    with pytest.raises(ToolError, match="inside"):
        do(tool, "rename", old_path="/memories/c", new_path="/memories/c/e")
    with pytest.raises(ToolError, match="already exists"):
        do(tool, "rename", old_path="/memories/ab", new_path="/memories/c")


def test_an_edit_keeps_type_keywords_and_meta(tool: DistierMemoryTool, store: Store) -> None:
    store.put("memories/a", "old", content_type="text/markdown", keywords=["k"], meta={"m": 1})
    do(tool, "str_replace", "/a", old_str="old", new_str="new")
    do(tool, "rename", old_path="/memories/a", new_path="/memories/b")
    module = store.get("memories/b")
    assert module is not None and (module.text, module.content_type) == ("new", "text/markdown")
    assert (module.keywords, dict(module.meta)) == (("k",), {"m": 1})


def test_only_one_of_several_agents_creates_a_file(tool: DistierMemoryTool, store: Store) -> None:
    do(tool, "create", "/a/b", file_text="mine")
    for path in ("/a/b", "/a", ""):
        with pytest.raises(ToolError, match="already exists"):
            do(tool, "create", path or "/", file_text="theirs")


@pytest.mark.parametrize("path", ["/memoriesx/a", "memories/a", "/memories/..", "/memories/a/../../b"])
def test_a_path_outside_the_memories_is_refused(tool: DistierMemoryTool, path: str) -> None:
    with pytest.raises(ToolError, match=r"must start with|would escape"):
        tool.call({"command": "view", "path": path})


def test_an_edit_that_meets_another_agent_is_made_again(
    tool: DistierMemoryTool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(tool, "create", "/a", file_text="one\n")
    put_many, others = store.put_many, iter(["zero\none\n"])

    def late(items: Any) -> Any:
        for text in others:
            store.put("memories/a", text)
        return put_many(items)

    monkeypatch.setattr(store, "put_many", late)
    do(tool, "str_replace", "/a", old_str="one", new_str="1")
    module = store.get("memories/a")
    assert module is not None and module.text == "zero\n1\n"


def test_a_rename_that_meets_another_agent_leaves_the_file_where_it_is(
    tool: DistierMemoryTool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(tool, "create", "/a", file_text="one")
    put_many = store.put_many

    def put_then_another(items: Any) -> Any:
        landed = put_many(items)
        store.put("memories/a", "theirs")
        return landed

    monkeypatch.setattr(store, "put_many", put_then_another)
    with pytest.raises(ToolError, match="another agent"):
        do(tool, "rename", old_path="/memories/a", new_path="/memories/b")
    assert list(store.list()) == ["memories/a"]


def test_a_fault_is_the_hosts_error_and_never_a_missing_file(
    tool: DistierMemoryTool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> None:
        raise RedisUnavailable("Redis is down")

    monkeypatch.setattr(store, "get_many", down)
    with pytest.raises(ToolError, match="Redis is down"):
        do(tool, "view", "/a")


def test_a_file_that_is_no_text_is_refused(tool: DistierMemoryTool, store: Store) -> None:
    store.put("memories/a", b"\xff")
    with pytest.raises(ToolError, match="Unsupported"):
        do(tool, "view", "/a")


async def test_agents_of_both_kinds_share_their_files(store: Store, async_store: AsyncStore) -> None:
    tools = [AsyncDistierMemoryTool(async_store), AsyncDistierMemoryTool(store)]
    await tools[0].call({"command": "create", "path": "/memories/log", "file_text": ""})
    insert = {"command": "insert", "path": "/memories/log", "insert_line": 0, "insert_text": "x"}
    await asyncio.gather(*(tool.call(insert) for tool in tools for _ in range(5)))
    module = store.get("memories/log")
    assert module is not None and module.text == "x\n" * 10, "no insertion is lost"
