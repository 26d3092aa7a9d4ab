"""Feeds mutated valid inputs to all code that reads bytes which another program may have written. It runs as a program.

    python -m tests.fuzz.decoders INPUTS      prints the counts as JSON; the exit code is not 0 if an exception escaped

The program limits its address space to `ROOM_BYTES` more than it has at the start, so a decoder that trusts a header fails.
The codecs convert `MemoryError` to `Corrupt`. That is right in production, but would hide such a decoder here, so a `Corrupt`
whose cause is a `MemoryError` counts as an escape.

Hypothesis chooses the inputs: a seed (a valid input), and a few mutations of it: flipped bits, bytes set to extremes, pieces
removed, doubled or taken from another seed, and 2, 4 or 8 bytes replaced by an interesting number (length fields).
"""

from __future__ import annotations

import gc
import hashlib
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from distier.config import Config
from distier.domain import archived, codec
from distier.domain.ids import decode_id, encode_id, from_path, to_path
from distier.domain.module import MAX_CONTENT_BYTES, MAX_COUNT, Record, parse_hot, parse_record
from distier.domain.objects import Fetched
from distier.domain.order import Order, parse_version
from distier.domain.tokens import token_counter
from distier.effects import ArchiveGet, Offload
from distier.errors import Corrupt, DistierError, Invalid
from distier.lua import Adoption, Opened
from distier.plans.common.namespace import Namespace
from distier.plans.common.process_state import Lately
from distier.plans.get.one import open_warm
from distier.plans.recovery.describe import describe
from distier.plans.recovery.walk import Group

ROOM_BYTES = 128 << 20
CONTENT_MAX_BYTES = 1 << 20  # the greatest length that a fuzzed record may claim, so that a right result is small

TEXTS = [b"", b"a", b"what agents load. " * 400, bytes(range(256)) * 64, b"\0" * 200_000, "żółć 漢字 ".encode() * 99]
NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64 - 1]
WORDS = [
    b"nan",
    b"inf",
    b"-1",
    b"1e9",
    b"9" * 400,
    b"9" * 5000,
    b"",
    b"\xff",
    b"%",
    b"%2F",
    b"..",
    b"/",
    b"@",
    b"{",
    b"[" * 3000,
    b"\0",
    "\u00b2".encode(),
    "\u0663".encode(),
    b"true",
    b"null",
    b"{}",
    b"-",
    b"\n",
]

INPUTS_EACH = 5
Mutation = tuple[int, int, int]
# One draw for a whole input: with a list of tuples Hypothesis takes ten times as long as the decoders.
INPUTS = st.binary(min_size=4, max_size=4 + 6 * 5)


def unpack(drawn: bytes) -> tuple[int, list[Mutation], int]:
    """Return the seed number, the mutations, and one more number."""
    big = int.from_bytes
    parts = [drawn[i : i + 5] for i in range(4, len(drawn) - 4, 5)]
    return drawn[0], [(p[0] % 8, big(p[1:3], "big"), big(p[3:5], "big")) for p in parts], big(drawn[1:4], "big")


def mutate(seed: bytes, mutations: Sequence[Mutation], others: Sequence[bytes]) -> bytes:
    data = bytearray(seed)
    for kind, position, value in mutations:
        # Headers matter most: half of the mutations are in the first 32 bytes.
        at = (position // 2) % (min(len(data), 32) or 1) if position % 2 else (position * 131) % (len(data) or 1)
        match kind:
            case 0 if data:
                data[at] ^= 1 << value % 8
            case 1 if data:
                data[at] = (0, 255, 127, 128, value % 256)[value % 5]
            case 2:
                del data[at : at + 1 + value % 64]
            case 3:
                data = data[:at]
            case 4:
                other = others[value % len(others)]
                data[at:] = other[value % (len(other) or 1) :]
            case 5:
                width = (2, 4, 8)[value % 3]
                data[at : at + width] = (NUMBERS[value % len(NUMBERS)] % 256**width).to_bytes(width, "little")
            case 6:
                word = WORDS[value % len(WORDS)]
                data[at : at + (value % 3) * len(word)] = word
            case 7:
                data[at:at] = data[at : at + 1 + value % 512] * (1 + value % 4)
    return bytes(data[: 1 << 21])


# -- the targets: each takes (seed number, mutations, a number) and returns a word for the count ---------------------------

FRAMES = [codec.compress_frame(text, level=level)[1] for text in TEXTS[1:] for level in (0, 9)]
FRAME_SIZES = [len(text) for text in TEXTS[1:] for _ in (0, 9)]
DICTIONARY = b"what agents load, and what they say of it. " * 300
SMALL_TEXTS = [TEXTS[2], TEXTS[3], TEXTS[5], DICTIONARY[::2]]
DICTIONARY_FRAMES = [codec.compress_with_dictionary(text, "0123abcd", DICTIONARY)[1] for text in SMALL_TEXTS]
DICTIONARIES: Lately[bytes] = Lately(4)
DICTIONARIES.put("0123abcd", DICTIONARY)
STREAMS = [codec.compress_xz(text, level=level) for text in TEXTS for level in (0, 6)]


def _frame(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    data = mutate(FRAMES[n % len(FRAMES)], mutations, FRAMES)
    sizes = (
        FRAME_SIZES[n % len(FRAMES)],
        FRAME_SIZES[n % len(FRAMES)],
        NUMBERS[extra % len(NUMBERS)],
        -extra,
        CONTENT_MAX_BYTES,
    )
    size_bytes = min(sizes[extra % 5], MAX_CONTENT_BYTES)
    kind = ("lz4", "lz4", "lz4", "raw", "zip")[extra % 7 % 5]
    content = codec.decompress_frame(kind, data, size_bytes=size_bytes)
    assert len(content) == size_bytes
    return "decoded"


def _dictionary_frame(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    data = mutate(DICTIONARY_FRAMES[n % len(DICTIONARY_FRAMES)], mutations, DICTIONARY_FRAMES + FRAMES)
    size = len(SMALL_TEXTS[n % len(SMALL_TEXTS)])
    size_bytes = min(
        (size, size, NUMBERS[extra % len(NUMBERS)], -extra, CONTENT_MAX_BYTES)[extra % 5], MAX_CONTENT_BYTES
    )
    kind = ("lz4d:0123abcd", "lz4d:0123abcd", "lz4d:0123abcd", "lz4", "lz4e:0123abcd")[extra % 7 % 5]
    dictionary = (DICTIONARY, DICTIONARY, DICTIONARY, None, b"", DICTIONARY[5:])[extra % 11 % 6]
    content = codec.decompress_frame(kind, data, size_bytes=size_bytes, dictionary=dictionary)
    assert len(content) == size_bytes
    return "decoded"


def _xz(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    data = mutate(STREAMS[n % len(STREAMS)], mutations, STREAMS)
    max_bytes = (len(TEXTS[n % len(STREAMS) // 2]), CONTENT_MAX_BYTES, extra % 100, -extra)[extra % 4]
    content = codec.decompress_xz(data, max_bytes=max_bytes)
    assert len(content) <= max_bytes
    return "decoded"


RECORD: dict[bytes, bytes] = {
    b"tier": b"hot",
    b"epoch": b"3",
    b"ver": b"41",
    b"tok": b"9f3a2b1c" * 4,
    b"bytes": b"5",
    b"tokens": b"2",
    b"counter": b"o200k",
    b"sha256": b"0" * 64,
    b"type": b"text/markdown",
    b"keywords": b'["a","b"]',
    b"meta": b'{"a":{"b":[1,2.5,null]}}',
    b"clean": b"1",
    b"seen": b"3",
    b"archived_key": b"t/modules/a/@x.md.xz",
    b"archived_bytes": b"60",
    b"codec": b"lz4",
    b"frame_bytes": b"50",
    b"created": b"1795440399537",
    b"updated": b"1795440399537",
    b"transform": b"json-whitespace",
    b"outline": b"x",
    b"content": b"abcde",
}
VALUES = list(RECORD.values())
WARM_TEXT = b"what agents load. " * 40
WARM_FRAME = codec.compress_frame(WARM_TEXT, level=0)[1]
WARM_DICTIONARY_FRAME = codec.compress_with_dictionary(WARM_TEXT, "0123abcd", DICTIONARY)[1]
WARM_FIELDS = {
    b"tier": b"warm", b"codec": b"lz4", b"bytes": b"720", b"sha256": hashlib.sha256(WARM_TEXT).hexdigest().encode(),
}  # fmt: skip


def _record(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    fields = dict(RECORD)
    names = list(RECORD)
    for i, mutation in enumerate(mutations):
        name = names[(mutation[1] + n + i) % len(names)]
        if mutation[0] == 3 and extra % 2:
            fields.pop(name, None)
        else:
            fields[name] = mutate(fields.get(name, b""), [mutation], VALUES)
    hot = parse_hot("a", fields, 3, extra % 5)
    if hot is not None:
        _check_module(hot)
    record = parse_record("a", fields)
    assert record is not None
    warm = open_warm("a", fields | WARM_FIELDS, WARM_FRAME, Opened(3, extra % 5), DICTIONARIES)
    if warm is not None:
        _check_module(warm)
        assert warm.content == WARM_TEXT and parse_record("a", fields | WARM_FIELDS) is not None
    broken = open_warm(
        "a", dict(RECORD) | WARM_FIELDS, mutate(WARM_FRAME, mutations, VALUES), Opened(3, 3), DICTIONARIES
    )
    assert broken is None or broken.content == WARM_TEXT
    fields = dict(RECORD) | WARM_FIELDS | {b"codec": b"lz4d:0123abcd"}
    broken = open_warm("a", fields, mutate(WARM_DICTIONARY_FRAME, mutations, VALUES), Opened(3, 3), DICTIONARIES)
    assert broken is None or broken.content == WARM_TEXT
    numbers = (
        *record.order[:2],
        record.size_bytes,
        record.tokens,
        record.seen,
        record.archived_bytes,
        record.frame_bytes,
    )
    assert all(0 <= number <= MAX_COUNT for number in numbers) and record.size_bytes <= MAX_CONTENT_BYTES
    _check_module(record.module(b"", "cold"))
    str(record.order), archived.describe(record) if _text_only(record) else None
    return "parsed"


def _text_only(record: Record) -> bool:
    try:
        record.keywords.decode(), record.meta.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_module(module: Any) -> None:
    assert all(isinstance(word, str) for word in module.keywords) and isinstance(module.meta, dict)
    assert module.tokens >= 0


IDS = [
    b"a",
    b"skills/pdf",
    b"..",
    b"a//b",
    b"/a/",
    b"%2E%2E/x",
    "żółć".encode(),
    b"{x}*?[]",
    b"@00000001-x",
    b"x" * 200 + b"/" + b"y" * 50,
    b"a%2Fb",
    b"%40a",
    b"\xc3\xa9",
    b".tmp",
]


def _id(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    text = mutate(IDS[n % len(IDS)], mutations, IDS).decode(errors="surrogateescape" if extra % 8 == 0 else "replace")
    word = "refused"
    try:
        encoded = encode_id(text)
    except Invalid:
        pass
    else:
        word = "encoded"
        assert decode_id(encoded) == text and encoded.isascii() and not set(encoded) & set("{}*?[]\\ \n\0")
        path = to_path(encoded)
        assert from_path(path) == encoded and all(0 < len(p) <= 201 and p not in (".", "..") for p in path.split("/"))
        assert not any(p.startswith("@") for p in path.split("/"))
        assert archived.id_of("t", archived.module_directory("t", text)) == text
    try:
        back = decode_id(from_path(text))
    except Invalid:
        return word
    assert encode_id(back) == from_path(text)
    return "decoded"


KEYS = [
    b"t/modules/a/@00000001-00000000000042-9f3a2b1c.md.xz",
    b"t/modules/a/b/@00000001-00000000000042-9f3a2b1c.deleted",
    b"t/modules/%2E%2E/@00000009-00000000000001-00000000.meta.json",
    b"t/epochs/0/@00000001-9f3a2b1c",
    b"@x",
    b"a/@1-2-3.xz",
]


def _key(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    key = mutate(KEYS[n % len(KEYS)], mutations, KEYS).decode(errors="surrogateescape" if extra % 8 == 0 else "replace")
    found = archived.parse_key(key)
    if found is None:
        return "foreign"
    assert found.key == key and found.order.epoch < 10**8 and found.order.ver < 10**14
    assert key.startswith(f"{found.directory}/{found.order.stem}.")
    archived.sidecar_key(key)
    archived.id_of("t", found.directory)
    return "parsed"


VERSIONS = [b"3-41", b"0-0", b"99999999-99999999999999", b"1-", b"-1", b"1-2-3", "3-\u00b2".encode(), b" 1-2"]


def _version(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    epoch, ver = parse_version(mutate(VERSIONS[n % len(VERSIONS)], mutations, VERSIONS).decode(errors="replace"))
    assert epoch >= 0 and ver >= 0
    return "parsed"


SPACE = Namespace(Config(), token_counter("estimate"), True)
OBJECT = archived.parse_key("t/modules/a/@00000001-00000000000042-9f3a2b1c.md.xz")
SIDECARS = [
    archived.pack_sidecar(
        {
            "distier-tok": "9f3a2b1c" * 4,
            "distier-sha256": "0" * 64,
            "distier-bytes": "5",
            "distier-tokens": "2",
            "distier-type": "text/markdown",
            "distier-keywords": "[]",
            "distier-created": "1",
        }
    ),
    b'{"tok": "9f3a2b1c", "sha256": "' + b"a" * 64 + b'", "bytes": "5", "tokens": "2"}',
    b"[1]",
    b"{}",
    b"null",
    '{"tok": "9f3a2b1c", "sha256": "HEX", "bytes": "\u00b2", "tokens": "2"}'.replace("HEX", "a" * 64).encode(),
    b'{"tok": "9f3a2b1c", "sha256": "' + b"a" * 64 + b'", "bytes": "5", "tokens": "' + b"9" * 5000 + b'"}',
]


def _sidecar(n: int, mutations: Sequence[Mutation], extra: int) -> str:
    """Run the plan that reads a sidecar, and the object (sometimes mutated too) if the sidecar says nothing."""
    assert OBJECT is not None
    sidecar = mutate(SIDECARS[n % len(SIDECARS)], mutations, SIDECARS)
    body = STREAMS[2] if extra % 2 else mutate(STREAMS[2], mutations[:1], STREAMS)
    metadata = {"distier-tok": "9f3a2b1c", "distier-bytes": sidecar[:9].decode(errors="replace"), "x": "%ff"}
    sidecar_object = OBJECT._replace(key="sidecar", kind="meta")
    plan = describe(SPACE, Group(OBJECT.directory, "a", [OBJECT, sidecar_object], {OBJECT.key: 60}), OBJECT)
    fetched = 0
    try:
        effect = next(plan)
        while True:
            match effect:
                case ArchiveGet():
                    fetched += 1
                    effect = plan.send(Fetched(sidecar if fetched == 1 else body, {} if fetched == 1 else metadata))
                case Offload(_, function):
                    effect = plan.send(function())
                case _:
                    raise AssertionError(effect)
    except StopIteration as stop:
        found: Adoption = stop.value
    assert 0 <= found.tokens <= MAX_COUNT and 0 <= found.size_bytes <= MAX_COUNT
    assert found.write_id.startswith("9f3a2b1c") and Order(found.epoch, found.ver, found.write_id[:8]) == OBJECT.order
    return "from the sidecar" if fetched == 1 else "from the object"


TARGETS: dict[str, Callable[[int, Sequence[Mutation], int], str]] = {
    "decompress_frame": _frame,
    "dictionary_frame": _dictionary_frame,
    "decompress_xz": _xz,
    "parse_record": _record,
    "ids": _id,
    "parse_key": _key,
    "parse_version": _version,
    "sidecar": _sidecar,
}
# Decoders written in C get the most inputs.
WEIGHTS = {
    "decompress_frame": 6,
    "dictionary_frame": 4,
    "decompress_xz": 4,
    "parse_record": 4,
    "ids": 2,
    "parse_key": 1,
    "parse_version": 1,
    "sidecar": 2,
}


def fuzz(name: str, inputs: int) -> Counter[str]:
    """Run a target on this many inputs, and count the results. Raises any exception that escapes.

    Each draw of Hypothesis gives several inputs, because one draw takes longer than most decoders.
    """
    counts: Counter[str] = Counter()
    target = TARGETS[name]

    @settings(
        max_examples=-(-inputs // INPUTS_EACH),
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(INPUTS)
    def one(drawn: bytes) -> None:
        n, mutations, extra = unpack(drawn)
        for k in range(INPUTS_EACH):
            counts["inputs"] += 1
            try:
                counts[
                    target(
                        n + k, [(kind, position + 7 * k, value + k) for kind, position, value in mutations], extra + k
                    )
                ] += 1
            except DistierError as e:
                assert not isinstance(e.__cause__, MemoryError), "the decoder ran out of memory"
                assert isinstance(e, Corrupt | Invalid), e
                counts[type(e).__name__] += 1

    one()
    return counts


def own_bytes() -> int:
    """Return the size of the address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(inputs: int) -> None:
    gc.collect()
    base_bytes = own_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (base_bytes + ROOM_BYTES, base_bytes + ROOM_BYTES))
    began_s = time.monotonic()
    total = sum(WEIGHTS.values())
    found = {name: dict(fuzz(name, -(-inputs * weight // total))) for name, weight in WEIGHTS.items()}
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = round(time.monotonic() - began_s, 1)
    json.dump(
        {"counts": found, "base_bytes": base_bytes, "peak_resident_bytes": peak_bytes, "seconds": seconds}, sys.stdout
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
