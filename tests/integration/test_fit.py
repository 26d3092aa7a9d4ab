"""`fit` on real servers, for both kinds of stores: what is read, what counts as a use, and what may change meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from distier import Fitted, Item
from distier.errors import Conflict, Invalid, NotFound
from distier.plans.get import fit as fit_plans
from distier.policy.fit import Pick
from tests.integration.world import Face, World

with_shards = pytest.mark.parametrize("shards", [1, 4], indirect=True)
OUTLINED = {"outline": ["text/markdown"]}


async def fill(face: Face, *, n: int = 10, tokens: int = 100) -> None:
    results = await face.put_many(Item(f"docs/{i}", f"text {i}", tokens=tokens) for i in range(n))
    assert all(result.tokens == tokens for result in results)


async def use(face: Face, id: str, times: int) -> None:
    for _ in range(times):
        await face.get(id)


def shapes(fitted: Fitted) -> list[tuple[str, str, str | None]]:
    return [(choice.id, choice.form, choice.reason) for choice in fitted.choices]


@with_shards
async def test_fit_returns_most_used_modules_in_the_order_given(world: World):
    face = await world.open()
    await fill(face)
    await use(face, "docs/7", 3)
    await use(face, "docs/2", 9)
    await face.close()  # sends the uses
    face = await world.open()
    fitted = await face.fit(["docs/7", "none", "docs/1", "docs/2", "docs/7"], 250)
    assert shapes(fitted) == [
        ("docs/7", "whole", None), ("none", "none", "missing"), ("docs/1", "none", "outranked"), ("docs/2", "whole", None),
    ]  # fmt: skip
    assert (fitted.tokens, fitted.budget_tokens, fitted.ids) == (200, 250, ("docs/7", "docs/2"))
    assert [choice.text for choice in fitted] == ["text 7", "text 2"]
    assert [choice.value > 0.5 for choice in fitted.choices] == [True, False, False, True]
    assert shapes(await face.fit(["docs/7", "none", "docs/1", "docs/2"], 250)) == shapes(fitted)


@with_shards
async def test_fit_of_a_prefix_takes_the_modules_with_it_in_order(world: World):
    face = await world.open()
    await fill(face, n=12)
    await face.put("other", "x", tokens=1)
    fitted = await face.fit("docs/", 100_000)
    assert fitted.ids == tuple(sorted(f"docs/{i}" for i in range(12)))
    assert (await face.fit("none/", 100)).choices == ()


async def test_fit_of_a_prefix_with_too_many_modules_is_refused(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit_plans, "LISTED_MAX", 9)
    face = await world.open()
    await fill(face, n=10)
    with pytest.raises(Invalid, match="more than 9 modules have the prefix 'docs/'"):
        await face.fit("docs/", 100)
    assert len(await face.fit("docs/1", 100)) == 1


async def test_fit_reads_every_tier_and_counts_uses_of_what_it_chose_only(world: World):
    face = await world.open()
    await fill(face, n=6)
    for id, tier in (("docs/0", "cold"), ("docs/1", "warm"), ("docs/2", "cold")):
        await face.demote(id, to=tier)
    before = {f"docs/{i}": await face.where(f"docs/{i}") for i in range(6)}
    fitted = await face.fit([f"docs/{i}" for i in range(6)], 400, required=["docs/0", "docs/1"])
    assert [choice.content for choice in fitted] == [f"text {choice.id[-1]}".encode() for choice in fitted]
    assert fitted.ids[:2] == ("docs/0", "docs/1")
    assert len(fitted) == 4
    await face.close()
    face = await world.open()
    for id, placed in before.items():
        now = await face.where(id)
        assert now.uses - placed.uses == (id in fitted.ids), id
        if id not in fitted.ids:
            assert (now.tier, now.last_use_ms) == (placed.tier, placed.last_use_ms)


async def test_module_that_does_not_fit_is_taken_as_its_outline(world: World):
    face = await world.open(**OUTLINED)
    book = "".join(f"# Part {i}\n\nIn short. {'And much more text follows here. ' * 40}\n\n" for i in range(5))
    await face.put("book.md", book)
    await face.put("note.md", "# Note\n\nA line.\n", tokens=20)
    whole = (await face.where("book.md")).tokens
    fitted = await face.fit(["book.md", "note.md"], 100)
    assert shapes(fitted) == [("book.md", "outline", "too large"), ("note.md", "whole", None)]
    first = fitted.choices[0]
    assert first.text.startswith("# Part 0\nIn short.")
    assert first.tokens == face.space.counter.count(first.content)
    assert (first.whole_tokens, first.module) == (whole, None)
    assert fitted.tokens == first.tokens + 20 <= 100
    assert (await face.where("book.md")).uses == 0  # an outline is no use
    assert shapes(await face.fit(["book.md"], first.tokens)) == [("book.md", "outline", "too large")]
    assert shapes(await face.fit(["book.md"], first.tokens - 1)) == [("book.md", "none", "too large")]


async def test_outline_that_is_larger_than_estimated_never_exceeds_the_budget(world: World):
    """The estimate uses the tokens of the whole module, which the caller may have given."""
    face = await world.open(**OUTLINED)
    for i in range(4):
        await face.put(f"{i}.md", "# A heading of some words\n\n" + "More text. " * 300, tokens=200)
    real = face.space.counter.count(b"# A heading of some words\nMore text.")
    for budget in range(60):
        fitted = await face.fit([f"{i}.md" for i in range(4)], budget)
        assert fitted.tokens == sum(choice.tokens for choice in fitted) <= budget
        assert len(fitted) == min(budget // real, 4), budget


async def test_kept_result_stays_as_it_is_and_new_modules_follow(world: World):
    face = await world.open(**OUTLINED)
    await fill(face, n=6)
    await face.put("book.md", "# Part\n\nIn short. " + "And much more. " * 200)
    first = await face.fit(["docs/4", "book.md", "docs/1"], 260)
    assert [choice.form for choice in first] == ["whole", "outline", "whole"]
    await use(face, "docs/0", 20)
    more = await face.fit("docs/", 2000, keep=first, required=["docs/5"])
    assert more.ids == ("docs/4", "book.md", "docs/1", "docs/5", "docs/0", "docs/2", "docs/3")
    assert [choice.form for choice in more][:3] == ["whole", "outline", "whole"]
    assert more.intact
    assert b"".join(c.content for c in more).startswith(b"".join(c.content for c in first))
    await face.put("docs/1", "another text", tokens=90)
    assert not (await face.fit("docs/", 2000, keep=first)).intact
    assert (await face.fit("docs/", 300, keep=["docs/3", "docs/0"])).ids[:2] == ("docs/3", "docs/0")


async def test_prediction_outranks_uses(world: World):
    face = await world.open()
    await fill(face, n=3)
    await use(face, "docs/0", 5)
    assert (await face.fit("docs/", 100, predicted={"docs/2": 1.0})).ids == ("docs/2",)
    with pytest.raises(Invalid, match=r"predicted\['docs/2'\] must be a number from 0 to 1"):
        await face.fit("docs/", 100, predicted={"docs/2": 2})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (Invalid, "budget_tokens must be a whole number from 0", {"budget_tokens": -1}),
        (Invalid, "budget_tokens must be a whole number from 0", {"budget_tokens": 1.5}),
        (Invalid, "sequence of module ids", {"required": "docs/0"}),
        (NotFound, "'nope', which does not exist", {"required": ["nope"]}),
        (NotFound, "'nope', which does not exist", {"keep": ["nope"]}),
        (Invalid, "keep takes 100 tokens and required at least 100, .* budget_tokens, 199",
         {"keep": ["docs/1"], "required": ["docs/0"], "budget_tokens": 199}),
    ],
)  # fmt: skip
async def test_impossible_fit_says_why(world: World, error: type[Exception], message: str, arguments: dict[str, Any]):
    face = await world.open()
    await fill(face, n=2)
    with pytest.raises(error, match=message):
        await face.fit("docs/", **({"budget_tokens": 500} | arguments))


@pytest.mark.parametrize("keeps_changing", [False, True])
async def test_module_that_grows_between_choice_and_read_never_exceeds_the_budget(
    world: World, monkeypatch: pytest.MonkeyPatch, keeps_changing: bool
):
    face, writer = await world.open(), await world.open()
    await fill(face, n=2)
    read, left = face.store.get_many, [3 if not keeps_changing else 1000]

    def grow(ids: Any) -> Any:
        if left[0]:
            left[0] -= 1
            world.raw.hincrby(world.shard("docs/0").module("docs/0"), "tokens", 60)
        return read(ids)

    monkeypatch.setattr(face.store, "get_many", grow)
    if keeps_changing:
        monkeypatch.setattr(fit_plans, "choose", lambda kept, required, others, budget: [
            Pick("whole", 1, 1.0) for _ in others])  # fmt: skip
        with pytest.raises(Conflict, match="during each of 5 attempts"):
            await face.fit("docs/", 200)
        return
    fitted = await face.fit("docs/", 250)
    assert fitted.tokens <= 250
    assert shapes(fitted) == [("docs/0", "none", "outranked"), ("docs/1", "whole", None)]
    await writer.close()
