"""`DistierSkillStore` under Haystack's `SkillToolset`, and an agent that uses it with Haystack's own mock model."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from distier import AsyncStore, Invalid, RedisUnavailable, Store, connect

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # it is read at the import, and no test needs the network
pytest.importorskip("haystack.skill_stores", reason="haystack-ai is not installed: `make suites`")

from haystack.components.agents import Agent
from haystack.components.generators.chat import MockChatGenerator
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.dataclasses.file_content import FileContent
from haystack.dataclasses.image_content import ImageContent
from haystack.skill_stores.file_system import FileSystemSkillStore
from haystack.tools import SkillToolset
from haystack.tools.errors import ToolInvocationError

from distier.integrations import haystack as adapter
from distier.integrations.haystack import DistierSkillStore
from tests.integrations.skill_trees import FORM_FILLING, PNG, put_files, put_skills, skill_md, uses


@pytest.fixture
def skills(store: Store) -> DistierSkillStore:
    put_skills(store)
    return DistierSkillStore(store)


def call(toolset: Any, tool: str, /, **arguments: Any) -> Any:
    return next(each for each in toolset.tools if each.name == tool).invoke(**arguments)


def test_toolset_describes_skills_from_records_and_reads_contents_on_demand(store: Store, skills: Any) -> None:
    before = uses(store)
    toolset = SkillToolset(skills)
    toolset.warm_up()
    assert list(toolset.skills) == ["form-filling", "deploy"]
    assert "- form-filling: Fill in PDF forms" in toolset.tools[0].description
    assert uses(store) == before
    text = call(toolset, "load_skill", name="form-filling")
    assert text.startswith("# Forms\n\nRead references/FORMS.md first.") and "- references/FORMS.md" in text
    assert call(toolset, "read_skill_file", name="form-filling", path="references/FORMS.md") == "# Fields\n"
    changed = {id for id, use in uses(store).items() if use != before[id]}
    assert changed == {"skills/form-filling/SKILL.md", "skills/form-filling/references/FORMS.md"}


def test_every_file_is_what_haystacks_own_store_makes_of_it(skills: Any, tmp_path: Any) -> None:
    for path, content in FORM_FILLING.items():
        target = tmp_path / "form-filling" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    own = FileSystemSkillStore(tmp_path)
    body, files = own.load_skill("form-filling")
    assert skills.load_skill("form-filling") == (body.strip(), files)
    assert own.list_skills()["form-filling"] == skills.list_skills()["form-filling"]
    for path in FORM_FILLING:
        if path != "assets/data.bin":
            assert skills.read_skill_file("form-filling", path) == own.read_skill_file("form-filling", path)
    for each in (own, skills):
        with pytest.raises(ValueError, match=r"text|asset"):
            each.read_skill_file("form-filling", "assets/data.bin")
        with pytest.raises(PermissionError):
            each.read_skill_file("form-filling", "../ops/deploy/SKILL.md")
        with pytest.raises(FileNotFoundError, match=r"references/FORMS\.md"):
            each.read_skill_file("form-filling", "references/NONE.md")
        with pytest.raises(KeyError, match="none"):
            each.load_skill("none")


def test_image_and_pdf_reach_the_model_as_such(store: Store, skills: Any) -> None:
    store.put("skills/form-filling/assets/form", b"%PDF-1.7\xff", content_type="application/pdf")
    image = call(SkillToolset(skills), "read_skill_file", name="form-filling", path="assets/logo.png")
    assert [type(part) for part in image] == [ImageContent] and base64.b64decode(image[0].base64_image) == PNG
    [pdf] = call(SkillToolset(skills), "read_skill_file", name="form-filling", path="assets/form")
    assert isinstance(pdf, FileContent) and (pdf.filename, pdf.mime_type) == ("form", "application/pdf")


def test_agent_sees_a_skill_that_another_store_changed(store: Store, skills: Any) -> None:
    calls = [ToolCall(tool_name="load_skill", arguments={"name": "deploy"})]
    model = MockChatGenerator([ChatMessage.from_assistant(tool_calls=calls), "done"])
    agent = Agent(chat_generator=model, tools=SkillToolset(skills))

    def told() -> str:
        messages = agent.run(messages=[ChatMessage.from_user("Deploy.")])["messages"]
        return str(next(message.tool_call_result.result for message in messages if message.tool_call_result))

    assert told() == "# deploy"
    put_files(store, "skills/ops/deploy", {"SKILL.md": skill_md("deploy", text="# Changed {}\n"), "ref.md": "x"})
    assert told().startswith("# Changed deploy") and "- ref.md" in told()


def test_a_fault_is_no_missing_skill(skills: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toolset = SkillToolset(skills)
    toolset.warm_up()

    def broken(*args: Any, **options: Any) -> Any:
        raise RedisUnavailable("Redis is down")

    for name in ("page", "describe", "get"):
        monkeypatch.setattr(Store, name, broken)
    for tool, arguments in (("load_skill", {"name": "deploy"}), ("read_skill_file", {"name": "deploy", "path": "a"})):
        with pytest.raises(ToolInvocationError, match="Redis is down") as caught:
            call(toolset, tool, **arguments)
        assert isinstance(caught.value.__cause__, RedisUnavailable)
    with pytest.raises(RedisUnavailable):
        SkillToolset(skills).warm_up()


def test_skill_that_became_invalid_says_so(store: Store, skills: Any) -> None:
    store.put("skills/ops/deploy/SKILL.md", b"\xff", meta={"name": "deploy", "description": "Its record is right"})
    with pytest.raises(Invalid, match=r"skills/ops/deploy/SKILL\.md"):
        skills.load_skill("deploy")


def test_toolset_without_a_store_is_serialized_and_connects_by_configuration(
    store: Store, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_skills(store, "mine")
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", "distier.integrations.haystack")
    monkeypatch.setattr(adapter, "connect", lambda: connect({}, **settings))
    toolset = SkillToolset.from_dict(SkillToolset(DistierSkillStore(root="mine")).to_dict())
    assert set(toolset.skills) == {"form-filling", "deploy"}
    toolset.close()
    assert set(toolset.skills) == {"form-filling", "deploy"}  # it connects again
    toolset.close()
    with pytest.raises(Invalid, match="cannot be serialized"):
        SkillToolset(DistierSkillStore(store)).to_dict()
    assert set(DistierSkillStore(store).list_skills()) == set()


def test_calls_of_several_threads_share_one_connection(
    store: Store, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_skills(store)
    opened: list[Store] = []

    def connecting() -> Store:
        opened.append(connect({}, **settings))
        return opened[-1]

    monkeypatch.setattr(adapter, "connect", connecting)
    skills = DistierSkillStore()
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda name: skills.load_skill(name)[0], ["deploy"] * 8)) == {"# deploy"}
    skills.close()
    assert len(opened) == 1


def test_an_asyncio_store_is_refused(async_store: AsyncStore) -> None:
    with pytest.raises(TypeError, match="blocking"):
        DistierSkillStore(async_store)  # type: ignore[arg-type]
