"""`DistierSkillSource` in a sandbox agent of the OpenAI Agents SDK, with a scripted model and a sandbox on this machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from distier import AsyncStore, Invalid, NotFound, RedisUnavailable, Store

pytest.importorskip(
    "agents.sandbox.capabilities.skills",
    reason="openai-agents is not installed: docs/how-to/use-skills-in-frameworks.md",
)

from agents import ModelResponse, RunConfig, Runner, Usage
from agents.models.interface import Model
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities.skills import Skills
from agents.sandbox.errors import SkillsConfigError
from agents.sandbox.sandboxes.unix_local import UnixLocalSandboxClient
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from distier.integrations.openai_agents import MARK, DistierSkillSource
from tests.integrations.skill_trees import FORM_FILLING, put_files, put_skills, skill_md, uses


class Scripted(Model):
    """A model that loads these skills, and keeps its instructions and what the tool returned."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.instructions, self.results = list(names), "", list[Any]()

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **options: Any) -> Any:
        self.instructions = system_instructions
        self.results = [each["output"] for each in input if each.get("type") == "function_call_output"]
        done = len(self.results)
        output: Any = ResponseOutputMessage(
            id="m", role="assistant", status="completed", type="message",
            content=[ResponseOutputText(text="done", type="output_text", annotations=[])],
        )  # fmt: skip
        if done < len(self.names):
            arguments = json.dumps({"skill_name": self.names[done]})
            output = ResponseFunctionToolCall(
                arguments=arguments, call_id=str(done), name="load_skill", type="function_call"
            )
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError


@pytest_asyncio.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Any]:
    client = UnixLocalSandboxClient()
    session = await client.create(manifest=Manifest(root=str(tmp_path / "workspace")))
    await session.start()
    yield session
    await session.stop()
    await client.delete(session)


@pytest.fixture
def source(store: Store) -> DistierSkillSource:
    put_skills(store)
    return DistierSkillSource(store)


async def run(source: DistierSkillSource, sandbox: Any, *names: str) -> tuple[list[Any], str]:
    model = Scripted(names)
    agent = SandboxAgent(name="agent", model=model, capabilities=[Skills(lazy_from=source)])
    config = RunConfig(sandbox=SandboxRunConfig(session=sandbox), tracing_disabled=True)
    await Runner.run(agent, "Fill in the form.", run_config=config)
    return model.results, model.instructions


def directory(sandbox: Any, name: str) -> Path:
    return Path(sandbox.state.manifest.root) / ".agents" / name


def files_in(path: Path) -> dict[str, bytes]:
    found = {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    found.pop(MARK, None)
    return found


async def test_agent_gets_the_index_from_records_and_loads_a_skill_with_all_its_files(
    store: Store, source: DistierSkillSource, sandbox: Any
) -> None:
    before = uses(store)
    _, instructions = await run(source, sandbox)
    assert "- form-filling: Fill in PDF forms (file: .agents/form-filling)" in instructions
    assert "- deploy: Deploy a service" in instructions and "secret" not in instructions
    assert uses(store) == before and not directory(sandbox, "form-filling").exists()
    [loaded, again], _ = await run(source, sandbox, "form-filling", "form-filling")
    assert "'loaded'" in str(loaded) and "already_loaded" in str(again) and ".agents/form-filling" in str(loaded)
    assert files_in(directory(sandbox, "form-filling")) == {
        path: content if isinstance(content, bytes) else content.encode() for path, content in FORM_FILLING.items()
    }
    after = uses(store)
    assert {id for id in after if after[id] != before[id]} == {f"skills/form-filling/{path}" for path in FORM_FILLING}


async def test_skill_that_is_as_it_was_is_not_read_again(
    store: Store, source: DistierSkillSource, sandbox: Any
) -> None:
    await run(source, sandbox, "deploy")
    (directory(sandbox, "deploy") / "SKILL.md").write_text("edited in the sandbox")
    before = uses(store)
    [again], _ = await run(source, sandbox, "deploy")
    assert "already_loaded" in str(again) and uses(store) == before
    assert files_in(directory(sandbox, "deploy")) == {"SKILL.md": b"edited in the sandbox"}


async def test_calls_at_once_load_a_skill_once(store: Store, source: DistierSkillSource, sandbox: Any) -> None:
    before = uses(store)
    calls = [source.load_skill(skill_name="form-filling", session=sandbox, skills_path=".agents") for _ in range(4)]
    found = await asyncio.gather(*calls)
    assert sorted(each["status"] for each in found) == ["already_loaded"] * 3 + ["loaded"]
    assert set(files_in(directory(sandbox, "form-filling"))) == set(FORM_FILLING)
    after = uses(store)
    assert {after[id][0] - before[id][0] for id in after if id.startswith("skills/form-filling/")} == {1}


async def test_loading_again_brings_what_another_store_changed(
    store: Store, source: DistierSkillSource, sandbox: Any
) -> None:
    put_files(store, "skills/ops/deploy", {"old.md": "old"})
    await run(source, sandbox, "deploy")
    changed = skill_md("deploy", "New {}")
    put_files(store, "skills/ops/deploy", {"SKILL.md": changed, "new/ref.md": "new"})
    store.delete("skills/ops/deploy/old.md")
    [loaded], instructions = await run(source, sandbox, "deploy")
    assert "'loaded'" in str(loaded) and "New deploy" in instructions
    assert files_in(directory(sandbox, "deploy")) == {"SKILL.md": changed.encode(), "new/ref.md": b"new"}


@pytest.mark.parametrize("mark", ["", "[]", "not JSON"])
async def test_part_of_a_skill_is_replaced(source: DistierSkillSource, sandbox: Any, mark: str) -> None:
    target = directory(sandbox, "deploy")
    target.mkdir(parents=True)
    (target / "part.md").write_text("from a load that was stopped")
    if mark:
        (target / MARK).write_text(mark)
    [loaded], _ = await run(source, sandbox, "deploy")
    assert "'loaded'" in str(loaded) and set(files_in(target)) == {"SKILL.md"}


@pytest.mark.parametrize("path", ["a b", "é/日本.md", "100%.md", "-rf", "$(x)", "a'b\"c"])
async def test_any_file_name_is_written(store: Store, source: DistierSkillSource, sandbox: Any, path: str) -> None:
    put_files(store, "skills/ops/deploy", {path: "text"})
    await run(source, sandbox, "deploy")
    assert files_in(directory(sandbox, "deploy"))[path] == b"text"


@pytest.mark.parametrize("name", ["none", "../../elsewhere/secret", "bare", "secret", ""])
async def test_missing_skill_is_the_hosts_error(source: DistierSkillSource, sandbox: Any, name: str) -> None:
    with pytest.raises(SkillsConfigError, match="no valid skill") as caught:
        await source.load_skill(skill_name=name, session=sandbox, skills_path=".agents")
    assert isinstance(caught.value.cause, NotFound)


@pytest.mark.parametrize("path", ["../../../escaped", "/etc/escaped", MARK])
async def test_file_that_would_be_written_elsewhere_is_refused(
    store: Store, source: DistierSkillSource, sandbox: Any, path: str
) -> None:
    store.put(f"skills/ops/deploy/{path}", "x")
    with pytest.raises(SkillsConfigError, match="rename it") as caught:
        await source.load_skill(skill_name="deploy", session=sandbox, skills_path=".agents")
    assert isinstance(caught.value.cause, Invalid) and not directory(sandbox, "deploy").exists()


async def test_a_fault_is_no_missing_skill(
    store: Store, source: DistierSkillSource, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RedisUnavailable("Redis is down")

    for name in ("describe", "get_many"):
        monkeypatch.setattr(Store, name, broken)
    with pytest.raises(RedisUnavailable):
        await source.load_skill(skill_name="deploy", session=sandbox, skills_path=".agents")
    monkeypatch.setattr(Store, "page", broken)
    with pytest.raises(RedisUnavailable):
        await run(source, sandbox)


def test_an_asyncio_store_is_refused(async_store: AsyncStore) -> None:
    with pytest.raises(TypeError, match="blocking"):
        DistierSkillSource(async_store)  # type: ignore[arg-type]
