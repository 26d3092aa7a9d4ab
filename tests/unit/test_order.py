"""domain/order.py: names sort as versions do, and versions can be read from names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain.order import SHORT_WRITE_ID_CHARS, Order, parse_stem, parse_version
from distier.errors import Invalid

orders = st.builds(
    Order,
    st.integers(0, 3) | st.integers(0, 10**8 - 1),
    st.integers(0, 12) | st.integers(0, 10**14 - 1),
    st.text("0123456789abcdef", min_size=32, max_size=32),
)


def short(order: Order) -> Order:
    return order._replace(write_id=order.write_id[:SHORT_WRITE_ID_CHARS])


@given(orders, orders)
def test_names_sort_as_versions(one: Order, other: Order) -> None:
    assert (one.stem < other.stem) == (short(one) < short(other))
    assert (one.stem.encode() < other.stem.encode()) == (one.stem < other.stem)
    assert (one.stem == other.stem) == (short(one) == short(other))


@given(orders)
def test_name_parses_to_its_version(order: Order) -> None:
    assert parse_stem(order.stem) == short(order)
    assert parse_version(str(order)) == (order.epoch, order.ver)


@given(st.text(alphabet="@-0123456789abcdefx", max_size=40))
def test_only_names_of_versions_are_parsed(stem: str) -> None:
    order = parse_stem(stem)
    assert order is None or order.stem == stem


@given(st.text(max_size=12))
def test_text_that_is_not_two_numbers_is_no_version(text: str) -> None:
    try:
        epoch, ver = parse_version(text)
    except Invalid:
        return
    assert epoch >= 0
    assert ver >= 0
    assert "-" in text


@pytest.mark.parametrize(
    "text", ["", "-", "1", "1-", "-1", "1-2-3", "a-1", "1-a", " 1-2", "1-2 ", "٣-١", "+1-2", "1_0-2"]
)
def test_error_for_a_wrong_version_shows_the_form(text: str) -> None:
    with pytest.raises(Invalid, match="a version looks like '3-41'"):
        parse_version(text)
