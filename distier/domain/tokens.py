"""Token counts. Tokens are the unit of the hot budget, because a module costs its readers context, not bytes.

There are two counters. `o200k` is exact for current models. It uses the Rust crate behind `bpe-openai` (an extra; about
50 ms and 70 MB of tables in each process that counts). `estimate` needs only `re`. It cuts text as o200k's own first
stage does (words, numbers of up to three digits, runs of punctuation, newlines) and counts the pieces, since nearly all
of them are one token. On the standard library's sources, Markdown, JSON and JavaScript it is within 5 % for half of the
files and within 20 % for nearly all (chars/4 is off by up to 68 %). The exception is text of no language, such as rot13
prose. Both are linear in time. The estimate has 0.4 to 0.8 of the speed of the exact count, some 6 to 12 MB/s: it exists
for machines without the extra, not for speed.

Both count a long text in parts of at most `STEP_BYTES`, so that a call whose deadline passes ends between two parts. A part
ends where no token of o200k can begin before the cut and end after it, so the sum is exact. The exception is a text without
such a cut in tens of kilobytes (base64 without line ends), where each cut may add one token.

Bytes that are not UTF-8 are not text to a model. For them both counters count one token for three bytes, rounded up, so the
counter's name in a record always says how its number was computed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from typing import Any, Protocol

from distier.errors import Invalid


class TokenCounter(Protocol):
    """Counts tokens. Each record keeps the counter's `name`, so that numbers of two counters are not compared.

    A counter may also have a method `parts(content)`, which returns parts whose counts add up to the count of the whole. A call
    can then end between two parts when its deadline passes.
    """

    @property
    def name(self) -> str: ...

    def count(self, content: bytes) -> int:
        """Return the number of tokens in `content`: 0 for empty content, otherwise at least 1. Never raises."""
        ...


STEP_BYTES = 256 * 1024
"""The bytes that are counted in one step, which takes some 40 ms."""
# The places to cut: after a letter or digit (ASCII, Cyrillic, Han, Hangul) and before white space; after a line end and before
# anything but white space or a slash (o200k joins a slash to the line ends after punctuation). Lead bytes of white space
# outside ASCII are excluded.
_SEAM = re.compile(
    rb"""
      (?:(?<=[0-9A-Za-z]) | (?<=[\xd0\xd1][\x80-\xbf]) | (?<=[\xe5-\xe9\xeb\xec][\x80-\xbf][\x80-\xbf])) (?=[\x20\t\r\n])
    | (?<=\n) (?=[^\s/\x1c-\x1f\x80-\xc2\xe1-\xe3])
    """,
    re.VERBOSE,
)


def in_parts(content: bytes, step_bytes: int) -> list[bytes]:
    """Cut `content` into parts of at most `step_bytes` whose token counts add up.

    Characters stay whole. Content that is not UTF-8 is one part.
    """
    if len(content) <= step_bytes or _text(content) is None:
        return [content]
    parts, start = [], 0
    while len(content) - start > step_bytes:
        end = start + step_bytes
        if seam := _SEAM.search(content, end - step_bytes // 4, end):
            end = seam.start()
        else:
            while content[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        parts.append(content[start:end])
        start = end
    return [*parts, content[start:]]


def _text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _binary_tokens(content: bytes) -> int:
    return -(-len(content) // 3)


_PACKAGE = "bpe_openai"


def _bindings() -> Any:
    """Return the extension module of `bpe_openai`, without its package.

    The package reads the tables of all its encodings into dicts of Python, which takes a second and 100 MB more; the extension
    has tables of its own. distier uses the extension directly anyway: `Encoding` refuses a million characters or more, builds a
    list of all tokens only to measure it, and takes `<|endoftext|>` in a text for a command.
    """
    name = f"{_PACKAGE}._bindings"
    package = importlib.util.find_spec(_PACKAGE)
    found = package and PathFinder.find_spec(name, package.submodule_search_locations)
    if name in sys.modules or found is None or found.loader is None:
        return importlib.import_module(name)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class O200k:
    """Counts exactly, in the encoding `o200k_base`. Raises `ImportError` without the extra `tokens`."""

    name = "o200k"

    def __init__(self) -> None:
        if importlib.util.find_spec(_PACKAGE) is None:
            raise ImportError(f"{_PACKAGE} is not installed")
        # Loaded at the first count: the tables take 50 ms and 70 MB, and most processes only read.
        self._counting: Callable[[str], int] | None = None

    @property
    def is_loaded(self) -> bool:
        return self._counting is not None

    def load(self) -> None:
        """Load the tables now. Otherwise the first `count` loads them, within the deadline of its call.

        Safe to call in several threads at once. It takes no lock, because a fork in another thread would leave a lock held in
        the child: two threads may both load, and the second one finds the tables.
        """
        if self._counting is None:
            self._counting = _bindings().tokenizer_for_encoding("o200k_base").count

    def parts(self, content: bytes) -> list[bytes]:
        """Return the parts of `content` whose counts add up to its count."""
        return in_parts(content, STEP_BYTES)

    def count(self, content: bytes) -> int:
        if len(content) > STEP_BYTES and len(parts := self.parts(content)) > 1:
            return sum(map(self.count, parts))
        text = _text(content)
        if text is None:
            return _binary_tokens(content)
        if self._counting is None:
            self.load()
            assert self._counting is not None
        return int(self._counting(text))


# One match is about one token. Every repetition is bounded or possessive, and some branch consumes every character,
# so that no input is scanned twice. The bounds are the lengths at which o200k starts a second token.
_PIECE = re.compile(
    r"""
      [^\r\n0-9A-Za-zÀ-\U0010ffff]?                       # a word takes the space or mark before it along
        (?:[A-ZÀ-Þ]{0,8}[a-zß-ÿ]{1,12}|[A-ZÀ-Þ]{1,5})
        (?:'(?:s|t|re|ve|m|ll|d)\b)?
    | [0-9]{1,3}
    | [ ]?([!-/:-@\[-`{-~])(?:\1{3,63}|[!-/:-@\[-`{-~]{0,2})[\r\n/]{0,16}   # ---- is one token, ):/ too
    | [ \t]{0,128}+[\r\n]{1,16}
    | [ \t]{1,128}(?=[ \t]|$)                             # indentation, up to the space that a word takes
    | [ ]?[Ā-\u052f]{1,5}                                 # Latin with marks, Greek, Cyrillic
    | [ ]?[\u0530-\u1fff]{1,3}                            # Arabic, Hebrew, Indic, Thai
    | ([─-▟])\2{0,15}                                     # boxes and bars
    | [ ]?[^\x00-\x7f]                                    # CJK, emoji, symbols: see _UNEVEN
    | \s
    | [\x00-\x1f\x7f]
    """,
    re.VERBOSE,
)
_PER_PIECE = 1.06  # long words have a second token
# Base64 and keys: many short pieces that no vocabulary has. Hex and prose without spaces do not match.
_DENSE = re.compile(r"[A-Za-z0-9+/]{60,}+")
_DENSE_MORE = 0.225
# Each is one match in _PIECE, although o200k often joins two characters of CJK, and needs two tokens for one emoji.
_UNEVEN = (
    (re.compile("[\u3040-\u9fff]"), -0.30),
    (re.compile("[\uac00-\ud7a3]"), -0.25),
    (re.compile("[\U00010000-\U0010ffff]"), 0.40),
)


class Estimate:
    """Counts approximately as o200k does, without its tables."""

    name = "estimate"

    def parts(self, content: bytes) -> list[bytes]:
        """Return the parts of `content` whose counts add up to its count."""
        return in_parts(content, STEP_BYTES)

    def count(self, content: bytes) -> int:
        if len(content) > STEP_BYTES and len(parts := self.parts(content)) > 1:
            return sum(map(self.count, parts))
        text = _text(content)
        if text is None:
            return _binary_tokens(content)
        tokens = len(_PIECE.findall(text)) * _PER_PIECE
        for run in _DENSE.findall(text):
            if not (run.islower() or run.isupper() or run.isalpha()):
                tokens += len(run) * _DENSE_MORE
        if not text.isascii():
            tokens += sum(len(chars.findall(text)) * more for chars, more in _UNEVEN)
        return round(tokens)


@cache
def token_counter(name: str = "auto") -> TokenCounter:
    """Return the counter with this name: `o200k`, `estimate`, or `auto`, which is o200k if the extra `tokens` is installed.

    Raises:
        Invalid: the name is unknown, or the name is `o200k` and the extra is not installed.
    """
    if name not in ("auto", "o200k", "estimate"):
        raise Invalid(f"unknown token counter {name!r}; use auto, o200k or estimate")
    if name == "estimate":
        return Estimate()
    try:
        return O200k()
    except ImportError as e:
        if name == "auto":
            return Estimate()
        raise Invalid("counter o200k needs the extra: pip install 'distier[tokens]'") from e
