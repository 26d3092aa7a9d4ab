"""The generated pages are up to date, and incomplete sources are refused."""

from __future__ import annotations

import re

import pytest

import distier
from distier.cli.app import command
from distier.errors import DistierError
from docs.generate import DOCS, PAGES, cli, errors


@pytest.mark.parametrize("name", PAGES)
def test_page_is_generated_from_the_current_code(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name](), "run `make docs`"


def test_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (DOCS / "reference/cli.md").read_text("utf-8") == cli.render()


def test_errors_page_refuses_a_class_without_cause_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(errors.ADVICE, "Fenced")
    with pytest.raises(LookupError, match=r"\['Fenced'\]"):
        errors.render()


def test_errors_page_refuses_advice_without_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(errors.ADVICE, "Renamed", errors.Advice("x", "y", "z"))
    with pytest.raises(LookupError, match=r"\['Renamed'\]"):
        errors.render()


def test_errors_page_states_cause_remedy_and_retry_of_every_class() -> None:
    for name, advice in errors.ADVICE.items():
        assert advice.cause.endswith(".") and advice.remedy.endswith("."), name
        assert advice.retry or name == "DistierError", name


def test_errors_page_covers_every_public_error() -> None:
    public = {name for name in distier.__all__ if _is_error(getattr(distier, name))}
    assert len(public) > 10
    rows = set(re.findall(r"^\| `(\w+)`;? ?", errors.render(), re.MULTILINE))
    assert public - {"DistierError"} <= rows


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, DistierError)


def test_error_class_names_are_unique() -> None:
    names = [kind.__name__ for kind in errors.error_classes()]
    assert len(names) == len(set(names))


def test_cli_page_has_every_command() -> None:
    page = cli.render()
    for name, inner in command().commands.items():
        for words in [name, *(f"{name} {below}" for below in getattr(inner, "commands", {}))]:
            assert f"\n## distier {words}\n" in page
