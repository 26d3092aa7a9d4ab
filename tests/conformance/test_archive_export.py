"""An export of a bucket, unpacked by `tar`, is an archive in a directory with all modules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import boto3

from distier.cli import run
from distier.client import connect
from distier.plans.recovery.export import Exported, export
from distier.plans.recovery.rescue import rescue
from distier.plans.recovery.walk import Skipped
from distier.stores.directory import DirectoryArchive
from tests.servers import TestServer, running_server

from .archives import ACCESS_KEY, SECRET_KEY, moto_server


def test_unpacked_export_of_a_bucket_is_a_directory_archive(valkey_server: TestServer, tmp_path: Path) -> None:
    with moto_server() as url:
        client = boto3.session.Session().client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )  # fmt: skip
        client.create_bucket(Bucket="exported")
        cold = {"url": "s3://exported/p", "endpoint_url": url, "region": "us-east-1", "access_key": ACCESS_KEY,
                "secret_key": SECRET_KEY, "timeout": "20s"}  # fmt: skip
        config = {"redis": {"url": valkey_server.url}, "namespace": "exported", "near": {"enabled": False},
                  "deadline": "20s", "storage_tiers": {"cold": cold}}  # fmt: skip
        path = tmp_path / "distier.yaml"
        path.write_text(json.dumps(config))
        with connect(config) as store:
            store.put("a/b", "text", keywords=["k"])
            store.put("ä", bytes(range(256)))
            store.put("gone", "x")
            store.archive_now()
            store.put("a/b", "newer", keywords=["k"])
            store.delete("gone")
            store.archive_now()
        tar = tmp_path / "x.tar"
        tar.write_bytes(b"old")
        assert run(["--config", str(path), "archive", "export", str(tar)]) == 0
        listed = [item["Key"] for item in client.list_objects_v2(Bucket="exported")["Contents"]]

        def kept(prefix: str) -> list[str]:
            out: list[Any] = []
            with connect(config) as store:
                store.run(export(store.space, Skipped(), prefix=prefix), deadline_s=60, on_progress=out.append)
            return [one.key for one in out if isinstance(one, Exported) and "/modules/" in one.key]

        assert kept("a/") and all(key.startswith("exported/modules/a/b/@") for key in kept("a/"))

        damaged = next(key for key in listed if "/modules/a/b/" in key)
        whole = client.get_object(Bucket="exported", Key=damaged)
        wrong = whole["Metadata"] | {"distier-sha256": "0" * 64}
        client.put_object(Bucket="exported", Key=damaged, Body=whole["Body"].read(), Metadata=wrong)
        old = tar.read_bytes()
        assert run(["--config", str(path), "archive", "export", str(tmp_path / "damaged.tar")]) == 10
        assert tar.read_bytes() == old
        assert run(["--config", str(path), "archive", "export", str(tmp_path / "no" / "such.tar")]) == 2
        client.close()

    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["tar", "xf", str(tar), "-C", str(copy)], check=True)
    archive = DirectoryArchive(copy)
    assert {f"p/{one.key}" for one in archive.list("exported/")} >= {
        key for key in listed if key.startswith("p/exported/") and "/manifest/" not in key
    }
    archive.close()
    moved = {"namespace": "exported", "near": {"enabled": False}, "storage_tiers": {"cold": {"directory": str(copy)}}}
    with running_server("valkey", tcp=True) as server, connect(moved | {"redis": {"url": server.url}}) as store:
        store.run(rescue(store.space), deadline_s=60)
        found = store.get("a/b")
        assert found is not None and (found.text, list(found.keywords)) == ("newer", ["k"])
        other = store.get("ä")
        assert other is not None and other.content == bytes(range(256))
        assert store.get("gone") is None
    assert not list(tmp_path.glob("*.partial*"))
