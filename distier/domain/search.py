"""Finding modules by words: the language of queries, and an inverted index in memory.

The index has a posting list for each word of each field (Zobel and Moffat, "Inverted files for text search engines", 2006):
the numbers of the modules that have it, as 4-byte integers. A result is scored by the sum over the words of the query of
their inverse document frequency (Sparck Jones, 1972) times the weight of the best field that has the word.
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice, product
from typing import NamedTuple

from distier.errors import Invalid

from .described import Described

QUERY_CHARS_MAX = 1000
TERMS_MAX = 8
WORDS_MAX = 400
"""Words of a module that are indexed; those of a longer description are left out."""
WORD_CHARS_MAX = 40
CHANGED_MIN, CHANGED_PART = 256, 16
"""Changed modules are kept next to the index until they are this many, and one for this many in it."""
_WORD = re.compile(r"\w+")
_TERM = re.compile(r'(-?)(?:(keyword|name|description):)?(?:"([^"]*)"|(\S+))')

KEYWORD, KEYWORD_WORD, NAME, DESCRIPTION = "=", "k", "n", "d"
"""The fields of the index: whole keywords, their words, words of ids and names, words of descriptions."""
WEIGHTS = {KEYWORD: 4.0, KEYWORD_WORD: 4.0, NAME: 3.0, DESCRIPTION: 1.0}
_FIELDS = {
    "": (KEYWORD_WORD, NAME, DESCRIPTION),
    "keyword": (KEYWORD,),
    "name": (NAME,),
    "description": (DESCRIPTION,),
}


class Term(NamedTuple):
    """A word that a module must have in one of these fields; with `prefix`, one that begins with it."""

    word: str
    fields: tuple[str, ...]
    prefix: bool = False


class Query(NamedTuple):
    """What a module must have, and what it must not have: each entry of `unwanted` excludes modules that have all its terms."""

    wanted: tuple[Term, ...]
    unwanted: tuple[tuple[Term, ...], ...]


def parse_query(text: str) -> Query:
    """Parse a query.

    Words must all be there, in any order and case. `-word` excludes, `word*` is a beginning, `keyword:word` is a whole keyword
    (`keyword:"two words"`), `name:word` a word of the id or the name, and `description:word` one of the description.

    Raises:
        Invalid: the query is too long, or nothing is wanted.
    """
    if not isinstance(text, str) or len(text) > QUERY_CHARS_MAX:
        raise Invalid(f"a query is a text of at most {QUERY_CHARS_MAX} characters")
    wanted: list[Term] = []
    unwanted: list[tuple[Term, ...]] = []
    for minus, field, quoted, plain in _TERM.findall(text):
        value = (quoted or plain).casefold()
        if field == "keyword":
            terms: tuple[Term, ...] = (Term(value.strip()[:WORD_CHARS_MAX], _FIELDS[field]),)
        else:
            words = words_of(value)
            last = len(words) - 1
            terms = tuple(
                Term(word, _FIELDS[field], prefix=i == last and value.endswith("*")) for i, word in enumerate(words)
            )
        if minus and terms:
            unwanted.append(terms)
        else:
            wanted += terms
    wanted = list(dict.fromkeys(wanted))
    if len(wanted) > TERMS_MAX:
        raise Invalid(f"a query has at most {TERMS_MAX} words, not {len(wanted)}")
    if not wanted:
        raise Invalid("nothing is wanted: a query has words, such as `pdf forms`, `keyword:pdf -draft`, or `report*`")
    return Query(tuple(wanted), tuple(unwanted))


def words_of(text: str) -> list[str]:
    return [word[:WORD_CHARS_MAX] for word in _WORD.findall(text.casefold())]


def entries_of(module: Described) -> frozenset[str]:
    """Return the entries of a module: each a field and a word."""
    found = {f"{KEYWORD}{keyword.casefold()[:WORD_CHARS_MAX]}" for keyword in module.keywords}
    for field, texts in (
        (KEYWORD_WORD, module.keywords), (NAME, (module.id, module.name or "")), (DESCRIPTION, (module.description or "",))
    ):  # fmt: skip
        for text in texts:
            found.update(f"{field}{word}" for word in words_of(text)[:WORDS_MAX])
    return frozenset(found)


class Ids:
    """Sorted ids in one buffer: a third of the memory of strings."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._starts = array("I", (0,))
        parts = []
        for id in ids:
            parts.append(id.encode())
            self._starts.append(self._starts[-1] + len(parts[-1]))
        self._text = b"".join(parts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._text[self._starts[number] : self._starts[number + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def first_from(self, id: str) -> int:
        """Return the number of the first id that is not before this one."""
        return bisect_left(self, id)

    def number_of(self, id: str) -> int | None:
        at = self.first_from(id)
        return at if at < len(self) and self[at] == id else None


class Builder:
    """Collects the modules of an index, in the order of their ids. A module takes little more than it does in the index."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.postings: dict[str, array[int]] = {}

    def add(self, id: str, entries: Iterable[str]) -> None:
        number = len(self.ids)
        self.ids.append(id)
        for entry in entries:
            self.postings.setdefault(entry, array("I")).append(number)


class Index:
    """An inverted index of modules. It is never changed: `changed` returns another one.

    A posting list is one number, an array of numbers, or, of a frequent word, a bit for each module: what takes least. Queries
    are computed with integers as sets of bits, in which a hundred thousand modules take 12 kB.
    """

    def __init__(self, modules: Iterable[tuple[str, frozenset[str]]] = ()) -> None:
        made = Builder()
        for id, entries in sorted(modules):
            made.add(id, entries)
        self._set(made.ids, made.postings)

    @staticmethod
    def of(builder: Builder) -> Index:
        made = Index()
        made._set(builder.ids, builder.postings)
        return made

    def _set(self, ids: Iterable[str], postings: Mapping[str, array[int]]) -> None:
        self._ids = Ids(ids)
        self._postings: Mapping[str, Posting] = {entry: self._packed(numbers) for entry, numbers in postings.items()}
        self._entries: Sequence[str] = sorted(self._postings)
        self._new: Mapping[str, frozenset[str] | None] = {}
        self._replaced = 0

    def _packed(self, numbers: array[int]) -> Posting:
        if len(numbers) == 1:
            return numbers[0]
        if 32 * len(numbers) < len(self._ids):
            return array("I", numbers)  # without spare room
        return _bits(numbers).to_bytes(len(self._ids) // 8 + 1, "little")

    def __len__(self) -> int:
        """Return how many modules there are, about: changes since the last merge are not counted."""
        return len(self._ids)

    def changed(self, changes: Mapping[str, frozenset[str] | None]) -> Index:
        """Return the index with these modules replaced: None for one that does not exist any more."""
        new = {**self._new, **changes}
        if len(new) > max(CHANGED_MIN, len(self._ids) // CHANGED_PART):
            return self._merged(new)
        other = copy(self)
        other._new = new
        other._replaced |= _bits(n for id in changes if (n := self._ids.number_of(id)) is not None)
        return other

    def _merged(self, new: Mapping[str, frozenset[str] | None]) -> Index:
        ids = sorted(
            [*(id for id in self._ids if id not in new), *(id for id, entries in new.items() if entries is not None)]
        )
        numbers = {id: number for number, id in enumerate(ids)}
        renumbered = [numbers[id] if id not in new else -1 for id in self._ids]
        postings: dict[str, array[int]] = {}
        for entry, old in self._postings.items():
            left = array("I", (renumbered[n] for n in _numbers(old) if renumbered[n] >= 0))
            if left:
                postings[entry] = left
        for id, entries in new.items():
            for entry in entries or ():
                postings.setdefault(entry, array("I")).append(numbers[id])
        other = Index()
        other._set(ids, postings)
        return other

    def find(self, query: Query, *, prefix: str = "", start: int = 0, limit: int = 20) -> tuple[list[str], int]:
        """Return the ids of the best modules after the first `start`, the best one first, and how many there are in all.

        Equal scores are in the order of ids.
        """
        fields = [self._fields_of(term) for term in query.wanted]
        low = self._ids.first_from(prefix)
        high = self._ids.first_from(prefix + chr(0x10FFFF)) if prefix else len(self._ids)
        found = ((1 << max(0, high - low)) - 1) << low & ~self._replaced
        for some in fields:
            found &= _union(some)
        for terms in query.unwanted:
            excluded = found
            for term in terms:
                excluded &= _union(self._fields_of(term))
            found &= ~excluded
        modules = len(self._ids) + len(self._new)
        rarities = [math.log(1 + modules / (1 + _union(some).bit_count())) for some in fields]
        results = []
        for id, entries in self._new.items():
            if entries is not None and id.startswith(prefix) and (mine := _score(query, rarities, entries)) is not None:
                results.append((-mine, id))
        total = found.bit_count() + len(results)
        for score, equal in _by_score(found, fields, rarities):
            left = start + limit - sum(1 for minus, _ in results if -minus > score)
            if left <= 0:
                break
            results += [(-score, self._ids[n]) for n in islice(_ones(equal), left)]
        return [id for _, id in sorted(results)[start : start + limit]], total

    def _fields_of(self, term: Term) -> list[tuple[float, int]]:
        """Return which modules have a term in which field, the heaviest field first: weights and bits."""
        found: list[tuple[float, int]] = []
        for field in sorted(term.fields, key=lambda field: -WEIGHTS[field]):
            some = 0
            for entry in self._entries_with(f"{field}{term.word}") if term.prefix else (f"{field}{term.word}",):
                some |= _as_bits(self._postings.get(entry))
            if some:
                found.append((WEIGHTS[field], some))
        return found

    def _entries_with(self, beginning: str) -> Iterator[str]:
        at = bisect_left(self._entries, beginning)
        while at < len(self._entries) and self._entries[at].startswith(beginning):
            yield self._entries[at]
            at += 1


Posting = int | array | bytes  # type: ignore[type-arg]


def _by_score(
    found: int, fields: Sequence[Sequence[tuple[float, int]]], rarities: Sequence[float]
) -> Iterator[tuple[float, int]]:
    """Yield scores, the greatest first, each with the modules that have it: each module once."""
    by_score: dict[float, int] = {}
    for choice in product(*fields):
        score, some = 0.0, found
        for rarity, (weight, bits) in zip(rarities, choice, strict=True):
            score += rarity * weight
            some &= bits
        by_score[score] = by_score.get(score, 0) | some
    for score, some in sorted(by_score.items(), reverse=True):
        if some := some & found:
            yield score, some
            found &= ~some


def _bits(numbers: Iterable[int]) -> int:
    numbers = list(numbers)
    buffer = bytearray(max(numbers, default=0) // 8 + 1)
    for n in numbers:
        buffer[n >> 3] |= 1 << (n & 7)
    return int.from_bytes(buffer, "little")


def _ones(bits: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, the least first."""
    for at, byte in enumerate(bits.to_bytes((bits.bit_length() + 7) // 8, "little")):
        for i in range(8) if byte else ():
            if byte >> i & 1:
                yield 8 * at + i


def _as_bits(posting: Posting | None) -> int:
    if posting is None:
        return 0
    if isinstance(posting, bytes):
        return int.from_bytes(posting, "little")
    return 1 << posting if isinstance(posting, int) else _bits(posting)


def _numbers(posting: Posting) -> Iterable[int]:
    if isinstance(posting, bytes):
        return _ones(_as_bits(posting))
    return (posting,) if isinstance(posting, int) else posting


def _union(fields: Sequence[tuple[float, int]]) -> int:
    bits = 0
    for _, some in fields:
        bits |= some
    return bits


def _has(term: Term, field: str, entries: frozenset[str]) -> bool:
    entry = f"{field}{term.word}"
    return entry in entries or (term.prefix and any(one.startswith(entry) for one in entries))


def _score(query: Query, rarities: Sequence[float], entries: frozenset[str]) -> float | None:
    """Return the score of a module with these entries; None if it does not match."""
    if any(all(any(_has(t, f, entries) for f in t.fields) for t in terms) for terms in query.unwanted):
        return None
    total = 0.0
    for term, rarity in zip(query.wanted, rarities, strict=True):
        weights = [WEIGHTS[field] for field in term.fields if _has(term, field, entries)]
        if not weights:
            return None
        total += rarity * max(weights)
    return total
