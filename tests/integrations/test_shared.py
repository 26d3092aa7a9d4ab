"""Any key has an id, and every id can be read back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier import AsyncStore, Invalid, Store
from distier.domain.ids import MAX_ID_BYTES, check_id
from distier.integrations.shared import KEY, ROOT_BYTES, Bridge, Ids, list_rows, put_all

# Surrogates too: a key of another project is any str.
PARTS = st.lists(st.text(st.characters(codec=None), max_size=90), min_size=1, max_size=8).map(tuple)
IDS = Ids("root")


@given(PARTS)
def test_the_id_of_any_path_is_valid_and_gives_the_path_back(path: tuple[str, ...]) -> None:
    item = IDS.item(path, b"", None)
    assert check_id(item.id) == IDS.id(path)
    assert IDS.parts(item.id, item.meta) == path


@given(PARTS, PARTS)
def test_different_paths_have_different_ids(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (IDS.id(one) == IDS.id(other)) == (one == other)


@given(PARTS, st.integers(0, 8))
def test_the_prefix_of_the_beginning_of_a_path_is_one_of_its_id(path: tuple[str, ...], n: int) -> None:
    assert IDS.id(path).startswith(IDS.prefix(path[: min(n, len(path) - 1)]))


def test_an_ordinary_path_is_readable_in_its_id() -> None:
    assert IDS.id(("users", "ada lovelace", "food.md")) == "root/users/ada lovelace/food.md"


def test_a_long_path_keeps_its_first_segments() -> None:
    item = IDS.item(("users", "ada", "k" * 300), b"", None)
    assert item.id.startswith("root/users/ada/~") and len(item.id) <= MAX_ID_BYTES
    assert item.meta == {KEY: "root/users/ada/" + "k" * 300}


def test_a_hashed_id_without_its_meta_gives_no_path() -> None:
    id = IDS.id(("k" * 300,))
    assert IDS.parts(id) is None and IDS.parts(id, {KEY: "root/another"}) is None


def test_an_id_of_another_root_gives_no_path() -> None:
    assert IDS.parts("other/a") is None


def test_a_root_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(Invalid, match="root"):
        Ids("r" * ROOT_BYTES)


def test_a_bridge_refuses_what_is_no_store() -> None:
    with pytest.raises(TypeError, match=r"connect\(\)"):
        Bridge("redis://host")  # type: ignore[arg-type]


def test_listing_reads_page_after_page(store: Store) -> None:
    bridge = Bridge(store)
    bridge.run(put_all([IDS.item((f"{i:04}",), b"x", None) for i in range(450)]))
    assert [row.id for row in bridge.run(list_rows("root/"))] == [f"root/{i:04}" for i in range(450)]
    assert [row.id for row in bridge.run(list_rows("root/02"))] == [f"root/02{i:02}" for i in range(100)]


def test_put_all_raises_the_error_of_one_and_writes_the_others(store: Store) -> None:
    with pytest.raises(Invalid, match="content type"):
        Bridge(store).run(put_all([IDS.item(("bad",), b"", "no type"), IDS.item(("good",), b"", None)]))
    assert store.exists("root/good") and not store.exists("root/bad")


async def test_asyncio_methods_work_on_both_kinds_of_store(store: Store, async_store: AsyncStore) -> None:
    await Bridge(store).arun(put_all([IDS.item(("a",), b"x", None)]))
    assert [row.id for row in await Bridge(async_store).arun(list_rows(""))] == ["root/a"]


async def test_blocking_method_with_an_async_store_is_refused(async_store: AsyncStore) -> None:
    with pytest.raises(asyncio.InvalidStateError, match=r"connect\(\)"):
        Bridge(async_store).run(list_rows(""))
