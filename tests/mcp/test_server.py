"""The SDK's client talks to `distier mcp` over stdio and HTTP, in the newest revision of the protocol and an older one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import mcp_types as types
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourcesListChanged, ResourceUpdated

from distier import Store
from tests.mcp.conftest import CONTENTS, Serve

WAIT_S = 30.0
Open = Callable[..., AbstractAsyncContextManager[Any]]
"""Opens a client: Any, because what a result has differs between revisions of the protocol."""


@pytest.fixture(params=["stdio", "http"])
def open_client(request: pytest.FixtureRequest, environment: dict[str, str], serve: Serve) -> Open:
    @asynccontextmanager
    async def opened(*words: str, **options: Any) -> AsyncIterator[Client]:
        server: Any
        if request.param == "http":
            server = await asyncio.to_thread(serve, *words)
        else:
            server = StdioServerParameters(
                command=sys.executable, args=["-m", "distier", "mcp", *words], env=environment
            )
        async with Client(server, **options) as client:
            yield client

    return opened


async def call(client: Any, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result


async def refusal(client: Any, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)


class Raw(types.Result):
    """Any result of a method that the SDK has no type for."""

    model_config = types.Result.model_config | {"extra": "allow"}


async def ask(client: Any, method: str, **params: Any) -> dict[str, Any]:
    request = types.Request[dict[str, Any], str](method=method, params=params)
    found = await client.session.send_request(request, Raw)
    made: dict[str, Any] = found.model_dump(by_alias=True)
    return made


async def test_resources_are_listed_in_pages_and_read(open_client: Open, store: Store) -> None:
    for n in range(150):
        store.put(f"many/{n:03}", "x")
    async with open_client() as client:
        uris, cursor = list[str](), None
        while True:
            page = await client.list_resources(cursor=cursor)
            assert len(page.resources) <= 100
            uris += [resource.uri for resource in page.resources]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert len(uris) == 150 + len(CONTENTS) == len(set(uris))
        assert "distier://skills/form-filling/ref/deep/table%20%C3%A9.csv" in uris
        read = await client.read_resource("distier://skills/form-filling/ref/deep/table%20%C3%A9.csv")
        assert read.contents[0].text == "a,b\n" and read.contents[0].mime_type == "text/csv"
        picture = await client.read_resource("distier://docs/picture.png")
        assert picture.contents[0].mime_type == "image/png" and picture.contents[0].blob
        for uri in ("distier://no/such", "https://example.com/", "distier://" + "x" * 2000):
            with pytest.raises(MCPError) as caught:
                await client.read_resource(uri)
            assert caught.value.code == types.INVALID_PARAMS


async def test_skills_have_their_front_matter_and_the_digests_of_all_files(open_client: Open) -> None:
    async with open_client() as client:
        assert client.server_capabilities.extensions == {"io.modelcontextprotocol/skills": {"directoryRead": True}}
        (skill,) = (await ask(client, "skills/list"))["skills"]
        assert skill["frontmatter"] == {"name": "form-filling", "description": "Fill in forms", "license": "MIT"}
        files = {id: text for id, text in CONTENTS.items() if id.startswith("skills/form-filling/")}
        assert len(skill["resources"]) == len(files)
        for file in skill["resources"]:
            read = await client.read_resource(file["uri"])
            content = read.contents[0].text.encode()
            assert file["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}" and file["size"] == len(content)
        assert (await ask(client, "skills/get", uri=skill["uri"]))["skill"] == skill
        for uri in (
            "skill://skills/wrong/SKILL.md",
            "skill://none/SKILL.md",
            "skill://skills/form-filling/ref/FORMS.md",
        ):
            with pytest.raises(MCPError) as caught:
                await ask(client, "skills/get", uri=uri)
            assert caught.value.code == types.INVALID_PARAMS


async def test_directories_are_read_level_by_level(open_client: Open) -> None:
    async with open_client() as client:
        top = (await ask(client, "resources/directory/read", uri="skill://skills/form-filling"))["resources"]
        assert [(one["name"], one["mimeType"]) for one in top] == [
            ("SKILL.md", "text/markdown"),
            ("ref", "inode/directory"),
        ]
        below = (await ask(client, "resources/directory/read", uri=top[1]["uri"]))["resources"]
        assert [one["name"] for one in below] == ["FORMS.md", "deep"]
        for uri in (top[0]["uri"], "skill://skills/none", "skill://skills/form-filling/"):
            with pytest.raises(MCPError):
                await ask(client, "resources/directory/read", uri=uri)


async def test_tools_find_read_and_write(open_client: Open, store: Store) -> None:
    async with open_client() as client:
        found = await call(client, "search_modules", query="FORM skill")
        assert found.structured_content["modules"][0]["id"] == "skills/form-filling/SKILL.md"
        skill = await call(client, "read_skill", id="skills/form-filling")
        assert skill.content[0].text == CONTENTS["skills/form-filling/SKILL.md"]
        assert "skills/form-filling/ref/FORMS.md" in skill.structured_content["files"]
        listed = await call(client, "list_skills")
        assert [one["id"] for one in listed.structured_content["invalid"]] == ["skills/wrong/SKILL.md"]

        made = await call(client, "write_module", id="notes/a", text="one two", if_version="0", keywords=["note"])
        assert "Conflict" in await refusal(client, "write_module", id="notes/a", text="b", if_version="0")
        edited = await call(client, "edit_module", id="notes/a", old="two", new="three")
        assert store.get("notes/a").text == "one three" and store.get("notes/a").keywords == ("note",)  # type: ignore[union-attr]
        version = made.structured_content["version"]
        assert "Conflict" in await refusal(client, "edit_module", id="notes/a", old="one", new="x", if_version=version)
        assert "0 times" in await refusal(client, "edit_module", id="notes/a", old="none", new="x")
        version = edited.structured_content["version"]
        assert "exists" in await refusal(client, "rename_module", id="notes/a", new_id="prompts/hello.md")
        moved = await call(client, "rename_module", id="notes/a", new_id="notes/b", if_version=version)
        assert moved.structured_content["id"] == "notes/b" and store.get("notes/a") is None
        back = await call(client, "rename_module", id="notes/b", new_id="notes/a")
        gone = await call(client, "delete_module", id="notes/a", if_version=back.structured_content["version"])
        assert gone.structured_content["deleted"] and store.get("notes/a") is None
        assert "notes" in await refusal(client, "read_module", id="notes/a")
        assert "hot" in (await call(client, "explain_module", id="docs/long.md")).content[0].text


async def test_older_version_is_listed_read_and_brought_back(open_client: Open, store: Store) -> None:
    store.archive_now()
    store.put("prompts/hello.md", "changed")
    async with open_client() as client:
        history = (await call(client, "module_history", id="prompts/hello.md")).structured_content["versions"]
        assert [one["current"] for one in history] == [True, False]
        older = history[1]["version"]
        read = await call(client, "read_module", id="prompts/hello.md", version=older)
        assert read.content[0].text == CONTENTS["prompts/hello.md"] and read.structured_content["version"] == older
        back = await call(client, "rollback_module", id="prompts/hello.md", version=older)
        assert store.get("prompts/hello.md").text == CONTENTS["prompts/hello.md"]  # type: ignore[union-attr]
        assert back.structured_content["version"] not in (older, history[0]["version"])
        assert "module_history" in await refusal(client, "read_module", id="prompts/hello.md", version="7-7")
        assert "NotFound" in await refusal(client, "rollback_module", id="prompts/hello.md", version="7-7")
        assert "NotFound" in await refusal(client, "module_history", id="none")


async def test_long_module_is_read_in_parts_that_say_so(open_client: Open) -> None:
    async with open_client() as client:
        text, line = "", 1
        for _ in range(100):
            part = await call(client, "read_module", id="docs/long.md", first_line=line, max_tokens=2000)
            assert part.structured_content["form"] == "part" and len(part.content[0].text) < 12_000
            text += part.content[0].text
            line = part.structured_content.get("next_line")
            if line is None:
                break
        assert text == CONTENTS["docs/long.md"]
        some = await call(client, "read_module", id="docs/long.md", first_line=5, last_line=6)
        assert some.content[0].text.splitlines() == [f"line {n}: words of a long document" for n in (5, 6)]
        assert "not text" in await refusal(client, "read_module", id="docs/picture.png")


async def test_fit_stays_within_the_budget_and_says_what_is_left_out(open_client: Open) -> None:
    async with open_client() as client:
        fitted = await call(client, "fit_modules", prefix="skills/", budget_tokens=40)
        assert fitted.structured_content["tokens"] <= 40 and fitted.structured_content["left_out"]
        assert all(one["id"] in fitted.content[0].text for one in fitted.structured_content["chosen"])
        assert "one of them" in await refusal(client, "fit_modules", budget_tokens=40)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({}, "'id' is a required property"), ({"id": 5}, "id: 5 is not of type 'string'"), ({"id": "a", "x": 1}, "unexpected"),
     ({"id": "a", "first_line": 0}, "first_line"), ({"id": ""}, "id")],
)  # fmt: skip
async def test_bad_arguments_are_named(open_client: Open, arguments: dict[str, Any], text: str) -> None:
    async with open_client() as client:
        result = await client.call_tool("read_module", arguments)
        assert result.is_error and text in result.content[0].text
        with pytest.raises(MCPError, match="there is no tool"):
            await client.call_tool("drop_everything", {})


async def test_prompts_and_completion(open_client: Open) -> None:
    async with open_client() as client:
        (prompt,) = (await client.list_prompts()).prompts
        assert (prompt.name, prompt.description, [a.name for a in prompt.arguments]) == (
            "prompts/hello.md",
            "Greets",
            ["name"],
        )
        made = await client.get_prompt("prompts/hello.md", {"name": "Ada"})
        assert made.messages[0].content.text == "Hello Ada and {{other}}!"
        ref = types.ResourceTemplateReference(type="ref/resource", uri="distier://{+id}")
        done = await client.complete(ref, {"name": "id", "value": "skills/form-filling/r"})
        assert done.completion.values == [
            "skills/form-filling/ref/FORMS.md",
            "skills/form-filling/ref/deep/table é.csv",
        ]


async def test_change_of_another_process_is_pushed(open_client: Open, store: Store) -> None:
    uri = "skill://skills/form-filling/SKILL.md"
    async with (
        open_client() as client,
        client.listen(resources_list_changed=True, resource_subscriptions=[uri]) as events,
    ):
        await asyncio.to_thread(
            store.put, "skills/form-filling/SKILL.md", "---\nname: form-filling\ndescription: new\n---\n"
        )
        first = await asyncio.wait_for(anext(aiter(events)), WAIT_S)
        assert first == ResourceUpdated(uri)
        assert (await ask(client, "skills/get", uri=uri))["skill"]["frontmatter"]["description"] == "new"
        await asyncio.to_thread(store.delete, "docs/long.md")
        second = await asyncio.wait_for(anext(aiter(events)), WAIT_S)
        assert second == ResourcesListChanged()
        await asyncio.to_thread(store.demote, "skills/form-filling/SKILL.md")
        with pytest.raises(TimeoutError):  # it moved: nothing changed
            await asyncio.wait_for(anext(aiter(events)), 1.0)


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_older_client_is_notified_in_its_session(open_client: Open, store: Store) -> None:
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(message: Any) -> None:
        seen.put_nowait(message)

    uri = "distier://docs/long.md"
    async with open_client(mode="legacy", message_handler=handler) as client:
        assert client.protocol_version < "2026"
        await client.session.subscribe_resource(uri)
        await asyncio.to_thread(store.put, "docs/long.md", "short")
        told = await asyncio.wait_for(seen.get(), WAIT_S)
        assert told.method == "notifications/resources/updated" and str(told.params.uri) == uri
        await client.session.unsubscribe_resource(uri)
        await asyncio.to_thread(store.put, "docs/long.md", "shorter")
        await asyncio.to_thread(store.put, "docs/new.md", "new")
        told = await asyncio.wait_for(seen.get(), WAIT_S)
        assert told.method == "notifications/resources/list_changed"


async def test_read_only_server_offers_no_tool_that_writes(open_client: Open) -> None:
    async with open_client("--read-only") as client:
        tools = (await client.list_tools()).tools
        assert tools and all(tool.annotations.read_only_hint for tool in tools)
        with pytest.raises(MCPError):
            await client.call_tool("write_module", {"id": "a", "text": "b"})


async def test_results_are_the_same_bytes_each_time(open_client: Open) -> None:
    async with open_client() as client:
        for tool, arguments in (("list_modules", {}), ("search_modules", {"query": "skills"}), ("list_skills", {})):
            texts = {(await client.call_tool(tool, arguments)).content[0].text for _ in range(3)}
            assert len(texts) == 1 and json.loads(texts.pop())


def test_http_needs_the_token_and_a_known_host(serve: Serve) -> None:
    url = serve("--token", "secret")
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
    good = accept | {"Authorization": "Bearer secret"}
    assert httpx.post(url, json=body, headers=accept).status_code == 401
    assert httpx.post(url, json=body, headers=accept | {"Authorization": "Bearer wrong"}).status_code == 401
    assert httpx.post(url, json=body, headers=good | {"Host": "evil.example.com"}).status_code == 421
    assert httpx.post(url, json=body, headers=good | {"Origin": "http://evil.example.com"}).status_code == 403
    assert httpx.post(url, json=body, headers=good).status_code not in (401, 403, 421)


def test_empty_token_is_refused(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "distier", "mcp", "--http", "127.0.0.1:0", "--token", ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "--token is empty" in done.stderr
