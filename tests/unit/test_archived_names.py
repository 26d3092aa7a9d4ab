"""domain/archived.py: the names of versions in the archive, and the objects that greater versions dominate."""

from __future__ import annotations

import json
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from distier.domain import archived as names
from distier.domain.module import Record
from distier.domain.order import Order
from distier.stores.archive import check_key
from tests.unit.test_ids import ids
from tests.unit.test_order import orders, short

TYPES = [
    "text/plain",
    "text/markdown",
    "application/json",
    "text/x-python",
    "application/octet-stream",
    "x/y; charset=a",
]
namespaces = st.sampled_from(["ns", "a.b-c_d", "n" * 64])


def record(
    id: str, order: Order, *, tier: str = "hot", type: str = "text/plain", meta: str = "", outline: str | None = None
) -> Record:
    return Record(
        id=id, tier=tier, order=order, size_bytes=5, tokens=1, counter="estimate", sha256="0" * 64, content_type=type,
        keywords=b'["k"]', meta=meta.encode(), clean=False, archived_key=None, archived_bytes=0, codec="", frame_bytes=0,
        created_ms=1, updated_ms=2, transform=None, outline=outline, content=None,
        seen=1,
    )  # fmt: skip


@given(namespaces, ids, orders, st.sampled_from(TYPES), st.booleans())
def test_key_parses_to_its_version(namespace: str, id: str, order: Order, type: str, deleted: bool) -> None:
    key = names.content_key(namespace, record(id, order, tier="deleted" if deleted else "cold", type=type))
    assert check_key(key) == key
    assert len(key.encode()) <= 1024
    found = names.parse_key(key)
    assert found is not None
    assert (found.order, found.kind) == (short(order), "deleted" if deleted else "content")
    assert names.id_of(namespace, found.directory) == id
    assert key.startswith(names.version_prefix(namespace, id))
    sidecar = names.parse_key(names.sidecar_key(key))
    assert sidecar is not None
    assert (sidecar.order, sidecar.kind, sidecar.directory) == (short(order), "meta", found.directory)


@given(ids, ids, orders, orders)
def test_versions_of_two_modules_are_never_mixed(one: str, other: str, a: Order, b: Order) -> None:
    """The prefix of one is not the start of the other's keys either: a listing of versions has only one module's."""
    key = names.content_key("ns", record(other, b))
    assert key.startswith(names.version_prefix("ns", one)) == (one == other)


@given(ids, orders, orders, st.sampled_from(TYPES))
def test_keys_sort_as_versions_do(id: str, one: Order, other: Order, type: str) -> None:
    """The greatest version is the last one of a listing, whatever the types and kinds."""
    first = names.content_key("ns", record(id, one, type=type))
    second = names.content_key("ns", record(id, other, tier="deleted"))
    if short(one) != short(other):
        assert (first.encode() < second.encode()) == (short(one) < short(other))


objects = st.builds(
    lambda order, kind: names.VersionObject(
        f"ns/modules/a/{order.stem}.{kind}", "ns/modules/a", short(order), kind, ""
    ),
    orders,
    st.sampled_from(["content", "deleted", "meta"]),
)


@given(st.lists(objects, max_size=8))
def test_greatest_version_is_never_dominated(found: list[names.VersionObject]) -> None:
    gone = set(names.dominated(found))
    real = [o for o in found if o.kind != "meta"]
    greatest = max((o.order for o in real), default=None)
    for o in found:
        assert (o.key in gone) == (greatest is not None and o.order < greatest), "all older objects are dominated"


@given(st.text(max_size=60))
def test_key_of_another_program_is_not_parsed(text: str) -> None:
    found = names.parse_key(text)
    assert found is None or (found.key == text and found.order.stem in text)


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400),
    st.text(max_size=2000, alphabet="aé\n%=;"),
)
def test_descriptions_are_ascii_bounded_and_parse_back(meta: str, outline: str) -> None:
    described = names.describe(record("a/é", Order(1, 2, "f" * 32), meta=meta, outline=outline or None))
    assert all(k.isascii() and v.isascii() and v.isprintable() for k, v in described.items())
    kept = names.user_metadata(described)
    assert sum(len(k) + len(v) for k, v in kept.items()) <= names.MAX_USER_METADATA_BYTES
    assert kept.items() <= described.items()
    assert {"distier-id", "distier-sha256"} <= kept.keys()
    plain = json.loads(names.pack_sidecar(described))
    assert plain.get("meta", "") == meta
    assert plain.get("outline", "") == outline
    assert unquote(described["distier-id"]) == "a/é"


FOREIGN = (
    "{name}~", ".{name}.swp", "#{name}#", "{name}.bak", "{name}.tmp", "{name}.partial", "{name}.part", "._{name}",
    "{name}.orig", "{stem}", "{stem}.md", "{stem}.xz", "{stem}..xz", "{stem}.md.xz.xz",
    "{stem}.md.sync-conflict-20260101-120000-ABCDEF.xz", "{stem}.md (1).xz", "{stem}.md (conflicted copy).xz",
    "{stem} (1).md.xz", "{stem}~20260101.md.xz", "{stem}.MD.xz", "{stem}.md.XZ", "{stem}.md.xz\n", " {name}",
    "{name} ", "{stem}.deleted~", "{stem}.Deleted", "{stem}.meta.json~", "{stem}.meta.json.tmp", ".DS_Store",
    "Thumbs.db", "desktop.ini", "", "@eaDir", "{name}@SynoEAStream", ".{name}.icloud", "{name}.AbC123",
    ".{name}.AbC123", "{stem}.\u0661.xz", "{stem}.verylongextension.xz", "0{stem}.md.xz", "{stem}0.md.xz",
)  # fmt: skip


@given(orders, st.sampled_from(FOREIGN))
def test_file_of_another_program_next_to_a_version_is_not_parsed(order: Order, pattern: str) -> None:
    name = pattern.format(name=f"{order.stem}.md.xz", stem=order.stem)
    assert names.parse_key(f"ns/modules/a/{name}") is None


def test_at_equal_positions_the_known_extension_wins() -> None:
    stem = Order(1, 2, "0123abcd").stem
    found = [names.parse_key(f"ns/modules/a/{stem}.{extension}.xz") for extension in ("old", "md", "tmp")]
    assert max((o for o in found if o), key=lambda o: o.rank).extension == "md"


def test_object_in_a_directory_below_is_not_a_version() -> None:
    prefix = names.version_prefix("ns", "a")
    inside = names.parse_key(f"{prefix}eaDir/{Order(1, 2, '0123abcd').stem}.md.xz")
    assert inside is not None and inside.key.startswith(prefix) and not inside.is_in(prefix)
