"""Node-local warm copies on a cluster: nodes get copies from each other's disks, whichever master serves the shard."""

from __future__ import annotations

from typing import Any

import pytest

from distier import Item
from tests.cluster.conftest import Stores
from tests.cluster.test_calls import KINDS_OF_STORE
from tests.integration.test_nodes import hasten
from tests.integration.world import until

ALL = 24


@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_nodes_on_a_cluster_ask_each_other_not_the_archive(
    stores: Stores, kind: str, monkeypatch: pytest.MonkeyPatch
):
    hasten(monkeypatch.setattr)

    def on(name: str) -> dict[str, Any]:
        return {"storage_tiers__warm__placement": "local", "node": name, "deadline": "60s",
                "storage_tiers__warm__peer_timeout": "10s",
                "storage_tiers__warm__directory": stores.archive.parent / name}  # fmt: skip

    a, b = await stores.open(kind, **on("a")), await stores.open(kind, **on("b"))
    ids = stores.ids(ALL)
    await a.put_many([Item(id, f"{id} " * 50) for id in ids])
    await a.archive_now()
    assert {moved.tier for moved in await a.demote_many(ids, to="warm")} <= {"warm", "cold"}
    assert len({stores.keys.shard(id).index for id in ids}) > 6, "the ids are spread over the masters"
    await until(lambda: b.store._driver.peers._nodes == ("a",), what="b to know of a")

    async def others_know() -> bool:
        return all([(await b.where(id)).nodes == ("a",) for id in ids])

    for _ in range(200):
        if await others_know():
            break
    assert await others_know()
    fetched = []
    monkeypatch.setattr(b.store._driver.archive, "get", lambda key, **_: fetched.append(key))
    for id in ids[: ALL // 2]:
        module = await b.get(id)
        assert (module.text, module.tier) == (f"{id} " * 50, "warm")
    found = await b.get_many(ids)
    assert {id: module.text for id, module in found.items()} == {id: f"{id} " * 50 for id in ids}
    assert all(moved.tier == "hot" for moved in await b.promote_many(ids))
    assert not fetched
