"""Queries, and the index that answers them: as a search through all modules would."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain.described import Described
from distier.domain.order import Order
from distier.domain.search import Index, Query, Term, _score, entries_of, parse_query
from distier.errors import Invalid


def module(id: str, keywords: tuple[str, ...] = (), name: str = "", description: str = "") -> Described:
    meta = {"name": name, "description": description}
    return Described(id, Order(1, 1, "x"), "hot", False, "text/plain", 1, 1, "c", "", keywords, meta, 0, 0)


SOME = [
    module("skills/pdf/SKILL.md", ("pdf", "Two Words"), "pdf", "Fill PDF forms and read tables"),
    module("skills/docx/SKILL.md", ("docx",), "docx", "Write reports. Can export a pdf"),
    module("docs/pdf-report.md", (), "", "The yearly report"),
    module("über/Größe.md", ("maß",), "", "ΣΊΣΥΦΟΣ rolls"),
    module("docs/empty.md"),
]


def index(modules: list[Described]) -> Index:
    return Index((one.id, entries_of(one)) for one in modules)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("pdf", ["skills/pdf/SKILL.md", "docs/pdf-report.md", "skills/docx/SKILL.md"]),
        ("PDF -skill", ["docs/pdf-report.md"]),
        ("pdf -docx -forms", ["docs/pdf-report.md"]),
        ("keyword:pdf", ["skills/pdf/SKILL.md"]),
        ('keyword:"two words"', ["skills/pdf/SKILL.md"]),
        ("keyword:two", []),
        ("two", ["skills/pdf/SKILL.md"]),
        ("description:pdf", ["skills/docx/SKILL.md", "skills/pdf/SKILL.md"]),
        ("name:pdf", ["docs/pdf-report.md", "skills/pdf/SKILL.md"]),
        ("report", ["docs/pdf-report.md"]),
        ("report*", ["docs/pdf-report.md", "skills/docx/SKILL.md"]),
        ("pdf-report", ["docs/pdf-report.md"]),
        ("-pdf-report pdf", ["skills/pdf/SKILL.md", "skills/docx/SKILL.md"]),
        ("grösse", ["über/Größe.md"]),
        ("größe", ["über/Größe.md"]),
        ("GRÖSSE", ["über/Größe.md"]),
        ("σίσυφοσ", ["über/Größe.md"]),
        ("MASS", ["über/Größe.md"]),
        ("none", []),
        ('"fill forms" pdf', ["skills/pdf/SKILL.md"]),
    ],
)
def test_query_finds_modules_in_the_order_of_their_scores(query: str, ids: list[str]) -> None:
    found, total = index(SOME).find(parse_query(query))
    assert (found, total) == (ids, len(ids))


@pytest.mark.parametrize("query", ["", "  ", "-a", "-keyword:x", "...", "x" * 1001, "a b c d e f g h i", 7])
def test_query_that_wants_nothing_or_too_much_is_refused(query: str) -> None:
    with pytest.raises(Invalid):
        parse_query(query)


WORDS = [f"w{i}" for i in range(12)]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
Modules = dict[str, tuple[list[str], str, str]]
MODULES = st.dictionaries(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("/".join),
    st.tuples(st.lists(st.sampled_from(WORDS), max_size=2), TEXTS, TEXTS), max_size=40,
)  # fmt: skip
TERM = st.builds(
    lambda minus, field, word, star: f"{minus}{field}{word[: 1 if star else 9]}{star}",
    st.sampled_from(["", "", "-"]), st.sampled_from(["", "", "keyword:", "name:", "description:"]), st.sampled_from(WORDS),
    st.sampled_from(["", "", "*"]),
)  # fmt: skip


def by_hand(query: Query, found: dict[str, frozenset[str]], prefix: str) -> set[str]:
    rarities = [1.0] * len(query.wanted)
    return {id for id, e in found.items() if id.startswith(prefix) and _score(query, rarities, e) is not None}


@given(
    MODULES,
    st.lists(MODULES, max_size=3),
    st.lists(TERM, min_size=1, max_size=4).map(" ".join),
    st.sampled_from(["", "w1"]),
)
def test_index_finds_what_a_search_through_all_modules_finds(
    first: Modules, changes: list[Modules], text: str, prefix: str
) -> None:
    try:
        query = parse_query(text)
    except Invalid:
        return

    def entries(modules: Modules) -> dict[str, frozenset[str]]:
        return {id: entries_of(module(id, tuple(words), *texts)) for id, (words, *texts) in modules.items()}

    known = entries(first)
    made = Index(known.items())
    for change in changes:
        new = entries(change)
        gone = dict.fromkeys(list(known)[::3])
        made = made.changed({**gone, **new})
        known = {id: e for id, e in {**known, **new}.items() if id not in gone or id in new}
    for one in (made, made._merged(made._new), Index(known.items())):
        everything, total = one.find(query, prefix=prefix, limit=1000)
        assert set(everything) == by_hand(query, known, prefix)
        assert total == len(everything) == len(set(everything))
        pages = [one.find(query, prefix=prefix, start=start, limit=3)[0] for start in range(0, total, 3)]
        assert [id for page in pages for id in page] == everything
    assert made._merged(made._new).find(query, limit=1000) == Index(known.items()).find(query, limit=1000)


def test_large_index_merges_its_changes_and_finds_the_same() -> None:
    source = random.Random(3)
    entries = {
        f"m{i:05}": frozenset(f"n{source.choice(WORDS)}{source.randrange(9)}" for _ in range(6)) for i in range(5000)
    }
    made = Index(entries.items())
    for i in range(0, 3000, 100):
        new = {f"m{i + n:05}": frozenset({"nchanged"}) for n in range(100)}
        entries |= new
        made = made.changed(new)
    assert made._new != {} and len(made._new) < 400
    query = Query((Term("changed", ("n",)),), ())
    assert made.find(query, limit=5000) == (sorted(id for id, e in entries.items() if "nchanged" in e), 3000)
