"""Storage classes, restores, encryption, payer and owner: what arrives at a server, and what distier makes of its replies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import boto3
import pytest

from distier.cli import run
from distier.client import connect, connect_async
from distier.config import load_config
from distier.errors import ArchiveUnavailable, ConfigError, Corrupt, DeadlineExceeded, Invalid, NeedsRestore, NotFound
from distier.plans.fleet.sweep import sweep
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.rescue import rescue
from distier.stores.archive import restore
from distier.stores.memory import MemoryArchive
from distier.stores.s3 import S3Archive
from tests.servers import TestServer

from .archives import ACCESS_KEY, SECRET_KEY, fault_server, moto_server, s3_archive

KEY = "team/modules/a/@00000001-00000000000001-0123abcd.md.xz"
SIDECAR = KEY.replace(".md.xz", ".meta.json")
TOMBSTONE = KEY.replace(".md.xz", ".deleted")
EPOCH = "team/epochs/0/@00000001-0123abcd-0123"
TAG = {"ETag": '"x"'}
OWNER = "123456789012"


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def client(moto: str) -> Iterator[Any]:
    made = boto3.session.Session().client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY
    )
    yield made
    made.close()


@pytest.fixture
def bucket(client: Any, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
    client.create_bucket(Bucket=name)
    return name


def put(archive: S3Archive, key: str, data: bytes = b"data") -> None:
    archive.put(key, data, content_type="application/x-xz", metadata={})


# -- what is sent -------------------------------------------------------------------------------------------------------


def test_only_contents_get_the_storage_class(moto: str, client: Any, bucket: str) -> None:
    with closing(s3_archive(moto, f"s3://{bucket}/p", storage_class="GLACIER")) as archive:
        for key in (KEY, SIDECAR, TOMBSTONE, EPOCH):
            put(archive, key)
        archive.check()  # reads its own probe
        assert archive.get(SIDECAR, max_bytes=9) is not None
    kept = {item["Key"]: item["StorageClass"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert kept == {f"p/{KEY}": "GLACIER", **{f"p/{key}": "STANDARD" for key in (SIDECAR, TOMBSTONE, EPOCH)}}


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("prompts/review.md", "review.md.xz"),
        ("notes", "notes.md.xz"),
        ('skills/über mut/A;"B".md', 'A;"B".md.xz'),
    ],
)
def test_browser_saves_a_content_under_the_name_of_its_module(
    moto: str, client: Any, bucket: str, id: str, name: str
) -> None:
    described = {"distier-id": quote(id, safe="/ ;=,:+-._")}
    with closing(s3_archive(moto, f"s3://{bucket}")) as archive:
        for key in (KEY, SIDECAR):
            archive.put(key, b"x", content_type="application/x-xz", metadata=described)
    sent = client.head_object(Bucket=bucket, Key=KEY)["ContentDisposition"]
    assert sent == f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    assert "ContentDisposition" not in client.head_object(Bucket=bucket, Key=SIDECAR)


def test_every_request_names_owner_and_payer() -> None:
    """Also the GET that goes around botocore, after another one succeeded."""
    seen: list[tuple[str, str | None, str | None]] = []

    def reply(method: str, path: str, headers: Any) -> tuple[int, bytes]:
        seen.append((method, headers.get("x-amz-expected-bucket-owner"), headers.get("x-amz-request-payer")))
        if method == "POST" and "restore" in path:
            return 202, b""
        if method == "POST":
            return 200, b"<DeleteResult></DeleteResult>"
        if "list-type" in path:
            return 200, b"<ListBucketResult><Prefix>prefix/</Prefix><IsTruncated>false</IsTruncated></ListBucketResult>"
        return {"DELETE": (204, b""), "PUT": (200, b"")}.get(method, (200, b"data"))

    given: dict[str, Any] = {"requester_pays": True, "expected_bucket_owner": OWNER}
    with fault_server(reply, TAG, with_headers=True) as url, closing(s3_archive(url, **given)) as archive:
        put(archive, KEY)
        for _ in range(3):
            assert archive.get(KEY, max_bytes=10) is not None
        archive.list("")
        archive.delete([KEY])
        archive._batch_deletes = False
        archive.delete([KEY])
        assert archive.restore(KEY, days=1, tier="Bulk") is False
    assert [method for method, *_ in seen] == ["PUT", "GET", "GET", "GET", "GET", "POST", "DELETE", "POST"]
    assert {(owner, payer) for _, owner, payer in seen} == {(OWNER, "requester")}


@pytest.mark.parametrize("bucket_key", [False, True])
def test_put_names_the_kms_key(*, bucket_key: bool) -> None:
    seen: list[dict[str, str]] = []

    def reply(method: str, path: str, headers: Any) -> tuple[int, bytes]:
        seen.append({name.lower(): value for name, value in headers.items() if "encryption" in name.lower()})
        return 200, b"" if method == "PUT" else b"data"

    given: dict[str, Any] = {"kms_key_id": "alias/agents", "bucket_key": bucket_key}
    with fault_server(reply, TAG, with_headers=True) as url, closing(s3_archive(url, **given)) as archive:
        put(archive, SIDECAR)
        archive.get(SIDECAR, max_bytes=10)
    prefix = "x-amz-server-side-encryption"
    sent = {prefix: "aws:kms", f"{prefix}-aws-kms-key-id": "alias/agents"}
    assert seen == [sent | ({f"{prefix}-bucket-key-enabled": "true"} if bucket_key else {}), {}]


def test_kms_key_and_class_arrive_in_a_bucket(moto: str, client: Any, bucket: str) -> None:
    with closing(s3_archive(moto, f"s3://{bucket}", kms_key_id="key", storage_class="STANDARD_IA")) as archive:
        put(archive, KEY)
        found = archive.get(KEY, max_bytes=10)
        assert found is not None and found.data == b"data"
    head = client.head_object(Bucket=bucket, Key=KEY)
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"], head["StorageClass"]) == (
        "aws:kms",
        "key",
        "STANDARD_IA",
    )


def test_settings_that_do_not_fit_are_refused() -> None:
    def load(**cold: Any) -> Any:
        return load_config({"redis": {"url": "redis://h"}, "storage_tiers": {"cold": cold}})

    assert load(url="s3://bucket", kms_key_id="k").storage_tiers.cold.requests == {"kms_key_id": "k"}
    assert load(url="s3://bucket").storage_tiers.cold.requests == {}
    for cold in (
        {"url": "s3://bucket", "bucket_key": True}, {"url": "s3://bucket", "expected_bucket_owner": "me"},
        {"url": "s3://bucket", "storage_class": "ICE"}, {"directory": "/x", "storage_class": "GLACIER"},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            load(**cold)
    with pytest.raises(ConfigError, match="bucket_key"):
        s3_archive("http://127.0.0.1:1", bucket_key=True)


# -- restores -----------------------------------------------------------------------------------------------------------


def test_frozen_object_is_restored(moto: str, bucket: str) -> None:
    with closing(s3_archive(moto, f"s3://{bucket}", storage_class="DEEP_ARCHIVE")) as archive:
        put(archive, KEY)
        with pytest.raises(NeedsRestore, match="distier restore"):
            archive.get(KEY, max_bytes=10)
        assert restore(archive, KEY, days=1, tier="Bulk") is False
        assert restore(archive, KEY, days=1, tier="Bulk") is True
        found = archive.get(KEY, max_bytes=10)
        assert found is not None and found.data == b"data"
        put(archive, SIDECAR)
        assert restore(archive, SIDECAR, days=1, tier="Bulk") is True
        with pytest.raises(Corrupt, match="fsck"):
            restore(archive, KEY.replace("0123abcd", "ffffffff"), days=1, tier="Bulk")
    assert restore(MemoryArchive(), KEY, days=1, tier="Bulk") is True


@pytest.mark.parametrize(("reply", "outcome"), [
    ((202, b""), False), ((200, b""), True), ((409, error("RestoreAlreadyInProgress")), False),
    ((403, error("ObjectAlreadyInActiveTierError")), True), ((403, error("InvalidObjectState")), True),
    ((403, error("AccessDenied")), ConfigError), ((503, error("GlacierExpeditedRetrievalNotAvailable")), ArchiveUnavailable),
    ((404, error("NoSuchBucket")), ConfigError), ((404, b""), ConfigError),
    ((200, b"<html>login</html>"), ArchiveUnavailable), ((204, b""), ArchiveUnavailable),
])  # fmt: skip
def test_replies_to_a_restore(reply: tuple[int, bytes], outcome: Any) -> None:
    with fault_server(lambda *_: reply) as url, closing(s3_archive(url)) as archive:
        if isinstance(outcome, bool):
            assert archive.restore(KEY, days=1, tier="Standard") is outcome
        else:
            with pytest.raises(outcome):
                archive.restore(KEY, days=1, tier="Standard")


def test_restore_request_names_days_and_tier() -> None:
    bodies: list[bytes] = []

    def capture(request: Any, **_: Any) -> None:
        bodies.append(request.body)

    with fault_server(lambda *_: (202, b"")) as url, closing(s3_archive(url)) as archive:
        archive._client.meta.events.register("before-send.s3.RestoreObject", capture)
        archive.restore(KEY, days=3, tier="Expedited")
        archive.restore(KEY, days=0, tier="Expedited")
    assert b"<Days>3</Days>" in bodies[0] and b"<Tier>Expedited</Tier>" in bodies[0]
    assert b"Days" not in bodies[1] and b"Tier" not in bodies[1]


# -- a namespace --------------------------------------------------------------------------------------------------------


def settings(server: TestServer, moto: str, bucket: str, **cold: Any) -> dict[str, Any]:
    given = {
        "url": f"s3://{bucket}/p", "endpoint_url": moto, "region": "us-east-1", "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY, "timeout": "20s",
    }  # fmt: skip
    return {
        "redis": {"url": server.url}, "namespace": bucket, "deadline": "20s", "near": {"enabled": False},
        "storage_tiers": {"cold": given | cold},
    }  # fmt: skip


def test_cold_module_in_glacier_is_an_error_until_it_is_restored(
    valkey_server: TestServer, moto: str, bucket: str
) -> None:
    config = settings(valkey_server, moto, bucket, storage_class="GLACIER")
    with connect(config) as store:
        for i in range(5):
            store.put(f"m/{i}", f"text {i}")
        assert store.archive_now() == 5
        assert store.restore("m/0") is True  # it is hot
        for i in range(5):
            store.demote(f"m/{i}", to="cold")
        with pytest.raises(NeedsRestore):
            store.get("m/0")
        assert store.get("absent") is None
        assert store.restore("m/0") is False
        assert store.restore("m/0", wait_s=20) is True
        found = store.get("m/0")
        assert found is not None and found.text == "text 0"
        with pytest.raises(NeedsRestore):
            store.get("m/1")
        for arguments in ({"days": -1}, {"days": True}, {"tier": "Slow"}, {"wait_s": -1}):
            with pytest.raises(Invalid):
                store.restore("m/1", **arguments)
        with pytest.raises(NotFound):
            store.restore("absent")


async def test_async_restore(valkey_server: TestServer, moto: str, bucket: str) -> None:
    async with await connect_async(settings(valkey_server, moto, bucket, storage_class="GLACIER")) as store:
        await store.put("a", "text")
        await store.archive_now()
        await store.demote("a", to="cold")
        assert await store.restore("a") is False
        assert await store.restore("a", wait_s=20) is True
        found = await store.get("a")
        assert found is not None and found.text == "text"


def test_wait_for_a_restore_ends_at_its_deadline(valkey_server: TestServer, moto: str, bucket: str) -> None:
    with connect(settings(valkey_server, moto, bucket, storage_class="GLACIER")) as store:
        store.put("a", "text")
        store.archive_now()
        store.demote("a", to="cold")
        store._driver.archive.restore = lambda key, *, days, tier: False  # type: ignore[attr-defined]
        begun_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="being restored"):
            store.restore("a", wait_s=1.5)
        assert 1 < time.monotonic() - begun_s < 5


def test_rescue_and_fsck_of_frozen_modules(valkey_server: TestServer, moto: str, bucket: str) -> None:
    """More objects than the unavailable ones after which a walk ends: none of them says that the archive is down."""
    config = settings(valkey_server, moto, bucket, storage_class="GLACIER")
    with connect(config) as store:
        for i in range(5):
            store.put(f"m/{i}", f"text {i}")
        store.archive_now()
        for i in range(5):
            store.demote(f"m/{i}", to="cold")
        found = store.run(fsck(store.space, checksums=1), deadline_s=60)
        assert (found.records, found.count("lost")) == (5, 0)
        report = store.run(rescue(store.space, dry_run=True), deadline_s=60)
        assert (report.modules, report.damaged) == (5, False)


def test_cli_restores(valkey_server: TestServer, moto: str, bucket: str, tmp_path: Any) -> None:
    config = settings(valkey_server, moto, bucket, storage_class="GLACIER")
    path = tmp_path / "distier.yaml"
    path.write_text(json.dumps(config))
    with connect(config) as store:
        for id in ("a", "b"):
            store.put(id, "text")
        store.archive_now()
        for id in ("a", "b"):
            store.demote(id, to="cold")
    assert run(["--config", str(path), "get", "a"]) == 5
    assert run(["--config", str(path), "restore", "a", "--tier", "Bulk"]) == 10
    assert run(["--config", str(path), "--json", "restore", "a", "b", "--wait", "--days", "1"]) == 0
    assert run(["--config", str(path), "get", "a", "b"]) == 0
    assert run(["--config", str(path), "restore", "absent"]) == 3


# -- versions of the bucket ---------------------------------------------------------------------------------------------


def test_delete_markers_are_no_objects(valkey_server: TestServer, moto: str, client: Any, bucket: str) -> None:
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with connect(settings(valkey_server, moto, bucket)) as store:
        store.put("a", "one")
        store.put("gone", "x")
        store.archive_now()
        store.put("a", "two")
        store.delete("gone")
        store.archive_now()
        store.demote("a", to="cold")
        assert store.run(sweep(store.space), deadline_s=60) >= 2
        assert store.run(sweep(store.space), deadline_s=60) == 0
        versions = client.list_object_versions(Bucket=bucket)
        assert len(versions["DeleteMarkers"]) >= 2
        found = store.get("a")
        assert found is not None and found.text == "two"
        assert store.get("gone") is None
        findings = store.run(fsck(store.space, checksums=1), deadline_s=60)
        assert (findings.count("lost"), findings.count("fault")) == (0, 0)
        report = store.run(rescue(store.space, dry_run=True), deadline_s=60)
        assert (report.modules, report.deleted, report.unreadable) == (1, 1, {})
