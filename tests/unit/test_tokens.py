"""The token counters: the estimate is compared with the exact counter, on sources that every machine has."""

from __future__ import annotations

import importlib.util
import statistics
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain import tokens
from distier.domain.tokens import Estimate, O200k, TokenCounter, in_parts, token_counter
from distier.errors import Invalid


@pytest.fixture(scope="module")
def exact() -> TokenCounter:
    pytest.importorskip("bpe_openai", reason="the extra `tokens` is not installed")
    return O200k()


def sources() -> list[bytes]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    # this.py is rot13, a text of no language, which the module's docstring excludes
    files = [f for f in sorted(stdlib.glob("*.py")) if f.name != "this.py"]
    return [f.read_bytes() for f in files[:120] if f.stat().st_size >= 200]


def test_the_estimate_is_near_on_real_sources(exact: TokenCounter) -> None:
    errors = [abs(Estimate().count(b) / exact.count(b) - 1) for b in sources()]
    assert len(errors) > 50
    assert statistics.median(errors) < 0.05
    assert max(errors) < 0.30


OTHER_TEXTS = {
    "chinese": "我们认为这些真理是不言而喻的。分布式缓存系统将数据存储在多个节点上。",
    "japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. ",
    "russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "min_js": 'function a(b,c){var d=b.length;for(var e=0;e<d;e++){if(b[e]===c)return e}return-1}var f={"x":1,"y":2};',
    "json": '{"name": "tier", "version": 3, "tags": ["hot", "warm", "cold"], "size": 1048576, "ok": true}',
    "hex": "8f14e45fceea167a5a36dedd4bea2543c9f0f895fb98ab9159f51fd0297e236d",
    "prose": "A module is in exactly one tier; the record decides. Only clean copies expire, and nothing is lost.",
}


@pytest.mark.parametrize("text", OTHER_TEXTS.values(), ids=OTHER_TEXTS)
def test_the_estimate_is_near_on_other_texts(exact: TokenCounter, text: str) -> None:
    content = (text * 4).encode()
    assert Estimate().count(content) == pytest.approx(exact.count(content), rel=0.30)


@pytest.mark.parametrize("unit", ["a", "A", " ", "\n", " \n", "\t ", "0", "_", "é", "字", "\x85", "'s", "=-", "\x00"])
def test_counting_is_linear_on_monotonous_text(unit: str) -> None:
    """A failure would take far longer, not a few per cent: a quadratic branch needs minutes for these 400 kB."""
    content = unit.encode() * (400_000 // len(unit.encode()))
    started = time.process_time()
    assert Estimate().count(content) >= 1
    assert time.process_time() - started < 5


@given(st.binary(max_size=200))
def test_any_bytes_can_be_counted(content: bytes) -> None:
    for counter in (Estimate(), token_counter("auto")):
        n = counter.count(content)
        assert (n == 0) == (not content)
        assert n <= 3 * len(content)


def test_binary_content_counts_three_bytes_per_token() -> None:
    for counter in (Estimate(), token_counter("auto")):
        assert counter.count(b"\xff" * 7) == 3


def test_special_tokens_in_text_count_as_text(exact: TokenCounter) -> None:
    assert exact.count(b"<|endoftext|>") > 1
    assert exact.count(b"hello world") == 2


def test_text_longer_than_the_library_allows_is_counted(exact: TokenCounter) -> None:
    assert exact.count(b"word " * 250_000) == pytest.approx(250_000, rel=0.01)


def test_auto_falls_back_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    token_counter.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bpe_openai" else real(name))
    try:
        assert token_counter("auto").name == "estimate"
        with pytest.raises(Invalid, match="distier\\[tokens\\]"):
            token_counter("o200k")
    finally:
        token_counter.cache_clear()


def test_unknown_counter_is_invalid() -> None:
    assert token_counter("estimate").name == "estimate"
    with pytest.raises(Invalid, match="gpt2"):
        token_counter("gpt2")


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("name", ["o200k", "estimate"])
def test_counting_in_parts_counts_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part ends where no piece can continue, so the sum is the count of the whole."""
    if name == "o200k":
        pytest.importorskip("bpe_openai", reason="the extra `tokens` is not installed")
    counter = token_counter(name)
    texts = [(text * 1000).encode() for text in OTHER_TEXTS.values() if " " in text]
    for content in [b"".join(s for s in sources() if is_text(s)), *texts]:
        with monkeypatch.context() as large:
            large.setattr(tokens, "STEP_BYTES", 1 << 40)
            whole = counter.count(content)
        with monkeypatch.context() as small:
            small.setattr(tokens, "STEP_BYTES", 32768)
            parts = counter.parts(content)  # type: ignore[attr-defined]
            assert b"".join(parts) == content
            assert len(parts) > 1
            assert max(map(len, parts)) <= 32768
            counted = [counter.count(part) for part in parts]
            assert sum(counted) == counter.count(content)
        rounding = len(parts) if name == "estimate" else 0
        assert abs(sum(counted) - whole) <= rounding


@given(st.text(alphabet=" \n/;aA1字\u3000\xa0é's", max_size=4000))
def test_parts_of_any_text_join_to_the_text(text: str) -> None:
    content = (text * 3).encode()
    parts = in_parts(content, 64)
    assert b"".join(parts) == content
    for part in parts:
        part.decode()
    for counter in (Estimate(), token_counter("auto")):
        assert sum(map(counter.count, parts)) == pytest.approx(counter.count(content), abs=len(parts) + 1)
