"""`rename` and `distier mv`: what a new id takes along, what is refused, and what happens between the two steps."""

from __future__ import annotations

import json

import pytest

from distier import Conflict, Invalid, NotFound
from distier.cli import run as cli
from distier.cli.exits import CONFLICT, NOT_FOUND
from distier.domain.module import Landed
from distier.effects import Plan
from distier.plans.common.namespace import Namespace
from distier.plans.put import rename as rename_plan
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from tests.integration.test_api import with_shards
from tests.integration.world import Open, World

FIELDS = ("content", "content_type", "keywords", "meta", "tokens")


@with_shards
async def test_a_renamed_module_is_as_it_was(world: World) -> None:
    face = await world.open()
    await face.put("a", b"\x00b", content_type="application/x-own", keywords=["k"], meta={"m": [1]}, tokens=7)
    before = await face.get("a")
    landed = await face.rename("a", "dir/ü b")
    after = await face.get("dir/ü b")
    assert (landed.id, landed.version, landed.replayed) == ("dir/ü b", after.version, False)
    assert [getattr(after, name) for name in FIELDS[:4]] == [getattr(before, name) for name in FIELDS[:4]]
    assert await face.get("a") is None and await face.list() == ["dir/ü b"]


async def test_what_cannot_be_renamed_changes_nothing(world: World) -> None:
    face = await world.open()
    version = (await face.put("a", "1")).version
    await face.put("b", "2")
    for error, old, new, expected in (
        (NotFound, "none", "c", None), (Conflict, "a", "b", None), (Invalid, "a", "a", None), (Conflict, "a", "c", "1-999"),
        (Conflict, "a", "c", 0), (Invalid, "a", "", None), (Invalid, "", "c", None),
    ):  # fmt: skip
        with pytest.raises(error):
            await face.rename(old, new, if_version=expected)
    assert {id: (await face.get(id)).text for id in await face.list()} == {"a": "1", "b": "2"}
    assert (await face.rename("a", "c", if_version=version)).id == "c"


async def test_a_module_that_is_changed_meanwhile_keeps_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    face = await world.open()
    await face.put("a", "1")

    def late(space: Namespace, item: Item) -> Plan[Landed]:
        landed = yield from put(space, item)
        yield from put(space, Item("a", "2"))
        return landed

    monkeypatch.setattr(rename_plan, "put", late)
    with pytest.raises(Conflict, match="changed meanwhile"):
        await face.rename("a", "b")
    assert (await face.get("a")).text == "2" and await face.get("b") is None


async def test_a_rename_that_was_interrupted_is_finished(world: World) -> None:
    face = await world.open()
    await face.put("a", "1", keywords=["k"])
    await face.put("b", "1", keywords=["k"])
    assert (await face.rename("a", "b")).replayed
    assert await face.get("a") is None and (await face.get("b")).text == "1"


async def test_an_archived_module_is_archived_under_its_new_id_first(world: World) -> None:
    """Otherwise the loss of one shard could lose it: the deletion may be archived, and the copy not yet."""
    face = await world.open()
    await face.put("a", "1")
    await face.rename("a", "b")
    assert not (await face.where("b")).clean
    await face.archive_now()
    await face.rename("b", "c")
    assert (await face.where("c")).clean


def test_command_line(open_store: Open, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    store.put("a", "1")
    store.put("taken", "2")
    options = ["--url", str(store.space.config.redis.url), "--namespace", store.space.namespace]
    cold = str(store.space.config.storage_tiers.cold.directory)
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", cold)
    assert cli(["mv", "a", "b", *options]) == 0
    assert "a is b now, version " in capfd.readouterr().out
    assert cli(["mv", "b", "c", "--json", *options]) == 0
    assert json.loads(capfd.readouterr().out)["id"] == "c"
    assert cli(["mv", "c", "taken", *options]) == CONFLICT and "taken" in capfd.readouterr().err
    assert cli(["mv", "none", "d", *options]) == NOT_FOUND and "none" in capfd.readouterr().err
