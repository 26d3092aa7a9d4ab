"""`DistierByteStore` and `DistierCache` where LangChain's own suites do not look. `test_langchain_suite.py` runs those."""

from __future__ import annotations

from typing import Any

import pytest

from distier import Store

pytest.importorskip("langchain_core", reason="langchain-core is not installed (the extra `langchain`)")

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from distier.integrations.langchain import DistierByteStore, DistierCache


@pytest.mark.parametrize("key", ["", "/", "a//b/", "é~%", "~", "k" * 4000, "x/" * 400, "\ud800"])
def test_any_key_can_be_set_read_listed_and_deleted(store: Store, key: str) -> None:
    values = DistierByteStore(store)
    values.mset([(key, b"v"), ("other", b"w")])
    assert values.mget([key, key]) == [b"v", b"v"]
    assert key in list(values.yield_keys())
    values.mdelete([key])
    assert values.mget([key]) == [None] and list(values.yield_keys()) == ["other"]


def test_keys_are_found_by_a_prefix_that_ends_within_a_segment(store: Store) -> None:
    values = DistierByteStore(store)
    keys = ["ab", "ab/c", "ab/cd/" + "e" * 300, "ac", "~z"]
    values.mset([(key, b"") for key in keys])
    for prefix in ("", "a", "ab", "ab/", "ab/c", "ab/cd/e", "~", "none"):
        assert sorted(values.yield_keys(prefix=prefix)) == [key for key in keys if key.startswith(prefix)], prefix


def test_a_value_is_a_module_with_the_key_as_its_id(store: Store) -> None:
    DistierByteStore(store).mset([("docs/a", b"\x00v")])
    module = store.get("langchain/store/docs/a")
    assert module is not None and module.content == b"\x00v"


ANSWERS = [
    Generation(text="t", generation_info={"n": 1}),
    GenerationChunk(text="t"),
    ChatGenerationChunk(message=AIMessageChunk(content="c")),
    ChatGeneration(
        message=AIMessage(
            content=[{"type": "text", "text": "hi"}],
            tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1", "type": "tool_call"}],
            usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
            response_metadata={"model_name": "m"},
        ),
        generation_info={"finish_reason": "stop"},
    ),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_each_kind_of_answer_comes_back_as_it_was(store: Store, answer: Generation) -> None:
    cache = DistierCache(store)
    cache.update("p", "llm", [answer])
    found = cache.lookup("p", "llm")
    assert found == [answer] and type(found[0]) is type(answer)


@pytest.mark.parametrize("content", ["", "[1]", '[{"kind": "os.system"}]', '[{"kind": "Generation"}]', '{"a": 1}'])
def test_an_answer_that_cannot_be_read_is_a_miss_and_is_replaced(store: Store, content: str) -> None:
    cache = DistierCache(store)
    cache.update("p", "llm", [Generation(text="old")])
    (id,) = store.list("langchain/cache/")
    store.put(id, content)
    assert cache.lookup("p", "llm") is None
    cache.update("p", "llm", [Generation(text="new")])
    assert cache.lookup("p", "llm") == [Generation(text="new")]


def test_clearing_one_llm_leaves_the_others(store: Store) -> None:
    cache = DistierCache(store)
    for llm in ("a", "b"):
        cache.update("p", llm, [Generation(text=llm)])
    cache.clear(llm_string="a")
    assert cache.lookup("p", "a") is None and cache.lookup("p", "b") is not None


def test_a_chat_model_asks_its_provider_once(store: Store) -> None:
    answers: Any = iter([AIMessage(content="the only answer")])
    model = GenericFakeChatModel(messages=answers, cache=DistierCache(store))
    assert [model.invoke("What?").content for _ in range(3)] == ["the only answer"] * 3
