"""The catalogue of skills: from records alone, in the order of ids, and without a use."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distier import Item, connect, connect_async
from distier.client.skills import SkillEntry, list_skills, list_skills_async
from tests.conftest import empty
from tests.servers import TestServer

TEXT = {"name": "pdf", "description": "Fills in forms."}


def test_skills_of_a_prefix_are_listed_without_their_contents(server: TestServer, tmp_path: Path) -> None:
    empty(server)
    with connect(
        {"counter": "estimate"}, redis__url=server.url, namespace="s", storage_tiers__cold__directory=tmp_path, deadline="20s"
    ) as store:  # fmt: skip
        items = [
            Item(f"a/pdf/notes-{i:04}.md", "n") for i in range(1100)
        ]  # more than a page comes before the SKILL.md files
        items += [
            Item("a/pdf/SKILL.md", "text", keywords=("forms",), meta=TEXT),
            Item("a/web/SKILL.md", "text", meta=TEXT),
            Item("a/bare/SKILL.md", "text"),
            Item("a/pdf/skill.md", "text", meta=TEXT),
            Item("SKILL.md", "text", meta=TEXT),
            Item("b/pdf/SKILL.md", "text", meta=TEXT),
            Item("zz/pdf/SKILL.md", "text", meta=TEXT),
        ]
        assert all(hasattr(landed, "id") for landed in store.put_many(items))
        store.demote("a/pdf/SKILL.md", to="warm")
        before = store.where("a/pdf/SKILL.md")
        found = list(list_skills(store, "a/"))
        assert [(skill.root, skill.module.name) for skill in found] == [
            ("a/bare/", None), ("a/pdf/", "pdf"), ("a/web/", "pdf"),
        ]  # fmt: skip
        bare, pdf, web = found
        assert (pdf.problem, pdf.module.keywords, pdf.module.description) == ("", ("forms",), "Fills in forms.")
        assert "needs a name" in bare.problem
        assert "'web'" in web.problem
        after = store.where("a/pdf/SKILL.md")
        assert before is not None and after is not None
        assert (after.tier, after.uses, after.last_use_ms) == ("warm", before.uses, before.last_use_ms)
        assert len(everything := list(list_skills(store))) == 5
        assert list(list_skills(store, "none/")) == []

    async def listed() -> list[SkillEntry]:
        async with await connect_async(
            {"counter": "estimate"}, redis__url=server.url, namespace="s", storage_tiers__cold__directory=tmp_path
        ) as opened:
            return [skill async for skill in list_skills_async(opened)]

    assert asyncio.run(listed()) == everything
