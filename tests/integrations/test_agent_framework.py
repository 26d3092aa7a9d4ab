"""`DistierSkillsSource` under the Agent Framework's `SkillsProvider`, in an agent with a scripted model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from distier import AsyncStore, Invalid, NotFound, RedisUnavailable, Store

pytest.importorskip(
    "agent_framework",
    reason="agent-framework-core is not installed: `make suites`",
)

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatResponse,
    Content,
    FunctionInvocationLayer,
    Message,
    SkillsProvider,
    SkillsSourceContext,
)

from distier.integrations.agent_framework import DistierSkillsSource
from tests.integrations.skill_trees import PNG, SKILL_MD, put_files, put_skills, skill_md, uses

NO_CONTEXT: Any = None
"""The source does not look at it."""


class Scripted(FunctionInvocationLayer, BaseChatClient):
    """A model that makes these calls of tools, and keeps what it was sent."""

    def __init__(self, calls: Sequence[tuple[str, dict[str, str]]]) -> None:
        super().__init__()
        self.calls, self.instructions, self.results = list(calls), "", list[Any]()

    def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **kwargs: Any) -> Any:
        async def response() -> Any:
            self.instructions = str(options.get("instructions"))
            done = [each for message in messages for each in message.contents if each.type == "function_result"]
            self.results = [each.items or each.exception for each in done]
            contents = [Content.from_text("done")]
            if len(done) < len(self.calls):
                name, arguments = self.calls[len(done)]
                contents = [Content.from_function_call(str(len(done)), name, arguments=arguments)]
            return ChatResponse(messages=[Message("assistant", contents)])

        return response()


async def results(source: DistierSkillsSource, *calls: tuple[str, dict[str, str]]) -> tuple[list[Any], str]:
    provider = SkillsProvider(source, disable_load_skill_approval=True, disable_read_skill_resource_approval=True)
    model = Scripted(calls)
    await Agent(model, context_providers=[provider]).run("Fill in the form.")
    return model.results, model.instructions


def load(name: str) -> tuple[str, dict[str, str]]:
    return "load_skill", {"skill_name": name}


def read(name: str, path: str) -> tuple[str, dict[str, str]]:
    return "read_skill_resource", {"skill_name": name, "resource_name": path}


@pytest.fixture(params=["Store", "AsyncStore"])
def source(request: pytest.FixtureRequest, store: Store, async_store: AsyncStore) -> DistierSkillsSource:
    put_skills(store)
    return DistierSkillsSource(store if request.param == "Store" else async_store)


async def test_agent_gets_the_catalogue_from_records_and_contents_on_demand(
    store: Store, async_store: AsyncStore, source: DistierSkillsSource
) -> None:
    before = uses(store, async_store)
    _, instructions = await results(source)
    assert "form-filling" in instructions and "Fill in PDF forms" in instructions and "deploy" in instructions
    assert "secret" not in instructions and "wrong" not in instructions
    assert uses(store, async_store) == before
    [[skill], [fields]], _ = await results(source, load("form-filling"), read("form-filling", "references/FORMS.md"))
    assert skill.text.startswith(SKILL_MD) and fields.text == "# Fields\n"
    assert '<resource name="references/deep/table é 100%.csv"/>' in skill.text and "<available_scripts />" in skill.text
    after = uses(store, async_store)
    assert {id for id in after if after[id] != before[id]} == {
        "skills/form-filling/SKILL.md", "skills/form-filling/references/FORMS.md",
    }  # fmt: skip


async def test_binary_file_reaches_the_model_as_data_of_its_type(source: DistierSkillsSource) -> None:
    [[logo], [data]], _ = await results(
        source, read("form-filling", "assets/logo.png"), read("form-filling", "assets/data.bin")
    )
    assert (logo.type, logo.media_type) == ("data", "image/png")
    assert logo.uri == Content.from_data(PNG, "image/png").uri
    assert (data.type, data.media_type) == ("data", "application/octet-stream")


@pytest.mark.parametrize(
    "path", ["../ops/deploy/SKILL.md", "/etc/passwd", "none.md", "a\\..\\b", "references/../SKILL.md"]
)
async def test_path_of_no_file_is_not_found(source: DistierSkillsSource, path: str) -> None:
    [[answer]], _ = await results(source, read("form-filling", path))
    assert "not found in skill" in answer.text


async def test_next_run_sees_what_another_store_changed(store: Store, source: DistierSkillsSource) -> None:
    await results(source, load("deploy"))
    put_files(store, "skills/ops/deploy", {"SKILL.md": skill_md("deploy", "New {}", "# Changed\n")})
    put_files(store, "skills/added", {"SKILL.md": skill_md("added")})
    [[skill]], instructions = await results(source, load("deploy"))
    assert "New deploy" in instructions and "About added" in instructions and "# Changed" in skill.text
    store.delete("skills/added/SKILL.md")
    assert "About added" not in (await results(source))[1]


async def test_front_matter_is_that_of_the_record(store: Store, source: DistierSkillsSource) -> None:
    put_files(
        store, "skills/more", {"SKILL.md": skill_md("more", more="allowed-tools: [Read, Grep]\ncompatibility: Linux\n")}
    )
    put_files(store, "skills/long", {"SKILL.md": skill_md("long", more=f"compatibility: {'x' * 501}\n")})
    found = {skill.frontmatter.name: skill.frontmatter for skill in await source.get_skills(NO_CONTEXT)}
    forms = found["form-filling"]
    assert (forms.license, forms.allowed_tools, forms.metadata) == ("MIT", "Read", {"author": "ada"})
    assert (found["more"].allowed_tools, found["more"].compatibility) == ("Read Grep", "Linux")
    assert found["long"].description == "About long" and found["long"].compatibility is None


async def test_skill_that_was_deleted_or_broken_meanwhile_says_so(store: Store, source: DistierSkillsSource) -> None:
    [_, deploy] = await source.get_skills(SkillsSourceContext(agent=NO_CONTEXT))
    store.put("skills/ops/deploy/SKILL.md", "# Not a skill any more\n")
    with pytest.raises(Invalid, match=r"skills/ops/deploy/SKILL\.md"):
        await deploy.get_content()
    store.delete("skills/ops/deploy/SKILL.md")
    with pytest.raises(NotFound, match="deleted"):
        await deploy.get_content()


async def test_a_fault_is_no_missing_skill(source: DistierSkillsSource, monkeypatch: pytest.MonkeyPatch) -> None:
    [_, deploy] = await source.get_skills(NO_CONTEXT)

    def broken(*args: Any, **options: Any) -> Any:
        raise RedisUnavailable("Redis is down")

    for kind in (Store, AsyncStore):
        for name in ("page", "get"):
            monkeypatch.setattr(kind, name, broken)
    with pytest.raises(RedisUnavailable):
        await results(source)
    for steps in (deploy.get_content(), deploy.get_resource("none.md")):
        with pytest.raises(RedisUnavailable):
            await steps
