"""The codecs return the content that was compressed, or an error.

The tests try all damage on small inputs: every bit, every length. Both formats have checksums for every byte (lz4: header
and content; xz: headers, index, footer and content), so damage never gives wrong bytes. It may give the right ones: in a
text that repeats itself, a match may refer to an earlier repetition as well.
"""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distier.domain.codec import compress_frame, compress_xz, decompress_frame, decompress_xz, names_version
from distier.errors import Corrupt, Invalid

TEXT = b"A module is in exactly one tier; the record decides. " * 12
VARIED = " ".join(f"{n} is {n * n} {chr(97 + n % 26)}," for n in range(60)).encode()
contents = st.binary(max_size=3000) | st.builds(lambda part, n: part * n, st.binary(max_size=40), st.integers(0, 3000))


def foreign(content: bytes, **options) -> bytes:
    """Return an lz4 frame as another program may write it."""
    given = {"content_checksum": True, "store_size": True} | options
    return bytes(lz4.frame.compress(content, **given))


def with_size(frame: bytes, size_bytes: int) -> bytes:
    """Return the frame with another content size and a matching header checksum, as an attacker would."""
    head = frame[4:6] + struct.pack("<Q", size_bytes)
    return frame[:4] + head + bytes([xxh32(head) >> 8 & 0xFF]) + frame[15:]


def xxh32(data: bytes) -> int:
    """xxHash32 of fewer than 16 bytes (seed 0)."""
    mask, h = 0xFFFFFFFF, (0x165667B1 + len(data)) & 0xFFFFFFFF
    while len(data) >= 4:
        h = (h + int.from_bytes(data[:4], "little") * 0xC2B2AE3D) & mask
        h = ((h << 17 | h >> 15) * 0x27D4EB2F) & mask
        data = data[4:]
    for byte in data:
        h = (h + byte * 0x165667B1) & mask
        h = ((h << 11 | h >> 21) * 0x9E3779B1) & mask
    h = ((h ^ h >> 15) * 0x85EBCA77) & mask
    h = ((h ^ h >> 13) * 0xC2B2AE3D) & mask
    return h ^ h >> 16


def run_limited(script: str, data: bytes, path: Path, *, mib: int) -> list[str]:
    """Run a script on `data` in a process with `mib` of free address space; return the lines that it prints."""
    path.write_bytes(data)
    limited = f"""
import lzma, pathlib, resource, sys, tracemalloc
import lz4.frame
from distier.domain.codec import decompress_frame, decompress_xz
from distier.errors import Corrupt

data = pathlib.Path(sys.argv[1]).read_bytes()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ({mib} << 20),) * 2)
{script}
"""
    done = subprocess.run([sys.executable, "-c", limited, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory in /proc")


# --- lz4 ---


@given(contents, st.sampled_from([0, 1, 3, 9, 12, 16]))
def test_frame_returns_the_content_and_is_never_larger(content, level):
    codec, data = compress_frame(content, level=level)
    assert codec == "lz4" if len(data) < len(content) else (codec, data) == ("raw", content)
    assert decompress_frame(codec, data, size_bytes=len(content)) == content


@pytest.mark.parametrize("size_bytes", [65535, 65536, 65537, 262_144, 4 << 20, (4 << 20) + 1, 9_000_001])
def test_frame_of_many_blocks_returns_the_content(size_bytes):
    line = Random(size_bytes).randbytes(3000)
    content = (line * (size_bytes // len(line) + 1))[:size_bytes]
    codec, data = compress_frame(content)
    assert codec == "lz4"
    assert decompress_frame(codec, data, size_bytes=size_bytes) == content
    with pytest.raises(Corrupt):
        decompress_frame(codec, data[:-5], size_bytes=size_bytes)


@pytest.mark.parametrize("level", [-1, 17])
def test_unknown_lz4_level_is_invalid(level):
    with pytest.raises(Invalid):
        compress_frame(TEXT, level=level)


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        yield position, bytes(damaged)


@pytest.mark.parametrize("content", [TEXT, VARIED])
def test_no_flipped_bit_of_a_frame_gives_wrong_bytes(content):
    _, frame = compress_frame(content)
    harmless = 0
    for position, damaged in flips(frame):
        try:
            assert decompress_frame("lz4", damaged, size_bytes=len(content)) == content, position
            harmless += 1
        except Corrupt:
            pass
    assert harmless < len(frame) * 8 // 50


def test_every_truncation_of_a_frame_is_noticed():
    _, frame = compress_frame(TEXT)
    for length in range(len(frame)):
        with pytest.raises(Corrupt):
            decompress_frame("lz4", frame[:length], size_bytes=len(TEXT))
            pytest.fail(f"{length} of {len(frame)} bytes")


@pytest.mark.parametrize("tail", [b"\0", b"x", foreign(b"more" * 50), b"\x50\x2a\x4d\x18\x01\0\0\0x"])
def test_bytes_after_a_frame_are_corrupt(tail):
    _, frame = compress_frame(TEXT)
    with pytest.raises(Corrupt, match="follow"):
        decompress_frame("lz4", frame + tail, size_bytes=len(TEXT))


def test_header_checksum_of_these_tests_equals_that_of_lz4():
    _, frame = compress_frame(TEXT)
    assert with_size(frame, len(TEXT)) == frame


@pytest.mark.parametrize("lie", [0, 1, len(TEXT) - 1, len(TEXT) + 1, 10**6, 1 << 40, 2**64 - 1])
def test_frame_with_wrong_size_is_corrupt(lie):
    _, frame = compress_frame(TEXT)
    for size_bytes in (lie, len(TEXT)):  # whether the record repeats the wrong size or not
        with pytest.raises(Corrupt):
            decompress_frame("lz4", with_size(frame, lie), size_bytes=size_bytes)
    with pytest.raises(Corrupt):
        decompress_frame("lz4", frame, size_bytes=lie)


@pytest.mark.parametrize("options", [{"store_size": False}, {"content_checksum": False}])
def test_frame_without_size_or_checksum_is_corrupt(options):
    with pytest.raises(Corrupt):
        decompress_frame("lz4", foreign(TEXT, **options), size_bytes=len(TEXT))


@pytest.mark.parametrize(
    "options",
    [{"block_size": 7}, {"block_linked": False}, {"block_checksum": True}, {"compression_level": 16}],
)
def test_frame_with_other_blocks_is_read(options):
    assert decompress_frame("lz4", foreign(TEXT, **options), size_bytes=len(TEXT)) == TEXT


@given(st.binary(max_size=200), st.integers(0, 2**64), st.sampled_from(["lz4", "raw", "", "zstd"]), st.booleans())
@settings(max_examples=300)
def test_any_bytes_decode_to_the_exact_length_or_are_corrupt(data, size_bytes, codec, like_a_frame):
    if like_a_frame:
        data = foreign(TEXT)[: 20 + len(data) % 30] + data
        size_bytes = len(TEXT)
    try:
        content = decompress_frame(codec, data, size_bytes=size_bytes)
    except Corrupt:
        return
    assert len(content) == size_bytes


def test_raw_copy_of_another_length_is_corrupt():
    assert decompress_frame("raw", b"abc", size_bytes=3) == b"abc"
    for size_bytes in (2, 4, 0):
        with pytest.raises(Corrupt):
            decompress_frame("raw", b"abc", size_bytes=size_bytes)


@needs_proc
def test_lz4_bomb_gets_no_memory(tmp_path):
    """A frame of 2 MB with 500 MB of content announces 1 kB. `lz4.frame.decompress` would return 500 MB."""
    frame = foreign(bytes(500_000_000))
    script = """
try:
    lz4.frame.decompress(data)
except (MemoryError, RuntimeError) as e:
    print("boom")
tracemalloc.start()
for size_bytes in (1000, 500_000_000):
    try:
        decompress_frame("lz4", data, size_bytes=size_bytes)
    except Corrupt:
        print("defused" if tracemalloc.get_traced_memory()[1] < 1_000_000 else "too late")
"""
    lines = run_limited(script, with_size(frame, 1000), tmp_path / "bomb", mib=64)
    assert lines == ["boom", "defused", "defused"]


@pytest.mark.skipif(shutil.which("lz4") is None, reason="no lz4 program on PATH")
@pytest.mark.parametrize("content", [TEXT, TEXT * 5000, b"a" * 100])
def test_lz4_program_and_codec_read_each_other(content):
    codec, frame = compress_frame(content)
    assert codec == "lz4"
    assert subprocess.run(["lz4", "-dc"], input=frame, capture_output=True, check=True).stdout == content
    assert subprocess.run(["lz4", "-t"], input=frame, capture_output=True).returncode == 0
    command = ["lz4", "-9", "-c", "--content-size", "-"]
    theirs = subprocess.run(command, input=content, capture_output=True, check=True).stdout
    # From a pipe the program does not know the size, so it writes none: such a frame is refused.
    with pytest.raises(Corrupt, match="content size"):
        decompress_frame("lz4", theirs, size_bytes=len(content))


# --- xz ---


@given(contents, st.sampled_from([0, 6, 9]))
@settings(max_examples=40)
def test_xz_stream_returns_the_content(content, level):
    data = compress_xz(content, level=level)
    assert decompress_xz(data, max_bytes=len(content)) == content
    assert lzma.decompress(data, format=lzma.FORMAT_XZ) == content
    if content:
        with pytest.raises(Corrupt, match="more than"):
            decompress_xz(data, max_bytes=len(content) - 1)


@pytest.mark.parametrize("level", [-1, 10])
def test_unknown_xz_level_is_invalid(level):
    with pytest.raises(Invalid):
        compress_xz(TEXT, level=level)


def stdlib_sources(*, bytes_max: int) -> list[bytes]:
    sources = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    return [source for source in sources[::6] if 0 < len(source) <= bytes_max]


@pytest.mark.parametrize(
    "content",
    [*stdlib_sources(bytes_max=40_000)[:6], b"", b"a", b"a" * 4097, Random(1).randbytes(70_000), TEXT * 2000],
    ids=len,
)
def test_smaller_dictionary_changes_only_five_header_bytes(content):
    """They are the dictionary's size (16) and the CRC32 of the block header (20 to 23). See `compress_xz`."""
    ours = compress_xz(content)
    plain = lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)
    assert len(ours) == len(plain)
    different = [i for i, (a, b) in enumerate(zip(ours, plain, strict=True)) if a != b]
    assert different == ([16, 20, 21, 22, 23] if content else [])  # an empty stream has no block


@pytest.mark.parametrize(
    ("size_bytes", "level", "dict_bytes"),
    [
        (1, 9, 4096),
        (4096, 9, 4096),
        (4097, 9, 8192),
        (8192, 9, 8192),
        (100_000, 9, 1 << 17),
        (600_000, 0, 1 << 18),
        (600_000, 1, 1 << 20),
    ],
)
def test_dictionary_is_just_as_large_as_the_content(size_bytes, level, dict_bytes):
    byte = compress_xz(bytes(size_bytes), level=level)[16]
    assert (2 | byte & 1) << (byte // 2 + 11) == dict_bytes  # the .xz format, 5.3.1


@pytest.mark.parametrize("content", [TEXT, VARIED])
def test_no_flipped_bit_of_an_xz_stream_is_overlooked(content):
    for position, damaged in flips(compress_xz(content)):
        with pytest.raises(Corrupt):
            decompress_xz(damaged, max_bytes=len(content))
            pytest.fail(f"bit {position}")


def test_every_truncation_of_an_xz_stream_is_noticed():
    data = compress_xz(TEXT)
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            decompress_xz(data[:length], max_bytes=len(TEXT))
            pytest.fail(f"{length} of {len(data)} bytes")


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0\0", b"x", compress_xz(b"more"), compress_xz(b"")])
def test_bytes_after_an_xz_stream_are_corrupt(tail):
    with pytest.raises(Corrupt, match="follow"):
        decompress_xz(compress_xz(TEXT) + tail, max_bytes=1 << 20)


@pytest.mark.parametrize("format", [lzma.FORMAT_ALONE, lzma.FORMAT_RAW])
def test_other_formats_are_corrupt(format):
    filters = [{"id": lzma.FILTER_LZMA2}] if format == lzma.FORMAT_RAW else None
    with pytest.raises(Corrupt):
        decompress_xz(lzma.compress(TEXT, format=format, filters=filters), max_bytes=1 << 20)


@given(st.binary(max_size=300), st.integers(0, 1000), st.booleans())
@settings(max_examples=200)
def test_any_bytes_decode_to_a_bounded_content_or_are_corrupt(data, max_bytes, like_a_stream):
    if like_a_stream:
        data = compress_xz(TEXT)[: 30 + len(data) % 60] + data
    try:
        content = decompress_xz(data, max_bytes=max_bytes)
    except Corrupt:
        return
    assert len(content) <= max_bytes


def test_dictionary_larger_than_any_preset_is_corrupt():
    def stream(dict_mib: int) -> bytes:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dict_mib << 20}]
        return lzma.compress(b"x" * 100, format=lzma.FORMAT_XZ, filters=filters)

    assert decompress_xz(stream(64), max_bytes=100) == b"x" * 100
    with pytest.raises(Corrupt, match="Memory usage limit"):
        decompress_xz(stream(96), max_bytes=100)


@needs_proc
def test_xz_bomb_gets_no_memory(tmp_path):
    """A stream of 22 kB has 150 MB of content."""
    script = """
try:
    lzma.decompress(data)
except MemoryError:
    print("boom")
try:
    decompress_xz(data, max_bytes=1_000_000)
except Corrupt as e:
    print(e)
"""
    lines = run_limited(script, lzma.compress(bytes(150_000_000), preset=0), tmp_path / "bomb", mib=64)
    assert lines == ["boom", "the xz stream holds more than 1000000 bytes"]


@pytest.mark.skipif(shutil.which("xz") is None, reason="no xz program on PATH")
@pytest.mark.parametrize("content", [b"", TEXT, TEXT * 500])
def test_xz_program_and_codec_read_each_other(content):
    data = compress_xz(content)
    assert subprocess.run(["xz", "-t"], input=data, capture_output=True).returncode == 0
    assert subprocess.run(["xz", "-dc"], input=data, capture_output=True, check=True).stdout == content
    theirs = subprocess.run(["xz", "-9c"], input=content, capture_output=True, check=True).stdout
    assert decompress_xz(theirs, max_bytes=len(content)) == content


def test_random_content_round_trips_in_both_codecs():
    content = os.urandom(100_000)
    codec, data = compress_frame(content)
    assert (codec, decompress_frame(codec, data, size_bytes=len(content))) == ("raw", content)
    assert decompress_xz(compress_xz(content), max_bytes=len(content)) == content


# -- frames that name their version ------------------------------------------------------------------------------------

WRITE_ID = "0123456789abcdef0123" + "89abcdef"
NAMED_TEXT = b"A line of text that repeats itself. " * 40


def test_named_frame_names_its_version_alone_and_opens_as_any_frame():
    codec, frame = compress_frame(NAMED_TEXT, write_id=WRITE_ID)
    assert names_version(frame, WRITE_ID.encode())
    for other in (WRITE_ID[:-1], WRITE_ID[:-1] + "0", WRITE_ID + "0", ""):
        assert not names_version(frame, other.encode())
    assert not names_version(compress_frame(NAMED_TEXT)[1], WRITE_ID.encode())
    assert decompress_frame(codec, frame, size_bytes=len(NAMED_TEXT)) == NAMED_TEXT


def test_no_flipped_bit_of_a_named_frame_gives_wrong_bytes():
    codec, frame = compress_frame(NAMED_TEXT, write_id=WRITE_ID)
    opened = 0
    for position, damaged in flips(frame):
        try:
            assert decompress_frame(codec, damaged, size_bytes=len(NAMED_TEXT)) == NAMED_TEXT, position
            opened += 1
        except Corrupt:
            pass
    assert opened <= 8 * len(WRITE_ID) + len(frame) * 8 // 50, "those that only change the name"


def test_every_truncation_of_a_named_frame_is_noticed():
    codec, frame = compress_frame(NAMED_TEXT, write_id=WRITE_ID)
    bare = compress_frame(NAMED_TEXT)[1]
    assert frame.startswith(bare)
    for length in range(len(frame)):
        if length == len(bare):  # a whole frame that names no version
            continue
        with pytest.raises(Corrupt):
            decompress_frame(codec, frame[:length], size_bytes=len(NAMED_TEXT))


def test_decoder_of_one_frame_opens_a_named_one():
    assert lz4.frame.decompress(compress_frame(NAMED_TEXT, write_id=WRITE_ID)[1]) == NAMED_TEXT


@pytest.mark.skipif(not shutil.which("lz4"), reason="no lz4 on PATH")
def test_lz4_opens_a_named_frame(tmp_path):
    path = tmp_path / "frame.lz4"
    path.write_bytes(compress_frame(NAMED_TEXT, write_id=WRITE_ID)[1])
    assert subprocess.run(["lz4", "-dc", path], capture_output=True, check=True).stdout == NAMED_TEXT
