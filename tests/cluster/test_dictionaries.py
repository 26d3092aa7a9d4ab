"""Dictionaries for warm copies on a cluster: every shard gets them, wherever its master is."""

from __future__ import annotations

import pytest

from distier import Item
from distier.plans.fleet.dictionaries import keep_dictionaries, learn_if_due
from tests.cluster.conftest import Stores
from tests.integration.test_dictionaries import CONTENTS, ROOMY


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_all_shards_of_a_cluster_use_the_dictionary(stores: Stores, kind: str):
    face = await stores.open(kind, **ROOMY)
    await face.put_many([Item(id, content) for id, content in CONTENTS.items()])
    await face.archive_now()
    assert await face.run(learn_if_due(face.space), deadline_s=60) == 1
    await face.demote_many(list(CONTENTS), to="warm")
    found = await face.stats()
    assert found.warm.dictionary and found.warm.count == len(CONTENTS)
    for shard in stores.keys.shards:
        assert await face.run(keep_dictionaries(face.space, shard)) == 0
    other = await stores.open(kind, **ROOMY)
    read = await other.get_many(CONTENTS)
    assert {id: module.content for id, module in read.items() if module} == CONTENTS
    assert (await other.stats()).counters["hits.warm"] == len(CONTENTS)
    assert found.warm.ratio and found.warm.ratio > 4
