"""An export is imported into a bucket or a directory: under another name, again after a stop, and only where nothing is."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from distier.cli import run
from distier.client import connect
from distier.stores.directory import DirectoryArchive
from tests.servers import TestServer, running_server

from .archives import ACCESS_KEY, SECRET_KEY, moto_server

PACKED = [f"p{n:02}" for n in range(40)]


def write_config(path: Path, namespace: str, url: str, cold: dict[str, Any]) -> Path:
    config = {"redis": {"url": url}, "namespace": namespace, "near": {"enabled": False}, "deadline": "60s",
              "counter": "estimate", "storage_tiers": {"cold": cold}}  # fmt: skip
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def exported(valkey_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of modules, old versions, a deleted module, and a pack."""
    tmp = tmp_path_factory.mktemp("exported")
    config = write_config(tmp / "from.json", "imported-from", valkey_server.url, {"directory": str(tmp / "archive")})
    with connect(json.loads(config.read_text())) as store:
        for id in PACKED:
            store.put(id, f"text of {id} " * 2000, keywords=["packed"])
        store.archive_now()
        assert run(["--config", str(config), "archive", "pack", "--min-age", "0s", "--all", "--alone"]) == 0
        store.put("a/b", "text", keywords=["k"])
        store.put("gone", "x")
        store.archive_now()
        store.put("a/b", "newer", keywords=["k"], meta={"name": "ä"})
        store.delete("gone")
        store.archive_now()
    assert run(["--config", str(config), "archive", "export", str(tmp / "x.tar")]) == 0
    with tarfile.open(tmp / "x.tar") as tar:
        assert any("/packs/" in name for name in tar.getnames())
    return tmp / "x.tar"


@pytest.fixture(params=["directory", "bucket"])
def cold(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    if request.param == "directory":
        yield {"directory": str(tmp_path / "archive")}
        return
    with moto_server() as url:
        client = boto3.session.Session().client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY
        )  # fmt: skip
        client.create_bucket(Bucket="imported")
        client.close()
        yield {"url": "s3://imported/p", "endpoint_url": url, "region": "us-east-1", "access_key": ACCESS_KEY,
               "secret_key": SECRET_KEY, "timeout": "20s"}  # fmt: skip


def check_modules(config: Path) -> None:
    with connect(json.loads(config.read_text())) as store:
        found = store.get("a/b")
        assert found is not None and (found.text, list(found.keywords), found.meta["name"]) == ("newer", ["k"], "ä")
        assert len(store.history("a/b")) == 2
        for id in PACKED:
            packed = store.get(id)
            assert packed is not None and packed.text == f"text of {id} " * 2000 and list(packed.keywords) == ["packed"]
        assert store.get("gone") is None
        assert [one.id for one in store.page("").modules] == ["a/b", *PACKED]


def test_import_gives_all_modules_under_another_name(
    exported: Path, cold: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server("valkey", tcp=True) as server:
        config = write_config(tmp_path / "to.json", "other", server.url, cold)
        args = ["--config", str(config), "archive", "import", str(exported)]
        assert run(args) == 0
        assert "objects imported into namespace 'other'" in capsys.readouterr().out
        assert run(["--config", str(config), "archive", "ls"]) == 0
        assert capsys.readouterr().out.split()[0] == "a/b"
        check_modules(config)
        assert run(args) == 9, "it belongs to a namespace now"
        assert "already belongs to namespace 'other'" in capsys.readouterr().err


def test_import_that_was_stopped_is_repeated(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = exported.read_bytes()
    part = tmp_path / "part.tar"
    with running_server("valkey", tcp=True) as server:
        config = write_config(
            tmp_path / "to.json", "imported-from", server.url, {"directory": str(tmp_path / "archive")}
        )
        for cut in (700, len(whole) // 2, len(whole) - 11_000):
            part.write_bytes(whole[:cut])
            assert run(["--config", str(config), "archive", "import", str(part)]) == 2
            assert "is damaged, or no tar file" in capsys.readouterr().err
            archive = DirectoryArchive(tmp_path / "archive")
            assert not list(archive.list("imported-from/epochs/")) and not list(archive.list("imported-from/identity/"))
            archive.close()
        assert run(["--config", str(config), "archive", "import", str(exported)]) == 0
        check_modules(config)


def test_foreign_members_of_the_file_are_not_written(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["../escape", "imported-from/modules/../../x/@.xz", "imported-from/modules/a/.DS_Store", "/etc/passwd",
             "imported-from/other/x", "imported-from/epochs/0/notes"]  # fmt: skip
    mixed = tmp_path / "mixed.tar"
    with tarfile.open(exported) as old, tarfile.open(mixed, "w") as new:
        for info in old:
            new.addfile(info, old.extractfile(info))
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            new.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("imported-from/modules/l/@0000000000000001-00000001-link.txt.xz")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        new.addfile(link)
    config = write_config(tmp_path / "to.json", "t", "redis://127.0.0.1:1", {"directory": str(tmp_path / "archive")})
    assert run(["--config", str(config), "archive", "import", str(mixed)]) == 10
    err = capsys.readouterr().err
    assert all(f"{name}: not imported" in err for name in (*names, link.name))
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not {"escape", ".DS_Store", "notes", "passwd"} & set(written)


def test_what_is_no_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "to.json", "t", "redis://127.0.0.1:1", {"directory": str(tmp_path / "archive")})
    (tmp_path / "text").write_text("no tar file" * 100)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name, why in (("text", "no tar file"), ("empty.tar", "it is no export"), ("none", "No such file")):
        assert run(["--config", str(config), "archive", "import", str(tmp_path / name)]) == 2
        assert why in capsys.readouterr().err
