"""Transforms keep the meaning of a content or leave it unchanged; outlines summarise it; neither ever raises."""

from __future__ import annotations

import ast
import json
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distier.policy import transform
from distier.policy.transform import TRANSFORMS, Transform, apply_transform, outline

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values, st.sampled_from([None, 1, 2, "\t", "\r\n "]), st.booleans())
def test_json_keeps_its_meaning_and_transform_is_idempotent(value: object, indent, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    made = apply_transform("json-whitespace", text.encode())
    smallest = json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only).encode()
    if made is None:
        assert text.encode() == smallest
    else:
        assert made.content == smallest and made.saved_bytes == len(text.encode()) - len(smallest)
        assert apply_transform("json-whitespace", made.content) is None


def test_json_numbers_and_strings_keep_their_spelling() -> None:
    text = r' {"b" : 1.0, "a": 1e5 ,"a":-0, "\u0041 \/": "x \" \\", "n": 123456789012345678901234567890.10 } '
    made = apply_transform("json-whitespace", text.encode())
    assert made is not None
    assert made.content.decode() == (
        r'{"b":1.0,"a":1e5,"a":-0,"\u0041 \/":"x \" \\","n":123456789012345678901234567890.10}'
    )


@pytest.mark.parametrize(
    "content",
    [
        b"", b" ", b"[1, 2", b"[1 2]", b"1 2", b"[NaN, 1]", b"[Infinity ]", b'["a\nb" ]', b"\xef\xbb\xbf[1, 2]",
        b"[1, \xff]", b"{'a': 1}", b'{"a": 1} x', b"[1,2]", b'["unclosed ', b"tr ue", b"[1 ,]", b"[" * 9999 + b" ",
    ],
)  # fmt: skip
def test_content_that_is_not_json_is_unchanged(content: bytes) -> None:
    assert apply_transform("json-whitespace", content) is None


def test_check_catches_a_wrong_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wrong, content in (
        ("json-whitespace", lambda text: text.replace("1.0", "1"), b'{"a": 1.0}'),
        ("json-whitespace", lambda text: text.replace("1.50", "1.5"), b'{"a": 1.50}'),
        ("json-whitespace", lambda text: json.dumps(json.loads(text)), b'{"a": 1, "a": 2}'),
        ("python-minify", lambda text: text.replace("value", "v"), b"value = 1\n"),
        ("python-minify", lambda text: text.replace('"""d"""', "0"), b'"""d"""\n'),
        ("python-minify", lambda text: text.partition("\n")[2], b"#!/bin/python\nx=1\n"),
    ):
        right = TRANSFORMS[name]
        monkeypatch.setitem(transform.TRANSFORMS, name, Transform(wrong, right.meaning, right.bytes_max))
        assert apply_transform(name, content) is None
        monkeypatch.setitem(transform.TRANSFORMS, name, right)


def test_python_loses_only_comments_and_layout() -> None:
    pytest.importorskip("python_minifier", reason="the extra `minify` is not installed")
    source = (
        b'#!/usr/bin/env python\n"""Doc."""\n\n'
        b'def long_name(value: int = 1, /) -> None:  # why\n    """D."""\n    pass\n'
    )
    made = apply_transform("python-minify", source)
    assert made is not None
    assert ast.dump(ast.parse(made.content)) == ast.dump(ast.parse(source))
    assert b"why" not in made.content and b"long_name" in made.content and b"int" in made.content
    assert made.content.startswith(b"#!/usr/bin/env python\n")


def test_python_of_the_standard_library_keeps_its_tree() -> None:
    pytest.importorskip("python_minifier", reason="the extra `minify` is not installed")
    files = [f for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) if f.stat().st_size < 20_000][:15]
    made = [(f, apply_transform("python-minify", f.read_bytes())) for f in files]
    assert sum(m is not None for _, m in made) > 8
    for f, m in made:
        if m is not None:
            assert ast.dump(ast.parse(m.content)) == ast.dump(ast.parse(f.read_bytes()))


@pytest.mark.parametrize(
    "content",
    [
        b"# -*- coding: latin-1 -*-\nx = 1   # a comment\n",
        b"x = []   # type: list[int]\n\n\n",
        b"# /// script\n# dependencies = ['x']\n# ///\nx  =  1\n",
        b"# only a comment\n",
        b"x = (\n", b"x = 1\0  #", b"\xff = 1  #", b"-" * 100_000, b"#" * 600_000, b"",
    ],
)  # fmt: skip
def test_python_that_cannot_be_transformed_is_unchanged(content: bytes) -> None:
    assert apply_transform("python-minify", content) is None


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(alphabet='{}[]",:1e.\\ \n#`-=*()a "\'def class', max_size=200).map(str.encode))
def test_nothing_raises_on_any_bytes(content: bytes) -> None:
    for name in TRANSFORMS:
        made = apply_transform(name, content)
        assert made is None or 0 < len(made.content) < len(content)
    for content_type in ("text/markdown", "text/plain", "text/x-python", "image/png", "", "\0"):
        found = outline(content, content_type, max_chars=50)
        assert found is None or 0 < len(found) <= 50


@pytest.mark.parametrize(
    "unit",
    ["a ", "\n", "a\n", "# x\n", "a.b", "```\n", "- a\n", "1. ", '\\"', '"', "\t", "---\n", "a\n===\n"],
)
def test_transform_time_is_bounded(unit: str) -> None:
    content = unit.encode() * (500_000 // len(unit))
    started = time.process_time()
    outline(content, "text/markdown", max_chars=10**9)
    outline(content, "text/plain", max_chars=10**9)
    apply_transform("json-whitespace", content)
    assert time.process_time() - started < 10


MARKDOWN = """---
name: x
description: "Helps with tiers."
---

# Tiers

![logo](x.png)

A module is hot. Then it
is warm.

More text that is left out.

```python
# not a heading
```

## Rules
1. Copy first. Then flip.
2. Delete.

Older style
-----------
Said once. Said twice.
"""


def test_outline_of_markdown() -> None:
    assert outline(MARKDOWN.encode(), "text/markdown; charset=utf-8") == (
        "Helps with tiers.\n# Tiers\nA module is hot.\n## Rules\n1. Copy first.\n## Older style\nSaid once."
    )


def test_outline_of_text_and_its_limit() -> None:
    text = b"One is here. Two.\n\nThree is\nthere! Four.\n\n" + b"x" * 300 + b" tail of the last one\n"
    found = outline(text, "text/plain")
    assert found == "One is here.\nThree is there!\n" + "x" * 199 + "…"
    assert outline(text, "text/plain", max_chars=30) == "One is here.\nThree is there!"
    assert outline(text, "text/plain", max_chars=5) is None


def test_outline_of_python() -> None:
    source = b'''"""Module line.

More."""
import os
class A(Base, metaclass=M):
    """Class line."""
    x = 1
    async def f(self, a: int = 1, *rest, key=None) -> str:
        """Method line.

        More."""
        def inner(): ...
        return "a long body" * 100
def g(): return 1
'''
    assert outline(source, "text/x-python") == (
        '"""Module line."""\nclass A(Base, metaclass=M):  # Class line.\n'
        "    async def f(self, a: int=1, *rest, key=None) -> str:  # Method line.\ndef g():"
    )


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"{}", "application/json"), (b"\xff\xfe" * 9, "text/plain"), (b"", "text/plain"), (b"def (", "text/x-python"),
     (b"# Only", "text/markdown"), (b"x = 1\n" * 9, "text/x-python")],
)  # fmt: skip
def test_content_without_outline_returns_none(content: bytes, content_type: str) -> None:
    assert outline(content, content_type) is None
