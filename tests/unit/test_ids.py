"""domain/ids.py: every id has one key and one path, and the id can be read from each."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from distier.domain.ids import (
    MAX_ID_BYTES,
    MAX_SEGMENT_CHARS,
    SAFE,
    check_id,
    decode_id,
    encode_id,
    encode_prefix,
    to_path,
)
from distier.domain.ids import from_path as id_from_path
from distier.errors import Invalid

# Characters that break naive encoders are likely, and come in long runs, so that paths are cut.
pieces = st.sampled_from(
    [
        "/",
        ".",
        "..",
        "@",
        "%",
        "%2F",
        "a",
        "A",
        "aa/",
        "é",
        "\u20ac",
        "\U0001f600",
        " ",
        "{x}",
        "*",
        "\\",
        "\0",
        "\n",
        "~",
        "-",
    ]
)
runs = st.builds(lambda piece, n: piece * n, pieces, st.integers(1, 256))
texts = st.lists(pieces | runs | st.text(max_size=4), min_size=1, max_size=8).map("".join)


def fits(text: str) -> bool:
    try:
        return 1 <= len(text.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:
        return False


ids = texts.map(lambda t: t[:MAX_ID_BYTES]).filter(fits)


@given(ids)
@example("a" * 200 + ".")
@example("a" * 200 + "..")
@example("." * 201)
@example("é" * 34 + "..")
def test_id_is_read_back_from_its_key_and_path(id: str) -> None:
    encoded = encode_id(id)
    assert decode_id(encoded) == id
    assert id_from_path(to_path(encoded)) == encoded


@given(ids, ids)
def test_no_two_ids_share_a_key_or_a_path(one: str, other: str) -> None:
    assume(one != other)
    assert encode_id(one) != encode_id(other)
    assert to_path(encode_id(one)) != to_path(encode_id(other))


@given(ids)
def test_keys_can_be_typed(id: str) -> None:
    encoded = encode_id(id)
    assert set(encoded) <= SAFE | {"%"}
    for segment in encoded.split("/"):
        assert segment not in ("", ".", "..")
        assert not segment.startswith("@"), "it would look like a version object"


@given(ids)
@example("a" * 200 + ".")
@example("a" * 200 + "..")
@example("b/" + "a" * 200 + "..")
@example("." * 201)
@example("." * 202)
@example("é" * 66 + "..")
@example("%" * 100)
def test_paths_can_be_file_names(id: str) -> None:
    for segment in to_path(encode_id(id)).split("/"):
        assert segment not in ("", ".", "..")
        assert len(segment) <= MAX_SEGMENT_CHARS + 1


@given(st.lists(ids, max_size=6), texts.filter(lambda t: t.isprintable()) | st.just(""))
@example(["a/b"], "a/")
@example(["a//b"], "a/")
@example(["a/b"], "a/b")
@example(["..a"], "..")
@example(["a/.b"], "a/.")
@example(["@x"], "@")
@example(["a//.b"], "a//.")
@example(["a/"], "a")
def test_prefix_finds_all_ids_that_start_with_it(all_ids: list[str], prefix: str) -> None:
    encoded = encode_prefix(prefix)
    for id in [*all_ids, *(i for i in (prefix, prefix + "x", prefix + "/", prefix + "/x", prefix + ".") if fits(i))]:
        if id.startswith(prefix):
            assert encode_id(id).startswith(encoded), (id, encoded)


@given(ids, st.integers(0, 256))
def test_every_start_of_an_id_is_a_prefix_that_finds_it(id: str, length: int) -> None:
    assert encode_id(id).startswith(encode_prefix(id[:length]))


def test_prefix_narrows_the_scan() -> None:
    assert encode_prefix("skills/pdf") == "skills/pdf"
    assert encode_prefix("skills/") == "skills"
    assert encode_prefix("é") == "%C3%A9"
    assert encode_prefix("") == ""


@given(st.text(max_size=20))
def test_only_what_was_encoded_is_decoded(text: str) -> None:
    try:
        id = decode_id(text)
    except Invalid:
        return
    assert encode_id(id) == text


@pytest.mark.parametrize(
    "text", ["%2f", "a%2Fb", "%41", "%", "%C3", "a//b", "", "é", "@x", ".", "a/../b", "%40", "a" * 257]
)
def test_string_that_no_id_encodes_to_is_refused(text: str) -> None:
    if text == "%40":
        assert decode_id(text) == "@"
        return
    with pytest.raises(Invalid):
        decode_id(text)


def test_limits_of_ids() -> None:
    assert check_id("é" * 128) == "é" * 128
    for bad in ("", "é" * 129, "a" * 257, "\ud800", 5, b"a", None):
        with pytest.raises(Invalid):
            check_id(bad)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        encode_prefix("\ud800")
