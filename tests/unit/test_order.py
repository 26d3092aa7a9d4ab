"""domain/order.py: names sort as versions do, and are read back."""

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
def test_names_sort_as_orders_do(one: Order, other: Order) -> None:
    assert (one.stem < other.stem) == (short(one) < short(other))
    assert (one.stem.encode() < other.stem.encode()) == (one.stem < other.stem)
    assert (one.stem == other.stem) == (short(one) == short(other))


@given(orders)
def test_a_name_gives_its_order_back(order: Order) -> None:
    assert parse_stem(order.stem) == short(order)
    assert parse_version(str(order)) == (order.epoch, order.ver)


@given(st.text(alphabet="@-0123456789abcdefx", max_size=40))
def test_only_names_that_were_made_are_read(stem: str) -> None:
    order = parse_stem(stem)
    assert order is None or order.stem == stem


@given(st.text(max_size=12))
def test_a_version_is_two_numbers(text: str) -> None:
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
def test_what_is_no_version_says_so(text: str) -> None:
    with pytest.raises(Invalid, match="a version looks like '3-41'"):
        parse_version(text)
