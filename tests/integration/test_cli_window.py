# ruff: noqa: F811 - the fixtures of test_cli are used by their names
"""`distier fit`: what it writes where, and its exit codes."""

from __future__ import annotations

import pytest

from tests.integration.test_cli import Cli, _no_settings, cli, home, words  # noqa: F401


def fill(cli: Cli) -> None:
    for id, tokens in (("a", 30), ("b", 50), ("c", 40)):
        cli("put", f"docs/{id}", "-", "--tokens", tokens, stdin=f"<{id}>".encode())
    for _ in range(4):
        cli("get", "docs/b")


def test_fit_writes_contents_to_stdout_and_a_summary_to_stderr(cli: Cli) -> None:
    fill(cli)
    result = cli("fit", "docs/a", "docs/b", "docs/c", "--budget", 90)
    assert (result.code, result.out) == (0, b"<b>\n<c>\n")
    assert result.err == "distier: 90 of 90 tokens; 2 modules; 1 left out (--json says why)\n"
    assert cli("fit", "--prefix", "docs/", "--budget", "0.2k").out == b"<a>\n<b>\n<c>\n"
    assert cli("fit", "-", "--budget", "100", "--required", "docs/a", stdin=b"docs/b\ndocs/c\n").out == b"<a>\n<b>\n"
    assert cli("fit", "--prefix", "docs/", "--budget", "100", "--keep", "docs/c").out == b"<c>\n<b>\n"


def test_fit_json_says_what_becomes_of_each_module_and_uses_none(cli: Cli) -> None:
    fill(cli)
    uses = cli("where", "docs/b", "--json").rows[0]["uses"]
    result = cli("fit", "docs/a", "docs/b", "none", "--budget", "50", "--json")
    assert result.code == 0
    assert [(row["id"], row["form"], row["tokens"], row["whole_tokens"], row["reason"]) for row in result.rows] == [
        ("docs/a", "none", 0, 30, "outranked"), ("docs/b", "whole", 50, 50, None), ("none", "none", 0, 0, "missing"),
    ]  # fmt: skip
    assert set(result.rows[0]) == {"id", "form", "tokens", "whole_tokens", "value", "reason", "version"}
    assert cli("where", "docs/b", "--json").rows[0]["uses"] == uses


def test_fit_names_outlines_on_stderr(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_OUTLINE", "[text/markdown]")
    cli("put", "book.md", "-", "--tokens", 900, stdin=b"# Part\n\nIn short. " + b"More text. " * 300)
    result = cli("fit", "book.md", "--budget", 100)
    assert (result.out, result.code) == (b"# Part\nIn short.\n", 0)
    assert "as outlines: book.md" in result.err


def test_fit_of_a_missing_module_writes_the_others_and_exits_with_3(cli: Cli) -> None:
    fill(cli)
    result = cli("fit", "docs/a", "none", "--budget", 90)
    assert (result.code, result.out) == (3, b"<a>\n")
    assert "there is no module 'none'" in result.err
    assert cli("fit", "docs/a", "--required", "none", "--budget", 90).code == 3


@pytest.mark.parametrize(
    ("code", "message", "argv"),
    [
        (2, "'many' is not a number of tokens", ["docs/a", "--budget", "many"]),
        (2, "'-1' is not a number of tokens", ["docs/a", "--budget=-1"]),
        (2, "--budget", ["docs/a"]),
        (2, "give ids", ["--budget", "1"]),
        (2, "give ids", ["docs/a", "--prefix", "docs/", "--budget", "1"]),
        (9, "raise budget_tokens", ["docs/b", "--required", "docs/a", "--budget", "29"]),
    ],
)
def test_impossible_fit_says_why(cli: Cli, code: int, message: str, argv: list[str]) -> None:
    fill(cli)
    result = cli("fit", *argv)
    assert (result.code, result.out) == (code, b"")
    assert message in result.err
