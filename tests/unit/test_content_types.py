"""Types and extensions map one to one, and every type gives a safe file name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain.content_types import (
    BINARY,
    EXTENSION_ALIASES,
    EXTENSIONS,
    TYPE_ALIASES,
    check_content_type,
    extension_for,
    guess_content_type,
    type_for_extension,
)
from distier.errors import Invalid


@pytest.mark.parametrize("content_type", EXTENSIONS)
def test_types_and_extensions_map_one_to_one(content_type: str) -> None:
    assert check_content_type(content_type) == content_type
    assert type_for_extension(extension_for(content_type)) == content_type
    assert extension_for(content_type.upper() + "; charset=utf-8") == extension_for(content_type)


def test_aliases_lead_to_known_types() -> None:
    assert set(TYPE_ALIASES.values()) <= set(EXTENSIONS)
    assert not set(TYPE_ALIASES) & set(EXTENSIONS)
    assert set(EXTENSION_ALIASES.values()) <= set(EXTENSIONS.values())
    assert not set(EXTENSION_ALIASES) & set(EXTENSIONS.values())


@given(st.text(max_size=60))
def test_any_type_has_a_safe_extension(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]{1,8}", extension_for(text))


@pytest.mark.parametrize(
    ("content_type", "extension"),
    [
        ("text/unheard-of", "txt"),
        ("video/mp4", "bin"),
        ("application/ld+json", "json"),
        ("application/rss+xml", "xml"),
    ],
)
def test_unknown_type_gets_a_general_extension(content_type: str, extension: str) -> None:
    assert extension_for(content_type) == extension


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a/README.md", b"# x", "text/markdown"),
        ("lib.PY", b"x = 1", "text/x-python"),
        ("lib.py", b"\xff\xfe", BINARY),
        ("logo.png", b"\x89PNG", "image/png"),
        ("Makefile", b"all:\n", "text/plain"),
        ("v1.2", b"text", "text/plain"),
        (".py", b"text", "text/plain"),
        ("core", b"\x7fELF\0", BINARY),
        ("x.bin", b"text", BINARY),
        ("empty", b"", "text/plain"),
    ],
)
def test_guess_by_suffix_and_content(name: str, content: bytes, expected: str) -> None:
    assert guess_content_type(name, content) == expected


@pytest.mark.parametrize("text", ["text/plain", "text/plain; charset=utf-8", 'a/b;c="d e"', "a/" + "b" * 125])
def test_valid_type_is_accepted(text: str) -> None:
    assert check_content_type(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "text/",
        "/plain",
        "text/pl ain",
        "text/plain\n",
        "text/é",
        "a/b;",
        "a/b; c",
        "a/" + "b" * 126,
        None,
    ],
)
def test_invalid_type_is_refused(text) -> None:
    with pytest.raises(Invalid):
        check_content_type(text)
