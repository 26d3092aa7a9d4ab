"""`DistierBackend` next to Deep Agents' own backend on a store: the same calls, the same results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from distier import AsyncStore, Store

pytest.importorskip("deepagents", reason="deepagents is not installed: docs/how-to/use-with-deep-agents.md")

from deepagents.backends import StoreBackend
from deepagents.backends.protocol import BackendProtocol
from langgraph.store.memory import InMemoryStore

from distier.errors import Unavailable
from distier.integrations.deepagents import DistierBackend

Make = Callable[[], BackendProtocol]
FILES = {
    "/top.txt": "a\nneedle here\nb", "/src/main.py": "import os\nneedle = 1\nneedle = 2\n", "/src/app/main.py": "x = 'needle'",
    "/src/app/deep/é ü.md": "# é\r\nneedle\r\n", "/srcs/other.py": "", "/.hidden/x.yml": "needle", "/blank.txt": " \n",
}  # fmt: skip


@pytest.fixture(params=["distier", "Deep Agents' own"])
def backend(request: pytest.FixtureRequest, store: Store) -> BackendProtocol:
    """Each test of this fixture holds for Deep Agents' backend too."""
    if request.param == "distier":
        return DistierBackend(store)
    return StoreBackend(store=InMemoryStore(), namespace=lambda _: ("files",))


@pytest.fixture
def filled(backend: BackendProtocol) -> BackendProtocol:
    for name, content in FILES.items():
        assert backend.write(name, content).path == name
    return backend


def names(infos: Any) -> list[tuple[str, bool, int]]:
    return [(info["path"], info["is_dir"], info["size"]) for info in infos]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", [
            ("/.hidden/", True, 0), ("/blank.txt", False, 2), ("/src/", True, 0), ("/srcs/", True, 0), ("/top.txt", False, 15)
        ]),
        ("/src", [("/src/app/", True, 0), ("/src/main.py", False, 32)]),
        ("/src/", [("/src/app/", True, 0), ("/src/main.py", False, 32)]),
        ("/src/app/deep", [("/src/app/deep/é ü.md", False, 14)]),
        ("/none", []), ("/top.txt", []), ("/sr", []),
    ],
)  # fmt: skip
def test_ls(filled: BackendProtocol, path: str, expected: list[tuple[str, bool, int]]) -> None:
    assert names(filled.ls(path).entries) == expected


@pytest.mark.parametrize("window", [(0, 2000), (1, 1), (2, 5), (-3, 2), (0, 0), (0, -1), (99, 1)])
@pytest.mark.parametrize("name", ["/top.txt", "/src/app/deep/é ü.md", "/srcs/other.py", "/blank.txt", "/none"])
def test_read(filled: BackendProtocol, name: str, window: tuple[int, int], store: Store) -> None:
    own = StoreBackend(store=InMemoryStore(), namespace=lambda _: ("files",))
    if name in FILES:
        own.write(name, FILES[name])
    found, expected = filled.read(name, *window), own.read(name, *window)
    for result in (found, expected):
        for field in ("created_at", "modified_at"):
            if result.file_data:
                assert result.file_data.pop(field)  # type: ignore[misc]
    assert found == expected


@pytest.mark.parametrize("path", [None, "/", "/src", "/src/", "/src/main.py", "/none"])
@pytest.mark.parametrize("glob", [None, "*.py", "**/*.py", "/*.py", "app/**", "*.yml", "{a,b", "../x"])
@pytest.mark.parametrize("max_count", [None, 0, 1, 3, 9])
def test_grep_and_glob_are_those_of_deep_agents(
    store: Store, path: str | None, glob: str | None, max_count: int | None
) -> None:
    ours, own = DistierBackend(store), StoreBackend(store=InMemoryStore(), namespace=lambda _: ("files",))
    for name, content in sorted(FILES.items()):
        ours.write(name, content)
        own.write(name, content)
    found, expected = (
        ours.grep("needle", path, glob, max_count=max_count),
        own.grep("needle", path, glob, max_count=max_count),
    )
    assert (found.error, found.truncated, found.matches) == (expected.error, expected.truncated, expected.matches)
    if glob and max_count is None:
        listed, theirs = ours.glob(glob, path), own.glob(glob, path)
        assert listed.error == theirs.error
        assert sorted(names(listed.matches or [])) == sorted(names(theirs.matches or []))


def test_edit(filled: BackendProtocol) -> None:
    assert filled.edit("/src/main.py", "os", "sys").occurrences == 1
    assert "2 times" in (filled.edit("/src/main.py", "needle", "pin").error or "")
    assert filled.edit("/src/main.py", "needle", "pin", replace_all=True).occurrences == 2
    assert filled.read("/src/main.py").file_data["content"] == "import sys\npin = 1\npin = 2\n"  # type: ignore[index]
    assert "not found" in (filled.edit("/none", "a", "b").error or "") and filled.edit("/top.txt", "none", "b").error


def test_delete(filled: BackendProtocol) -> None:
    assert filled.delete("/src/app").path == "/src/app" and filled.delete("/top.txt").error is None
    assert filled.delete("/sr").error and filled.delete("/top.txt").error
    assert names(filled.ls("/src").entries) == [("/src/main.py", False, 32)]


def test_files_of_bytes(backend: BackendProtocol) -> None:
    given = [("/a.png", b"\x89PNG\xff"), ("/b.txt", "é".encode()), ("/empty", b"")]
    assert [answer.error for answer in backend.upload_files(given)] == [None] * 3
    found = backend.download_files(["/a.png", "/b.txt", "/none", "/empty"])
    assert [(answer.content, answer.error) for answer in found] == [
        (b"\x89PNG\xff", None), ("é".encode(), None), (None, "file_not_found"), (b"", None)
    ]  # fmt: skip
    assert backend.read("/a.png").file_data["encoding"] == "base64"  # type: ignore[index]
    assert "binary" in (backend.edit("/a.png", "a", "b").error or "")
    assert backend.grep("PNG").matches == []


@pytest.mark.parametrize("name", ["/clip.mkv", "/scan.PDF"])
def test_a_file_whose_name_is_not_that_of_text_is_read_whole(backend: BackendProtocol, name: str) -> None:
    backend.write(name, "a\nb\n")
    result = backend.read(name, offset=5, limit=1)
    assert result.file_data is not None and result.file_data["content"] == "a\nb\n", result.error


def test_a_file_is_a_module_whose_description_stays(store: Store) -> None:
    store.put("deepagents/notes/a.md", "one", content_type="text/markdown", keywords=["k"], meta={"m": 1})
    backend = DistierBackend(store)
    backend.edit("/notes/a.md", "one", "two")
    backend.write("/notes/a.md", "three")
    module = store.get("deepagents/notes/a.md")
    assert module is not None
    assert (module.text, module.content_type, module.keywords, module.meta) == (
        "three",
        "text/markdown",
        ("k",),
        {"m": 1},
    )


@pytest.mark.parametrize("path", ["/a/b/" + "n" * 300, "/~x", "/é%", "/a b/*?[x]"])
def test_any_path_is_a_file(backend: BackendProtocol, path: str) -> None:
    backend.write(path, "x")
    assert backend.read(path).file_data["content"] == "x"  # type: ignore[index]
    assert [info["path"] for info in backend.glob("*").matches or []] == [path]
    assert backend.grep("x").matches == [{"path": path, "line": 1, "text": "x"}]
    assert backend.delete(path).error is None and backend.read(path).error


def test_a_path_that_is_none_is_refused(store: Store) -> None:
    backend = DistierBackend(store)
    for path in ("a", "/../a", "/a/../b"):
        assert backend.write(path, "x").error and backend.read(path).error and backend.ls(path).error
        assert backend.upload_files([(path, b"x")])[0].error == "invalid_path"
    assert list(store.list()) == []


async def test_edits_of_several_agents_are_all_kept(async_store: AsyncStore) -> None:
    agents = [DistierBackend(async_store) for _ in range(4)]
    await agents[0].awrite("/log", "#\n")
    await asyncio.gather(*(agents[n % 4].aedit("/log", "#\n", f"#\n{n}\n") for n in range(12)))
    result = await agents[1].aread("/log")
    assert result.file_data is not None
    assert sorted(map(int, result.file_data["content"].split()[1:])) == list(range(12))


def test_a_server_that_is_down_is_no_missing_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = DistierBackend(store)

    def down(*_: Any, **__: Any) -> Any:
        raise Unavailable("Redis does not answer")

    for name in ("get_many", "run", "put_many", "delete"):
        monkeypatch.setattr(store, name, down)
    for result in (
        backend.read("/a"), backend.ls("/"), backend.write("/a", "x"), backend.edit("/a", "x", "y"), backend.delete("/a"),
        backend.grep("x"), backend.glob("*"),
    ):  # fmt: skip
        assert result.error == "Error: Redis does not answer"
