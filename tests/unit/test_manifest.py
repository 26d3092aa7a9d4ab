"""The format of the manifest's files."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain import archived, manifest
from distier.domain.manifest import (
    File,
    Row,
    check_file,
    choose_small,
    grouped,
    merged,
    pack_rows,
    parse_file,
    read_rows,
)
from distier.domain.module import Record, pack_keywords, pack_meta
from distier.domain.objects import Listed
from distier.domain.order import Order
from distier.errors import Corrupt

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def record(id: str, ver: int = 1, deleted: bool = False, keywords: tuple[str, ...] = (), meta: object = None) -> Record:
    return Record(
        id, "deleted" if deleted else "cold", Order(1, ver, f"{ver:08x}{'0' * 20}"), 5, 2, "estimate", "a" * 64,
        "text/markdown",
        pack_keywords(keywords), pack_meta(meta), True, 1, None, 0, "", 0, 1, 2, None, None, None,  # type: ignore[arg-type]
    )  # fmt: skip


def row(id: str, ver: int = 1, **options: object) -> Row:
    made = record(id, ver, **options)  # type: ignore[arg-type]
    return manifest.row_of("t", made, archived.content_key("t", made), 3)


@given(
    texts,
    st.lists(texts, max_size=3),
    st.dictionaries(texts, st.integers() | texts | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_row_says_all_that_a_sidecar_says(id: str, keywords: list[str], meta: dict[str, object]) -> None:
    made = record(id, keywords=tuple(dict.fromkeys(keywords)), meta=meta)
    key = archived.content_key("t", made)
    (found,) = read_rows(pack_rows([manifest.row_of("t", made, key, 3)]))
    assert found.described() == {k: str(v) for k, v in archived.describe_plain(made).items()} | {"archived_bytes": "3"}
    object = found.object("t")
    assert object is not None and object.key == key and found.id == id


@given(
    st.lists(st.tuples(st.sampled_from(["a", "a/b", "a-b", "ab", "A", "a/@x", "ü"]), st.integers(1, 4)), max_size=20)
)
def test_merged_files_have_each_version_once_in_the_order_of_a_listing(versions: list[tuple[str, int]]) -> None:
    files = {str(i): pack_rows([row(*version)]) for i, version in enumerate(versions)}
    found = list(merged(files))
    assert [r.key.encode() for r in found] == sorted({row(*version).key.encode() for version in versions})
    groups = list(grouped(found))
    assert [group[0].id for group in groups] == list(dict.fromkeys(r.id for r in found))
    assert all(len({r.id for r in group}) == 1 for group in groups)


@pytest.mark.parametrize("data", [b"x", pack_rows([row("a")])[:-4], gzip.compress(b"{}", mtime=0)[:-9] + b"\0" * 9])
def test_damaged_file_is_an_error_that_names_it(data: bytes) -> None:
    with pytest.raises(Corrupt, match="manifest's file f "):
        check_file("f", data)


def test_line_that_is_no_row_hides_no_other_row() -> None:
    lines = [b"{}", b"[1]", b'{"key":1,"id":"a"}', b'{"key":"a/@"', b"\xff", b"[" * 100_000]
    good = gzip.decompress(pack_rows([row("a")]))
    data = gzip.compress(b"\n".join(lines) + b"\n" + good)
    check_file("f", data)
    assert list(read_rows(data)) == [row("a")]


def test_tombstone_has_a_row_without_description() -> None:
    found = row("a", deleted=True)
    assert found.deleted and found.key.endswith(".deleted") and set(found.known) == {"id", "version", "tok", "updated"}


def test_names_of_files_are_read_back_and_others_are_none() -> None:
    key = manifest.file_key("t", 3, "run", "ab12", 1, 7)
    assert parse_file("t", Listed(key, 9, 0)) == File(key, 3, "run", "ab12", 7, 9)
    seg = manifest.file_key("t", 0, "seg", "ab12")
    assert parse_file("t", Listed(seg, 9, 0)) == File(seg, 0, "seg", "ab12", 0, 9)
    for other in (
        "t/manifest/0/.DS_Store",
        "t/manifest/0/run-.jsonl.gz",
        "t/manifest/x/seg-ab.jsonl.gz",
        "t/manifest/full-ab",
    ):
        assert parse_file("t", Listed(other, 9, 0)) is None
    assert manifest.is_marker("t", manifest.marker_key("t", "full", "ab"), "full") and not manifest.is_marker(
        "t", seg, "full"
    )
    assert not manifest.is_marker("t", "t/manifest/full-ab", "packed") and not manifest.is_marker(
        "t", "t/manifest/ab", "full"
    )


def test_compaction_leaves_large_runs_alone_until_they_are_matched() -> None:
    small = [File(f"s{i}", 0, "seg", str(i), 0, 100) for i in range(32)]
    runs = [
        File("r1", 0, "run", "x", 0, 3000),
        File("r2", 0, "run", "y", 0, 6000),
        File("r3", 0, "run", "z", 0, 90_000),
    ]
    assert choose_small([*small, *runs], 33) == []
    assert choose_small([*small, *runs], 32) == [*small, *runs[:2]]


@given(st.lists(texts, max_size=8), st.text(st.characters(exclude_categories=["Cs"]), max_size=2))
def test_rows_of_a_prefix_are_those_whose_ids_begin_with_it(ids: list[str], prefix: str) -> None:
    rows = [manifest.Row(f"k{n:02}/@00000001-00000000000001-00000000.md.xz", id, {"id": id, "meta": {"id": prefix}})
            for n, id in enumerate(ids)]  # fmt: skip
    spaced = gzip.compress("".join(json.dumps({"key": row.key, **row.known}) + "\n" for row in rows).encode())
    for data in (manifest.pack_rows(rows), spaced):  # also of a program that writes spaces
        assert [row.id for row in manifest.read_rows(data, prefix)] == [id for id in ids if id.startswith(prefix)]
