"""`DistierSkillProvider` in a FastMCP server, as FastMCP's own client sees it, without a network."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from distier import AsyncStore, RedisUnavailable, Store
from distier.domain.module import Module

pytest.importorskip(
    "fastmcp.skills.provider",
    reason="fastmcp 4.2 is not installed: `make suites`",
)

from fastmcp import Client, FastMCP
from fastmcp.exceptions import ResourceError
from fastmcp.skills import SkillsClientExtension
from mcp.shared.exceptions import MCPError

from distier.integrations.fastmcp import DistierSkillProvider
from tests.integrations.skill_trees import FORM_FILLING, PNG, put_files, put_skills, skill_md, uses

DEPLOY = "skill://ops/deploy/SKILL.md"
FORMS = "skill://form-filling/SKILL.md"


@pytest.fixture(params=["Store", "AsyncStore"])
def provider(request: pytest.FixtureRequest, store: Store, async_store: AsyncStore) -> DistierSkillProvider:
    put_skills(store)
    return DistierSkillProvider(store if request.param == "Store" else async_store)


@pytest_asyncio.fixture
async def client(provider: DistierSkillProvider) -> AsyncIterator[Any]:
    server = FastMCP("skills", providers=[provider])
    server.provider_error_strategy = "raise"
    async with Client(server, extensions=[SkillsClientExtension()]) as opened:
        yield opened


async def test_skills_are_listed_with_all_digests_and_without_a_use(
    store: Store, async_store: AsyncStore, client: Any
) -> None:
    # The client connected, so these versions have been read: another one has not.
    put_files(store, "skills/ops/deploy", {"SKILL.md": skill_md("deploy", "Changed")})
    before = uses(store, async_store)
    for _ in range(2):
        found = {skill.uri: skill for skill in await client.list_skills()}
    assert list(found) == [FORMS, DEPLOY]
    assert found[FORMS].frontmatter.root == {
        "name": "form-filling", "description": "Fill in PDF forms", "license": "MIT", "allowed-tools": "Read",
        "metadata": {"author": "ada"}, "keywords": ["acroform"],
    }  # fmt: skip
    assert len(found[FORMS].resources) == len(FORM_FILLING)
    [logo] = [each for each in found[FORMS].resources if each.uri.endswith("/logo.png")]
    assert (logo.digest, logo.size) == (f"sha256:{hashlib.sha256(PNG).hexdigest()}", len(PNG))
    assert uses(store, async_store) == before


async def test_client_reads_and_verifies_every_file(store: Store, client: Any) -> None:
    skill = await client.read_skill(FORMS)
    assert dict(skill.files) == {
        path: content if isinstance(content, bytes) else content.encode() for path, content in FORM_FILLING.items()
    }
    [text] = await client.read_resource("skill://form-filling/references/FORMS.md")
    assert text.text == "# Fields\n"
    assert (await client.read_skill(DEPLOY)).name == "deploy"


async def test_reading_one_file_is_one_use(store: Store, async_store: AsyncStore, client: Any) -> None:
    before = uses(store, async_store)
    await client.read_resource("skill://form-filling/references/FORMS.md")
    after = uses(store, async_store)
    assert {id for id in after if after[id] != before[id]} == {"skills/form-filling/references/FORMS.md"}


async def test_change_by_another_store_is_seen_by_the_next_request(store: Store, client: Any) -> None:
    first = await client.read_skill(DEPLOY)
    put_files(store, "skills/ops/deploy", {"SKILL.md": skill_md("deploy", "New {}"), "ref.md": "new"})
    second = await client.read_skill(DEPLOY, cache_mode="refresh")
    assert (first.description, second.description) == ("Deploy a service", "New deploy")
    assert set(second.files) == {"SKILL.md", "ref.md"}
    store.delete("skills/ops/deploy/SKILL.md")
    assert [skill.uri for skill in await client.list_skills(cache_mode="refresh")] == [FORMS]


@pytest.mark.parametrize(
    "path", ["a b", "é/日本.md", "100%.md", "a?b", "a#b", "ab:c", "%2e%2e", "UPPER", "x&y=z+.md", "~"]
)
async def test_any_file_name_is_read_by_its_uri(store: Store, client: Any, path: str) -> None:
    put_files(store, "skills/Ops É/deploy", {"SKILL.md": skill_md("deploy"), path: "text"})
    [found] = [skill for skill in await client.list_skills() if "%C3%89" in skill.uri]
    assert dict((await client.read_skill(found.uri)).files)[path] == b"text"


@pytest.mark.parametrize(
    "uri",
    ["skill://form-filling/../ops/deploy/SKILL.md", "skill://form-filling/..%2F..%2Felsewhere%2Fsecret%2FSKILL.md",
     "skill://wrong/SKILL.md", "skill://elsewhere/secret/SKILL.md", "skill://form-filling/none.md"],
)  # fmt: skip
async def test_uri_that_no_manifest_lists_is_unknown(client: Any, uri: str) -> None:
    with pytest.raises(MCPError, match=r"Unknown|not found|Resource"):
        await client.read_resource(uri)


async def test_skill_that_is_not_valid_is_left_out_with_the_reason(
    store: Store, provider: DistierSkillProvider, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put_files(store, "skills/odd", {"SKILL.md": skill_md("odd", more="compatibility: ''\n")})
    put_files(store, "skills/dots", {"SKILL.md": skill_md("dots"), "a//b": "x"})
    put_files(store, "skills/both", {"SKILL.md": skill_md("both"), "a": "x", "a/b": "x"})
    put_files(store, "skills/ops/deploy/templates/inner", {"SKILL.md": skill_md("inner")})
    with caplog.at_level(logging.WARNING, "distier.integrations"):
        for _ in range(2):
            found = await client.list_skills(cache_mode="refresh")
    assert [skill.uri for skill in found] == [FORMS, DEPLOY]
    assert len(found[1].resources) == 2  # the inner one is a part of it
    assert set(provider.left_out) == {"odd", "dots", "both", "wrong", "bare"}
    assert "needs a name" in provider.left_out["bare"] and "directory" in provider.left_out["both"]
    assert sum("'dots'" in message for message in caplog.messages) == 1


def broken(*args: Any, **options: Any) -> Any:
    raise RedisUnavailable("Redis is down")


async def test_fault_is_an_error_and_no_missing_skill(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Store, AsyncStore):
        monkeypatch.setattr(kind, "page", broken)
    for steps in (client.list_skills(), client.get_skill(DEPLOY), client.read_resource(DEPLOY)):
        with pytest.raises(MCPError) as caught:
            await steps
        assert "unknown" not in str(caught.value).lower()


async def test_fault_of_a_read_is_the_hosts_error(
    provider: DistierSkillProvider, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*args: Any, **options: Any) -> Any:
        raise RedisUnavailable("Redis is down")

    monkeypatch.setattr(AsyncStore, "get", failing)
    monkeypatch.setattr(Store, "get", broken)
    with pytest.raises(MCPError, match="Redis is down"):
        await client.read_resource(DEPLOY)
    resource = await provider.get_resource(DEPLOY)
    with pytest.raises(ResourceError) as caught:
        await resource.read()
    assert isinstance(caught.value.__cause__, RedisUnavailable)


async def test_file_that_changes_while_it_is_read_is_an_error(store: Store, provider: DistierSkillProvider) -> None:
    resource = await provider.get_resource(DEPLOY)
    put_files(store, "skills/ops/deploy", {"SKILL.md": skill_md("deploy", "Changed")})
    with pytest.raises(ResourceError, match="changed or deleted"):
        await resource.read()
    store.delete("skills/ops/deploy/SKILL.md")
    with pytest.raises(ResourceError, match="changed or deleted"):
        await resource.read()


async def test_older_module_of_the_near_cache_is_not_served(
    store: Store, provider: DistierSkillProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of a request have a new version, of which the near cache, here `get`, has not heard yet."""
    old = store.get("skills/ops/deploy/SKILL.md")
    new = skill_md("deploy", "Changed")
    put_files(store, "skills/ops/deploy", {"SKILL.md": new})
    resource = await provider.get_resource(DEPLOY)
    get, get_async = Store.get, AsyncStore.get

    async def late(*args: Any, **options: Any) -> Module | None:
        return await get_async(*args, **options) if options else old

    monkeypatch.setattr(Store, "get", lambda *args, **options: get(*args, **options) if options else old)
    monkeypatch.setattr(AsyncStore, "get", late)
    assert (await resource.read()).contents[0].content == new
