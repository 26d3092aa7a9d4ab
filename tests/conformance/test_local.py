"""The node's disk: a copy is right or missing, never wrong and never an error, whatever happens to the file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest

from distier.domain.module import Record
from distier.domain.order import Order
from distier.errors import ConfigError
from distier.stores.local import LocalStore, default_node, environment, file_system, prepare
from distier.stores.local import store as store_module
from tests.children import freeze

LONG = os.environ.get("CHAOS") == "long"
CHILD = Path(__file__).parent / "local_child.py"
FILES = ("data.mdb", "lock.mdb")


def content_of(id: str, version: int = 1, size_bytes: int = 2000) -> bytes:
    """Unique text that compresses somewhat."""
    seed = hashlib.sha256(f"{id}/{version}".encode()).hexdigest()
    return (f"{id} v{version} {seed} " * (size_bytes // 60 + 2)).encode()[:size_bytes]


def record_of(id: str, content: bytes, version: int = 1, *, clean: bool = True) -> Record:
    write_id = hashlib.sha256(f"write id/{id}/{version}".encode()).hexdigest()[:32]
    return Record(
        id=id, tier="cold", order=Order(1, version, write_id), size_bytes=len(content), tokens=1, counter="estimate",
        sha256=hashlib.sha256(content).hexdigest(), content_type="text/plain", keywords=b"", meta=b"", clean=clean, seen=1,
        archived_key=None, archived_bytes=0, codec="", frame_bytes=0, created_ms=0, updated_ms=0, transform=None,
        outline=None, content=None,
    )  # fmt: skip


def keep(store: LocalStore, id: str, version: int = 1, size_bytes: int = 2000) -> bool:
    content = content_of(id, version, size_bytes)
    return store.put(record_of(id, content, version), content)


def keep_in_turn(store: LocalStore, id: str) -> bool:
    """Keep a copy, and try again if another writer was slow (on a busy machine longer than a caller waits)."""
    end_s = time.monotonic() + 20
    while not keep(store, id):
        if time.monotonic() > end_s:
            return False
    return True


def read(store: LocalStore, id: str, version: int = 1, size_bytes: int = 2000) -> bytes | None:
    """Read this version, and check that the store returns exactly its content, or nothing."""
    content = content_of(id, version, size_bytes)
    found = store.get(record_of(id, content, version))
    assert found in (None, content)
    return found


Opener = Callable[..., LocalStore]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Open stores in one directory; `counts` returns the counters of each."""
    stores: list[LocalStore] = []

    def open(directory: Path | None = None, **options: Any) -> LocalStore:
        counts: Counter[str] = Counter()
        settings: dict[str, Any] = {
            "namespace": "ns", "max_modules": 1000, "max_bytes": 64 << 20, "ttl_ms": 3_600_000,
            "count": lambda name, n: counts.update({name: n}),
        } | options  # fmt: skip
        store = LocalStore(directory or tmp_path / "warm", **settings)
        store.counts = counts  # type: ignore[attr-defined]
        stores.append(store)
        return store

    yield open
    for store in stores:
        store.close()


def counts(store: LocalStore) -> Counter[str]:
    found: Counter[str] = store.counts  # type: ignore[attr-defined]
    return found


def inner(store: LocalStore) -> Path:
    return store.directory / "copies"


# -- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 100, 2000, 5000, 70_000, 1_000_000])
@pytest.mark.parametrize("level", [None, 0, 9])
def test_kept_copy_is_read(opened: Opener, size_bytes: int, level: int | None) -> None:
    store = opened(level=level)
    assert keep(store, "a/b", size_bytes=size_bytes)
    assert read(store, "a/b", size_bytes=size_bytes) == content_of("a/b", size_bytes=size_bytes)
    assert read(store, "a/c", size_bytes=size_bytes) is None
    assert counts(store)["local.misses"] == 1


def test_incompressible_content_is_kept(opened: Opener) -> None:
    store, content = opened(), random.Random(1).randbytes(5000)
    record = record_of("noise", content)
    assert store.put(record, content)
    assert store.get(record) == content


def test_only_the_kept_version_of_a_module_is_served(opened: Opener) -> None:
    store = opened()
    keep(store, "m", 1)
    assert read(store, "m", 2) is None
    keep(store, "m", 2)
    assert read(store, "m", 1) is None
    assert read(store, "m", 2) is not None
    assert store.sums().modules == 1


def test_same_write_id_with_other_content_is_not_served(opened: Opener) -> None:
    """This happens after a restore from another source: SHA-256 decides, and the useless copy is dropped."""
    store = opened()
    keep(store, "m")
    other = record_of("m", content_of("m", 2))
    assert store.get(replace(other, order=record_of("m", b"").order)) is None
    assert counts(store)["local.damaged"] == 1
    assert store.sums().modules == 0


def test_dirty_version_is_never_kept(opened: Opener) -> None:
    store, content = opened(), content_of("m")
    with pytest.raises(AssertionError, match="not archived"):
        store.put(record_of("m", content, clean=False), content)
    assert store.sums().modules == 0


def test_namespaces_share_the_disk_and_see_only_their_own(opened: Opener) -> None:
    one, two = opened(namespace="one"), opened(namespace="two")
    keep(one, "m")
    assert read(two, "m") is None
    keep(two, "m")
    assert (one.ids(), two.ids()) == (["m"], ["m"])
    assert one.sums().modules == 2
    assert one.take_changes() == {"m": True}
    assert two.take_changes() == {"m": True}
    assert one.delete("m")
    assert read(two, "m") is not None


def test_copies_of_extreme_ids_and_namespaces_are_kept(opened: Opener) -> None:
    store = opened(namespace="n" * 64)
    ids = ["x" * 256, "ä" * 128, "a b/{c}*?", "…"]
    assert all(keep(store, id) for id in ids)
    assert all(read(store, id) for id in ids)
    assert sorted(store.ids()) == sorted(ids)


def test_copies_survive_closing(opened: Opener) -> None:
    store = opened()
    keep(store, "m")
    store.close()
    again = opened()
    assert read(again, "m") is not None
    assert counts(again)["local.rebuilt"] == 0


# -- budgets --------------------------------------------------------------------------------------------------------


def test_keep_over_budget_evicts_oldest_at_once(opened: Opener) -> None:
    store = opened(max_modules=10, max_bytes=1 << 20)
    for i in range(30):
        assert keep(store, f"m{i}")
        assert store.sums().modules <= 10
    assert sorted(store.ids()) == sorted(f"m{i}" for i in range(20, 30))
    assert counts(store)["local.evicted"] == 20
    changes = store.take_changes()
    assert {id for id, came in changes.items() if came} == set(store.ids())


def test_keep_over_bytes_budget_evicts(opened: Opener) -> None:
    store = opened(max_bytes=200_000, level=None)
    for i in range(50):
        assert keep(store, f"m{i}", size_bytes=30_000)
        assert store.sums().size_bytes <= 200_000
    assert store.sums().modules == 6
    assert not keep(store, "too large", size_bytes=300_000)
    assert counts(store)["local.refused"] == 1
    assert store.sums().modules == 6


def test_copy_read_since_gets_a_second_chance(opened: Opener) -> None:
    store = opened(max_modules=4)
    for i in range(4):
        keep(store, f"m{i}")
    read(store, "m0")
    keep(store, "new")
    assert set(store.ids()) == {"m0", "m2", "m3", "new"}
    for i in range(2):
        keep(store, f"more{i}")
    assert read(store, "m0") is not None
    for i in range(8):  # its second chance was for one round; the next read gave another one
        keep(store, f"again{i}")
    assert read(store, "m0") is None


def test_reads_write_nothing(opened: Opener) -> None:
    store = opened()
    keep(store, "m")
    before = (inner(store) / "data.mdb").read_bytes()
    for _ in range(100):
        read(store, "m")
        read(store, "nothing")
    store.sums(), store.has("m", "x"), store.ids()
    assert (inner(store) / "data.mdb").read_bytes() == before


def test_copies_expire(opened: Opener) -> None:
    now_s = [1000.0]
    store = opened(ttl_ms=60_000, clock=lambda: now_s[0])
    keep(store, "old")
    keep(store, "used")
    now_s[0] += 50
    keep(store, "young")
    assert read(store, "used")
    assert store.expire() == 0
    now_s[0] += 20
    assert store.expire() == 1
    assert set(store.ids()) == {"used", "young"}
    now_s[0] += 100
    assert store.expire() == 2


def test_sums_equal_a_recount_after_any_history(opened: Opener) -> None:
    store = opened(max_modules=20, max_bytes=60_000, level=None)
    rng = random.Random(7)
    for step in range(400):
        id, version = f"m{rng.randrange(40)}", rng.randrange(3)
        match rng.randrange(4):
            case 0 | 1:
                keep(store, id, version, rng.randrange(5000))
            case 2:
                store.delete(id)
            case _:
                store.get(record_of(id, content_of(id, version), version))
        if step % 20 == 0:
            check_consistent(store)


def check_consistent(store: LocalStore) -> None:
    """Check that the sums equal a recount, and that the order names each copy exactly once."""
    shared = store._shared
    with shared.lock, shared.reader() as txn:
        copies = dict(txn.cursor(db=shared.copies).iternext())
        order = list(txn.cursor(db=shared.order).iternext())
    assert sorted(key for _, key in order) == sorted(copies)
    sums = store.sums()
    assert (sums.modules, sums.size_bytes) == (len(copies), sum(len(k) + len(v) for k, v in copies.items()))


# -- the map or the disk is full ----------------------------------------------------------------------------------------


def test_full_map_only_means_that_a_copy_is_not_kept(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is larger than the budgets, but not in this test."""
    monkeypatch.setattr(store_module, "shared", lambda inner, _: environment.Environment(inner, 256 * 1024))
    store = opened(level=None, max_bytes=1 << 30)
    kept = [keep(store, f"m{i}", size_bytes=10_000) for i in range(100)]
    assert all(kept), "the oldest copies make room"
    assert 0 < store.sums().modules < 30
    assert not keep(store, "large", size_bytes=400_000)
    assert counts(store)["local.refused"] == 1
    newest = [i for i in range(100) if read(store, f"m{i}", size_bytes=10_000)]
    assert newest
    check_consistent(store)
    store._shared.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    at = tmp_path / "disk"
    at.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", at], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("may not mount a small file system here")
    yield at
    subprocess.run(["umount", "--lazy", at], check=True)


def test_full_disk_only_means_that_a_copy_is_not_kept(opened: Opener, small_disk: Path) -> None:
    store = opened(small_disk / "warm", level=None)
    kept = [keep(store, f"m{i}", size_bytes=20_000) for i in range(60)]
    assert kept[0], "there was room"
    assert not all(kept)
    assert counts(store)["local.errors"] == kept.count(False)
    there = [i for i in range(60) if read(store, f"m{i}", size_bytes=20_000)]
    assert there == [i for i in range(60) if kept[i]]
    check_consistent(store)


def test_disk_full_from_the_beginning_keeps_nothing(opened: Opener, small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * 510 * 1024)
    store = opened(small_disk / "warm")
    assert not keep(store, "m")
    assert read(store, "m") is None
    assert counts(store)["local.errors"] >= 1


def test_disk_error_in_a_write_is_counted(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    keep(store, "m")

    def fails(*_: Any) -> None:
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    monkeypatch.setattr(store_module, "_committed", fails)
    assert not keep(store, "n")
    assert counts(store)["local.errors"] == 1
    assert read(store, "m")


# -- permissions and paths -------------------------------------------------------------------------------------------


def test_files_of_the_disk_are_owner_only(opened: Opener) -> None:
    before = os.umask(0)
    try:
        store = opened()
        keep(store, "m")
    finally:
        os.umask(before)
    assert inner(store).stat().st_mode & 0o777 == 0o700
    files = list(inner(store).iterdir())
    assert {"data.mdb", "lock.mdb", "writer.lock"} <= {f.name for f in files}
    assert all(f.stat().st_mode & 0o077 == 0 for f in files), [(f.name, oct(f.stat().st_mode)) for f in files]


def test_open_permissions_are_corrected(opened: Opener) -> None:
    store = opened()
    keep(store, "m")
    store.close()
    inner(store).chmod(0o777)
    (inner(store) / "data.mdb").chmod(0o666)
    again = opened()
    assert inner(again).stat().st_mode & 0o777 == 0o700
    assert (inner(again) / "data.mdb").stat().st_mode & 0o777 == 0o600
    assert read(again, "m")


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(ConfigError, match=r"not a directory of this user.*set another"):
        prepare(tmp_path)


def test_symlink_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "copies").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a directory of this user"):
        prepare(tmp_path / "warm")


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "warm").write_text("x")
    for at in (tmp_path / "warm", tmp_path / "warm" / "below"):
        with pytest.raises(ConfigError, match=r"warm is a file, not a directory"):
            prepare(at)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    table = f"/dev/vda / ext4 rw 0 0\nserver:/x {str(tmp_path).replace(' ', chr(92) + '040')} {kind} rw 0 0\n"
    with pytest.raises(ConfigError, match=rf"network file system \({kind}\).*placement to redis"):
        prepare(tmp_path / "warm", table=table)
    prepare(tmp_path / "warm", table="server:/x /elsewhere nfs4 rw 0 0\n/dev/vda / ext4 rw 0 0\n")


def test_innermost_mount_decides_the_file_system() -> None:
    table = "/dev/vda / ext4 rw 0 0\nh:/ /mnt nfs rw 0 0\ntmpfs /mnt/a\\040b tmpfs rw 0 0\n"
    assert file_system(Path("/mnt/a b/c"), table) == "tmpfs"
    assert file_system(Path("/mnt/a"), table) == "nfs"
    assert file_system(Path("/mntx"), table) == "ext4"
    assert file_system(Path("/mnt"), "") == ""


def test_two_directories_are_two_nodes(tmp_path: Path) -> None:
    one, two = prepare(tmp_path / "one"), prepare(tmp_path / "two")
    assert default_node(one) != default_node(two)
    assert default_node(one) == default_node(prepare(tmp_path / "one"))


# -- damage -----------------------------------------------------------------------------------------------------------


def filled(opened: Opener, n: int = 200) -> Path:
    store = opened()
    for i in range(n):
        keep(store, f"m{i}")
    store.close()
    return inner(store)


@pytest.mark.parametrize("left", [0, 1, 100, 4095, 4096, 8191, 8192, 12288, 0.5, 0.9, -4096, -1])
def test_truncated_file_is_replaced(opened: Opener, left: float) -> None:
    path = filled(opened) / "data.mdb"
    size = path.stat().st_size
    os.truncate(path, int(left * size) if isinstance(left, float) else left if left >= 0 else size + left)
    store = opened()
    assert all(read(store, f"m{i}") is None for i in range(200)), "no copy of it can be trusted"
    assert keep(store, "m1")
    assert read(store, "m1")
    assert counts(store)["local.rebuilt"] <= 1  # LMDB takes an empty file for a new one


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("garbage", [b"", b"\0" * 65536, b"\xff" * 65536, random.Random(3).randbytes(65536)])
def test_garbage_file_is_replaced(opened: Opener, name: str, garbage: bytes) -> None:
    path = filled(opened) / name
    path.write_bytes(garbage)
    store = opened()
    for i in range(200):
        read(store, f"m{i}")
    assert keep(store, "m1")
    assert read(store, "m1")


def test_each_damaged_copy_is_dropped(opened: Opener) -> None:
    """Bits are flipped in the contents, where LMDB has no checksum. SHA-256 finds each."""
    store = opened(level=None)
    for i in range(20):
        keep(store, f"m{i}", size_bytes=9000)
    store.close()
    path = inner(store) / "data.mdb"
    data = bytearray(path.read_bytes())
    broken = [f"m{i}" for i in range(0, 20, 3)]
    for id in broken:
        at = data.index(content_of(id, size_bytes=9000)[:60]) + 4000
        data[at] ^= 1
    path.write_bytes(data)
    again = opened(level=None)
    assert {f"m{i}" for i in range(20) if read(again, f"m{i}", size_bytes=9000) is None} == set(broken)
    assert counts(again)["local.damaged"] == len(broken)
    assert again.sums().modules == 20 - len(broken)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("seed", range(200 if LONG else 8))
def test_garbage_pages_cause_no_crash_and_no_wrong_copy(opened: Opener, seed: int) -> None:
    """This is not promised, because LMDB trusts its pages, but it holds. The test runs in a fork, which may crash."""
    path = filled(opened, 400) / "data.mdb"
    data, rng = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(3):
        page = rng.randrange(2, len(data) // 4096)
        data[page * 4096 : page * 4096 + 4096] = rng.randbytes(4096) if seed % 2 else bytes(4096)
    path.write_bytes(data)

    def child() -> None:
        store = opened()
        for i in range(400):
            read(store, f"m{i}")
        assert keep_in_turn(store, "m1")
        assert read(store, "m1")

    assert in_child(child) == 0


def test_file_of_another_boot_is_replaced(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced: after a crash of the host the file may be torn where no check looks."""
    filled(opened)
    monkeypatch.setattr(environment, "boot_id", lambda: "another")
    store = opened()
    assert store.sums().modules == 0
    assert keep(store, "m")
    store.close()
    assert read(opened(), "m")


def test_without_a_boot_id_writes_are_synced(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "boot_id", lambda: "")
    store = opened()
    assert store._shared._env.flags()["sync"]
    keep(store, "m")
    store.close()
    assert read(opened(), "m")


@pytest.mark.parametrize("names", [FILES, FILES[:1], FILES[1:]])
def test_file_removed_or_replaced_while_open(opened: Opener, names: tuple[str, ...]) -> None:
    store = opened()
    keep(store, "m")
    for name in names:
        (inner(store) / name).unlink()
    assert read(store, "m"), "the old one is still mapped"
    assert keep(store, "n")
    assert read(store, "n")
    assert (read(store, "m") is None) == ("data.mdb" in names)
    store._shared._wipe()
    store.tend()
    assert read(store, "n") is None


def test_file_truncated_while_open_is_replaced_before_a_read(opened: Opener) -> None:
    store = opened()
    for i in range(100):
        keep(store, f"m{i}")
    os.truncate(inner(store) / "data.mdb", 8192)
    store.tend()
    assert counts(store)["local.rebuilt"] == 1
    assert read(store, "m1") is None
    assert keep(store, "m1")


def test_lmdb_error_in_a_read_is_a_miss_and_next_writer_replaces_file(opened: Opener) -> None:
    store = opened()
    keep(store, "m")

    def damaged() -> Any:
        raise lmdb.CorruptedError("mdb_get: MDB_CORRUPTED")

    store._shared.reader = damaged
    assert read(store, "m") is None
    assert counts(store)["local.errors"] == 1
    assert read(store, "m") is None, "it is no longer trusted"
    assert keep(store, "m")
    assert read(store, "m")
    assert counts(store)["local.rebuilt"] == 1


# -- threads, forks, processes ------------------------------------------------------------------------------------------


def test_two_stores_of_a_process_share_the_file(opened: Opener) -> None:
    one, two = opened(), opened()
    keep(one, "m")
    assert read(two, "m")
    one.close()
    assert read(two, "m")
    two.close()
    assert read(opened(), "m")


def test_late_thread_does_not_reopen_a_closed_store(opened: Opener) -> None:
    """The store of a thread was closed meanwhile. LMDB allows one environment per process."""
    late = opened()
    keep(late, "m")
    late.close()
    assert not keep(late, "n")
    late.tend()
    assert read(late, "m") is None
    store = opened()
    assert not late.delete("m")
    assert read(store, "m")
    assert keep(store, "n")
    assert counts(store)["local.errors"] == 0


def test_threads_keep_and_read_at_once(opened: Opener) -> None:
    store = opened(max_modules=50)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(150):
                id = f"m{rng.randrange(80)}"
                keep(store, id) if rng.random() < 0.3 else read(store, id)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert counts(store)["local.errors"] == 0
    check_consistent(store)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork; return 0 if it raised nothing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_store_works_in_parent_and_child_of_a_fork(opened: Opener) -> None:
    store = opened()
    keep(store, "before")

    def child() -> None:
        assert keep_in_turn(store, "child")  # opens its own environment
        assert read(store, "before")
        assert read(store, "child")
        assert in_child(lambda: keep_in_turn(store, "grandchild") or 1 / 0) == 0

    stop = threading.Event()
    failures: list[BaseException] = []

    def busy() -> None:
        try:
            while not stop.is_set():
                keep(store, "busy")
                read(store, "before")
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):  # at random moments of the other threads
            assert in_child(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert read(store, "before")
    assert read(store, "grandchild")
    assert keep(store, "after")
    assert counts(store)["local.errors"] == 0
    check_consistent(store)


def start_child(directory: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, CHILD, directory, *words], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def test_processes_can_open_the_disk_at_once(tmp_path: Path) -> None:
    children = [start_child(tmp_path / "warm", "once", str(i)) for i in range(6)]
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        reported = json.loads(out)
        assert reported["kept"], reported
        assert not reported["counts"].get("local.rebuilt"), reported


def churning(store: LocalStore, seed: int) -> int:
    """Start a fork that writes and reads until it is killed; a wrong copy ends it earlier."""
    pid = os.fork()
    if pid:
        return pid
    try:
        rng = random.Random(seed)
        while True:
            id = f"m{rng.randrange(100)}"
            if rng.random() < 0.7:
                keep(store, id)
            else:
                read(store, id)
    finally:
        os._exit(1)


def test_file_grown_by_another_process_is_mapped_again(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process makes the file grow beyond the map of this one: that is a miss, and then the file is mapped again."""
    monkeypatch.setattr(store_module, "shared", lambda inner, _: environment.Environment(inner, 1 << 20))
    store = opened()
    keep(store, "m")
    output, _ = start_child(tmp_path / "warm", "grow").communicate(timeout=60)
    assert output == "39\n"
    assert read(store, "m") in (None, content_of("m"))
    store.tend()
    assert read(store, "m")
    assert all(read(store, f"m{i}", size_bytes=100_000) for i in range(39))
    assert keep(store, "n")
    assert counts(store)["local.rebuilt"] == 0
    store._shared.close()


@pytest.mark.timeout(900 if LONG else 300)
def test_killed_writers_leave_a_usable_file(opened: Opener) -> None:
    """kill -9 of many processes in the middle of writes: reads are right, and the file stays usable."""
    store = opened(max_modules=60)
    rng = random.Random(11)
    children: list[int] = []
    hits = 0
    try:
        for n in range(2000 if LONG else 60):
            while len(children) < 3:
                children.append(churning(store, rng.randrange(10**6)))
            for _ in range(50):
                id = f"m{rng.randrange(100)}"
                hits += read(store, id) is not None
            keep(store, f"m{n}")
            time.sleep(rng.random() * 0.02)
            victim = children.pop(rng.randrange(len(children)))
            os.kill(victim, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
            assert status == -signal.SIGKILL, "a writer ended by itself: a wrong copy, or a crash"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert hits > 0
    assert counts(store)["local.errors"] == 0
    assert counts(store)["local.rebuilt"] == 0
    check_consistent(store)


def test_stopped_writer_blocks_no_other_process(opened: Opener, tmp_path: Path) -> None:
    """LMDB itself would wait for the writer for ever."""
    store = opened()
    keep(store, "m")
    child = start_child(tmp_path / "warm", "hold")
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        freeze(child.pid)
        assert not keep(store, "n")
        assert counts(store)["local.busy"] == 1
        assert read(store, "m"), "readers do not wait for writers"
    finally:
        child.kill()
        child.communicate()
    assert keep(store, "n"), "the lock ended with its process"


def test_killed_reader_does_not_hold_pages_for_ever(opened: Opener, tmp_path: Path) -> None:
    store = opened()
    keep(store, "m")
    child = start_child(tmp_path / "warm", "reading")
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.kill()
    child.communicate()
    assert "no active readers" not in store._shared._env.readers()
    store.tend()
    assert "no active readers" in store._shared._env.readers()
