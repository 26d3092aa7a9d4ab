"""The two codecs: lz4 frames for warm copies, xz streams for the archive.

A header of either format can promise anything: an lz4 frame of a few bytes may announce 2^64 bytes of content,
an xz stream of 15 kB may expand to 100 MB, and other bytes may follow. So the *record* bounds the decoding, never
the bytes themselves. The result has the exact length, one frame or stream uses up all the input, and every defect
is one error, `Corrupt`.

Neither format proves that the bytes are those of a certain version, so callers compare SHA-256 where bytes come from the
archive, from another node or from a disk. A frame in Redis names its version itself: a skippable frame with the write id
follows it, which `lz4 -d` passes over. With that and the checksum of the format (xxHash32), a read from Redis needs no
SHA-256, which takes longer than lz4 from 20 kB on.

A frame that was compressed with a dictionary (`dictionary.py`) has neither of the two, because it proves less: with another
dictionary it opens too, to other bytes. Its codec names the dictionary, and its reader always compares the SHA-256.
"""

from __future__ import annotations

import lzma
import struct

import lz4.block
import lz4.frame

from distier.errors import Corrupt, Invalid

LZ4 = "lz4"
RAW = "raw"
WITH_DICTIONARY = "lz4d:"
"""The beginning of the codec of a frame that was compressed with a dictionary, whose name follows."""
DICTIONARY_CONTENT_BYTES_MAX = 64 << 10
"""Larger contents are compressed without a dictionary: they have enough repetitions of their own."""

# The first bytes of a frame: magic, FLG, BD, content size. One byte of header checksum follows.
_HEADER = struct.Struct("<IBBQ")
_MAGIC = 0x184D2204
# Before each block its length; its highest bit is set where the block is not compressed. After the last one a length of 0.
_BLOCK = struct.Struct("<I")
_END = bytes(4)
# A skippable frame: magic, length of its content (the write id).
_TAG = struct.Struct("<II")
_TAG_MAGIC = 0x184D2A50
_TAG_BYTES = range(8, 65)
# FLG: version 01, content size and content checksum present, no dictionary id and no reserved bit. The
# other two (independent blocks, block checksums) are the encoder's choice.
_FLG_MASK = 0b1100_1111
_FLG_WANTED = 0b0100_1100
# One byte of an lz4 block expands to at most 255 bytes of content.
_LZ4_RATIO_MAX = 255
_LZ4_LEVEL_MAX = 16

_DICT_BYTES_MIN = 4096  # the minimum of LZMA2
_DICT_MIB_OF_PRESET = (0.25, 1, 2, 4, 4, 8, 8, 16, 32, 64)
# A stream of preset 9 needs 65 MiB to decode (64 MiB dictionary and the decoder's state), whichever program wrote
# it. The format's next larger dictionary has 96 MiB and needs more memory than this limit; distier never writes one.
_XZ_MEMORY_BYTES_MAX = 96 << 20

LARGE_BYTES = 1 << 20
"""For contents larger than this the encoder does not search every chain to its end, from preset 5 on. That saves 15 % of the
time on source code and text, and costs 0.2 % more bytes. Lower presets are faster only because they compress worse (preset 4:
8 % more bytes, preset 3: 13 %)."""
_SEARCHING_LEVEL = 5
_LARGE_DEPTH = 24


def compress_frame(data: bytes, *, level: int = 9, write_id: str = "") -> tuple[str, bytes]:
    """Compress into an lz4 frame that contains its content's size and checksum. `lz4 -d` opens it.

    Args:
        data: the content.
        level: 0 for the fast mode, 3 to 16 for the high-compression modes.
        write_id: the version of the content, which the frame names; empty for none.

    Returns:
        `("lz4", frame)`, or `("raw", data)` if the frame would not be smaller.

    Raises:
        Invalid: `level` is out of range.
    """
    if not 0 <= level <= _LZ4_LEVEL_MAX:
        raise Invalid(f"the lz4 level must be 0 to {_LZ4_LEVEL_MAX}, not {level}")
    # Linked blocks: a match may refer to an earlier block (independent blocks are 6 to 10 % larger). Blocks of 64 KiB,
    # not 4 MiB: those would save 0.05 %, and decode 30 % slower, because they do not fit into the CPU's cache.
    frame = lz4.frame.compress(
        data,
        compression_level=level,
        block_size=lz4.frame.BLOCKSIZE_MAX64KB,
        block_linked=True,
        content_checksum=True,
        store_size=True,
    )
    if write_id:
        frame += _TAG.pack(_TAG_MAGIC, len(write_id)) + write_id.encode()
    return (LZ4, frame) if len(frame) < len(data) else (RAW, data)


def names_version(frame: bytes, write_id: bytes) -> bool:
    """Return whether a frame names this version. Frames of layout 1, and copies that are not compressed, name none."""
    return frame.endswith(_TAG.pack(_TAG_MAGIC, len(write_id)) + write_id)


def _is_tag(data: bytes) -> bool:
    length = len(data) - _TAG.size
    return length in _TAG_BYTES and data.startswith(_TAG.pack(_TAG_MAGIC, length))


def compress_with_dictionary(data: bytes, name: str, dictionary: bytes, *, level: int = 9) -> tuple[str, bytes]:
    """Compress into an lz4 frame of one block, with the content's size and without checksums. `lz4 -d -D` opens it.

    Args:
        data: the content, of at most `DICTIONARY_CONTENT_BYTES_MAX`.
        name: the name of the dictionary.
        dictionary: its bytes.
        level: 0 for the fast mode, 3 to 12 for the high-compression modes.

    Returns:
        `("lz4d:<name>", frame)`, or `("raw", data)` if the frame would not be smaller.

    Raises:
        Invalid: `data` is too large.
    """
    if len(data) > DICTIONARY_CONTENT_BYTES_MAX:
        raise Invalid(f"a content of {len(data)} bytes is not compressed with a dictionary")
    if not data:
        return RAW, data
    mode, speed = ("high_compression", level) if level else ("default", 0)
    block = lz4.block.compress(data, mode=mode, compression=speed, store_size=False, dict=dictionary)
    frame = b"%b%b%b%b" % (_frame_header(len(data)), _BLOCK.pack(len(block)), block, _END)
    return (WITH_DICTIONARY + name, frame) if len(frame) < len(data) else (RAW, data)


def _frame_header(size_bytes: int) -> bytes:
    """Return the header of a frame with a dictionary: independent blocks of 64 KiB, the content's size, no content checksum.

    python-lz4 makes frames without dictionaries only, so their one block and their end are added to the header.
    """
    return bytes(
        lz4.frame.compress_begin(
            lz4.frame.create_compression_context(),
            source_size=size_bytes,
            block_size=lz4.frame.BLOCKSIZE_MAX64KB,
            block_linked=False,
        )
    )


def _decompress_with_dictionary(data: bytes, dictionary: bytes, size_bytes: int) -> bytes:
    head = _HEADER.size + 1
    length = len(data) - head - _BLOCK.size - len(_END)
    if length < 1 or not 0 < size_bytes <= min(DICTIONARY_CONTENT_BYTES_MAX, _LZ4_RATIO_MAX * length):
        raise Corrupt(f"{size_bytes} bytes of content cannot be in an lz4 frame of {len(data)} bytes with a dictionary")
    if not data.startswith(_frame_header(size_bytes)):
        raise Corrupt(f"not an lz4 frame with a dictionary for the {size_bytes} bytes of the record")
    if _BLOCK.unpack_from(data, head)[0] != length or not data.endswith(_END):
        raise Corrupt("the lz4 frame is truncated, is not one block, or other bytes follow it")
    try:
        block = data[head + _BLOCK.size : -len(_END)]
        content = lz4.block.decompress(block, uncompressed_size=size_bytes, dict=dictionary)
    except (lz4.block.LZ4BlockError, ValueError, MemoryError) as e:
        raise Corrupt(f"damaged lz4 frame, or another dictionary: {e}") from e
    if len(content) != size_bytes:
        raise Corrupt(f"the lz4 frame does not hold the {size_bytes} bytes of the record")
    return bytes(content)


def decompress_frame(codec: str, data: bytes, *, size_bytes: int, dictionary: bytes | None = None) -> bytes:
    """Return the content of a copy that `compress_frame` or `compress_with_dictionary` made.

    It uses memory for `size_bytes` and one lz4 block (4 MiB) at most.

    Args:
        codec: `lz4`, `raw`, or `lz4d:` and the name of a dictionary. In the last case the caller compares the SHA-256 of the
            content: another dictionary may give other bytes of the same length.
        data: the copy.
        size_bytes: the length of the content, as the record says.
        dictionary: the dictionary that the codec names.

    Raises:
        Corrupt: the codec is unknown, the length is another one, the frame is damaged, truncated or foreign, or other bytes
            follow it.
    """
    if size_bytes < 0:
        raise Corrupt(f"the record says that the content has {size_bytes} bytes")
    if codec == RAW:
        if len(data) != size_bytes:
            raise Corrupt(f"the raw copy has {len(data)} bytes, the record says {size_bytes}")
        return data
    if codec != LZ4:
        if dictionary is not None and codec.startswith(WITH_DICTIONARY):
            return _decompress_with_dictionary(data, dictionary, size_bytes)
        raise Corrupt(f"unknown codec {codec!r}: written by a newer distier?")
    _check_header(data, size_bytes)
    # Not lz4.frame.decompress(): it takes the size in the header as a first guess only, and grows its buffer as long as
    # blocks follow (255 bytes of content for one byte of a block). `max_length` of a chunk is a bound, at the same speed.
    try:
        content, read_bytes, ended = lz4.frame.decompress_chunk(
            lz4.frame.create_decompression_context(), data, max_length=size_bytes
        )
    except (RuntimeError, MemoryError) as e:
        raise Corrupt(f"damaged lz4 frame: {e}") from e
    if not ended or len(content) != size_bytes:
        raise Corrupt(f"the lz4 frame is truncated, or does not hold the {size_bytes} bytes of the record")
    if read_bytes != len(data) and not _is_tag(data[read_bytes:]):
        raise Corrupt(f"{len(data) - read_bytes} bytes follow the lz4 frame")
    return bytes(content)


def _check_header(data: bytes, size_bytes: int) -> None:
    """Reject a header that `compress_frame` never writes, before memory is allocated."""
    if len(data) < _HEADER.size:
        raise Corrupt(f"not an lz4 frame: only {len(data)} bytes")
    magic, flg, _bd, content_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC or flg & _FLG_MASK != _FLG_WANTED:
        raise Corrupt("not an lz4 frame with content size and checksum")
    if content_bytes != size_bytes:
        raise Corrupt(f"the lz4 frame announces {content_bytes} bytes, the record says {size_bytes}")
    # An empty content is never smaller as a frame, and lz4 reads a size of 0 as "unknown".
    if not 0 < size_bytes <= _LZ4_RATIO_MAX * len(data):
        raise Corrupt(f"{size_bytes} bytes of content cannot be in an lz4 frame of {len(data)} bytes")


def compress_xz(data: bytes, *, level: int = 9) -> bytes:
    """Return one `.xz` stream of one block: LZMA2 at the preset `level` (0 to 9), with CRC64.

    The dictionary is no larger than the content (the next power of two, at least 4 KiB). A larger one would hold
    nothing more, and clearing preset 9's match tables for a 64 MiB dictionary costs far more than coding 20 kB.

    Up to `LARGE_BYTES` the stream is as long as that of plain `preset=9`, and has the same LZMA payload, index and footer.
    Five bytes of the block header differ: the dictionary size (offset 16) and the CRC32 of the header (20 to 23). The tests
    check this for liblzma 5.x. The format does not promise it, and nothing here relies on it.

    Raises:
        Invalid: `level` is out of range.
    """
    packer = XzPacker(len(data), level=level)
    return packer.add(data) + packer.end()


class XzPacker:
    """`compress_xz` in steps, for a content of `size_bytes`. A caller whose deadline passes stops between two steps."""

    STEP_BYTES = 256 * 1024

    def __init__(self, size_bytes: int, *, level: int = 9) -> None:
        if not 0 <= level < len(_DICT_MIB_OF_PRESET):
            raise Invalid(f"the xz level must be 0 to {len(_DICT_MIB_OF_PRESET) - 1}, not {level}")
        fitting_bytes = 1 << max(size_bytes - 1, _DICT_BYTES_MIN - 1).bit_length()
        dict_bytes = min(fitting_bytes, int(_DICT_MIB_OF_PRESET[level] * (1 << 20)))
        filters: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": dict_bytes}]
        if size_bytes > LARGE_BYTES and level >= _SEARCHING_LEVEL:
            filters[0]["depth"] = _LARGE_DEPTH
        self._packer = lzma.LZMACompressor(format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)

    def add(self, data: bytes | memoryview) -> bytes:
        """Compress the next part of the content; return the next part of the stream, which may be empty."""
        return self._packer.compress(data)

    def end(self) -> bytes:
        """Return the rest of the stream."""
        return self._packer.flush()


def decompress_xz(data: bytes, *, max_bytes: int) -> bytes:
    """Return the content of the one `.xz` stream in `data`.

    It uses memory for the content (`max_bytes` at most, twice that while the content is joined) and 96 MiB.

    Args:
        data: the stream, and nothing else.
        max_bytes: the greatest length of the content, in bytes.

    Raises:
        Corrupt: the content is longer, the stream is damaged or truncated, or other bytes follow it. Those may be padding or
            a second stream: the format allows both, and `compress_xz` writes neither.
    """
    if max_bytes < 0:  # lzma takes a negative bound for no bound
        raise Corrupt(f"the record says that the content has {max_bytes} bytes")
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES_MAX)
    try:
        # One byte more than allowed: with space left the decoder continues to the stream's end and checks it.
        content = decoder.decompress(data, max_bytes + 1)
    except (lzma.LZMAError, MemoryError) as e:
        raise Corrupt(f"damaged xz stream: {e}") from e
    if len(content) > max_bytes:
        raise Corrupt(f"the xz stream holds more than {max_bytes} bytes")
    if not decoder.eof:
        raise Corrupt(f"the xz stream is truncated after {len(data)} bytes")
    if decoder.unused_data:
        raise Corrupt(f"{len(decoder.unused_data)} bytes follow the xz stream")
    return content


def compress_block(data: bytes, *, level: int | None = 9) -> tuple[str, bytes]:
    """Compress into a bare lz4 block, for the node's own disk.

    A block has no header and no checksum, because its reader knows the length and compares SHA-256. It opens in a third of
    the time of a frame, and for small modules that time is most of a read's cost.

    Returns:
        `("lz4", block)`, or `("raw", data)` if the block would not be smaller or `level` is None.
    """
    if level is None or not data:
        return RAW, data
    mode, speed = ("high_compression", level) if level else ("default", 0)
    block = lz4.block.compress(data, mode=mode, compression=speed, store_size=False)
    return (LZ4, block) if len(block) < len(data) else (RAW, data)


def decompress_block(codec: str, data: bytes, *, size_bytes: int) -> bytes:
    """Return the content, `size_bytes` long, of a copy that `compress_block` made. Raises `Corrupt`."""
    if codec == LZ4:
        if not 0 < size_bytes <= _LZ4_RATIO_MAX * len(data):  # before memory is allocated
            raise Corrupt(f"{size_bytes} bytes of content cannot be in an lz4 block of {len(data)} bytes")
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
