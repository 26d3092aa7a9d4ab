"""Module ids, and how they are written in Redis keys and archive paths.

An id is 1 to 256 bytes of UTF-8. Safe characters stay as they are and the others are percent-encoded. So you can type
every key into redis-cli, distier can read every id back, and no id can break out of its key, its hash tag or its directory.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from urllib.parse import unquote

from distier.errors import Invalid

MAX_ID_BYTES = 256
# Printable ASCII except glob characters and separators of Redis (`{}*?[]\\` and space), quotes (redis-cli), and `%`.
SAFE = frozenset(chr(c) for c in range(0x21, 0x7F)) - set("{}*?[]\\\"'%")
# File systems and `rclone serve s3` allow 255 bytes in a name; the encoded id may have 768.
MAX_SEGMENT_CHARS = 200


def check_id(id: str) -> str:
    """Return `id` if it is a valid module id. Raises `Invalid` with the reason if it is not."""
    if not isinstance(id, str):
        raise Invalid(f"a module id must be a str, not {type(id).__name__}")
    try:
        size = len(id.encode())
    except UnicodeEncodeError as e:
        raise Invalid(f"module id {id!r} has a lone surrogate, which UTF-8 cannot encode") from e
    if not 1 <= size <= MAX_ID_BYTES:
        raise Invalid(f"a module id must have 1 to {MAX_ID_BYTES} bytes of UTF-8, this one has {size}: {id[:40]!r}")
    return id


def _percent(text: str) -> str:
    return "".join(f"%{b:02X}" for b in text.encode())


def _encode_segment(segment: str) -> str:
    if segment in (".", ".."):
        return _percent(segment)
    out = "".join(c if c in SAFE else _percent(c) for c in segment)
    # A leading `@` marks a version object in the archive, and an id must not look like one.
    return "%40" + out[1:] if out.startswith("@") else out


@lru_cache(maxsize=65536)
def encode_id(id: str) -> str:
    """Encode an id for keys and paths. The encoding is injective; `decode_id` returns the id.

    A `/` stays where it separates two non-empty segments and is encoded elsewhere, so that `a//b`, `/a` and
    `a/` become proper paths as well.
    """
    segments = check_id(id).split("/")
    out = _encode_segment(segments[0])
    for before, segment in pairwise(segments):
        out += ("/" if before and segment else "%2F") + _encode_segment(segment)
    return out


def decode_id(encoded: str) -> str:
    """Return the id that `encode_id` encodes as `encoded`. Raises `Invalid` if there is none."""
    try:
        id = unquote(encoded, errors="strict")
    except UnicodeDecodeError as e:
        raise Invalid(f"not an encoded module id: {encoded!r}") from e
    if encode_id(id) != encoded:
        raise Invalid(f"not an encoded module id: {encoded!r}")
    return id


def encode_prefix(prefix: str) -> str:
    """Return the longest common prefix of all encoded ids whose id starts with `prefix`.

    A last `/`, or an incomplete last segment (`.`), may be encoded differently in longer ids, so it is left
    out: the caller must filter the decoded ids too.
    """
    if not prefix:
        return ""
    try:
        prefix.encode()
    except UnicodeEncodeError as e:
        raise Invalid(f"prefix {prefix!r} has a lone surrogate, which UTF-8 cannot encode") from e
    segments = prefix.rstrip("/").split("/")
    if segments[-1].startswith(".") and set(segments[-1]) == {"."}:
        segments.pop()
    if not any(segments):
        return ""
    return encode_id("/".join(segments)) if len(prefix.encode()) <= MAX_ID_BYTES else "%"


def to_path(encoded: str) -> str:
    """Return the archive path of an encoded id.

    Segments longer than 200 characters are cut. A bare `%` at the end marks the cut (`aaa%/aa`); no encoded id contains one.
    """
    return "/".join(_cut(segment) for segment in encoded.split("/"))


def _cut(segment: str) -> str:
    pieces = []
    while len(segment) > MAX_SEGMENT_CHARS:
        at = MAX_SEGMENT_CHARS
        while segment[at:] in (".", ".."):  # the remainder is a segment too
            at -= 1
        while "%" in segment[at - 2 : at]:  # do not cut inside `%XX`
            at -= 1
        pieces.append(segment[:at] + "%")
        segment = segment[at:]
    return "/".join([*pieces, segment])


def from_path(path: str) -> str:
    """Return the encoded id of an archive path (the inverse of `to_path`)."""
    return path.replace("%/", "")
