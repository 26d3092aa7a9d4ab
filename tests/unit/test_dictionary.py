"""Dictionaries: what is learned from some contents, and the frames that are made with it."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from random import Random

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distier.domain.codec import (
    DICTIONARY_CONTENT_BYTES_MAX,
    compress_frame,
    compress_with_dictionary,
    decompress_frame,
)
from distier.domain.dictionary import (
    DICTIONARY_BYTES_MAX,
    HELD_OUT,
    SAMPLES_MAX,
    Dictionary,
    Enough,
    dictionary_key,
    divided,
    learning,
    name_in_key,
    name_of,
    ratio,
)
from distier.errors import Corrupt, Invalid

WORDS = ["read", "the", "file", "and", "return", "its", "lines", "then", "call", "a", "tool"]
SHARED = [" ".join(Random(n).choices(WORDS, k=14)) for n in range(80)]
CODEC = "lz4d:0123abcd"


def text(seed: int, lines: int = 40) -> bytes:
    """Lines that other texts have too, and words of its own."""
    chance = Random(seed)
    return "\n".join(f"{chance.choice(SHARED)} {chance.getrandbits(32):x}" for _ in range(lines)).encode()


def learned(samples: Sequence[bytes]) -> Dictionary:
    *steps, data = learning(samples)
    assert set(steps) <= {None}
    assert data is not None
    return Dictionary(name_of(data), data)


TEXTS = [text(n) for n in range(40)]
LEARNED = learned(TEXTS)


# --- learning ---


def test_learning_gains_on_texts_that_were_not_learned_from():
    others = [text(1000 + n) for n in range(10)]
    assert ratio(others, LEARNED, level=9) > 1.3 * ratio(others, None, level=9)


def test_same_samples_give_the_same_dictionary():
    assert learned(TEXTS) == LEARNED


def test_dictionary_has_no_text_of_one_sample_only():
    secret = b"password: correct horse battery staple 8d3f"
    samples = [text(n) + (secret if n == 7 else b"") + b" the end" for n in range(40)]
    data = learned(samples).data
    assert not any(secret[i : i + 16] in data for i in range(len(secret) - 15))
    twice = [text(n) + (secret if n in (7, 8) else b"") for n in range(40)]
    assert secret in learned(twice).data


def test_samples_without_anything_in_common_give_an_empty_dictionary():
    assert learned([Random(n).randbytes(4000) for n in range(30)]).data == b""
    assert learned([]).data == b""
    assert learned([b"", b"a", b"1234567", b"12345678"]).data == b""


def test_dictionary_has_at_most_64_kib_and_the_most_common_at_its_end():
    common = b"what every module says in its first line\n"
    pairs = [Random(n // 2).randbytes(6000) for n in range(80)]
    data = learned([common + pair + b"%d" % n for n, pair in enumerate(pairs)]).data
    assert len(data) == DICTIONARY_BYTES_MAX
    assert common in data[-512:]


@given(st.lists(st.binary(max_size=200), max_size=8))
@settings(deadline=None, max_examples=40)
def test_any_samples_can_be_learned_from(samples):
    data = learned(samples).data
    runs = [{s[i : i + 8] for i in range(len(s) - 7)} for s in samples]
    pieces = [data[i : i + 8] for i in range(len(data) - 7)]
    if len(samples) < 2:
        assert not data
    elif pieces:
        assert any(piece in some for piece in pieces for some in runs)


def test_samples_are_divided_and_equal_ones_are_one():
    samples, held_out = divided([*TEXTS, *TEXTS, b"", b"x" * (DICTIONARY_CONTENT_BYTES_MAX + 1)], Enough(10, 1000))
    assert sorted(samples + held_out) == sorted(TEXTS)
    assert len(held_out) == len(TEXTS) // HELD_OUT
    assert divided([TEXTS[0]] * 100, Enough(10, 1000)) == ([], [])
    assert divided(TEXTS, Enough(10, 10**6)) == ([], [])
    assert SAMPLES_MAX // HELD_OUT >= 32


def test_name_is_read_from_the_key_of_the_archive():
    key = dictionary_key("team", "0123abcd")
    assert key == "team/dictionaries/0123abcd.dict"
    assert name_in_key("team", key) == "0123abcd"
    for other in (
        "0123abcd",
        "0123ABCD.dict",
        "0123abcde.dict",
        "0123abcd.dict.tmp",
        ".0123abcd.dict",
        "x/0123abcd.dict",
    ):
        assert name_in_key("team", f"team/dictionaries/{other}") is None
    assert name_in_key("team", "team/modules/0123abcd.dict") is None


# --- frames ---

contents = st.binary(min_size=0, max_size=3000) | st.builds(
    lambda n, at, size: TEXTS[n][at : at + size], st.integers(0, 39), st.integers(0, 500), st.integers(0, 3000)
)


@given(contents, st.sampled_from([0, 1, 3, 6, 9, 12]))
def test_frame_returns_the_content_and_is_never_larger(content, level):
    codec, data = compress_with_dictionary(content, "0123abcd", LEARNED.data, level=level)
    assert codec == CODEC if len(data) < len(content) else (codec, data) == ("raw", content)
    assert decompress_frame(codec, data, size_bytes=len(content), dictionary=LEARNED.data) == content


@pytest.mark.parametrize("size", [1000, 65535, 65536])
def test_frame_of_the_largest_content_returns_it(size):
    content = (b"".join(TEXTS) * 2)[:size]
    codec, data = compress_with_dictionary(content, *LEARNED)
    assert decompress_frame(codec, data, size_bytes=size, dictionary=LEARNED.data) == content


def test_larger_content_is_invalid():
    with pytest.raises(Invalid):
        compress_with_dictionary(bytes(DICTIONARY_CONTENT_BYTES_MAX + 1), *LEARNED)


def test_frame_with_a_dictionary_is_smaller_and_says_its_size():
    content = text(77)
    data = compress_with_dictionary(content, *LEARNED)[1]
    assert len(data) < 0.8 * len(compress_frame(content)[1])
    info = lz4.frame.get_frame_info(data)
    assert (info["content_size"], info["block_linked"], info["content_checksum"]) == (len(content), False, False)


def test_no_damage_passes_the_checksum_of_the_content():
    """The frame proves less than a plain one. With the SHA-256, every flipped bit is found, or does no harm."""
    content = text(5, lines=8)
    codec, data = compress_with_dictionary(content, *LEARNED)
    wanted = hashlib.sha256(content).digest()
    refused = other = 0
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = decompress_frame(codec, bytes(damaged), size_bytes=len(content), dictionary=LEARNED.data)
        except Corrupt:
            refused += 1
            continue
        assert len(found) == len(content)
        other += hashlib.sha256(found).digest() != wanted
    assert refused > 19 * 8, "of the header, every bit"
    assert other, "the SHA-256 is needed"


def test_another_dictionary_gives_an_error_or_other_bytes_of_the_same_length():
    content = text(6)
    codec, data = compress_with_dictionary(content, *LEARNED)
    for dictionary in (b"", LEARNED.data[1:], b"x" + LEARNED.data[1:-9], LEARNED.data[::-1]):
        try:
            found = decompress_frame(codec, data, size_bytes=len(content), dictionary=dictionary)
        except Corrupt:
            continue
        assert len(found) == len(content)


def test_frame_of_any_other_length_is_corrupt():
    content = text(8, lines=6)
    codec, data = compress_with_dictionary(content, *LEARNED)
    for cut in range(len(data)):
        with pytest.raises(Corrupt):
            decompress_frame(codec, data[:cut], size_bytes=len(content), dictionary=LEARNED.data)
    for more in (b"\0", b"\0\0\0\0", data, compress_frame(content, write_id="ab" * 14)[1]):
        with pytest.raises(Corrupt):
            decompress_frame(codec, data + more, size_bytes=len(content), dictionary=LEARNED.data)


@pytest.mark.parametrize("size_bytes", [-1, 0, 1, 4095, 4097, 65536, 65537, 1 << 30, 1 << 62])
def test_another_size_is_corrupt_also_where_the_header_agrees(size_bytes):
    content = (b"".join(TEXTS))[:4096]
    codec, data = compress_with_dictionary(content, *LEARNED)
    with pytest.raises(Corrupt):
        decompress_frame(codec, data, size_bytes=size_bytes, dictionary=LEARNED.data)
    if size_bytes > 0:
        context = lz4.frame.create_compression_context()
        head = lz4.frame.compress_begin(context, source_size=size_bytes, block_linked=False)
        with pytest.raises(Corrupt):
            decompress_frame(codec, head + data[15:], size_bytes=size_bytes, dictionary=LEARNED.data)


def test_frames_that_distier_never_writes_are_corrupt():
    content = text(9)
    codec, data = compress_with_dictionary(content, *LEARNED)
    block = data[19:-4]
    head, end = data[:15], bytes(4)
    two = struct.pack("<I", len(block)) + block + struct.pack("<I", 1) + b"\0"
    stored = struct.pack("<I", len(content) | 1 << 31) + content
    for foreign in (head + two + end, head + stored + end, lz4.frame.compress(content, content_checksum=True)):
        with pytest.raises(Corrupt):
            decompress_frame(codec, foreign, size_bytes=len(content), dictionary=LEARNED.data)


def test_codec_without_its_dictionary_is_unknown():
    codec, data = compress_with_dictionary(text(1), *LEARNED)
    for kind, dictionary in ((codec, None), ("lz4e:0123abcd", LEARNED.data), ("lz4", LEARNED.data)):
        with pytest.raises(Corrupt):
            decompress_frame(kind, data, size_bytes=len(text(1)), dictionary=dictionary)


@pytest.mark.skipif(not shutil.which("lz4"), reason="the program lz4 is not here")
@pytest.mark.parametrize("content", [text(3), (b"".join(TEXTS) * 2)[:65536], b"a" * 100])
def test_program_lz4_opens_a_frame(tmp_path: Path, content: bytes):
    (tmp_path / "frame").write_bytes(compress_with_dictionary(content, *LEARNED)[1])
    (tmp_path / "dictionary").write_bytes(LEARNED.data)
    command: list[str | Path] = ["lz4", "-dc", "-D", tmp_path / "dictionary", tmp_path / "frame"]
    assert subprocess.run(command, check=True, capture_output=True).stdout == content
