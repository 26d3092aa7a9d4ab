"""The catalogue that the adapters for skills share: names, paths, and what is read when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from distier import AsyncStore, Invalid, NotFound, Store, Unavailable
from distier.domain.skill import FILES_MAX
from distier.integrations import skills
from distier.integrations.shared import Bridge, Steps
from distier.integrations.skills import SkillFiles, check_path, list_skill, read_file, read_skill
from tests.integrations.skill_trees import FORM_FILLING, put_files, put_skills, skill_md, uses

T = TypeVar("T")


@pytest.fixture
def run(store: Store) -> Callable[[Steps[Any]], Any]:
    put_skills(store)
    return Bridge(store).run


Run = Callable[[Steps[Any]], Any]


def test_catalogue_has_the_valid_skills_below_the_root_and_counts_as_no_use(store: Store, run: Run) -> None:
    before = uses(store)
    found = run(SkillFiles("skills").all())
    assert {name: skill.root for name, skill in found.items()} == {
        "form-filling": "skills/form-filling/", "deploy": "skills/ops/deploy/",
    }  # fmt: skip
    assert run(SkillFiles("skills").find("deploy")).root == "skills/ops/deploy/"
    assert list(run(list_skill(found["form-filling"]))) == sorted(FORM_FILLING)
    assert uses(store) == before
    assert set(run(SkillFiles("").all())) == {"form-filling", "deploy", "secret"}


async def test_catalogue_is_the_same_on_asyncio(store: Store, async_store: AsyncStore, run: Run) -> None:
    assert await Bridge(async_store).arun(SkillFiles("skills").all()) == run(SkillFiles("skills").all())


def test_of_two_skills_with_one_name_the_one_nearer_to_the_root_is_found(store: Store, run: Run) -> None:
    put_files(store, "skills/a/b/deploy", {"SKILL.md": skill_md("deploy")})
    assert run(SkillFiles("skills").find("deploy")).root == "skills/ops/deploy/"
    put_files(store, "skills/a/deploy", {"SKILL.md": skill_md("deploy")})
    put_files(store, "skills/zz/deploy", {"SKILL.md": skill_md("deploy")})
    assert run(SkillFiles("skills").find("deploy")).root == "skills/a/deploy/"
    put_files(store, "skills/deploy", {"SKILL.md": skill_md("deploy")})
    for found in (run(SkillFiles("skills").find("deploy")), run(SkillFiles("skills").all())["deploy"]):
        assert found.root == "skills/deploy/"


@pytest.mark.parametrize("name", ["", "none", "wrong", "../elsewhere/secret", "ops/deploy", "a" * 300, "\ud800", "."])
def test_name_of_no_skill_is_not_found(run: Run, name: str) -> None:
    with pytest.raises(NotFound):
        run(SkillFiles("skills").find(name))


def test_skill_that_is_not_valid_is_not_found_with_the_reason(run: Run) -> None:
    with pytest.raises(NotFound, match=r"bare.*needs a name"):
        run(SkillFiles("skills").find("bare"))


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../ops/deploy/SKILL.md", "/etc/passwd", "a/../../b", "a//b", "a/./b", "a/", "C:/x", "c:x", "a\\b",
     "a\x00b", "a\n", "././a"],
)  # fmt: skip
def test_path_that_leaves_the_directory_is_refused(store: Store, run: Run, path: str) -> None:
    skill = run(SkillFiles("skills").find("form-filling"))
    store.put("skills/form-filling/a", "x")
    with pytest.raises(Invalid, match="not a path within"):
        run(read_file(skill, path))


@pytest.mark.parametrize("path", ["a:b", "…", "a b", "%2e%2e", "ab:c", "~", "a?b#c", "...", ".hidden", "é/日本.md"])
def test_any_other_path_is_that_of_a_file(store: Store, run: Run, path: str) -> None:
    skill = run(SkillFiles("skills").find("form-filling"))
    path = "d/" + path
    assert run(read_file(skill, path)) is None
    store.put(skill.root + path, "text")
    assert run(read_file(skill, path)).text == run(read_file(skill, "./" + path)).text == "text"
    assert check_path(path) in run(list_skill(skill))


@pytest.mark.parametrize("path", ["k" * 300, "\ud800"])
def test_path_that_no_id_can_have_is_that_of_no_file(run: Run, path: str) -> None:
    assert run(read_file(run(SkillFiles("skills").find("deploy")), path)) is None


def test_skill_with_a_file_that_no_path_names_is_refused_with_its_id(store: Store, run: Run) -> None:
    store.put("skills/ops/deploy/a/../b", "x")
    with pytest.raises(Invalid, match=r"skills/ops/deploy/a/\.\./b"):
        run(list_skill(run(SkillFiles("skills").find("deploy"))))


def test_skill_with_too_many_files_is_refused(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    skill = run(SkillFiles("skills").find("form-filling"))
    monkeypatch.setattr(skills, "FILES_MAX", len(FORM_FILLING))
    run(list_skill(skill))
    monkeypatch.setattr(skills, "FILES_MAX", len(FORM_FILLING) - 1)
    with pytest.raises(Invalid, match="more than"):
        run(list_skill(skill))
    monkeypatch.setattr(skills, "FILES_MAX", FILES_MAX)
    monkeypatch.setattr(skills, "SIZE_MAX", 10)
    with pytest.raises(Invalid, match="bytes"):
        run(list_skill(skill))


def interrupted(store: Store, steps: Steps[T], at: int, change: Callable[[], Any]) -> T:
    """Run steps, and let another agent change something before step `at`, and before the same step of each repetition."""
    number = -1

    def counted() -> Steps[T]:
        nonlocal number
        result: Any = None
        try:
            step = next(steps)
            while True:
                number += 1
                if number == at:
                    change()
                result = yield step
                step = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    return Bridge(store).run(counted())


@pytest.mark.parametrize("at", [0, 1, 2])
def test_skill_is_read_as_it_was_at_one_moment(store: Store, run: Run, at: int) -> None:
    skill = run(SkillFiles("skills").find("deploy"))
    put_files(store, "skills/ops/deploy", {"a": "1", "b": "1", "c": "1"})

    def change() -> None:
        put_files(store, "skills/ops/deploy", {"a": "2", "d": "2"})
        store.delete("skills/ops/deploy/b")

    found = interrupted(store, read_skill(skill), at, change)
    assert {path: module.text for path, module in found.items() if path != "SKILL.md"} == {"a": "2", "c": "1", "d": "2"}


def test_skill_that_changes_at_each_read_is_unavailable(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    skill = run(SkillFiles("skills").find("deploy"))
    get_many = Store.get_many

    def changing(self: Store, ids: Any) -> Any:
        found = get_many(self, ids)
        store.put("skills/ops/deploy/a", "changed")
        return found

    monkeypatch.setattr(Store, "get_many", changing)
    with pytest.raises(Unavailable, match="change each time"):
        run(read_skill(skill))


def test_skill_that_was_deleted_meanwhile_is_not_found(store: Store, run: Run) -> None:
    skill = run(SkillFiles("skills").find("deploy"))
    store.delete("skills/ops/deploy/SKILL.md")
    with pytest.raises(NotFound, match="deleted"):
        run(read_skill(skill))


def test_older_module_of_the_near_cache_is_read_again(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A near cache may have an older version for a moment after another process wrote a newer one, as `get_many` here."""
    skill = run(SkillFiles("skills").find("deploy"))
    put_files(store, "skills/ops/deploy", {"a": "1"})
    old = store.get("skills/ops/deploy/a")
    put_files(store, "skills/ops/deploy", {"a": "2"})
    get_many = Store.get_many
    monkeypatch.setattr(
        Store, "get_many",
        lambda self, ids: {id: old if id == "skills/ops/deploy/a" else found for id, found in get_many(self, ids).items()},
    )  # fmt: skip
    assert run(read_skill(skill))["a"].text == "2"


def test_root_that_is_too_long_is_refused() -> None:
    with pytest.raises(Invalid, match="root"):
        SkillFiles("r" * 128)


def test_a_fault_is_no_missing_skill(store: Store, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise Unavailable("down")

    skill = run(SkillFiles("skills").find("deploy"))
    for name in ("page", "describe", "get", "get_many"):
        monkeypatch.setattr(Store, name, broken)
    files = SkillFiles("skills")
    for steps in (files.all(), files.find("deploy"), files.find("none"), read_file(skill, "a"), read_skill(skill)):
        with pytest.raises(Unavailable):
            run(steps)
    with pytest.raises(NotFound):  # it is the name of no skill, so no server is asked
        run(files.find(".."))
