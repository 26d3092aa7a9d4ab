"""The two codecs: lz4 frames for warm copies, xz streams for the archive.

Both formats let a header promise anything: an lz4 frame of a few bytes may announce 2^64 bytes of content,
an xz stream of 15 kB may unfold to 100 MB, and either may be followed by something else. So decoding is
always bounded by what the *record* says, never by what the bytes say; the result has the exact length, one
frame or stream uses up all the input, and whatever is wrong is one error, `Corrupt`.

Neither format proves that the bytes are the right ones: callers compare SHA-256 as well. The checksums kept
in the formats (xxHash32, CRC64) are for people who open them with `lz4 -d` and `xz -d`.
"""

from __future__ import annotations

import lzma
import struct

import lz4.block
import lz4.frame

from distier.errors import Corrupt, Invalid

LZ4 = "lz4"
RAW = "raw"

# The first bytes of a frame: magic, FLG, BD, content size. Behind them comes one byte of header checksum.
_HEADER = struct.Struct("<IBBQ")
_MAGIC = 0x184D2204
# FLG: version 01, content size and content checksum present, no dictionary id and no reserved bit. The
# other two (independent blocks, block checksums) are the encoder's choice.
_FLG_MASK = 0b1100_1111
_FLG_WANTED = 0b0100_1100
# One byte of an lz4 block stands for at most 255 bytes of content.
_LZ4_RATIO_MAX = 255
_LZ4_LEVEL_MAX = 16

_DICT_BYTES_MIN = 4096  # the least that LZMA2 allows
_DICT_MIB_OF_PRESET = (0.25, 1, 2, 4, 4, 8, 8, 16, 32, 64)
# A stream of preset 9 needs 65 MiB to decode (64 MiB dictionary and the decoder's state), whatever other
# program wrote it. The next dictionary that the format knows has 96 MiB and needs more than this; nobody
# writes one here.
_XZ_MEMORY_BYTES_MAX = 96 << 20

LARGE_BYTES = 1 << 20
"""Of more than this the encoder does not search every chain to its end, from preset 5 on: 15 % less time on source code and
text, and 0.2 % more bytes. Lower presets are cheaper only where they compress worse (4: 8 % more bytes, 3: 13 %)."""
_SEARCHING_LEVEL = 5
_LARGE_DEPTH = 24


def compress_frame(data: bytes, *, level: int = 9) -> tuple[str, bytes]:
    """`("lz4", frame)`, or `("raw", data)` where the frame would not be smaller.

    `level` 0 is the fast mode, 3 to 16 the high-compression ones. The frame carries its content's size and
    checksum and is read by `lz4 -d`. Raises `Invalid` for another level.
    """
    if not 0 <= level <= _LZ4_LEVEL_MAX:
        raise Invalid(f"an lz4 level is 0 to {_LZ4_LEVEL_MAX}, not {level}")
    # Linked blocks: a match may reach back over a block's edge (independent ones are 6 to 10 % larger). 64
    # KiB and not 4 MiB: that would save 0.05 %, and decode 30 % slower, because a block leaves the CPU's
    # cache.
    frame = lz4.frame.compress(
        data,
        compression_level=level,
        block_size=lz4.frame.BLOCKSIZE_MAX64KB,
        block_linked=True,
        content_checksum=True,
        store_size=True,
    )
    return (LZ4, frame) if len(frame) < len(data) else (RAW, data)


def decompress_frame(codec: str, data: bytes, *, size_bytes: int) -> bytes:
    """The content, `size_bytes` long, that `compress_frame` gave as `(codec, data)`.

    Uses memory for `size_bytes` and one lz4 block (4 MiB) at most. Raises `Corrupt` for an unknown codec,
    another length, a damaged, truncated or foreign frame, and for anything behind the frame.
    """
    if size_bytes < 0:
        raise Corrupt(f"a content of {size_bytes} bytes")
    if codec == RAW:
        if len(data) != size_bytes:
            raise Corrupt(f"the raw copy has {len(data)} bytes, the record says {size_bytes}")
        return data
    if codec != LZ4:
        raise Corrupt(f"unknown codec {codec!r}: written by a newer distier?")
    _check_header(data, size_bytes)
    # Not lz4.frame.decompress(): it takes the size in the header as a first guess only, and grows its
    # buffer for as long as the blocks go on (255 bytes for one). A chunk's `max_length` is a bound, at the
    # same speed.
    try:
        content, read_bytes, ended = lz4.frame.decompress_chunk(
            lz4.frame.create_decompression_context(), data, max_length=size_bytes
        )
    except (RuntimeError, MemoryError) as e:
        raise Corrupt(f"damaged lz4 frame: {e}") from e
    if not ended or len(content) != size_bytes:
        raise Corrupt(f"the lz4 frame is cut off or does not hold the {size_bytes} bytes of the record")
    if read_bytes != len(data):
        raise Corrupt(f"{len(data) - read_bytes} bytes follow the lz4 frame")
    return bytes(content)


def _check_header(data: bytes, size_bytes: int) -> None:
    """Reject what `compress_frame` never writes, before memory is asked for."""
    if len(data) < _HEADER.size:
        raise Corrupt(f"no lz4 frame: only {len(data)} bytes")
    magic, flg, _bd, content_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC or flg & _FLG_MASK != _FLG_WANTED:
        raise Corrupt("no lz4 frame with content size and checksum")
    if content_bytes != size_bytes:
        raise Corrupt(f"the lz4 frame announces {content_bytes} bytes, the record says {size_bytes}")
    # 0 bytes are never smaller as a frame, and lz4 reads 0 as "unknown"; too many can not be in so short a
    # frame.
    if not 0 < size_bytes <= _LZ4_RATIO_MAX * len(data):
        raise Corrupt(f"{size_bytes} bytes of content can not be in an lz4 frame of {len(data)}")


def compress_xz(data: bytes, *, level: int = 9) -> bytes:
    """One `.xz` stream of one block: LZMA2 at the preset `level` (0 to 9), CRC64. Raises `Invalid` for
    another.

    The dictionary is capped to the content (the next power of two, at least 4 KiB): a larger one can hold
    nothing more, and clearing preset 9's match tables for a 64 MiB dictionary costs far more than coding 20
    kB. Up to `LARGE_BYTES` the stream has the length of one by plain `preset=9`, and the same LZMA payload, index and footer;
    five bytes of the block header differ: the dictionary size (offset 16) and the header's CRC32 over it
    (20 to 23). That is what liblzma 5.x does, as the tests check, and not a promise of the format; nothing
    here relies on it.
    """
    packer = XzPacker(len(data), level=level)
    return packer.add(data) + packer.end()


class XzPacker:
    """`compress_xz` in steps, for a content of `size_bytes`: whoever has no more time stops between two of them."""

    STEP_BYTES = 256 * 1024

    def __init__(self, size_bytes: int, *, level: int = 9) -> None:
        if not 0 <= level < len(_DICT_MIB_OF_PRESET):
            raise Invalid(f"an xz level is 0 to {len(_DICT_MIB_OF_PRESET) - 1}, not {level}")
        fitting_bytes = 1 << max(size_bytes - 1, _DICT_BYTES_MIN - 1).bit_length()
        dict_bytes = min(fitting_bytes, int(_DICT_MIB_OF_PRESET[level] * (1 << 20)))
        filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": dict_bytes}]
        if size_bytes > LARGE_BYTES and level >= _SEARCHING_LEVEL:
            filters[0]["depth"] = _LARGE_DEPTH
        self._packer = lzma.LZMACompressor(format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)

    def add(self, data: bytes | memoryview) -> bytes:
        """What there is of the stream."""
        return self._packer.compress(data)

    def end(self) -> bytes:
        """The rest of it."""
        return self._packer.flush()


def decompress_xz(data: bytes, *, max_bytes: int) -> bytes:
    """The content of the one `.xz` stream that is all of `data`.

    Uses memory for the content (`max_bytes` at most, twice while it is put together) and 96 MiB. Raises
    `Corrupt` for a longer content, a damaged or truncated stream, and for anything behind it (padding or a
    second stream: the format allows both, `compress_xz` writes neither).
    """
    if max_bytes < 0:  # to lzma a negative bound is none
        raise Corrupt(f"a content of {max_bytes} bytes")
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES_MAX)
    try:
        # One byte more than allowed: with room left the decoder goes on to the stream's end and its checks.
        content = decoder.decompress(data, max_bytes + 1)
    except (lzma.LZMAError, MemoryError) as e:
        raise Corrupt(f"damaged xz stream: {e}") from e
    if len(content) > max_bytes:
        raise Corrupt(f"the xz stream holds more than {max_bytes} bytes")
    if not decoder.eof:
        raise Corrupt(f"the xz stream is cut off after {len(data)} bytes")
    if decoder.unused_data:
        raise Corrupt(f"{len(decoder.unused_data)} bytes follow the xz stream")
    return content


def compress_block(data: bytes, *, level: int | None = 9) -> tuple[str, bytes]:
    """`("lz4", block)`, or `("raw", data)` where the block would not be smaller or `level` is None.

    A bare lz4 block for the node's own disk: no header and no checksum, because whoever opens it knows the length and
    compares SHA-256. It opens in a third of the time of a frame, which for small modules is what a read costs.
    """
    if level is None or not data:
        return RAW, data
    mode, speed = ("high_compression", level) if level else ("default", 0)
    block = lz4.block.compress(data, mode=mode, compression=speed, store_size=False)
    return (LZ4, block) if len(block) < len(data) else (RAW, data)


def decompress_block(codec: str, data: bytes, *, size_bytes: int) -> bytes:
    """The content, `size_bytes` long, that `compress_block` gave as `(codec, data)`; raises `Corrupt`."""
    if codec == LZ4:
        if not 0 < size_bytes <= _LZ4_RATIO_MAX * len(data):  # before memory is asked for
            raise Corrupt(f"{size_bytes} bytes of content can not be in an lz4 block of {len(data)}")
        try:
            content = lz4.block.decompress(data, uncompressed_size=size_bytes)
        except (lz4.block.LZ4BlockError, ValueError, MemoryError) as e:
            raise Corrupt(f"damaged lz4 block: {e}") from e
    elif codec == RAW:
        content = data
    else:
        raise Corrupt(f"unknown codec {codec!r}: written by a newer distier?")
    if len(content) != size_bytes:
        raise Corrupt(f"the copy holds {len(content)} bytes, the record says {size_bytes}")
    return bytes(content)
