"""`distier sync PREFIX DIR`: both directions, deletions, conflicts, what must not be lost, and following changes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distier import Store
from distier.cli import run as cli
from distier.cli.exits import INVALID
from distier.cli.syncing import Sync as Syncing
from distier.cli.syncing import only_here
from distier.policy.merge import Side, Synced, merge
from tests.integration.world import Open
from tests.servers import poll

Sync = Callable[..., dict[str, str]]
IN_PART = 10
SIDES: tuple[Side, ...] = ("store", "disk")


@pytest.fixture
def store(open_store: Open) -> Store:
    return open_store(storage_tiers__cold__archive_after="1h")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tree"


@pytest.fixture
def environment(store: Store, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTIER_REDIS__URL", redis_url)
    monkeypatch.setenv("DISTIER_NAMESPACE", store.space.namespace)
    monkeypatch.setenv("DISTIER_COUNTER", "estimate")
    monkeypatch.setenv("DISTIER_DEADLINE", "60s")
    monkeypatch.setenv("DISTIER_STORAGE_TIERS__COLD__DIRECTORY", str(tmp_path / "cold"))


@pytest.fixture
def sync(environment: None, directory: Path, capfd: pytest.CaptureFixture[str]) -> Sync:
    """Run `distier sync p DIR`; returns the action on each id."""

    def call(*options: str, code: int = 0) -> dict[str, str]:
        capfd.readouterr()
        got = cli(["sync", "p", str(directory), *options, "--json"])
        printed = capfd.readouterr()
        assert got == code, printed
        return {row["id"]: row["action"] for row in map(json.loads, printed.out.splitlines())}

    return call


def files(directory: Path) -> dict[str, str]:
    found = (path for path in directory.rglob("*") if path.is_file() and path.name != ".distier-sync.json")
    texts = {}
    for path in found:
        with suppress(FileNotFoundError):  # a file that is being written is renamed when it is whole
            texts[path.relative_to(directory).as_posix()] = path.read_text()
    return texts


def modules(store: Store) -> dict[str, str]:
    found = store.get_many(list(store.list("p/")))
    return {id.removeprefix("p/"): module.text for id, module in found.items() if module}


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_both_sides_become_equal_and_stay_so(sync: Sync, store: Store, directory: Path) -> None:
    store.put("p/skills/pdf/SKILL.md", "---\nname: pdf\n---\nstore")
    store.put("p/only-store.md", "s")
    store.put("q/other.md", "not below p")
    write(directory, "only/disk.md", "---\nkeywords: [k]\n---\nd")
    write(directory, ".only-store.md.0123456789ab.part", "left by a process that was killed")
    assert sync() == {"p/skills/pdf/SKILL.md": "write", "p/only-store.md": "write", "p/only/disk.md": "put"}
    (directory / ".only-store.md.0123456789ab.part").unlink()
    assert files(directory) == modules(store) and len(modules(store)) == 3
    assert store.get("p/only/disk.md").keywords == ("k",)  # type: ignore[union-attr]
    assert sync() == {}
    store.put("p/only-store.md", "s2")
    write(directory, "only/disk.md", "d2")
    write(directory, "new.md", "n")
    assert sync() == {"p/only-store.md": "write", "p/only/disk.md": "put", "p/new.md": "put"}
    assert files(directory) == modules(store) == {
        "skills/pdf/SKILL.md": "---\nname: pdf\n---\nstore", "only-store.md": "s2", "only/disk.md": "d2", "new.md": "n",
    }  # fmt: skip


def test_deletions_are_passed_on_and_empty_directories_go(sync: Sync, store: Store, directory: Path) -> None:
    for name in ("a/b/gone.md", "a/stays.md", "from-disk.md"):
        store.put(f"p/{name}", name)
    sync()
    store.delete("p/a/b/gone.md")
    (directory / "from-disk.md").unlink()
    assert sync() == {"p/a/b/gone.md": "remove", "p/from-disk.md": "delete"}
    assert files(directory) == modules(store) == {"a/stays.md": "a/stays.md"}
    assert not (directory / "a/b").exists()


def test_what_changed_on_both_sides_is_left_alone(sync: Sync, store: Store, directory: Path) -> None:
    for name in ("both", "put-and-removed", "deleted-and-written", "equal"):
        store.put(f"p/{name}.md", "first")
    sync()
    store.put("p/both.md", "store")
    write(directory, "both.md", "disk")
    store.put("p/put-and-removed.md", "store")
    (directory / "put-and-removed.md").unlink()
    store.delete("p/deleted-and-written.md")
    write(directory, "deleted-and-written.md", "disk")
    store.put("p/equal.md", "same")
    write(directory, "equal.md", "same")
    conflicts = {"p/both.md", "p/put-and-removed.md", "p/deleted-and-written.md"}
    for _ in range(2):
        assert sync(code=IN_PART) == dict.fromkeys(conflicts, "conflict")
    assert modules(store) == {"both.md": "store", "put-and-removed.md": "store", "equal.md": "same"}
    assert files(directory) == {"both.md": "disk", "deleted-and-written.md": "disk", "equal.md": "same"}
    assert sync("--prefer", "disk") == {
        "p/both.md": "put", "p/put-and-removed.md": "delete", "p/deleted-and-written.md": "put",
    }  # fmt: skip
    assert (
        modules(store) == files(directory) == {"both.md": "disk", "deleted-and-written.md": "disk", "equal.md": "same"}
    )


def test_one_direction_leaves_the_other_side(sync: Sync, store: Store, directory: Path) -> None:
    store.put("p/s.md", "s")
    write(directory, "d.md", "d")
    assert sync("--pull", code=IN_PART) == {"p/s.md": "write", "p/d.md": "kept"}
    assert modules(store) == {"s.md": "s"}
    (directory / "s.md").unlink()
    store.put("p/new.md", "n")
    assert sync("--push", code=IN_PART) == {"p/s.md": "delete", "p/d.md": "put", "p/new.md": "kept"}
    assert files(directory) == {"d.md": "d"}


def test_dry_run_changes_nothing(sync: Sync, store: Store, directory: Path) -> None:
    store.put("p/s.md", "s")
    write(directory, "d.md", "d")
    assert sync("--dry-run") == {"p/s.md": "write", "p/d.md": "put"}
    assert modules(store) == {"s.md": "s"}
    assert files(directory) == {"d.md": "d"} and [path.name for path in directory.iterdir()] == ["d.md"]


def test_a_file_that_cannot_be_read_deletes_no_module(
    sync: Sync, store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("link.md", "denied.md", "ignored.md", "sub/x.md"):
        store.put(f"p/{name}", name)
    sync()
    (directory / "link.md").unlink()
    (directory / "link.md").symlink_to("/etc/hostname")
    write(directory, ".gitignore", "ignored.md\nsub/\n")
    opened = Path.open

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "denied.md":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    sync(code=IN_PART)
    assert modules(store).keys() >= {"link.md", "denied.md", "ignored.md", "sub/x.md"}


def test_ids_that_are_no_paths_are_reported_and_the_others_written(
    sync: Sync, store: Store, directory: Path, tmp_path: Path
) -> None:
    for id in ("p/../escape.md", "p//x.md", "p/fine.md", "p/fine.md/below"):
        store.put(id, "x")
    sync(code=IN_PART)
    assert "fine.md" in files(directory)
    assert not (tmp_path / "escape.md").exists()
    assert set(store.list("p/")) >= {"p/../escape.md", "p//x.md", "p/fine.md/below"}


def test_change_during_the_sync_is_not_overwritten(
    sync: Sync, store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("p/s.md", "1")
    write(directory, "d.md", "1")
    sync()
    store.put("p/s.md", "2")
    write(directory, "d.md", "2")
    act = Syncing._act

    def late(self: Any, actions: Any) -> None:
        write(directory, "s.md", "late")
        store.put("p/d.md", "late")
        act(self, actions)

    monkeypatch.setattr(Syncing, "_act", late)
    sync(code=IN_PART)
    assert files(directory) == {"s.md": "late", "d.md": "2"} and modules(store) == {"s.md": "2", "d.md": "late"}


@pytest.mark.parametrize("damage", ["other prefix", "no json"])
def test_state_of_another_prefix_or_a_damaged_one_is_refused(
    sync: Sync, store: Store, directory: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store.put("p/s.md", "s")
    sync()
    state = directory / ".distier-sync.json"
    state.write_text(state.read_text().replace('"p/"', '"q/"') if damage == "other prefix" else "{")
    (directory / "s.md").unlink()
    assert cli(["sync", "p", str(directory)]) == 9
    assert ("is kept equal to 'q/'" if damage == "other prefix" else "cannot be read") in capfd.readouterr().err
    assert modules(store) == {"s.md": "s"}


@pytest.mark.usefixtures("environment")
def test_watching_process_follows_both_sides_and_stops_at_ctrl_c(store: Store, directory: Path) -> None:
    store.put("p/a.md", "1")
    command = [sys.executable, "-m", "distier", "sync", "p", str(directory), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        poll(lambda: files(directory) == {"a.md": "1"}, timeout_s=60, what="the first sync")
        store.put("p/a.md", "2")
        poll(lambda: files(directory) == {"a.md": "2"}, timeout_s=60, what="the module's change")
        write(directory, "sub/b.md", "b")
        poll(lambda: modules(store) == {"a.md": "2", "sub/b.md": "b"}, timeout_s=60, what="the file's change")
        (directory / "a.md").unlink()
        poll(lambda: modules(store) == {"sub/b.md": "b"}, timeout_s=60, what="the file's end")
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors


def test_only_one_sync_works_in_a_directory(
    sync: Sync, store: Store, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store.put("p/a.md", "1")
    with only_here(directory):
        assert cli(["sync", "p", str(directory)]) == INVALID
        assert "another distier sync works in" in capfd.readouterr().err
        assert sync("--dry-run") == {"p/a.md": "write"} and not files(directory)
    assert sync() == {"p/a.md": "write"}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("side", SIDES)
def test_watching_follows_what_changes_while_it_starts(
    store: Store, directory: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sync has read both sides, and nothing is followed yet."""
    store.put("p/a.md", "1")
    write_state, looks = Syncing._write_state, 0

    def changed_meanwhile(self: Syncing) -> None:
        nonlocal looks
        write_state(self)
        looks += 1
        if looks == 1:
            store.put("p/a.md", "2") if side == "store" else write(directory, "a.md", "2")
        elif looks == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Syncing, "_write_state", changed_meanwhile)
    timer = threading.Timer(30, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        cli(["sync", "p", str(directory), "--watch"])
    finally:
        timer.cancel()
    assert files(directory) == {"a.md": "2"} and modules(store) == {"a.md": "2"}


def test_merge_covers_every_combination() -> None:
    """Each side is absent, as at the last sync, or changed."""
    base = {"x": Synced("was", "1")}
    expected = {
        ("same", "same"): None, ("same", "changed"): "put", ("same", "absent"): "delete", ("changed", "same"): "write",
        ("changed", "changed"): "conflict", ("changed", "absent"): "conflict", ("absent", "same"): "remove",
        ("absent", "changed"): "conflict", ("absent", "absent"): "forget",
    }  # fmt: skip
    for (module, file), kind in expected.items():
        store = {} if module == "absent" else {"x": Synced("was", "1") if module == "same" else Synced("theirs", "2")}
        disk = {} if file == "absent" else {"x": "was" if file == "same" else "mine"}
        assert [a.kind for a in merge(base, store, disk)] == ([kind] if kind else []), (module, file)
        if kind == "conflict":
            for prefer in SIDES:
                (action,) = merge(base, store, disk, prefer)
                assert action.kind in (("write", "remove") if prefer == "store" else ("put", "delete"))
