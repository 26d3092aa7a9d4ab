"""The plan of `fit`: what it reads, and what happens when modules change or are unknown while it runs."""

from __future__ import annotations

from typing import Any

import pytest

from distier.errors import ArchiveUnavailable, Unavailable
from distier.plans.fleet.maintain import write_back_due
from distier.plans.get.fit import Asked, fit
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.recovery.epochs import recover
from tests.fakes import World

BOOK = "# Part\n\nIn short. " + "And much more text. " * 100


def outlined() -> World:
    world = World.make(outline=["text/markdown"])
    world.run(put(world.space, Item("book.md", BOOK, tokens=500)))
    world.run(put(world.space, Item("note.md", "# Note\n\nA line.\n", tokens=30)))
    return world


def sent(world: World) -> list[tuple[Any, ...]]:
    commands: list[tuple[Any, ...]] = []
    world.redis.before = lambda command: commands.append(tuple(command))
    return commands


def test_fit_reads_no_content_and_writes_nothing() -> None:
    world = outlined()
    before, commands = world.dump(), sent(world)
    fitted = world.run(fit(world.space, Asked(("book.md", "note.md"), 60)))
    world.redis.before = None
    assert [choice.form for choice in fitted.choices] == ["outline", "whole"]
    names = {command[0] for command in commands} - {"EVALSHA", "INFO", "SCRIPT"}
    assert names == {"TIME", "HMGET", "HSTRLEN", "ZSCORE"}
    assert not any("content" in command for command in commands)
    assert world.dump() == before


def test_outlines_are_not_read_where_everything_fits() -> None:
    world = outlined()
    commands = sent(world)
    world.run(fit(world.space, Asked(("book.md", "note.md"), 1000)))
    world.redis.before = None
    assert not [command for command in commands if command[0] == "HMGET" and "outline" in command]


def test_outline_of_another_version_than_the_one_that_was_chosen_is_not_taken() -> None:
    """Its module may have become small enough to be taken whole, or have another outline: the next call sees that."""
    world = outlined()

    def rewrite(command: Any) -> None:
        if command[0] == "HMGET" and "outline" in command:
            world.redis.before = None
            world.run(put(world.space, Item("book.md", BOOK.replace("short", "brief"), tokens=400)), "writer")

    world.redis.before = rewrite
    fitted = world.run(fit(world.space, Asked(("book.md", "note.md"), 60)))
    assert [(choice.id, choice.form) for choice in fitted.choices] == [("book.md", "none"), ("note.md", "whole")]
    again = world.run(fit(world.space, Asked(("book.md", "note.md"), 60)))
    assert again.choices[0].outline == "# Part\nIn brief."


def test_module_whose_record_was_lost_is_found_in_the_archive() -> None:
    world = outlined()
    world.run(write_back_due(world.space, world.shard, older_than_ms=0))
    world.ask([("FLUSHALL",)])
    world.run(recover(world.space, world.shard))
    fitted = world.run(fit(world.space, Asked(("book.md", "none"), 1000)))
    assert [(choice.id, choice.form, choice.tokens) for choice in fitted.choices] == [
        ("book.md", "whole", 500), ("none", "none", 0),
    ]  # fmt: skip


def test_miss_that_the_archive_cannot_prove_is_an_error_not_a_missing_module() -> None:
    world = outlined()
    world.run(write_back_due(world.space, world.shard, older_than_ms=0))
    world.ask([("FLUSHALL",)])
    world.run(recover(world.space, world.shard))
    world.archive.list = _fail  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        world.run(fit(world.space, Asked(("book.md",), 1000)))


def _fail(*_: Any, **__: Any) -> Any:
    raise ArchiveUnavailable("the archive is down")
