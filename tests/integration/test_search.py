"""`store.search`: it follows what any process changes, and survives losses and trimmed events."""

from __future__ import annotations

from typing import Any

import pytest

from distier import Item, Store
from distier.cli import run as cli
from distier.errors import DeadlineExceeded, Invalid
from distier.plans.get.listing import list_page
from tests.integration.test_api import with_shards
from tests.integration.test_rescue import lose
from tests.integration.world import Open, World
from tests.servers import TestServer


def ids(found: Any) -> list[str]:
    return [module.id for module in found.modules]


@with_shards
async def test_search_follows_puts_deletes_and_renames_of_others(world: World) -> None:
    face, other = await world.open(), await world.open()
    await other.put("skills/pdf", "x", keywords=["pdf"], meta={"description": "Fill forms"})
    found = await face.search("forms")
    assert (ids(found), found.total) == (["skills/pdf"], 1)
    assert found.modules[0].description == "Fill forms"
    await other.put("skills/docx", "y", meta={"description": "Fill templates"})
    assert ids(await face.search("fill")) == ["skills/docx", "skills/pdf"]
    await other.put("skills/pdf", "x", meta={"description": "Read tables"})
    assert ids(await face.search("fill")) == ["skills/docx"]
    assert ids(await face.search("tables")) == ["skills/pdf"]
    await other.rename("skills/docx", "skills/word")
    assert ids(await face.search("fill")) == ["skills/word"]
    await other.delete("skills/word")
    found = await face.search("fill")
    assert (ids(found), found.total) == ([], 0)
    assert ids(await face.search("skills", prefix="skills/p")) == ["skills/pdf"]


def test_results_are_paged_and_moves_cost_no_reading(open_store: Open) -> None:
    store = open_store()
    store.put_many([Item(f"m/{i:02}", "x", meta={"name": "some module"}) for i in range(25)])
    pages = [ids(store.search("module", start=start, limit=10)) for start in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert [id for page in pages for id in page] == [f"m/{i:02}" for i in range(25)]
    index = store.searching._known.index  # type: ignore[union-attr]
    store.archive_now()
    store.demote_many([f"m/{i:02}" for i in range(25)], to="cold")
    assert store.search("module", limit=1).total == 25
    assert store.searching._known.index is index  # type: ignore[union-attr]


def test_trimmed_events_and_a_loss_make_a_new_index(open_store: Open, server: TestServer) -> None:
    store, other = open_store(events__max_length=100), open_store(events__max_length=100)
    other.put("first", "x", durability="archived")
    assert store.search("first").total == 1
    for i in range(400):
        other.put(f"many/{i}", "x", meta={"name": "later"})
    assert store.search("later").total == 400
    lose(server)
    assert store.search("later").total == 0
    assert ids(store.search("first")) == ["first"]


def test_index_that_takes_longer_than_a_call_is_finished_by_the_next_ones(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distier.client.searching.LIMIT_MAX", 10)
    store = open_store()
    store.put_many([Item(f"m/{i:02}", "x") for i in range(35)])
    read: list[str] = []

    def slow(space: Any, prefix: str, after: str, limit: int) -> Any:
        """Every third page comes too late."""
        read.append(after)
        if len(read) % 3 == 0:
            raise DeadlineExceeded("too late")
        return (yield from list_page(space, prefix, after, limit))

    monkeypatch.setattr("distier.client.searching.list_page", slow)
    with pytest.raises(DeadlineExceeded):
        store.search("m")
    store.put("m/later", "x")
    assert store.search("m", limit=100).total == 36
    assert read == ["", "m/09", "m/19", "m/19", "m/29"], "no page was read twice"


def test_impossible_arguments_are_refused(open_store: Open) -> None:
    store = open_store()
    for options in ({"start": -1}, {"limit": 0}, {"prefix": 7}, {"start": True}):
        with pytest.raises(Invalid):
            store.search("a", **options)
    with pytest.raises(Invalid, match="nothing is wanted"):
        store.search("-a")


def test_command_prints_ids_and_descriptions(
    open_store: Open, redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store: Store = open_store()
    store.put("skills/pdf", "x", keywords=["pdf"], meta={"description": "Fill\nforms"})
    store.put("weird\nid", "x", keywords=["pdf"])
    base = ["--url", redis_url, "--namespace", "t"]
    assert cli([*base, "search", "keyword:pdf"]) == 0
    assert capfd.readouterr().out == 'skills/pdf  Fill forms\n"weird\\nid"\n'
    assert cli([*base, "search", "pdf", "--limit", "1"]) == 0
    assert "1 of 2 modules" in capfd.readouterr().err
    assert cli([*base, "search", "--", "pdf", "-forms"]) == 0
    assert capfd.readouterr().out == '"weird\\nid"\n'
    assert cli([*base, "--json", "search", "forms"]) == 0
    assert '"id": "skills/pdf"' in capfd.readouterr().out
    assert cli([*base, "search", "nothing"]) == 0
    assert "no module has all these words" in capfd.readouterr().err
