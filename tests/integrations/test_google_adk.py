"""`DistierSkillRegistry` under ADK's `SkillToolset`, in an agent with a scripted model."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distier import AsyncStore, Invalid, NotFound, RedisUnavailable, Store

pytest.importorskip("google.adk.skills", reason="google-adk is not installed: docs/how-to/use-skills-in-frameworks.md")

from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools.skill_toolset import SkillToolset
from google.genai import types

from distier.integrations.google_adk import DistierSkillRegistry
from tests.integrations.skill_trees import PNG, put_files, put_skills, skill_md, uses


class Scripted(BaseLlm):
    """A model that makes these calls of tools, and keeps the last request."""

    calls: list[tuple[str, dict[str, Any]]]
    requests: list[Any]

    async def generate_content_async(self, llm_request: Any, stream: bool = False) -> AsyncIterator[Any]:
        self.requests.append(llm_request)
        done = sum(part.function_response is not None for content in llm_request.contents for part in content.parts)
        part = types.Part.from_text(text="done")
        if done < len(self.calls):
            name, arguments = self.calls[done]
            part = types.Part.from_function_call(name=name, args=arguments)
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


async def results(registry: Any, *calls: tuple[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """Return what the tools returned, and the last request to the model."""
    model = Scripted(model="scripted", calls=list(calls), requests=[])
    agent = LlmAgent(name="agent", model=model, tools=[SkillToolset(registry=registry)])
    runner = InMemoryRunner(agent)
    session = await runner.session_service.create_session(app_name=runner.app_name, user_id="u")
    message = types.Content(role="user", parts=[types.Part.from_text(text="Fill in the form.")])
    found: list[dict[str, Any]] = []
    async for event in runner.run_async(user_id="u", session_id=session.id, new_message=message):
        found += [response.response for response in event.get_function_responses()]
    await runner.close()
    return found, model.requests[-1]


def search(query: str) -> tuple[str, dict[str, Any]]:
    return "search_skills", {"query": query}


def load(name: str) -> tuple[str, dict[str, Any]]:
    return "load_skill", {"skill_name": name}


def read(name: str, path: str) -> tuple[str, dict[str, Any]]:
    return "load_skill_resource", {"skill_name": name, "file_path": path}


def names(found: dict[str, Any]) -> list[str]:
    return [each["name"] for each in found["result"]]


@pytest.fixture(params=["Store", "AsyncStore"])
def registry(request: pytest.FixtureRequest, store: Store, async_store: AsyncStore) -> DistierSkillRegistry:
    put_skills(store)
    return DistierSkillRegistry(store if request.param == "Store" else async_store)


async def test_agent_searches_records_and_loads_a_skill(
    store: Store, async_store: AsyncStore, registry: DistierSkillRegistry
) -> None:
    before = uses(store, async_store)
    [pdf, acroform, everything, nothing], _ = await results(
        registry, search("please fill this PDF form"), search("ACROFORM deploy"), search("*"), search("opera")
    )
    assert names(pdf) == ["form-filling"] and names(nothing) == []
    assert names(acroform) == names(everything) == ["form-filling", "deploy"]
    assert pdf["result"][0]["license"] == "MIT"
    assert uses(store, async_store) == before
    [skill, fields, script, nowhere], _ = await results(
        registry, load("form-filling"), read("form-filling", "references/FORMS.md"), read("form-filling", "scripts/fill.py"),
        read("form-filling", "references/../../ops/deploy/SKILL.md"),
    )  # fmt: skip
    assert skill["instructions"] == "# Forms\n\nRead references/FORMS.md first."
    assert fields["content"] == "# Fields\n" and script["content"] == "print('filled')\n"
    assert nowhere["error_code"] == "RESOURCE_NOT_FOUND"
    after = uses(store, async_store)
    used = {id.removeprefix("skills/form-filling/") for id in after if after[id] != before[id]}
    assert "SKILL.md" in used and "references/FORMS.md" in used
    assert "NOTES.md" not in used  # ADK has no place for it


async def test_search_ranks_by_the_number_of_words(store: Store, registry: DistierSkillRegistry) -> None:
    put_files(store, "skills/pdf-merge", {"SKILL.md": skill_md("pdf-merge", "Merge PDF files")})
    found = [each.name for each in await registry.search_skills(query="merge pdf")]
    assert found == ["pdf-merge", "form-filling"]
    limited = DistierSkillRegistry(store, limit=1)
    assert [each.name for each in await limited.search_skills(query="merge pdf")] == ["pdf-merge"]


async def test_binary_asset_is_injected_for_the_model(registry: DistierSkillRegistry) -> None:
    _, request = await results(registry, read("form-filling", "assets/logo.png"))
    [blob] = [part.inline_data for content in request.contents for part in content.parts if part.inline_data]
    assert (blob.data, blob.mime_type) == (PNG, "image/png")


async def test_script_that_is_not_text_is_left_out_with_a_warning(
    store: Store, registry: DistierSkillRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    put_files(store, "skills/form-filling", {"scripts/tool.bin": b"\xff\xfe"})
    with caplog.at_level(logging.WARNING, "distier.integrations"):
        skill = await registry.get_skill(name="form-filling")
    assert skill.resources.list_scripts() == ["fill.py"]
    assert "tool.bin" in caplog.text


async def test_next_turn_sees_what_another_store_changed(store: Store, registry: DistierSkillRegistry) -> None:
    [first], _ = await results(registry, load("deploy"))
    put_files(store, "skills/ops/deploy", {"SKILL.md": skill_md("deploy", text="# Changed\n"), "references/a.md": "a"})
    [second, reference], _ = await results(registry, load("deploy"), read("deploy", "references/a.md"))
    assert (first["instructions"], second["instructions"], reference["content"]) == ("# deploy", "# Changed", "a")


async def test_missing_skill_and_one_that_is_not_valid_say_so(store: Store, registry: DistierSkillRegistry) -> None:
    put_files(store, "skills/odd", {"SKILL.md": skill_md("odd", more="metadata: [secret text]\n")})
    [none, bare, odd, found], _ = await results(registry, load("../x"), load("bare"), load("odd"), search("*"))
    assert "no valid skill '../x'" in none["error"] and "needs a name" in bare["error"]
    assert "skills/odd/SKILL.md" in odd["error"] and "secret text" not in odd["error"]
    assert names(found) == ["form-filling", "deploy"]
    with pytest.raises(NotFound):
        await registry.get_skill(name="none")
    with pytest.raises(Invalid):
        await registry.get_skill(name="odd")


async def test_a_fault_is_no_missing_skill(registry: DistierSkillRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RedisUnavailable("Redis is down")

    for kind in (Store, AsyncStore):
        for name in ("page", "describe", "get_many"):
            monkeypatch.setattr(kind, name, broken)
    found, _ = await results(registry, search("*"), load("deploy"), read("deploy", "references/a.md"))
    assert [each["error_code"] for each in found] == ["REGISTRY_ERROR"] * 3
    assert all("Redis is down" in each["error"] for each in found)
