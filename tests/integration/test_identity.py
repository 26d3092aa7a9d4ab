"""An archive that was replaced by another or an empty one: a disk that is not mounted, or a wrong URL."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from distier import connect, connect_async
from distier.client import aio, archive_of, make_space
from distier.client import store as store_module
from distier.config import load_config
from distier.doctor.check import examine
from distier.errors import ArchiveUnavailable, ConfigError
from distier.plans.recovery.epochs import WrongArchive
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.rescue import rescue
from distier.stores.directory import DirectoryArchive
from distier.worker import AsyncWorker, Worker
from tests.integration.faulty_s3 import Fault, FaultyS3
from tests.servers import TestServer, running_server

Settings = dict[str, Any]
Replace = Callable[[], None]


@pytest.fixture(autouse=True)
def wait_longer_for_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need more than the two seconds that opening a store spends on the archive."""
    for module in (store_module, aio):
        monkeypatch.setattr(module, "ARCHIVE_LOOK_S", 60.0)


@pytest.fixture
def settings(redis_url: str, kind: str) -> Settings:
    return {
        "redis__url": redis_url, "namespace": "t", "counter": "estimate", "near__enabled": False, "deadline": "10s",
        "storage_tiers__cold__compression_level": 0, "shards": 3 if kind == "directory" else 1, "worker__interval": "20ms",
        "storage_tiers__cold__archive_after": "0s",
    }  # fmt: skip


class Setting:
    """An archive and a way to replace it by an empty one that responds."""

    def __init__(self, kind: str, tmp_path: Path, s3: FaultyS3) -> None:
        self.s3 = s3 if kind == "s3" else None
        self.directory = tmp_path / "cold"
        cold = {"storage_tiers__cold__directory": self.directory}
        self.settings: Settings = s3.settings() if kind == "s3" else cold
        self._away: list[Any] = []

    def put_away(self) -> None:
        if self.s3:
            self._away.append(dict(self.s3.objects))
            self.s3.objects.clear()
        else:
            self.directory.rename(self.directory.with_name(f"away{len(self._away)}"))
            self._away.append(self.directory.with_name(f"away{len(self._away)}"))
            self.directory.mkdir()

    def bring_back(self) -> None:
        if self.s3:
            self.s3.objects.clear()
            self.s3.objects.update(self._away.pop())
        else:
            shutil.rmtree(self.directory)
            self._away.pop().rename(self.directory)

    def objects(self) -> set[str]:
        if self.s3:
            return set(self.s3.objects)
        return {str(p.relative_to(self.directory)) for p in self.directory.rglob("*") if p.is_file()}


@pytest.fixture(params=["directory", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def storage(kind: str, tmp_path: Path) -> Iterator[Setting]:
    with FaultyS3() as s3:
        yield Setting(kind, tmp_path, s3)


def doctor(settings: Settings) -> dict[str, Any]:
    config = load_config({}, **settings)
    url = settings["redis__url"]
    return {f.check: f for f in examine(config, lambda: url, lambda: archive_of(config), make_space)}


async def test_every_client_refuses_another_archive(settings: Settings, storage: Setting):
    settings |= storage.settings
    with connect({}, **settings) as store:
        store.put("m", b"x", durability="archived")
        store.put("n", b"y")
        store.archive_now()
    assert doctor(settings)["identity"].status == "ok"
    storage.put_away()
    before = storage.objects()
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"not the archive of namespace 't'.*mounted.*archive adopt"):
            connect({}, **settings)
        with pytest.raises(ConfigError, match="not the archive"):
            await connect_async({}, **settings)
    assert doctor(settings)["identity"].status == "fail"
    assert not [key for key in storage.objects() - before if key.startswith(("t/", "p/t/"))]
    storage.bring_back()
    with connect({}, **settings) as store:
        assert store.get("m").content == b"x"  # type: ignore[union-attr]
        assert not store.run(fsck(store.space)).remaining


def test_archive_of_another_deployment_is_refused(settings: Settings, storage: Setting, server: TestServer):
    settings |= storage.settings
    connect({}, **settings).close()
    storage.put_away()
    with running_server("valkey") as other:
        connect({}, **settings | {"redis__url": other.socket_url}).close()
        with pytest.raises(ConfigError, match="another identity"):
            connect({}, **settings)


def test_identity_of_the_archive_survives_a_loss_of_redis(settings: Settings, storage: Setting, server: TestServer):
    settings |= storage.settings
    with connect({}, **settings) as store:
        store.put("m", b"x", durability="archived")
    names = {key for key in storage.objects() if "/identity/" in key}
    with server.client() as redis:
        redis.flushall()
    with connect({}, **settings) as store:
        assert store.get("m").content == b"x"  # type: ignore[union-attr]
        assert {key for key in storage.objects() if "/identity/" in key} == names
    storage.put_away()
    with pytest.raises(WrongArchive):
        connect({}, **settings)


def test_namespaces_can_share_an_archive(settings: Settings, storage: Setting):
    settings |= storage.settings
    for name in ("t", "u"):
        with connect({}, **settings | {"namespace": name}) as store:
            store.put("m", name, durability="archived")
    for name in ("t", "u"):
        with connect({}, **settings | {"namespace": name}) as store:
            assert store.get("m").text == name  # type: ignore[union-attr]


def test_concurrent_creators_agree_on_one_identity(settings: Settings, storage: Setting):
    settings |= storage.settings
    failed: list[BaseException] = []

    def create() -> None:
        try:
            connect({}, **settings).close()
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    connect({}, **settings).close()


def remove_identity(server: TestServer, storage: Setting) -> None:
    """Remove the identity, as in a namespace from before identities existed."""
    with server.client() as redis:
        for key in redis.scan_iter("distier:*:epoch"):
            redis.hdel(key, "archive")
    if storage.s3:
        for key in [key for key in storage.s3.objects if "/identity/" in key]:
            del storage.s3.objects[key]
    else:
        shutil.rmtree(storage.directory / "t" / "identity")


def test_namespace_without_identity_gets_one(settings: Settings, storage: Setting, server: TestServer):
    settings |= storage.settings
    with connect({}, **settings) as store:
        store.put("m", b"x", durability="archived")
    remove_identity(server, storage)
    with connect({}, **settings) as store:
        assert store.get("m").content == b"x"  # type: ignore[union-attr]
    assert any("/identity/" in key for key in storage.objects())
    remove_identity(server, storage)
    storage.put_away()
    with pytest.raises(WrongArchive):
        connect({}, **settings)
    assert not any("/identity/" in key for key in storage.objects())


def test_replaced_archive_acknowledges_no_write(settings: Settings, storage: Setting, server: TestServer):
    """The process and its worker continue while the archive is replaced. Data in Redis stays there, and nothing is
    lost.
    """
    settings |= storage.settings
    with connect({}, **settings) as store:
        store.put("m", b"1", durability="archived")
        store.put("n", b"2")
        storage.put_away()
        for call in (
            lambda: store.put("m", b"3", durability="archived"),
            lambda: store.delete("m", durability="archived"),
            lambda: store.put("m", b"3", durability="archived", if_version=store.where("m").version),  # type: ignore[union-attr]
        ):
            with pytest.raises((WrongArchive, ArchiveUnavailable)):
                call()
        worker = Worker(store)
        assert not worker.run_once() and not worker.report.did.get("archived")
        assert store.stats().dirty_count >= 1
        assert store.get("n").content == b"2"  # type: ignore[union-attr]
        storage.bring_back()
    with connect({}, **settings) as store:
        assert Worker(store).run_once() and store.stats().dirty_count == 0
        assert store.get("n").content == b"2"  # type: ignore[union-attr]
        assert not store.run(fsck(store.space, checksums=1)).remaining


async def test_async_worker_writes_nothing_to_a_replaced_archive(settings: Settings, storage: Setting):
    store = await connect_async({}, **settings | storage.settings)
    await store.put("n", b"2")
    storage.put_away()
    worker = AsyncWorker(store)
    assert not await worker.run_once() and not worker.report.did.get("archived")
    await store.close()


def test_no_epoch_is_claimed_in_a_replaced_archive(tmp_path: Path):
    """Redis restarts while the archive is away. An open store claims no epoch in the empty archive."""
    with FaultyS3() as s3, running_server("valkey", args=("--appendonly", "yes")) as server:
        storage = Setting("s3", tmp_path, s3)
        settings: Settings = {
            "redis__url": server.socket_url,
            "namespace": "t",
            "counter": "estimate",
            "near__enabled": False,
        }
        with connect({}, **settings | storage.settings) as store:
            store.put("m", b"1", durability="archived")
            storage.put_away()
            server.restart()
            for call in (lambda: store.put("m", b"2"), lambda: store.put("m", b"2", durability="archived")):
                with pytest.raises(WrongArchive):
                    call()
            storage.bring_back()
            store.put("m", b"3", durability="archived")
            assert store.get("m").content == b"3"  # type: ignore[union-attr]


def test_adopt_gives_the_archive_the_namespaces_identity(
    settings: Settings, storage: Setting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings |= storage.settings
    with connect({}, **settings) as store:
        store.put("old", b"1", durability="archived")
        store.put("hot", b"2", durability="archived")
        store.demote("old", to="cold")
    storage.put_away()
    with pytest.raises(WrongArchive):
        connect({}, **settings)
    adopt(settings)
    with connect({}, **settings) as store:
        assert store.get("hot").content == b"2"  # type: ignore[union-attr]
        store.put("new", b"3", durability="archived")
        assert store.delete("new", durability="archived")
        store.put("new", b"4", durability="archived")
        assert Worker(store).run_once()
        store.run(rescue(store.space), deadline_s=60)
        found = store.run(fsck(store.space, repair=True, checksums=1), deadline_s=60)
        assert found.found.get("object-gone") == 1 and found.found.get("lost-object") == 1
    assert doctor(settings)["identity"].status == "ok"
    storage.bring_back()
    with pytest.raises(WrongArchive):
        connect({}, **settings)


def adopt(settings: Settings) -> None:
    from distier.drive.sync import SyncDriver
    from distier.plans.recovery.identity import adopt_archive
    from distier.stores.redis.open import open_exchange

    config = load_config({}, **settings)
    archive = archive_of(config)
    space = make_space(config, archive)
    with closing(
        SyncDriver(open_exchange(config, settings["redis__url"], space.process.forget), archive, deadline_s=10)
    ) as d:
        d.run(adopt_archive(space))


@pytest.mark.parametrize("kind", ["s3"])
def test_store_opens_while_the_archive_is_away(settings: Settings):
    with FaultyS3() as s3:
        settings |= s3.settings()
        with connect({}, **settings) as store:
            store.put("m", b"1")
        faults: tuple[Fault, ...] = ("stall", "500", "login-page")
        for fault in faults:
            with s3.fault(fault), connect({}, **settings) as store:
                assert store.get("m").content == b"1"  # type: ignore[union-attr]


def test_missing_directory_is_not_created_under_an_open_store(tmp_path: Path):
    archive = DirectoryArchive(tmp_path / "cold")
    (tmp_path / "cold").rename(tmp_path / "away")
    with pytest.raises(Exception, match="cold"):
        archive.put("a/b", b"x", content_type="text/plain", metadata={})
    assert not (tmp_path / "cold").exists()
