"""Keeping the modules of a prefix and the files of a directory equal: `distier sync`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distier.client import Store
from distier.domain.module import Module
from distier.errors import Conflict, Corrupt, DistierError, Full, Invalid, Unavailable
from distier.plans.put.prepare import Item
from distier.policy.merge import Action, Side, Synced, merge

from . import output
from .load import BATCH, batches, item_of, name_of, put_batch, read_bounded
from .save import path_of, save, write_file
from .session import Session
from .tree import Tree

STATE = ".distier-sync.json"
LOOK_S = 1.0
"""Interval in seconds between two looks at the directory, with --watch."""
AGAIN_S = 5.0
PAGE = 1000
TO_STORE = ("put", "delete")
TO_DISK = ("write", "remove")
WORDS = {
    "write": "written", "remove": "removed", "put": "put", "delete": "deleted", "conflict": "changed on both sides",
    "kept": "not equal, and kept",
}  # fmt: skip


@dataclass
class Sync:
    """One directory and one prefix. `left` has the ids that are not equal after the last `once`."""

    session: Session
    store: Store
    tree: Tree
    prefix: str
    allowed: Sequence[str]
    prefer: Side | None
    dry_run: bool = False
    base: dict[str, Synced] = field(default_factory=dict)
    did: Counter[str] = field(default_factory=Counter)
    unknown: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    def once(self) -> None:
        """Compare both sides and make them equal. The failure of one file is reported, and the others go on."""
        self.base, self.left = self._read_state(), set()
        files = self._files()
        actions = [a for a in merge(self.base, self._stored(), files, self.prefer) if a.id not in self.unknown]
        before = dict(self.base)
        try:
            self._act(actions)
        finally:  # after Ctrl-C too: what was done counts as equal
            if self.base != before and not self.dry_run:
                self._write_state()

    def _act(self, actions: Sequence[Action]) -> None:
        todo: dict[str, list[Action]] = {"write": [], "put": []}
        for action in actions:
            if action.kind == "note":
                self.base[action.id] = Synced(action.sha256, action.version)
            elif action.kind == "forget":
                del self.base[action.id]
            elif action.kind == "conflict":
                self._say("conflict", action.id)
                self.left.add(action.id)
            elif action.kind not in self.allowed:
                self._say("kept", action.id)
                self.left.add(action.id)
            elif self.dry_run:
                self._say(action.kind, action.id)
            elif action.kind in todo:
                todo[action.kind].append(action)
            else:
                with self._reported(action):
                    (self._remove if action.kind == "remove" else self._delete)(action)
        for start in range(0, len(todo["write"]), BATCH):
            self._write(todo["write"][start : start + BATCH])
        self._put(todo["put"])

    # -- the directory -------------------------------------------------------------------------------------------------

    def _path(self, id: str) -> Path:
        return path_of(self.tree.root, id, id.removeprefix(self.prefix))

    def _files(self) -> dict[str, str]:
        """Return the SHA-256 of each file by its module's id.

        A file that an earlier sync had is read even where the rules of the tree leave it out by now. What exists but cannot be
        read is `unknown`, and nothing is done about it. So a module is deleted only for a file that is gone.
        """
        self.unknown = set()
        found: dict[str, str] = {}
        for path, real in self._walk(self.tree):
            try:
                id = self.prefix + name_of(path)
            except Invalid as e:
                self.session.failed(e)
                self.left.add(repr(path))
                continue
            self._read(id, real, found)
        for id in self.base.keys() - found.keys() - self.unknown:
            path = self._path(id)
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                pass
            self._read(id, path, found)
        return found

    def _walk(self, tree: Tree) -> Iterator[tuple[Path, Path]]:
        """Yield the files of the tree, without those that `sync` itself keeps there or left there when it was killed."""
        for path, real in tree.files() if tree.root.exists() else ():
            if path != Path(STATE) and not (path.name.startswith(".") and path.name.endswith(".part")):
                yield path, real

    def _read(self, id: str, path: Path, found: dict[str, str]) -> None:
        try:
            if path.is_symlink() or not path.is_file():
                raise Invalid(f"{path} is no regular file")
            found[id] = _sha256(path)
        except (OSError, Invalid) as e:
            self.session.failed(e if isinstance(e, Invalid) else Invalid(f"{path} cannot be read: {e.strerror}"))
            self.unknown.add(id)
            self.left.add(id)

    def _write(self, actions: Sequence[Action]) -> None:
        found: dict[str, Module | None] = {}
        with suppress(Corrupt, Unavailable):  # then one by one, so that one bad module does not hold up the others
            found = self.store.get_many([action.id for action in actions])
        for action in actions:
            with self._reported(action):
                module = found[action.id] if action.id in found else self.store.get(action.id)
                if module is None:
                    continue  # deleted since the listing: the next sync sees it
                self._check_unchanged(action)
                save(self.tree.root, action.id, action.id.removeprefix(self.prefix), module.content)
                self.base[action.id] = Synced(hashlib.sha256(module.content).hexdigest(), str(module.version))

    def _remove(self, action: Action) -> None:
        self._check_unchanged(action)
        path = self._path(action.id)
        try:
            path.unlink()
            for parent in path.parents:
                if parent == self.tree.root or any(parent.iterdir()):
                    break
                parent.rmdir()
        except OSError as e:
            raise Invalid(f"{path} cannot be removed: {e.strerror}") from None
        del self.base[action.id]

    def _check_unchanged(self, action: Action) -> None:
        """Raise `Conflict` if the file has changed since it was compared."""
        path = self._path(action.id)
        now = _sha256(path) if path.is_file() else ""
        if now != action.sha256:
            raise Conflict(f"{path} was changed meanwhile; run the same command again")

    # -- the store -----------------------------------------------------------------------------------------------------

    def _stored(self) -> dict[str, Synced]:
        found: dict[str, Synced] = {}
        after: str | None = ""
        while after is not None:
            page = self.store.page(self.prefix, after=after, limit=PAGE)
            found |= {m.id: Synced(m.sha256, str(m.version)) for m in page.modules}
            after = page.after
        return found

    def _items(self, actions: Sequence[Action]) -> Iterator[tuple[Action, Item]]:
        for action in actions:
            with self._reported(action, done=False):
                item = self._item(action)
                yield action, item

    def _put(self, actions: Sequence[Action]) -> None:
        for some in batches(self._items(actions)):
            for (action, _), result in zip(
                some, put_batch(self.session, self.store, [i for _, i in some]), strict=True
            ):
                with self._reported(action):
                    if isinstance(result, DistierError):
                        raise result
                    self.base[action.id] = Synced(action.sha256, str(result.version))

    def _item(self, action: Action) -> Item:
        path = self._path(action.id)
        given: dict[str, Any] = {"keywords": (), "meta": {}, "content_type": None, "durability": None, "ttl": None}
        try:
            content = read_bounded(path, self.store.space.config.max_module_bytes, f"module {action.id!r}")
        except OSError as e:
            raise Invalid(f"{path} cannot be read: {e.strerror}") from None
        if hashlib.sha256(content).hexdigest() != action.sha256:
            raise Conflict(f"{path} was changed meanwhile; run the same command again")
        return item_of(action.id, content, given, if_version=action.version or 0)

    def _delete(self, action: Action) -> None:
        self.store.delete(action.id, if_version=action.version)
        del self.base[action.id]

    # -- state and output ----------------------------------------------------------------------------------------------

    def _read_state(self) -> dict[str, Synced]:
        path = self.tree.root / STATE
        try:
            state = json.loads(path.read_text("utf-8"))
            kept, modules = (
                (state["namespace"], state["prefix"]),
                {id: Synced(*pair) for id, pair in state["modules"].items()},
            )
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise Invalid(
                f"{path} cannot be read ({e!r:.200}); remove it, and the next sync compares both sides as if it were the first"
            ) from None
        if kept != (self.store.space.namespace, self.prefix):
            raise Invalid(
                f"{self.tree.root} is kept equal to {kept[1]!r} of namespace {kept[0]!r}; use another one, or remove {path}"
            )
        return modules

    def _write_state(self) -> None:
        state = {
            "namespace": self.store.space.namespace,
            "prefix": self.prefix,
            "modules": dict(sorted(self.base.items())),
        }
        self.tree.root.mkdir(parents=True, exist_ok=True)
        write_file(self.tree.root / STATE, json.dumps(state, ensure_ascii=False, indent=0).encode())

    @contextmanager
    def _reported(self, action: Action, *, done: bool = True) -> Iterator[None]:
        """Report what was done, or why it was not."""
        try:
            yield
        except (Conflict, Invalid, Corrupt, Full, Unavailable, OSError) as e:
            error = e if isinstance(e, DistierError) else Invalid(f"module {action.id!r}: {e}")
            self.left.add(action.id)
            self.session.failed(error)
        else:
            if done and action.kind != "note":
                self._say(action.kind, action.id)

    def _say(self, kind: str, id: str) -> None:
        self.did[kind] += 1
        self.session.print_result({"id": id, "action": kind}, f"{kind:<8} {output.shown(id)}")

    def summary(self) -> None:
        parts = [f"{output.number(n)} {WORDS[kind]}" for kind, n in sorted(self.did.items())]
        text = ", ".join(parts) if parts else "nothing to do"
        output.say(
            f"{output.counted(len(self.base.keys() - self.left), 'file')} equal: {text}"
            + (" (dry run)" if self.dry_run else "")
        )
        if self.did["conflict"]:
            output.say("both sides of these have changed: choose with --prefer store or --prefer disk")

    def forever(self) -> None:
        """Synchronize, and again whenever an event names a module of the prefix, or a file has changed."""
        changed = threading.Event()

        def heard(event: Any) -> None:
            if not event.id or event.id.startswith(self.prefix):
                changed.set()

        stop = self.store.on("event", heard)
        try:
            seen = self._look()
            self.once()
            self.summary()
            output.say(f"distier: watching {self.prefix!r} and {self.tree.root}; press Ctrl-C to stop")
            while True:
                changed.wait(LOOK_S)
                now = self._look()
                if not changed.is_set() and now == seen:
                    continue
                changed.clear()
                seen = now  # not what is there after the sync, which may have missed the latest change
                try:
                    self.once()
                except Unavailable as e:
                    self.session.failed(e)
                    changed.set()
                    time.sleep(AGAIN_S)
        finally:
            stop()

    def _look(self) -> dict[str, tuple[int, int]]:
        """Return time and size of each file, to see that one has changed. A sync says what is skipped."""
        found = {}
        for path, real in self._walk(replace(self.tree, say=lambda _: None)):
            try:
                status = real.stat()
            except OSError:
                continue  # removed since the listing
            found[path.as_posix()] = (status.st_mtime_ns, status.st_size)
        return found


@contextmanager
def only_here(root: Path) -> Iterator[None]:
    """Lock a directory, so that two syncs do not overwrite each other's state. Raises `Invalid` if another one has it."""
    root.mkdir(parents=True, exist_ok=True)
    file = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Invalid(f"another distier sync works in {root}: end it first, or wait until it is done") from None
        except OSError as e:  # this file system has no locks
            output.say(f"distier: {root} cannot be locked ({e.strerror}): run only one sync there")
        yield
    finally:
        os.close(file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
