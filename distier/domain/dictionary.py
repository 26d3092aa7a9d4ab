"""Dictionaries for warm copies: what the modules of a namespace have in common, learned from some of them.

A module of some kilobytes has few repetitions of its own, but it resembles others: headings, front matter, phrases. A
dictionary is up to 64 KiB of such text. lz4 takes it for the bytes before the content, so that a match may refer to it.

    learning    count in how many samples each run of 8 bytes occurs; keep the pieces of which every run is in at least two;
                take the piece whose runs are in the most samples for its length, and count its runs no more; repeat

That is the greedy cover of zstd's COVER and FastCover (`zdict.h`), after Liao and others, "Effective
Construction of Relative Lempel-Ziv Dictionaries" (WWW 2016). As FastCover does, it counts hashes of runs, not runs. The
pieces are cut where no other sample agrees. So text that only one of the samples had is not in the dictionary, but for some
bytes by chance: two runs may have one hash.

A dictionary never changes, and its name is the beginning of its SHA-256.

    <ns>/dictionaries/<name>.dict       the object in the archive
"""

from __future__ import annotations

import hashlib
import heapq
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .codec import DICTIONARY_CONTENT_BYTES_MAX, compress_frame, compress_with_dictionary

DICTIONARY_BYTES_MAX = 64 << 10
"""The distance that an lz4 match reaches back."""
SAMPLES_MAX, SAMPLE_BYTES_MAX = 160, 2 << 20
"""From how many modules, and how many bytes of contents, a dictionary is learned at most. Twice as many samples gained 1
to 2 % and took two and a half times as long."""
HELD_OUT = 5
"""One sample in this many is not learned from: it shows what the dictionary gains."""
GAIN_MIN = 1.1
"""A dictionary is taken into use if frames become smaller by this factor, compared with what is in use."""
NAME_DIGITS = 8
_NAME = re.compile(rf"[0-9a-f]{{{NAME_DIGITS}}}", re.ASCII)
_RUN_BYTES = 8
_PIECE_BYTES_MIN, _PIECE_RUNS_MAX = 12, 256
_SLOTS = 16_777_213
"""A prime number of counters: of the runs of 1 MiB, one in twenty shares its counter with another one."""
_CHOICES = 512
_COUNT_MAX = 255


class Enough(NamedTuple):
    """From how many modules, and how many bytes of contents, a dictionary is learned at least."""

    modules: int = 64
    size_bytes: int = 256_000


class Dictionary(NamedTuple):
    """A dictionary and its name."""

    name: str
    data: bytes


def name_of(data: bytes) -> str:
    """Return the name of a dictionary."""
    return hashlib.sha256(data).hexdigest()[:NAME_DIGITS]


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def dictionaries_prefix(namespace: str) -> str:
    return f"{namespace}/dictionaries/"


def dictionary_key(namespace: str, name: str) -> str:
    """Return the key of a dictionary in the archive."""
    return f"{dictionaries_prefix(namespace)}{name}.dict"


def name_in_key(namespace: str, key: str) -> str | None:
    """Return the name of the dictionary with this key; None for a key that distier did not give."""
    name, dot, extension = key.removeprefix(dictionaries_prefix(namespace)).partition(".")
    return name if is_name(name) and dot + extension == ".dict" else None


def divided(contents: Sequence[bytes], enough: Enough) -> tuple[list[bytes], list[bytes]]:
    """Return the samples to learn from, and those that show what was gained; none if there are too few.

    Empty and large contents are no samples, and equal ones are one: what is in a dictionary must be in two modules.
    """
    samples = [s for s in dict.fromkeys(contents) if 0 < len(s) <= DICTIONARY_CONTENT_BYTES_MAX]
    if len(samples) < enough.modules or sum(map(len, samples)) < enough.size_bytes:
        return [], []
    held_out = samples[::HELD_OUT]
    return [s for i, s in enumerate(samples) if i % HELD_OUT], held_out


def learning(samples: Sequence[bytes]) -> Iterator[bytes | None]:
    """Learn a dictionary in steps of some milliseconds: None after each step, and at last the dictionary.

    It is the same for the same samples, and empty if they have nothing in common. It needs 32 MiB, and 4 bytes for each byte.
    """
    counts, taken = bytearray(_SLOTS), bytearray(_SLOTS)
    runs: list[array[int]] = []
    for sample in samples:
        mine = _runs_of(sample)
        runs.append(mine)
        for run in set(mine):
            if counts[run] < _COUNT_MAX:
                counts[run] += 1
        yield None

    def worth(piece: tuple[int, int, int]) -> float:
        """Return in how many other samples the runs of a piece are that no earlier piece has, for each byte."""
        of, start, stop = piece
        new = {run for run in runs[of][start:stop] if not taken[run]}
        return (sum(counts[run] for run in new) - len(new)) / (stop - start + _RUN_BYTES - 1)

    pieces: list[tuple[int, int, int]] = []
    heap: list[tuple[float, int]] = []
    for i, mine in enumerate(runs):
        for start, stop in _shared(mine, counts):
            heap.append((-worth((i, start, stop)), len(pieces)))
            pieces.append((i, start, stop))
        yield None
    heapq.heapify(heap)
    chosen: list[bytes] = []
    room = DICTIONARY_BYTES_MAX
    looks = 0
    while heap and room > 0:
        # A piece is worth less the more of it is taken, so the first one that is still worth what the heap says is the best.
        was, at = heap[0]
        now = -worth(pieces[at])
        looks += 1
        if now >= 0:
            heapq.heappop(heap)
        elif now > was:
            heapq.heapreplace(heap, (now, at))
        else:
            heapq.heappop(heap)
            of, start, stop = pieces[at]
            chosen.append(samples[of][start : stop + _RUN_BYTES - 1])
            room -= len(chosen[-1])
            for run in runs[of][start:stop]:
                taken[run] = 1
        if looks % _CHOICES == 0:
            yield None
    chosen.reverse()  # the best ones last: the end of the dictionary can be reached from all of the content
    yield b"".join(chosen)[-DICTIONARY_BYTES_MAX:]


def _runs_of(sample: bytes) -> array[int]:
    """Return the hashes of all runs of 8 bytes, in order."""
    n = len(sample) - _RUN_BYTES + 1
    runs = array("I", bytes(4 * max(n, 0)))
    for offset in range(min(_RUN_BYTES, max(n, 0))):
        some = (n - offset + _RUN_BYTES - 1) // _RUN_BYTES
        words = memoryview(sample)[offset : offset + _RUN_BYTES * some].cast("Q")
        runs[offset::_RUN_BYTES] = array("I", [word % _SLOTS for word in words])
    return runs


def _shared(runs: Sequence[int], counts: bytearray) -> Iterator[tuple[int, int]]:
    """Yield the beginning and end of the pieces whose runs are all in several samples."""
    least = _PIECE_BYTES_MIN - _RUN_BYTES + 1
    start = 0
    for at, run in enumerate(runs):
        alone = counts[run] < 2
        if alone or at - start == _PIECE_RUNS_MAX:
            if at - start >= least:
                yield start, at
            start = at + alone
    if len(runs) - start >= least:
        yield start, len(runs)


def ratio(contents: Sequence[bytes], dictionary: Dictionary | None, *, level: int) -> float:
    """Return how many times smaller than their contents the frames are, with a dictionary or without."""
    frames = (
        compress_frame(content, level=level, write_id="0" * 28)
        if dictionary is None
        else compress_with_dictionary(content, *dictionary, level=level)
        for content in contents
    )
    return sum(map(len, contents)) / max(1, sum(len(frame) for _, frame in frames))
