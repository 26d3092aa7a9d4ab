"""The comparison with other stores: each contender does the same job, and the page says what was left out."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.servers import available_kinds

pytest.importorskip("langgraph.store.memory", reason="langgraph is not installed: make suites")

from benchmarks.stores.__main__ import page
from benchmarks.stores.graph import SEARCHED, graph_stores
from benchmarks.stores.opened import FAR, NEAR, Effort
from benchmarks.stores.skills import skill_loaders
from benchmarks.stores.values import byte_stores
from benchmarks.table import Table

ONCE = Effort(rounds=1, calls=1, items=150)

pytestmark = pytest.mark.skipif(available_kinds()["valkey"] != "", reason=available_kinds()["valkey"])


def measured(table: Table) -> set[tuple[str, str]]:
    return {(row[0], row[1]) for row in table.rows}


def test_graph_stores_are_measured_in_each_operation_and_absent_ones_have_a_reason() -> None:
    left_out: dict[str, str] = {}
    rows = measured(graph_stores(ONCE, left_out))
    operations = ("put", "get", "batch of 100 gets", SEARCHED)
    assert {(each, name) for each in operations for name in (NEAR, FAR, "InMemoryStore")} <= rows
    redis = left_out["RedisStore of langgraph-checkpoint-redis"]
    assert "modules" in redis or "cannot be imported" in redis


def test_byte_stores_and_skills_are_measured_and_the_page_names_what_is_absent() -> None:
    left_out: dict[str, str] = {}
    tables = [byte_stores(ONCE, left_out), skill_loaders(ONCE, left_out)]
    assert {
        (each, name) for each in ("mset of 100", "mget of 100") for name in (NEAR, "InMemoryByteStore")
    } <= measured(tables[0])
    assert ("catalogue of 100", NEAR) in measured(tables[1])
    assert ("SkillsDirectoryProvider" in left_out) == (find_spec("fastmcp") is None)
    text = page(tables, left_out, 1.0)
    for name, why in left_out.items():
        assert f"- {name} is not measured: {why}." in text
    assert "| mget of 100 | InMemoryByteStore |" in text
