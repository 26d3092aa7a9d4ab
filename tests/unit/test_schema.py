"""The schema: the record determines the state, and scripts and recounts use one table of accounts."""

from __future__ import annotations

import re
from itertools import product

import pytest

from distier.domain.keys import Keyspace
from distier.domain.schema import (
    BUDGETS,
    COUNTED,
    FIXED,
    LIFECYCLE,
    RECORD,
    TIERS,
    State,
    contribution,
    counted_as,
    lua_accounts,
    lua_constants,
    state_of,
)

FIELDS = {field.name for field in RECORD}


def test_tier_and_clean_determine_the_state() -> None:
    assert [state_of(s.tier, clean=s.clean) for s in LIFECYCLE] == list(LIFECYCLE)
    assert state_of("cold", clean=False) is None, "a dirty version is never cold"


@pytest.mark.parametrize("state", LIFECYCLE, ids=lambda s: f"{s.tier}-{'clean' if s.clean else 'dirty'}")
def test_dirty_module_keeps_its_only_copy_in_redis(state: State) -> None:
    if state.is_module and not state.clean:
        assert state.content or state.frame == "lasting"
    assert ("dirty" in state.sets) == (not state.clean)
    assert state.ttl_ms is None or not state.is_module, "only a tombstone expires by itself"
    assert set(state.sets) <= set(FIXED)


def test_accounts_count_fields_that_records_have() -> None:
    units = {unit for state in LIFECYCLE for _, unit in state.accounts} - {""}
    assert units <= FIELDS & set(COUNTED)
    assert set(BUDGETS.values()) <= {account for state in LIFECYCLE for account, _ in state.accounts}


@pytest.mark.parametrize(("tier", "clean"), list(product(TIERS, (False, True))))
def test_script_and_recount_count_alike(tier: str, clean: bool) -> None:
    """This holds for damaged records too: a dirty cold one has no state, and both count it alike until it is repaired."""
    record = {"tokens": 3, "bytes": 50, "frame_bytes": 20, "archived_bytes": 10}
    values = [tier.encode(), b"1" if clean else b"0", *(b"%d" % record[name] for name in COUNTED[2:])]
    wanted = f"p.tier == '{tier}' and {'p.clean' if clean else 'not p.clean'} then (.*)"
    found = re.search(wanted, lua_accounts())
    adds = re.findall(r"add\('(\w+)', sign(?: \* p\.(\w+))?\)", found[1]) if found else []
    assert {account: record[unit] if unit else 1 for account, unit in adds} == contribution(values)
    assert len(adds) == len(counted_as(tier, clean=clean).accounts)


def test_scripts_get_the_fixed_keys_in_order() -> None:
    shard = Keyspace("t", 1).shards[0]
    assert shard.fixed == tuple(f"distier:{{t}}:{name}" for name in FIXED)
    head = lua_constants().splitlines()[0]
    assert head.startswith("local " + ", ".join(name.upper() for name in FIXED))
    assert head.endswith(", ".join(f"KEYS[{i + 1}]" for i in range(len(FIXED))))
