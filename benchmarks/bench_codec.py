"""What the codecs cost and save, on real text: the standard library's sources of the running Python.

Run by `make bench` (`pytest benchmarks/bench_codec.py`); the printed tables need `-s`.
"""

from __future__ import annotations

import lzma
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from distier.domain.codec import compress_frame, compress_xz, decompress_frame, decompress_xz

# The size of a usual module: 2 to 40 kB.
SOURCES = [
    source
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if 2_000 <= len(source := path.read_bytes()) <= 40_000
][::2]
TOTAL_BYTES = sum(map(len, SOURCES))
TYPICAL = min(SOURCES, key=lambda source: abs(len(source) - 20_000))


def xz_plain(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)


def cpu_s(work: Callable[[bytes], object], contents: list[bytes]) -> float:
    began = time.process_time()
    for data in contents:
        work(data)
    return time.process_time() - began


def test_capped_dictionary_compresses_as_well_as_plain_preset_9():
    plain_s, capped_s = cpu_s(xz_plain, SOURCES), cpu_s(compress_xz, SOURCES)
    plain_bytes = sum(len(xz_plain(source)) for source in SOURCES)
    capped_bytes = sum(len(compress_xz(source)) for source in SOURCES)
    print(f"\nxz of {len(SOURCES)} sources, {TOTAL_BYTES / 1e6:.2f} MB; CPU ms each, ratio")
    print(f"  preset 9           {plain_s / len(SOURCES) * 1e3:8.2f}  {TOTAL_BYTES / plain_bytes:.2f}")
    print(f"  capped dictionary  {capped_s / len(SOURCES) * 1e3:8.2f}  {TOTAL_BYTES / capped_bytes:.2f}")
    print(f"  1/{plain_s / capped_s:.1f} of the CPU, {capped_bytes - plain_bytes:+d} bytes")
    assert capped_bytes == plain_bytes
    assert capped_s < plain_s


def test_lz4_levels():
    print(f"\nlz4 frames of {len(SOURCES)} sources; CPU ms each, ratio")
    for level in (0, 3, 6, 9, 12, 16):
        level_s = cpu_s(partial(compress_frame, level=level), SOURCES)
        size_bytes = sum(len(compress_frame(source, level=level)[1]) for source in SOURCES)
        assert 0 < size_bytes < TOTAL_BYTES
        print(f"  level {level:2d}  {level_s / len(SOURCES) * 1e3:8.3f}  {TOTAL_BYTES / size_bytes:.2f}")


@pytest.mark.parametrize("work", [xz_plain, compress_xz, compress_frame])
def test_compress(benchmark, work):
    benchmark(work, TYPICAL)


def test_decompress_frame(benchmark):
    codec, data = compress_frame(TYPICAL)
    assert benchmark(decompress_frame, codec, data, size_bytes=len(TYPICAL)) == TYPICAL


def test_decompress_xz(benchmark):
    assert benchmark(decompress_xz, compress_xz(TYPICAL), max_bytes=len(TYPICAL)) == TYPICAL
