"""`distier://` where fsspec's own suite does not look. `test_fsspec_suite.py` runs that suite."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import RedisUnavailable, Store, connect_async
from tests.servers import TestServer

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (the extra `fsspec`)")


@pytest.fixture
def options(settings: dict[str, Any]) -> dict[str, Any]:
    return {"source": {}, "settings": settings, "skip_instance_cache": True}


@pytest.fixture
def fs(options: dict[str, Any]) -> Iterator[Any]:
    fs = fsspec.filesystem("distier", **options)
    yield fs
    fs.close()


def test_a_url_opens_the_module_with_its_path_as_id(fs: Any, store: Store, settings: dict[str, Any]) -> None:
    store.put("100%/é a.md", "# A\n", keywords=["k"], meta={"m": 1})
    with fsspec.open("distier://100%/é a.md", "rt", source={}, settings=settings) as file:
        assert file.read() == "# A\n"
    fsspec.filesystem("distier", source={}, settings=settings).close()  # the same instance, which fsspec keeps
    assert fs.ls("", detail=False) == ["100%"] and fs.ls("100%", detail=False) == ["100%/é a.md"]


def test_a_written_file_is_a_module_of_the_type_of_its_name(fs: Any, store: Store) -> None:
    with fs.open("docs/a.md", "w") as file:
        file.write("# A\n")
    module = store.get("docs/a.md")
    assert module is not None and (module.text, module.content_type) == ("# A\n", "text/markdown")


def test_a_copy_keeps_type_keywords_and_meta(fs: Any, store: Store) -> None:
    store.put("a", "{}", content_type="application/json", keywords=["k"], meta={"m": 1})
    fs.cp("a", "b" * 300)
    fs.mv("b" * 300, "c")
    copy = store.get("c")
    assert copy is not None
    assert (copy.content_type, copy.keywords, dict(copy.meta)) == ("application/json", ("k",), {"m": 1})
    assert not fs.exists("b" * 300)


@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_part_of_a_file_is_what_python_slices(fs: Any, store: Store, size: int) -> None:
    content = bytes(n % 251 for n in range(size))
    store.put("a", content)
    for start, end in ((None, 10), (5, None), (5, 10), (10, 5), (0, 0), (-7, None), (None, -7), (-9, -3), (5, -3)):
        assert fs.cat_file("a", start=start, end=end) == content[start:end]
    assert fs.cat_ranges(["a", "a"], [0, 20], [10, 30]) == [content[:10], content[20:30]]
    for path, error in (("none", FileNotFoundError), ("", IsADirectoryError)):
        with pytest.raises(error):
            fs.cat_file(path, start=1, end=2)


def test_only_a_part_of_a_large_file_is_sent(fs: Any, store: Store, valkey_server: TestServer) -> None:
    raw = redis.Redis.from_url(valkey_server.url)
    content = b"0123456789" * 100_000
    store.put("a", content, tokens=1)
    before = raw.info("stats")["total_net_output_bytes"]
    assert [fs.cat_file("a", start=at, end=at + 5) for at in (0, 500_000)] == [b"01234"] * 2
    assert raw.info("stats")["total_net_output_bytes"] - before < len(content)


def test_info_says_what_the_record_knows_and_is_no_use(fs: Any, store: Store) -> None:
    landed = store.put("docs/a.md", "# A\n")
    before = store.where("docs/a.md")
    info = fs.info("docs/a.md")
    assert (info["size"], info["type"], info["version"]) == (4, "file", str(landed.version))
    assert fs.modified("docs/a.md").timestamp() * 1000 == pytest.approx(before.updated_ms if before else 0)
    assert store.where("docs/a.md") == before
    assert fs.ukey("docs/a.md") == fs.ukey("docs/a.md")
    store.put("docs/a.md", "# B\n")
    assert fs.info("docs/a.md") != info


@pytest.mark.parametrize("path", ["d/" + "n" * 300, "/".join(["long"] * 80), "d" * 300 + "/f"])
def test_a_path_too_long_for_an_id_is_listed_read_and_removed(fs: Any, path: str) -> None:
    fs.pipe_file(path, b"x")
    fs.pipe_file("other", b"y")
    assert fs.find("") == sorted([path, "other"]) and fs.cat_file(path) == b"x"
    parent = path.rpartition("/")[0]
    assert fs.isdir(parent) and fs.ls(parent, detail=False) == [path] and not fs.exists(parent + "x")
    fs.rm(parent, recursive=True)
    assert fs.find("") == ["other"]


def test_a_listing_shows_files_and_directories_of_one_level(fs: Any) -> None:
    for path in ("d/a", "d/sub/b", "d/sub/deep/c", "dd/e", "f"):
        fs.pipe_file(path, b"12")
    assert [(row["name"], row["type"], row["size"]) for row in fs.ls("d")] == [
        ("d/a", "file", 2),
        ("d/sub", "directory", 0),
    ]
    assert fs.ls("f", detail=False) == ["f"]
    assert fs.du("d") == 6 and [path for path, _, _ in fs.walk("d")] == ["d", "d/sub", "d/sub/deep"]
    assert fs.glob("d/**/c") == ["d/sub/deep/c"]
    with pytest.raises(FileNotFoundError):
        fs.ls("none")


def test_a_file_and_a_directory_may_have_one_name(fs: Any) -> None:
    fs.pipe({"a": b"file", "a/b": b"below"})
    assert fs.cat_file("a") == b"file" and fs.isfile("a")
    assert fs.find("") == ["a", "a/b"]


def test_appends_of_several_writers_are_all_kept(fs: Any) -> None:
    files = [fs.open("log", "ab") for _ in range(5)]
    for i, file in enumerate(files):
        file.write(b"%d\n" % i)
    for file in files:
        file.close()
    assert fs.cat_file("log") == b"0\n1\n2\n3\n4\n"


def test_an_append_that_meets_another_writer_reads_again(
    fs: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, others = fs._module, iter([b"theirs\n"])

    async def module(path: str) -> Any:
        try:
            return await found(path)
        finally:
            for other in others:
                await asyncio.to_thread(store.put, path, other)

    monkeypatch.setattr(fs, "_module", module)
    with fs.open("log", "ab") as file:
        file.write(b"mine\n")
    assert store.get("log").content == b"theirs\nmine\n"  # type: ignore[union-attr]


def test_one_of_two_exclusive_writers_fails(fs: Any) -> None:
    one, other = fs.open("new", "xb"), fs.open("new", "xb")
    one.write(b"one")
    one.close()
    with pytest.raises(FileExistsError):
        other.close()
    assert fs.cat_file("new") == b"one"


def test_an_open_file_reads_one_version(fs: Any) -> None:
    fs.pipe_file("a", b"old " * 100)
    with fs.open("a") as file:
        start = file.read(4)
        fs.pipe_file("a", b"new " * 100)
        assert {start, file.read(4)} == {b"old "}


def test_a_transaction_writes_at_its_end_or_not_at_all(fs: Any) -> None:
    with fs.transaction, fs.open("a", "wb") as file:
        file.write(b"x")
        file.close()
        assert not fs.exists("a")
    assert fs.cat_file("a") == b"x"
    with pytest.raises(ZeroDivisionError), fs.transaction:
        with fs.open("b", "wb") as file:
            file.write(b"x")
        raise ZeroDivisionError
    assert not fs.exists("b")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda fs: fs.cat_file("none"), FileNotFoundError), (lambda fs: fs.open("none"), FileNotFoundError),
        (lambda fs: fs.rm("none"), FileNotFoundError), (lambda fs: fs.cat_file("d"), IsADirectoryError),
        (lambda fs: fs.rm("d"), IsADirectoryError), (lambda fs: fs.pipe_file("", b""), IsADirectoryError),
        (lambda fs: fs.pipe_file("d/f", b"", mode="create"), FileExistsError),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_host(fs: Any, call: Any, error: type[Exception]) -> None:
    fs.pipe_file("d/f", b"x")
    with pytest.raises(error):
        call(fs)


@pytest.mark.parametrize("call", ["exists", "isfile", "isdir", "find", "ls", "cat_file", "walk", "info"])
def test_a_server_that_is_down_is_never_a_missing_file(fs: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    async def down() -> None:
        raise RedisUnavailable("down")

    fs.pipe_file("a", b"x")
    monkeypatch.setattr(fs, "_store", down)
    with pytest.raises(RedisUnavailable):
        list(getattr(fs, call)("a"))


def test_a_store_that_could_not_be_opened_is_opened_by_the_next_call(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RedisUnavailable("down")])

    async def open_store(*args: Any, **kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        return await connect_async(*args, **kwargs)

    monkeypatch.setattr("distier.integrations.fsspec.connect_async", open_store)
    fs = fsspec.filesystem("distier", **options)
    with pytest.raises(RedisUnavailable):
        fs.exists("a")
    assert not fs.exists("a")
    fs.close()


def test_a_tree_goes_to_disk_and_back(fs: Any, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(b"A")
    (tmp_path / "in" / "sub" / "b").write_bytes(b"B")
    fs.put(f"{tmp_path}/in", "tree", recursive=True)
    fs.get("tree", f"{tmp_path}/out", recursive=True)
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == b"B" and fs.find("tree") == ["tree/a", "tree/sub/b"]


def test_a_pickled_filesystem_opens_a_store_of_its_own(fs: Any) -> None:
    fs.pipe_file("a", b"x")
    copy = pickle.loads(pickle.dumps(fs))
    assert copy.cat_file("a") == b"x"
    copy.close()
    assert fs.cat_file("a") == b"x"


async def test_asyncio_calls_work_on_the_callers_loop(options: dict[str, Any]) -> None:
    fs = fsspec.filesystem("distier", asynchronous=True, **options)
    await asyncio.gather(*(fs._pipe_file(f"d/{i}", b"x") for i in range(5)))
    assert await fs._find("d") == [f"d/{i}" for i in range(5)]
    await fs._rm("d", recursive=True)
    assert not await fs._exists("d")
    await fs._close()
